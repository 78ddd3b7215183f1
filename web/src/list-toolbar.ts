/** Above the list: progress, and actions for several rows at once. */
import { h, icon } from "./dom";
import { count, duration } from "./format";
import { optionsKey, type Store } from "./store";
import { saveFile } from "./export-menu";
import { PROJECT_SUFFIX, writeProject } from "./project";
import { sessionOf } from "./session";
import type { Item } from "./types";
import type { Locating } from "./locate";

export function progressBar(store: Store, locating: Locating): HTMLElement {
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Photos located" });
  const words = h("p", { class: "progress-words" });
  const element = h(
    "section",
    { class: "progress", "aria-label": "Progress", hidden: true },
    bar,
    h("div", { class: "line" }, words, h("button", { type: "button", class: "button small", onclick: () => locating.cancel() }, "Cancel")),
  );
  store.subscribe(["progress"], () => {
    const { progress } = store.state;
    element.hidden = progress === null;
    if (progress === null) return;
    const { total, done, failed, retryIn, startedAt } = progress;
    const finished = done + failed;
    bar.max = total;
    bar.value = finished;
    const each = (performance.now() - startedAt) / 1000 / Math.max(1, finished);
    const left = finished > 2 && total - finished > 4 ? ` · about ${duration(each * (total - finished))} left` : "";
    const wrong = failed > 0 ? ` · ${failed} failed` : "";
    words.textContent =
      retryIn === null
        ? `${finished.toLocaleString("en")} of ${count(total, "done", "done")}${wrong}${left}`
        : `The server is busy; retrying in ${Math.ceil(retryIn)} s · ${finished} of ${total} done`;
  });
  return element;
}

const staleItems = (store: Store): Item[] =>
  store.state.items.filter((item) => item.status === "done" && item.optionsKey !== optionsKey(store.options, item.kind));

export function listToolbar(store: Store, locating: Locating): HTMLElement {
  const button = (act: () => void, ...children: (Node | string)[]): HTMLButtonElement =>
    h("button", { type: "button", class: "button small", onclick: act }, ...children);
  const checked = (): Item[] => store.state.items.filter((item) => item.checked);
  const save = button(() => saveFile(writeProject(sessionOf(store.state)), `photos${PROJECT_SUFFIX}`), icon("download"), "Save project");
  save.title = "One file with photos, answers and limits. Drop it on this page to continue.";
  const failed = (): Item[] => store.state.items.filter((item) => item.status === "failed");

  const all = h("input", {
    type: "checkbox",
    onchange: () => store.updateAll(new Set(store.state.items.map(({ id }) => id)), { checked: all.checked }),
  });
  const total = h("span", {}, "");
  const together = button(() => locating.addGroup(checked().filter(({ kind }) => kind === "photo")), icon("together"), "As one place");
  const remove = button(() => locating.remove(new Set(checked().map(({ id }) => id))), icon("close"), "Remove");
  const retry = button(() => locating.retry(failed()), icon("retry"), "Retry failed");
  const again = button(() => locating.retry(staleItems(store)), icon("retry"), "Locate again");
  const stale = h("p", { class: "stale", role: "status", hidden: true }, h("span", {}), again);
  const element = h(
    "div",
    { class: "toolbar", hidden: true },
    stale,
    h("div", { class: "toolbar-line" }, h("label", { class: "choose-all" }, all, total), together, remove, retry, save),
  );
  store.subscribe(["items", "limits", "model", "topK", "text", "textWeight", "progress"], () => {
    const { items } = store.state;
    element.hidden = items.length === 0;
    const chosen = checked();
    const photos = chosen.filter(({ kind }) => kind === "photo").length;
    all.checked = items.length > 0 && chosen.length === items.length;
    all.indeterminate = chosen.length > 0 && chosen.length < items.length;
    total.textContent = chosen.length > 0 ? `${chosen.length} of ${items.length} selected` : count(items.length, "in the list", "in the list");
    together.hidden = photos < 2;
    remove.hidden = chosen.length === 0;
    save.hidden = chosen.length > 0;
    const wrong = failed().length;
    retry.hidden = wrong === 0 || chosen.length > 0;
    retry.lastChild!.textContent = wrong === 1 ? "Retry the failed one" : `Retry ${wrong} failed`;
    const old = staleItems(store).length;
    stale.hidden = old === 0 || store.state.progress !== null;
    stale.firstElementChild!.textContent = `${count(old, "answer was", "answers were")} made with other settings.`;
  });
  return element;
}
