/** The page starts here: live before `geoclip serve`, or frozen as a report. */
import "./styles/index.css";
import { AnswerView } from "./answer";
import * as api from "./api";
import { h, icon } from "./dom";
import { exportMenu, FORMATS } from "./exports";
import { coordinates } from "./format";
import { intake } from "./intake";
import { legend } from "./legend";
import { LimitsPanel } from "./limits";
import { List } from "./list";
import { WorldMap } from "./map/map";
import { Tiles } from "./map/tiles";
import { World } from "./map/world";
import { modelChoice, optionsPanel } from "./options";
import { SendError } from "./queue";
import { facts, frozen, items, type Frozen } from "./report";
import { start, type Store } from "./store";
import { themeToggle } from "./theme";
import { progressBar, toolbar } from "./toolbar";
import type { PageSettings } from "./types";
import { Work } from "./work";

/** The packed map: inlined in a report, a file beside the page otherwise. */
async function world(): Promise<ArrayBuffer | Uint8Array<ArrayBuffer>> {
  const inlined = document.getElementById("world");
  if (inlined?.textContent) return Uint8Array.from(atob(inlined.textContent.trim()), (letter) => letter.charCodeAt(0));
  const path = document.querySelector<HTMLLinkElement>("link[data-world]")!.href;
  const response = await fetch(path);
  if (!response.ok) throw new Error(`The map cannot be read: the server answered ${response.status}.`);
  return response.arrayBuffer();
}

/** The server's settings; asks for a token as long as the server wants one. */
async function settings(): Promise<PageSettings> {
  for (;;) {
    try {
      return await api.settings();
    } catch (error) {
      if (!(error instanceof SendError) || error.status !== 401) throw error;
      api.useToken(await askForToken());
    }
  }
}

function askForToken(): Promise<string> {
  return new Promise((resolve) => {
    const input = h("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
    const dialog = h(
      "dialog",
      { class: "token", "aria-labelledby": "token-title" },
      h(
        "form",
        {
          method: "dialog",
          onsubmit: () => {
            resolve(input.value.trim());
            dialog.remove();
          },
        },
        h("h2", { id: "token-title" }, "This server wants a token"),
        h("label", { for: "token" }, "Token"),
        input,
        h("button", { type: "submit", class: "button" }, "Go on"),
      ),
    );
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
}

async function boot(): Promise<void> {
  const report = frozen();
  const store = start();
  const [bytes, page] = await Promise.all([world(), report ? null : settings()]);
  if (page) {
    const [models, countries] = await Promise.all([api.models(), api.countries().catch(() => [])]);
    store.set({ models, countries, model: models[0]?.id ?? "" });
  }
  const limits = new LimitsPanel(store, (tool, inside) => map.draw(tool, inside));
  const map = new WorldMap(await World.read(bytes), new Tiles(page?.tile_url ?? null, page?.tile_attribution ?? null), {
    selectCandidate: (candidate) => store.set({ candidate }),
    selectDot: (index) => store.select(dots(store)[index]?.id ?? null),
    addLimit: (limit) => limits.add(limit),
  });
  document.getElementById("app")!.replaceChildren(...layout(store, map, limits, page, report));
  follow(store, map);
  if (report) {
    store.set({ items: items(report.records) });
    store.select(store.state.items[0]?.id ?? null);
    document.title = `OpenGeoCLIP report · ${report.records.length === 1 ? store.state.items[0]!.name : `${report.records.length} answers`}`;
  }
  setTimeout(() => map.prepareDetail(), 300); // after the first paint
  document.body.dataset["ready"] = "true";
}

/** Items that have a place, apart from the one that is shown. */
function dots(store: Store): { id: string; place: [number, number] }[] {
  return store.state.items.flatMap((item) => {
    const best = item.id === store.state.selected ? undefined : item.result?.candidates?.[0];
    return best ? [{ id: item.id, place: [best.lat, best.lon] as [number, number] }] : [];
  });
}

/** The map shows what is chosen. */
function follow(store: Store, map: WorldMap): void {
  store.watch(["items", "selected"], () => map.setDots(dots(store).map(({ place }) => place)));
  store.watch(["limits"], () => map.setLimits(store.state.limits));
  let before: unknown = null;
  store.watch(["items", "selected"], () => {
    const result = store.selected?.result ?? null;
    if (result !== before) map.show(result, store.state.candidate);
    before = result;
  });
  store.watch(["candidate"], () => {
    if (store.selected?.result === before) map.show(store.selected?.result ?? null, store.state.candidate);
  });
}

function layout(store: Store, map: WorldMap, limits: LimitsPanel, page: PageSettings | null, report: Frozen | null): HTMLElement[] {
  const work = report ? null : new Work(store, page);
  const list = new List(
    store,
    work && { retry: (item) => work.again([item]), remove: (item) => work.remove(new Set([item.id])) },
  );
  const known = report ? null : (page?.formats ?? FORMATS.map(([id]) => id));
  const head = h(
    "header",
    { class: "head" },
    h("h1", {}, icon("mark"), "OpenGeoCLIP", report && h("span", { class: "head-kind" }, "report")),
    h("div", { class: "head-tools" }, !report && modelChoice(store), exportMenu(store, known), printButton(), themeToggle((dark) => map.setTheme(dark))),
  );
  const left = h(
    "aside",
    { class: "side", "aria-label": "Photos" },
    work && intake({ photos: (files) => work.addPhotos(files), text: (text) => work.addText(text) }),
    work && optionsPanel(store, limits.element),
    work && progressBar(store, work),
    work && toolbar(store, work),
    list.element,
    report && about(report),
  );
  const stage = h("main", { class: "stage" }, map.element, map.controls(), legend(map));
  const answer = new AnswerView(store);
  return [head, h("div", { class: "columns" }, left, stage, answer.element), estimate(store, page), h("div", { class: "drop-here", "aria-hidden": "true" }, "Drop to locate")];
}

function printButton(): HTMLElement {
  return h("button", { type: "button", class: "tool wide-only", "aria-label": "Print", title: "Print", onclick: () => print() }, icon("print"));
}

/** What made the answer, always in sight. */
function estimate(store: Store, page: PageSettings | null): HTMLElement {
  const made = h("span", { class: "made" });
  const paint = (): void => {
    const item = store.selected;
    const result = item?.result;
    const best = result?.candidates?.[store.state.candidate];
    made.textContent = result
      ? [result.model, result.gallery, `OpenGeoCLIP ${result.version ?? ""}`].filter(Boolean).join(" · ")
      : [store.state.model, page?.version ? `OpenGeoCLIP ${page.version}` : ""].filter(Boolean).join(" · ");
    made.title = best ? coordinates(best.lat, best.lon) : "";
  };
  store.watch(["items", "selected", "candidate", "model"], paint);
  paint();
  return h("footer", { class: "foot" }, h("strong", {}, "An estimate, not evidence."), made);
}

function about(report: Frozen): HTMLElement | null {
  const known = facts(report.about);
  if (known.length === 0) return null;
  return h(
    "section",
    { class: "block report-about" },
    h("h2", {}, "About this report"),
    h("dl", {}, ...known.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
  );
}

boot().catch((error: unknown) => {
  const words = error instanceof Error ? error.message : String(error);
  document.getElementById("app")!.replaceChildren(h("p", { class: "error fatal", role: "alert" }, words));
  throw error;
});
