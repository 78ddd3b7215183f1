/** The static report: answers are embedded in the document, no server is needed. */
import { createItem, type Item, type Result } from "./types";

/** The embedded data. */
export interface Report {
  records: Result[];
  about: Record<string, unknown>;
}

/** The data embedded in this document, or null if it is not a report. */
export function readReport(): Report | null {
  const text = document.getElementById("records")?.textContent?.trim();
  if (!text) return null;
  const content = JSON.parse(text) as Result[] | Report;
  return Array.isArray(content) ? { records: content, about: {} } : { records: content.records, about: content.about ?? {} };
}

export function reportItems(records: readonly Result[]): Item[] {
  return records.map((result, index) => ({
    ...createItem(`item-${index + 1}`, result.image ? "photo" : "text", result.image ?? result.text ?? `Answer ${index + 1}`, []),
    status: result.error === undefined ? "done" : "failed",
    error: result.error ?? null,
    result: result.error === undefined ? result : null,
    explanation: result.explanation ?? null,
    thumbnail: result.thumbnail ?? null,
    decision: result.decision ?? null,
    note: result.note ?? "",
  }));
}

/** The metadata of a report as names and values; nested values as JSON. */
export function metadataEntries(about: Record<string, unknown>): [string, string][] {
  return Object.entries(about)
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => [
      name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " "),
      typeof value === "object" ? JSON.stringify(value) : String(value),
    ]);
}
