/** Above the list: progress, sorting and filtering, and actions for several rows at once. */
import { countryOf, FILTERS, SORT_KEYS, type Arrangement, type SortKey } from "./arrange";
import { h, icon } from "./dom";
import { count, countryName, duration } from "./format";
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

/** Sorting and filtering; without `locating`, as in a report, there are no actions. */
export function listToolbar(store: Store, locating: Locating | null): HTMLElement {
  const { element: actions, render } = locating ? listActions(store, locating) : { element: null, render: () => undefined };
  const arrangement = arrangementBar(store);
  const element = h("div", { class: "toolbar", hidden: true }, arrangement, actions);
  store.subscribe(["items", "arrangement", "limits", "model", "topK", "text", "textWeight", "progress"], () => {
    const { length } = store.state.items;
    arrangement.hidden = length < 2;
    element.hidden = length < (locating ? 1 : 2);
    render();
  });
  return element;
}

function arrangementBar(store: Store): HTMLElement {
  const change = (part: Partial<Arrangement>): void => store.set({ arrangement: { ...store.state.arrangement, ...part } });
  const option = ([value, label]: readonly [string, string]): HTMLElement => h("option", { value }, label);
  const sort = h("select", { "aria-label": "Sort by", onchange: () => change({ sort: sort.value as SortKey }) }, ...Object.entries(SORT_KEYS).map(option));
  const countries = h("optgroup", { label: "Country" });
  const show = h("select", { "aria-label": "Show", onchange: () => change({ show: show.value }) }, ...Object.entries(FILTERS).map(option), countries);
  const search = h("input", { type: "text", "aria-label": "Search the list", placeholder: "Name, place or note", oninput: () => change({ search: search.value }) });
  let codes = "";
  store.subscribe(["items", "arrangement"], () => {
    const { items, arrangement } = store.state;
    const found = [...new Set(items.map(countryOf).filter((code) => code !== null))].sort();
    if (found.join() !== codes) {
      codes = found.join();
      const named = found.map((code) => [`country:${code}`, countryName(code)] as const).sort((a, b) => a[1].localeCompare(b[1]));
      countries.replaceChildren(...named.map(option));
    }
    sort.value = arrangement.sort;
    show.value = arrangement.show;
    if (search.value !== arrangement.search) search.value = arrangement.search;
  });
  return h("div", { class: "arrangement" }, h("label", {}, h("span", {}, "Sort"), sort), h("label", {}, h("span", {}, "Show"), show), search);
}

function listActions(store: Store, locating: Locating): { element: HTMLElement; render(): void } {
  const button = (act: () => void, name: Parameters<typeof icon>[0], label: string): HTMLButtonElement =>
    h("button", { type: "button", class: "button small", onclick: act }, icon(name), label);
  const failed = (): Item[] => store.state.items.filter(({ status }) => status === "failed");
  const all = h("input", { type: "checkbox", onchange: () => store.check(all.checked ? store.shown : []) });
  const total = h("span", {}, "");
  const accept = button(() => store.decide(store.checked, "accepted"), "accept", "Accept");
  const reject = button(() => store.decide(store.checked, "rejected"), "close", "Reject");
  const together = button(() => locating.addGroup(store.checked.filter(({ kind }) => kind === "photo")), "together", "As one place");
  const remove = button(() => locating.remove(new Set(store.checked.map(({ id }) => id))), "remove", "Remove");
  const retry = button(() => locating.retry(failed()), "retry", "Retry failed");
  const save = button(() => saveFile(writeProject(sessionOf(store.state)), `photos${PROJECT_SUFFIX}`), "download", "Save project");
  save.title = "One file with photos, answers, limits and notes. Drop it on this page to continue.";
  const again = button(() => locating.retry(staleItems(store)), "retry", "Locate again");
  const stale = h("p", { class: "stale", role: "status", hidden: true }, h("span", {}), again);
  const line = h("div", { class: "toolbar-line" }, h("label", { class: "choose-all" }, all, total), accept, reject, together, remove, retry, save);
  const render = (): void => {
    const { shown, checked } = store;
    const { length } = store.state.items;
    all.checked = shown.length > 0 && checked.length === shown.length;
    all.indeterminate = checked.length > 0 && checked.length < shown.length;
    total.textContent =
      checked.length > 0
        ? `${checked.length} of ${shown.length} selected`
        : shown.length < length
          ? `${shown.length} of ${length} shown`
          : count(length, "in the list", "in the list");
    together.hidden = checked.filter(({ kind }) => kind === "photo").length < 2;
    for (const each of [accept, reject, remove]) each.hidden = checked.length === 0;
    save.hidden = checked.length > 0;
    const wrong = failed().length;
    retry.hidden = wrong === 0 || checked.length > 0;
    retry.lastChild!.textContent = wrong === 1 ? "Retry the failed one" : `Retry ${wrong} failed`;
    const old = staleItems(store).length;
    stale.hidden = old === 0 || store.state.progress !== null;
    stale.firstElementChild!.textContent = `${count(old, "answer was", "answers were")} made with other settings.`;
  };
  return { element: h("div", {}, stale, line), render };
}
