/** Options of a request: model, limits, text, number of candidates. */
import { h, unique } from "./dom";
import { percent } from "./format";
import type { Store } from "./store";

/** Selects one of the server's models. */
export function modelSelect(store: Store): HTMLElement {
  const select = h("select", { id: unique("model"), "aria-label": "Model", onchange: () => store.set({ model: select.value }) });
  const render = (): void => {
    const { models, model } = store.state;
    select.replaceChildren(...models.map(({ id }) => h("option", { value: id, selected: id === model }, id)));
    select.value = model;
  };
  store.subscribe(["models", "model"], render);
  render();
  return h("div", { class: "model" }, h("label", { for: select.id }, "Model"), select);
}

export function optionsPanel(store: Store, limits: HTMLElement): HTMLElement {
  const text = h("input", {
    type: "text",
    id: unique("text"),
    placeholder: "what you know, in words",
    autocomplete: "off",
    onchange: () => store.set({ text: text.value.trim() }),
  });
  const share = h("output", {}, percent(store.state.textWeight));
  const weight = h("input", {
    type: "range",
    id: unique("weight"),
    min: 0,
    max: 1,
    step: 0.05,
    value: store.state.textWeight,
    oninput: () => (share.textContent = percent(Number(weight.value))),
    onchange: () => store.set({ textWeight: Number(weight.value) }),
  });
  const top = h("input", {
    type: "number",
    id: unique("top"),
    min: 1,
    max: 50,
    value: store.state.topK,
    onchange: () => {
      const wanted = Math.round(Number(top.value)) || 5;
      top.value = String(Math.max(1, Math.min(50, wanted)));
      store.set({ topK: Number(top.value) });
    },
  });
  const shrink = h("input", { type: "checkbox", onchange: () => store.set({ shrink: shrink.checked }) });
  store.subscribe(["text", "textWeight", "topK", "shrink"], () => {
    shrink.checked = store.state.shrink;
    text.value = store.state.text;
    weight.value = String(store.state.textWeight);
    share.textContent = percent(store.state.textWeight);
    top.value = String(store.state.topK);
  });
  const summary = h("span", { class: "badge", hidden: true });
  store.subscribe(["limits", "text"], () => {
    const set = store.state.limits.length + (store.state.text === "" ? 0 : 1);
    summary.textContent = String(set);
    summary.hidden = set === 0;
  });
  return h(
    "details",
    { class: "options" },
    h("summary", {}, "What you know already", summary),
    h(
      "div",
      { class: "options-body" },
      limits,
      h(
        "fieldset",
        {},
        h("legend", {}, "Words beside each photo"),
        h("label", { class: "visually-hidden", for: text.id }, "Words beside each photo"),
        text,
        h("div", { class: "weight" }, h("label", { for: weight.id }, "Their weight"), weight, share),
      ),
      h("div", { class: "line" }, h("label", { for: top.id }, "Candidates per photo"), top),
      h(
        "label",
        { class: "choice" },
        shrink,
        h("span", {}, "Send smaller copies of large JPEG photos", h("br"), h("span", { class: "quiet small" }, "For slow connections. Metadata are sent with them; answers may differ slightly.")),
      ),
    ),
  );
}
