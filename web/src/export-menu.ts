/** Downloads of the answers in every format of the server; in a report, as JSON. */
import { exportRecords } from "./api";
import { announce, h, icon } from "./dom";
import { count } from "./format";
import { planOf } from "./plan";
import type { Store } from "./store";
import type { Item, Result } from "./types";

const FORMATS: [id: string, name: string, use: string][] = [
  ["html", "HTML report", "this page as one file; opens without a network"],
  ["geojson", "GeoJSON", "for GIS: candidates and regions"],
  ["gpkg", "GeoPackage", "for QGIS, with styles"],
  ["kmz", "KMZ", "for Google Earth, with the photos"],
  ["kml", "KML", "for Google Earth, without photos"],
  ["csv", "CSV", "one row per candidate"],
  ["csv-bom", "CSV for Excel", "the same after a byte order mark"],
  ["parquet", "Parquet", "for data frames"],
  ["json", "JSON", "complete answers"],
  ["plan", "Plan", "reviewed places for geoclip tag --apply"],
];

/** An item as a record: the answer, the thumbnail, the place in EXIF, the explanation, decision and note. */
export function toRecord(item: Item): Result {
  const { kind, name, files, thumbnail, explanation, decision, note } = item;
  const result: Result = item.status === "done" && item.result ? { ...item.result } : { image: name, error: item.error ?? "not located" };
  if (kind === "photo") result.image = name;
  else if (result.error === undefined && kind === "text") result.text = name;
  else result.image ??= files.map((file) => file.name).join(", ");
  if (thumbnail !== null) result.thumbnail = thumbnail;
  if (explanation !== null && result.error === undefined) result.explanation = explanation;
  if (decision !== null) result.decision = decision;
  if (note !== "") result.note = note;
  return result;
}

export function saveFile(blob: Blob, name: string): void {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** @param serverFormats The formats that the server can write; null in a report. */
export function exportMenu(store: Store, serverFormats: readonly string[] | null): HTMLElement {
  const live = serverFormats !== null;
  const problem = h("p", { class: "error small", role: "alert", hidden: true });
  const formats = FORMATS.filter(([id]) => (serverFormats === null ? ["json"] : [...serverFormats, "plan"]).includes(id));
  const exportable = (): Item[] => {
    const finished = store.shown.filter(({ status }) => status === "done" || status === "failed");
    const checked = finished.filter(({ checked }) => checked);
    return checked.length > 0 ? checked : finished;
  };
  const download = async (format: string, button: HTMLButtonElement): Promise<void> => {
    const items = exportable();
    problem.hidden = true;
    button.disabled = true;
    try {
      if (format === "plan") {
        saveFile(new Blob([planOf(items)], { type: "text/csv" }), "plan.csv");
        announce("The plan is downloaded: save it in the folder of the photos.");
        menu.open = false;
        return;
      }
      const records = items.map(toRecord);
      const blob = live ? await exportRecords(records, format) : new Blob([JSON.stringify(records, null, 1)], { type: "application/json" });
      saveFile(blob, `geoclip.${format.split("-")[0]}`);
      announce(`${count(items.length, "answer")} downloaded as ${format}.`);
      menu.open = false;
    } catch (error) {
      problem.textContent = error instanceof Error ? error.message : String(error);
      problem.hidden = false;
    } finally {
      button.disabled = false;
    }
  };
  const what = h("p", { class: "quiet small" });
  const menu = h(
    "details",
    { class: "menu", ontoggle: () => (what.textContent = `${count(exportable().length, "answer")}: selected or all that the list shows.`) },
    h("summary", { class: "button" }, icon("download"), h("span", {}, "Export")),
    h(
      "div",
      { class: "menu-body" },
      what,
      h(
        "ul",
        {},
        ...formats.map(([id, name, use]) => {
          const button = h("button", { type: "button", class: "menu-item", "data-format": id }, h("strong", {}, name), h("span", {}, use));
          button.addEventListener("click", () => void download(id, button));
          return h("li", {}, button);
        }),
      ),
      problem,
    ),
  );
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    menu.querySelector("summary")?.focus();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!menu.contains(event.target as Node)) menu.open = false;
  });
  store.subscribe(["items", "arrangement"], () => (menu.hidden = exportable().length === 0));
  menu.hidden = true;
  return menu;
}
