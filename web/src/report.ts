/** The page frozen: records that stand in the document itself, and nothing to send. */
import type { Item, Result } from "./types";

/** What exports fill in: the records alone, or with what is said about all of them. */
export interface Frozen {
  records: Result[];
  about: Record<string, unknown>;
}

/** The records of this document, or null when it is no report. */
export function frozen(): Frozen | null {
  const text = document.getElementById("records")?.textContent?.trim();
  if (!text) return null;
  const content = JSON.parse(text) as Result[] | Frozen;
  return Array.isArray(content) ? { records: content, about: {} } : { records: content.records, about: content.about ?? {} };
}

export function items(records: readonly Result[]): Item[] {
  return records.map((result, index) => ({
    id: `item-${index + 1}`,
    kind: result.image ? "photo" : "text",
    name: result.image ?? result.text ?? `Answer ${index + 1}`,
    files: [],
    status: result.error === undefined ? "done" : "failed",
    error: result.error ?? null,
    result: result.error === undefined ? result : null,
    thumbnail: result.thumbnail ?? null,
    asked: "",
    checked: false,
  }));
}

/** What is said about the whole report, as names and words; nested values are written out. */
export function facts(about: Record<string, unknown>): [string, string][] {
  return Object.entries(about)
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => [
      name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " "),
      typeof value === "object" ? JSON.stringify(value) : String(value),
    ]);
}
