/** Plans of reviewed places, as `geoclip tag --apply` takes them. */
import type { Item } from "./types";

/** The columns of src/open_geoclip/cli/_plan.py. */
export const PLAN_COLUMNS =
  "write image lat lon radius_km probability sure reason anchors estimated_lat estimated_lon model gallery version sha256".split(" ");

type Cell = string | number;

/** One row per photo with an answer; only accepted ones are to be written, at the place that a person chose, if any. */
export function planOf(items: readonly Item[]): string {
  const rows = items.flatMap((item): Cell[][] => {
    const { kind, files, name, result, place, decision, note } = item;
    const best = result?.candidates?.[0];
    if (kind !== "photo" || !result || !best) return [];
    const sure = result.in_distribution === false ? null : (result.sure ?? null);
    const cells: Record<string, Cell> = {
      write: decision === "accepted" ? "yes" : "no",
      image: files[0]?.webkitRelativePath || name,
      lat: place?.[0] ?? best.lat,
      lon: place?.[1] ?? best.lon,
      radius_km: (sure === null ? undefined : result.credible_radius_km?.["90"]) ?? "",
      probability: best.probability,
      sure: sure === null ? "" : String(sure),
      reason: note || (decision === null ? "not reviewed" : ""),
      anchors: [...new Set((result.anchors ?? []).map(({ source }) => source))].join(", "),
      estimated_lat: best.lat,
      estimated_lon: best.lon,
      model: result.model ?? "",
      gallery: result.gallery ?? "",
      version: result.version ?? "",
      sha256: result.sha256?.["image"] ?? "",
    };
    return [PLAN_COLUMNS.map((column) => cells[column]!)];
  });
  return [PLAN_COLUMNS, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
}

/** A cell of CSV (RFC 4180); a text that a spreadsheet would read as a formula gets an apostrophe. */
function cell(value: Cell): string {
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r\n＝＋－＠]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
