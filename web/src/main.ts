/** Entry point: the live page of `geoclip serve`, or a static report. */
import "./styles/index.css";
import { AnswerView } from "./answer-view";
import * as api from "./api";
import { announce, h, icon } from "./dom";
import { exportMenu } from "./export-menu";
import { coordinates, count } from "./format";
import { inputPanel, type InputHandlers } from "./input-panel";
import { legend } from "./legend";
import { LimitsPanel } from "./limits-panel";
import { List } from "./list";
import type { Box } from "./map/drawing";
import { WorldMap } from "./map/map";
import { Tiles } from "./map/tiles";
import { World } from "./map/world";
import { modelSelect, optionsPanel } from "./options-panel";
import { readProject } from "./project";
import { metadataEntries, readReport, reportItems, type Report } from "./report";
import { SessionDatabase, sessionOf } from "./session";
import { createStore, type Store } from "./store";
import { themeToggle } from "./theme";
import { listToolbar, progressBar } from "./list-toolbar";
import type { Candidate, PageSettings } from "./types";
import { Locating } from "./locate";
import { tripPanel } from "./trip-panel";

/** The compressed map data: embedded in a report, a separate file otherwise. */
async function fetchWorld(): Promise<ArrayBuffer | Uint8Array<ArrayBuffer>> {
  const embedded = document.getElementById("world");
  if (embedded?.textContent) return Uint8Array.from(atob(embedded.textContent.trim()), (letter) => letter.charCodeAt(0));
  const path = document.querySelector<HTMLLinkElement>("link[data-world]")!.href;
  const response = await fetch(path);
  if (!response.ok) throw new Error(`The map cannot be loaded: HTTP ${response.status}.`);
  return response.arrayBuffer();
}

async function boot(): Promise<void> {
  const report = readReport();
  const store = createStore();
  const [bytes, page] = await Promise.all([fetchWorld(), report ? null : api.settings()]);
  if (page) {
    const [models, countries] = await Promise.all([api.models(), api.countries()]);
    store.set({ models, countries, model: models[0]?.id ?? "" });
  }
  const limits = new LimitsPanel(store, (tool, inside) => map.draw(tool, inside));
  const map = new WorldMap(await World.read(bytes), new Tiles(page?.tile_url ?? null, page?.tile_attribution ?? null), {
    selectCandidate: (candidate) => store.set({ candidate }),
    selectDot: (index) => store.select(dots(store)[index]?.id ?? null),
    addLimit: (limit) => limits.add(limit),
    selectBox: (box) => selectInBox(store, box),
  });
  const locating = page && new Locating(store, page);
  document.getElementById("app")!.replaceChildren(...layout(store, map, limits, locating, page, report));
  connectMap(store, map);
  if (locating) await restoreSession(store, locating);
  if (report) {
    store.set({ items: reportItems(report.records) });
    store.select(store.state.items[0]?.id ?? null);
    document.title = `OpenGeoCLIP report · ${report.records.length === 1 ? store.state.items[0]!.name : `${report.records.length} answers`}`;
  }
  setTimeout(() => map.prepareDetail(), 300); // after the first paint
  document.body.dataset["ready"] = "true";
}

/** The best places of all items that are shown but the selected one. */
function dots(store: Store): { id: string; place: [number, number] }[] {
  return store.shown.flatMap((item) => {
    const best = item.id === store.state.selected ? undefined : item.result?.candidates?.[0];
    const place = item.place ?? (best && [best.lat, best.lon]);
    return place ? [{ id: item.id, place: [place[0]!, place[1]!] as [number, number] }] : [];
  });
}

/** Checks the items whose first candidate lies in a box, and no others. */
function selectInBox(store: Store, { south, west, north, east }: Box): void {
  const isInside = ({ lat, lon }: Candidate): boolean =>
    lat >= south && lat <= north && (west <= east ? lon >= west && lon <= east : lon >= west || lon <= east);
  const inside = store.shown.filter(({ result }) => result?.candidates?.[0] && isInside(result.candidates[0]));
  store.check(inside);
  announce(`${count(inside.length, "photo")} selected.`);
}

/** Keeps the map in step with the selection. */
function connectMap(store: Store, map: WorldMap): void {
  store.subscribe(["items", "selected", "arrangement"], () => map.setDots(dots(store).map(({ place }) => place)));
  store.subscribe(["limits"], () => map.setLimits(store.state.limits));
  let before: unknown = null;
  store.subscribe(["items", "selected"], () => {
    const result = store.selected?.result ?? null;
    if (result !== before) map.show(result, store.state.candidate);
    before = result;
  });
  store.subscribe(["candidate"], () => {
    if (store.selected?.result === before) map.show(store.selected?.result ?? null, store.state.candidate);
  });
}

