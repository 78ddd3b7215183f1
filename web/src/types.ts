/** Answers of the API, and the state of the page. */

export type { Candidate, CoveredRegion, Explanation, Heat, LookAlike, MultiPolygon, PhotoPlace as Exif, Result } from "./answer";
import type { Explanation, Result } from "./answer";

export interface Polygon {
  type: "Polygon";
  coordinates: [number, number][][];
}

/** An area in which a photo was taken, or not: `within` and `not_within` of the API. */
export interface Limit {
  inside: boolean;
  /** In the syntax of the API and the command line: FR, a box, a circle, or GeoJSON. */
  grammar: string;
  /** For display. */
  label: string;
}

export interface Options {
  model: string;
  topK: number;
  text: string;
  textWeight: number;
  limits: readonly Limit[];
}

export interface Model {
  id: string;
  /** Pixels that the model resizes the shortest edge of an image to. */
  shortest_edge: number;
}

export interface Country {
  code: string;
  name: string;
  /** All that a limit may call it: codes and names. */
  spellings: readonly string[];
}

/** GET /v1/page. */
export interface PageSettings {
  tile_url: string | null;
  tile_attribution: string | null;
  limits: { max_images: number; max_request_mb: number };
  /** Formats of /v1/export. */
  formats: string[];
  version: string;
}

export type Decision = "accepted" | "rejected";

export type Status = "waiting" | "sending" | "done" | "failed";

/** Latitude, longitude, and how many metres a few pixels of the map were when it was clicked. */
export type SetPlace = readonly [lat: number, lon: number, accuracyM: number];

/** A row of the list: one photo, one text, or several photos as one place. */
export interface Item {
  id: string;
  kind: "photo" | "text" | "together";
  name: string;
  files: readonly File[];
  status: Status;
  error: string | null;
  result: Result | null;
  /** What in the photo speaks for one of the candidates. */
  explanation: Explanation | null;
  thumbnail: string | null;
  /** Key of the options that the answer was made with; see optionsKey. */
  optionsKey: string;
  checked: boolean;
  /** What the user decided about the answer. */
  decision: Decision | null;
  /** The place that the user chose instead of the answer. */
  place: SetPlace | null;
  note: string;
}

/** An item of which nothing is known yet. */
export function createItem(id: string, kind: Item["kind"], name: string, files: readonly File[]): Item {
  const empty = { error: null, result: null, explanation: null, thumbnail: null, optionsKey: "", checked: false, decision: null, place: null, note: "" };
  return { id, kind, name, files, status: "waiting", ...empty };
}
