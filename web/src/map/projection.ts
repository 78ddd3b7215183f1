/**
 * From (lat, lon) to pixels and back: Web Mercator for the flat map, the orthographic projection for the globe.
 *
 * Positions on the flat map are turns: x 0 at 180° W and 1 at 180° E, y 0 at 85.05° N and 1 at 85.05° S.
 */
import { DEGREE, near, vector, wrapped } from "../geo";

export type Kind = "flat" | "globe";

export interface View {
  kind: Kind;
  lat: number;
  lon: number;
  /** The Earth is 256 · 2^zoom pixels around. */
  zoom: number;
  width: number;
  height: number;
}

export const MAX_LAT = 85.0511;
export const MAX_ZOOM = 14;

export const mercatorX = (lon: number): number => lon / 360 + 0.5;

export function mercatorY(lat: number): number {
  const sine = Math.sin(Math.max(-MAX_LAT, Math.min(MAX_LAT, lat)) * DEGREE);
  return 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI);
}

export const latitudeOf = (y: number): number => Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) / DEGREE;

/** A view with all that is computed of it once. */
export class Projection {
  readonly world: number;
  readonly radius: number;
  readonly x: number;
  readonly y: number;
  /** East, north and towards the eye, of the globe. */
  readonly east: [number, number, number];
  readonly north: [number, number, number];
  readonly front: [number, number, number];

  constructor(readonly view: View) {
    this.world = 256 * 2 ** view.zoom;
    this.radius = this.world / (2 * Math.PI);
    this.x = mercatorX(view.lon);
    this.y = mercatorY(view.lat);
    this.front = vector(view.lat, view.lon);
    this.east = vector(0, view.lon + 90);
    this.north = vector(view.lat + 90, view.lon);
  }

  get flat(): boolean {
    return this.view.kind === "flat";
  }

  /** Pixels of a place, or null where it is behind the globe. The flat map gives the copy nearest to the middle. */
  project(lat: number, lon: number): [number, number] | null {
    const { width, height } = this.view;
    if (this.flat) {
      const x = (mercatorX(near(lon, this.view.lon)) - this.x) * this.world + width / 2;
      return [x, (mercatorY(lat) - this.y) * this.world + height / 2];
    }
    const p = vector(lat, lon);
    if (dot(p, this.front) < 0) return null;
    return [width / 2 + this.radius * dot(p, this.east), height / 2 - this.radius * dot(p, this.north)];
  }

  /** The place at a pixel, or null beside the Earth. */
  unproject(x: number, y: number): [number, number] | null {
    const { width, height } = this.view;
    if (this.flat) {
      const row = this.y + (y - height / 2) / this.world;
      if (row < 0 || row > 1) return null;
      return [latitudeOf(row), wrapped((this.x + (x - width / 2) / this.world - 0.5) * 360)];
    }
    const [right, up] = [(x - width / 2) / this.radius, (height / 2 - y) / this.radius];
    const rest = 1 - right * right - up * up;
    if (rest < 0) return null;
    const depth = Math.sqrt(rest);
    const at = (n: 0 | 1 | 2): number => right * this.east[n] + up * this.north[n] + depth * this.front[n];
    return [Math.asin(Math.max(-1, Math.min(1, at(2)))) / DEGREE, Math.atan2(at(1), at(0)) / DEGREE];
  }

  /** Kilometres that a pixel is wide at a latitude, in the middle of the globe. */
  kmPerPixel(lat: number): number {
    return (40_030 / this.world) * (this.flat ? Math.cos(Math.min(MAX_LAT, Math.abs(lat)) * DEGREE) : 1);
  }
}

export function dot(a: readonly [number, number, number], b: readonly [number, number, number]): number {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

/** The least zoom at which the Earth fills the map, a flat one from edge to edge, a globe within it. */
export function leastZoom(view: Pick<View, "kind" | "width" | "height">): number {
  if (view.kind === "flat") return Math.log2(Math.max(256, view.width, view.height) / 256);
  return Math.log2((0.88 * Math.min(view.width, view.height) * Math.PI) / 256);
}

/** A view that the map can show: zoom within its limits, no void beyond the poles. */
export function bounded(view: View): View {
  const zoom = Math.max(leastZoom(view), Math.min(MAX_ZOOM, view.zoom));
  let lat = Math.max(-85, Math.min(85, view.lat));
  if (view.kind === "flat") {
    const half = view.height / 2 / (256 * 2 ** zoom);
    const y = half >= 0.5 ? 0.5 : Math.max(half, Math.min(1 - half, mercatorY(lat)));
    lat = latitudeOf(y);
  }
  return { ...view, zoom, lat, lon: wrapped(view.lon) };
}

/** The view of a kind and size that shows all places, and no more than `maxZoom` near. */
export function fitting(
  places: readonly [number, number][],
  size: Pick<View, "kind" | "width" | "height">,
  maxZoom = 7,
  margin = 72,
): View {
  if (places.length === 0) return bounded({ ...size, lat: 20, lon: 10, zoom: 0 });
  const middle = places.reduce((sum, place) => add(sum, vector(...place)), [0, 0, 0] as [number, number, number]);
  const lon0 = Math.hypot(middle[0], middle[1]) < 1e-6 ? places[0]![1] : Math.atan2(middle[1], middle[0]) / DEGREE;
  const xs = places.map(([, lon]) => mercatorX(near(lon, lon0)));
  const ys = places.map(([lat]) => mercatorY(lat));
  const [west, east, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const room = (pixels: number): number => Math.max(64, pixels - 2 * margin);
  const across = Math.log2(room(size.width) / 256 / Math.max(east - west, 1e-9));
  const down = Math.log2(room(size.height) / 256 / Math.max(bottom - top, 1e-9));
  const lat = latitudeOf((top + bottom) / 2);
  const lon = ((west + east) / 2 - 0.5) * 360;
  const globe = size.kind === "globe" ? Math.log2(1 / Math.max(0.2, Math.cos(lat * DEGREE))) : 0;
  return bounded({ ...size, lat, lon, zoom: Math.min(maxZoom, across, down) + globe });
}

const add = (a: [number, number, number], b: [number, number, number]): [number, number, number] => [
  a[0] + b[0],
  a[1] + b[1],
  a[2] + b[2],
];
