/** Answers of the API, and the state of the page. */

export interface Candidate {
  lat: number;
  lon: number;
  score: number;
  probability: number;
  radius_km: number;
  /** ISO code, "" at sea; null where the server has no extra `places`. */
  country?: string | null;
  place?: string | null;
}

export interface Heat {
  cell_km: number;
  /** lat, lon, probability; the most probable first. */
  cells: [number, number, number][];
}

export interface MultiPolygon {
  type: "MultiPolygon";
  coordinates: [number, number][][][];
}

export interface Polygon {
  type: "Polygon";
  coordinates: [number, number][][];
}

/** The place in a photo's EXIF. */
export interface Exif {
  lat: number;
  lon: number;
  accuracy_m?: number | null;
  time?: string | null;
}

/** An answer, with the fields that reports add. */
export interface Result {
  image?: string;
  text?: string;
  error?: string;
  model?: string;
  gallery?: string;
  version?: string;
  candidates?: Candidate[];
  credible_radius_km?: Record<string, number>;
  within_km?: Record<string, number>;
  countries?: Record<string, number> | null;
  sure?: boolean | null;
  /** Of the weights and of the gallery, in full. */
  sha256?: Record<string, string>;
  regions?: Record<string, MultiPolygon>;
  heat?: Heat;
  thumbnail?: string | null;
  exif?: Exif | null;
  /** Verdict of `geoclip verify` on the photo's own place. */
  verdict?: string | null;
  reason?: string | null;
  remarks?: { text: string }[] | null;
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
  [key: string]: unknown;
}

export interface Country {
  code: string;
  name: string;
}

/** GET /v1/page. */
export interface PageSettings {
  tile_url: string | null;
  tile_attribution: string | null;
  limits: Record<string, number>;
  /** Formats of /v1/export. */
  formats?: string[];
  version?: string;
}

export type Status = "waiting" | "sending" | "done" | "failed";

/** A row of the list: one photo, one text, or several photos as one place. */
export interface Item {
  id: string;
  kind: "photo" | "text" | "together";
  name: string;
  files: readonly File[];
  status: Status;
  error: string | null;
  result: Result | null;
  thumbnail: string | null;
  /** Key of the options that the answer was made with; see optionsKey. */
  optionsKey: string;
  checked: boolean;
}
