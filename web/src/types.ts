/** What the API answers, and what the page keeps of it. */

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

/** Where a photo itself says it was taken. */
export interface Exif {
  lat: number;
  lon: number;
  accuracy_m?: number | null;
  time?: string | null;
}

/** An answer with what a report shows beside it. */
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
  /** How the photo's own place was judged, by `geoclip verify`. */
  verdict?: string | null;
  reason?: string | null;
  remarks?: { text: string }[] | null;
}

/** A place that is known of a photo before it is located: `within` and `not_within` of the API. */
export interface Limit {
  inside: boolean;
  /** As the API and the command line read it: FR, a box, a circle, or GeoJSON. */
  grammar: string;
  /** As a person reads it. */
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
  /** What /v1/export makes. */
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
  /** Options it was asked with, as one string: other options make it stale. */
  asked: string;
  checked: boolean;
}