function layout(store: Store, map: WorldMap, limits: LimitsPanel, locating: Locating | null, page: PageSettings | null, report: Report | null): HTMLElement[] {
  const list = new List(
    store,
    locating && { retry: (item) => locating.retry([item]), remove: (item) => locating.remove(new Set([item.id])) },
  );
  const problem = h("p", { class: "banner", role: "alert", hidden: true });
  store.subscribe(["problem"], () => {
    problem.textContent = store.state.problem;
    problem.hidden = store.state.problem === "";
  });
  const head = h(
    "header",
    { class: "head" },
    h("h1", {}, icon("mark"), h("span", { class: "head-name" }, "OpenGeoCLIP"), report && h("span", { class: "head-kind" }, "report")),
    h("div", { class: "head-tools" }, !report && modelSelect(store), locating && undoButton(store), exportMenu(store, page && page.formats), printButton(), themeToggle((dark) => map.setTheme(dark))),
  );
  const left = h(
    "aside",
    { class: "side", "aria-label": "Photos" },
    problem,
    locating && inputPanel(store, inputHandlers(store, locating)),
    locating && optionsPanel(store, limits.element),
    locating && tripPanel(store, locating),
    locating && progressBar(store, locating),
    listToolbar(store, locating),
    list.element,
    report && about(report),
  );
  const stage = h("main", { class: "stage" }, map.element, ...map.controls(locating !== null), legend(map));
  const answer = new AnswerView(store, locating !== null, locating && ((item, place) => locating.explain(item, place)), (use) => map.pick(use));
  return [head, h("div", { class: "columns" }, left, stage, answer.element), footer(store, page), h("div", { class: "drop-here", "aria-hidden": "true" }, "Drop to locate")];
}

function inputHandlers(store: Store, locating: Locating): InputHandlers {
  return {
    addPhotos: (files) => locating.addPhotos(files),
    addTracks: (files) => store.set({ tracks: [...store.state.tracks, ...files] }),
    addText: (text) => locating.addText(text),
    async openProject(file) {
      const before = sessionOf(store.state);
      locating.load(await readProject(file));
      store.recordUndo(`open ${file.name}`, () => locating.load(before));
    },
  };
}

/** Loads the work of before the reload, and keeps it from now on. */
async function restoreSession(store: Store, locating: Locating): Promise<void> {
  const database = await SessionDatabase.open();
  if (database === null) return;
  try {
    const session = await database.load();
    if (session) locating.load(session);
  } catch (error) {
    store.set({ problem: `The work of before cannot be read, and stays as it is: ${error}. What you do now is not kept: save a project file.` });
    return;
  }
  database.follow(store, (problem) => problem !== store.state.problem && store.set({ problem }));
}

function undoButton(store: Store): HTMLElement {
  const button = h("button", { type: "button", class: "tool", hidden: true, onclick: () => store.undo() }, icon("undo"));
  store.subscribe(["undoLabel"], () => {
    const { undoLabel } = store.state;
    button.hidden = undoLabel === null;
    button.title = `Undo: ${undoLabel}`;
    button.setAttribute("aria-label", button.title);
  });
  addEventListener("keydown", (event) => {
    const isTyping = (event.target as Element).matches?.("textarea, input:not([type=checkbox], [type=radio], [type=range])");
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey || isTyping) return;
    event.preventDefault();
    store.undo();
  });
  return button;
}

function printButton(): HTMLElement {
  return h("button", { type: "button", class: "tool wide-only", "aria-label": "Print", title: "Print", onclick: () => print() }, icon("print"));
}

/** Model, gallery and version of the selected answer. */
function footer(store: Store, page: PageSettings | null): HTMLElement {
  const made = h("span", { class: "made" });
  const render = (): void => {
    const item = store.selected;
    const result = item?.result;
    const best = result?.candidates?.[store.state.candidate];
    made.textContent = result
      ? [result.model, result.gallery, `OpenGeoCLIP ${result.version ?? ""}`].filter(Boolean).join(" · ")
      : [store.state.model, page && `OpenGeoCLIP ${page.version}`].filter(Boolean).join(" · ");
    made.title = best ? coordinates(best.lat, best.lon) : "";
  };
  store.subscribe(["items", "selected", "candidate", "model"], render);
  render();
  return h("footer", { class: "foot" }, h("strong", {}, "An estimate, not evidence."), made);
}

function about(report: Report): HTMLElement | null {
  const entries = metadataEntries(report.about);
  if (entries.length === 0) return null;
  return h(
    "section",
    { class: "block report-about" },
    h("h2", {}, "About this report"),
    h("dl", {}, ...entries.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
  );
}

boot().catch((error: unknown) => {
  const words = error instanceof Error ? error.message : String(error);
  document.getElementById("app")!.replaceChildren(h("p", { class: "error fatal", role: "alert" }, words));
  throw error;
});
