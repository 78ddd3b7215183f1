/** Sorting and filtering of the list. */
import { comparison, countryName, exifConflict, placeName, verdict } from "./format";
import type { Item } from "./types";

export const SORT_KEYS = { added: "Order added", name: "Name", sure: "Most certain first", country: "Country", exif: "Distance from EXIF" } as const;
export type SortKey = keyof typeof SORT_KEYS;

/** Which items are shown, by what they are; `country:FR` shows those of a country. */
export const FILTERS = {
  all: "All",
  sure: "Sure",
  unsure: "Not sure",
  conflict: "EXIF does not fit",
  undecided: "Not reviewed",
  accepted: "Accepted",
  rejected: "Rejected",
  failed: "Failed",
} as const;

export interface Arrangement {
  sort: SortKey;
  /** A key of FILTERS, or a country. */
  show: string;
  /** Words that occur in the name, the place or the note. */
  search: string;
}

export const DEFAULT_ARRANGEMENT: Arrangement = { sort: "added", show: "all", search: "" };

const CERTAINTY = ["sure", "unsure", "uncalibrated"];

/** ISO code of the country of the first candidate; null without an answer. */
export function countryOf({ result }: Item): string | null {
  return result?.candidates?.[0]?.country ?? null;
}

/** The items that are shown, in order. */
export function arrange(items: readonly Item[], { sort, show, search }: Arrangement): readonly Item[] {
  const words = search.trim().toLowerCase();
  const isShown = FILTER_TESTS[show] ?? ((item: Item) => `country:${countryOf(item)}` === show);
  const shown = items.filter((item) => isShown(item) && (words === "" || textOf(item).includes(words)));
  if (sort === "added") return shown;
  const keys = new Map(shown.map((item) => [item, sortKey(item, sort)]));
  return shown.sort((a, b) => compare(keys.get(a)!, keys.get(b)!));
}

const FILTER_TESTS: Record<string, (item: Item) => boolean> = {
  all: () => true,
  sure: ({ result }) => result?.sure === true,
  unsure: ({ result }) => result !== null && result.sure !== true,
  conflict: ({ result }) => result !== null && exifConflict(result) !== null,
  undecided: ({ decision }) => decision === null,
  accepted: ({ decision }) => decision === "accepted",
  rejected: ({ decision }) => decision === "rejected",
  failed: ({ status }) => status === "failed",
} satisfies Record<keyof typeof FILTERS, (item: Item) => boolean>;

function textOf({ name, note, result }: Item): string {
  const best = result?.candidates?.[0];
  return [name, note, best && placeName(best), best?.country && countryName(best.country)].join("\n").toLowerCase();
}

/** Items without an answer come last. */
function sortKey(item: Item, sort: SortKey): (string | number)[] {
  const { result, name } = item;
  const best = result?.candidates?.[0];
  if (sort === "name") return [name];
  if (!result || !best) return [Infinity];
  if (sort === "country") return [0, countryName(best.country ?? ""), -best.probability];
  if (sort === "sure") return [CERTAINTY.indexOf(verdict(result).key), -(result.within_km?.["200"] ?? best.probability)];
  return result.exif ? [0, -comparison(result, result.exif).km] : [1];
}

function compare(a: readonly (string | number)[], b: readonly (string | number)[]): number {
  for (const [index, value] of a.entries()) {
    const other = b[index];
    if (value === other) continue;
    if (typeof value === "string") return value.localeCompare(String(other), undefined, { numeric: true });
    return value < Number(other) ? -1 : 1;
  }
  return 0;
}
