/** Views of the Earth: Web Mercator for the flat map, the orthographic projection for the globe. */
import { geoBounds, geoDistance, geoMercator, geoMercatorRaw, geoOrthographic, geoPath, type GeoPath, type GeoProjection } from "d3-geo";
import { DEGREE, EARTH_RADIUS_KM, wrapLongitude, type Position } from "../geo";

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

type Size = Pick<View, "kind" | "width" | "height">;

export const MAX_ZOOM = 14;
const MAX_LAT = 85.0511; // of Web Mercator
const CLIP_PADDING_PX = 20; // wider than any line
const ARCTIC_MARGIN = 0.05; // of the world's height, that the flat map may show beyond its northern edge
const SOUTHERN_LAT = -60; // views are framed without Antarctica, unless something lies there

export const worldPixels = (zoom: number): number => 256 * 2 ** zoom;

/** Vertical position on the flat map: 0 at 85.05° N, 1 at 85.05° S. */
export const mercatorY = (lat: number): number =>
  0.5 - geoMercatorRaw(0, Math.max(-MAX_LAT, Math.min(MAX_LAT, lat)) * DEGREE)[1] / (2 * Math.PI);

export const latitudeOf = (y: number): number => geoMercatorRaw.invert!(0, Math.PI * (1 - 2 * y))[1] / DEGREE;

/** Conversion between coordinates and pixels for one view. */
export class Projection {
  readonly world: number;
  private readonly projection: GeoProjection;

  constructor(readonly view: View) {
    const { width, height, lat, lon } = view;
    this.world = worldPixels(view.zoom);
    const projection = this.flat ? geoMercator().rotate([-lon, 0]).center([0, lat]) : geoOrthographic().rotate([-lon, -lat]);
    this.projection = projection
      .scale(this.world / (2 * Math.PI))
      .translate([width / 2, height / 2])
      .clipExtent([
        [-CLIP_PADDING_PX, -CLIP_PADDING_PX],
        [width + CLIP_PADDING_PX, height + CLIP_PADDING_PX],
      ]);
  }

  get flat(): boolean {
    return this.view.kind === "flat";
  }

  /** Pixels from the north-western corner of the flat map to that of the view. */
  get origin(): { x: number; y: number } {
    const { width, height, lat, lon } = this.view;
    return { x: (lon / 360 + 0.5) * this.world - width / 2, y: mercatorY(lat) * this.world - height / 2 };
  }

  /** Pixels of a place, or null where it is behind the globe. The flat map gives the copy nearest to the centre. */
  project(lat: number, lon: number): [number, number] | null {
    if (!this.flat && geoDistance([lon, lat], [this.view.lon, this.view.lat]) > Math.PI / 2) return null;
    return this.projection([lon, lat]);
  }

  /** (lat, lon) of a pixel, or null outside the Earth. */
  unproject(x: number, y: number): [number, number] | null {
    const { width, height } = this.view;
    if (!this.flat && Math.hypot(x - width / 2, y - height / 2) > this.projection.scale()) return null;
    const [lon, lat] = this.projection.invert!([x, y])!;
    return this.flat && Math.abs(lat) > MAX_LAT ? null : [lat, lon];
  }

  /**
   * Draws GeoJSON into a canvas path, clipped to the view.
   *
   * @param precision Pixels that a great-circle edge may be off; 0 draws edges straight, which is faster.
   */
  path(context: CanvasRenderingContext2D, precision = 0.7): GeoPath {
    return geoPath(this.projection.precision(precision), context);
  }

  /** Radians from the centre of the view to its farthest point. */
  get radius(): number {
    const { width, height, lat, lon } = this.view;
    if (this.flat && this.world < 2 * width) return Math.PI;
    const edges = [0, 0.5, 1].flatMap((x) => [0, 0.5, 1].map((y) => this.unproject(x * width, y * height)));
    const farthest = this.flat ? Math.PI : Math.PI / 2;
    return Math.max(...edges.map((place) => (place === null ? farthest : geoDistance([lon, lat], [place[1], place[0]]))));
  }

  /** Kilometres per pixel at a latitude; on the globe, at its centre. */
  kmPerPixel(lat: number): number {
    const equator = (2 * Math.PI * EARTH_RADIUS_KM) / this.world;
    return equator * (this.flat ? Math.cos(Math.min(MAX_LAT, Math.abs(lat)) * DEGREE) : 1);
  }
}

/** The zoom at which the Earth fills the map: a flat one from edge to edge, a globe within it. */
export function minZoom({ kind, width, height }: Size): number {
  if (kind === "flat") return Math.log2(Math.max(256, width, height / (1 + ARCTIC_MARGIN)) / 256);
  return Math.log2((0.88 * Math.min(width, height) * Math.PI) / 256);
}

/** A view that the map can show: the zoom within its limits, nothing beyond the edges of the flat map. */
export function clampView(view: View): View {
  const zoom = Math.max(minZoom(view), Math.min(MAX_ZOOM, view.zoom));
  let lat = Math.max(-85, Math.min(85, view.lat));
  if (view.kind === "flat") {
    const half = view.height / 2 / worldPixels(zoom);
    lat = latitudeOf(Math.max(half - ARCTIC_MARGIN, Math.min(1 - half, mercatorY(lat))));
  }
  return { ...view, zoom, lat, lon: wrapLongitude(view.lon) };
}

/** The view of the whole Earth, without Antarctica as far as the shape of the map allows. */
function worldView(size: Size): View {
  const most = 1.5 * size.width; // at least two thirds of all longitudes are in view
  const world = Math.max(size.width, Math.min(most, size.height / (mercatorY(SOUTHERN_LAT) - mercatorY(84))));
  const y = mercatorY(SOUTHERN_LAT) - size.height / 2 / world;
  return clampView({ ...size, lat: size.kind === "flat" ? latitudeOf(y) : 20, lon: 10, zoom: size.kind === "flat" ? Math.log2(world / 256) : 0 });
}

/** The view that shows all places with a margin, zoomed in no further than `maxZoom`. */
export function fitView(places: readonly Position[], size: Size, maxZoom = 7, margin = 72): View {
  if (places.length === 0) return worldView(size);
  const [[west, south], [eastOrBeyond, north]] = geoBounds({ type: "MultiPoint", coordinates: [...places] });
  const east = eastOrBeyond < west ? eastOrBeyond + 360 : eastOrBeyond;
  const [top, bottom] = [mercatorY(north), mercatorY(south)];
  const room = (pixels: number): number => Math.max(64, pixels - 2 * margin) / 256;
  const across = Math.log2(room(size.width) / Math.max((east - west) / 360, 1e-9));
  const down = Math.log2(room(size.height) / Math.max(bottom - top, 1e-9));
  const zoom = Math.min(maxZoom, across, down);
  let y = (top + bottom) / 2;
  if (size.kind === "flat") {
    const world = worldPixels(Math.max(zoom, minZoom(size)));
    const half = size.height / 2 / world;
    const lowest = bottom + margin / world - half; // the southernmost place stays in view
    y = Math.min(y, Math.max(mercatorY(SOUTHERN_LAT) - half, lowest));
  }
  const lat = latitudeOf(y);
  const globe = size.kind === "globe" ? -Math.log2(Math.max(0.2, Math.cos(lat * DEGREE))) : 0;
  return clampView({ ...size, lat, lon: (west + east) / 2, zoom: zoom + globe });
}

/** The view at the same zoom in which a place lies at a pixel. */
export function anchorView(view: View, [lat, lon]: readonly [number, number], [x, y]: readonly [number, number]): View {
  const world = worldPixels(view.zoom);
  const [right, up] = [x - view.width / 2, view.height / 2 - y];
  if (view.kind === "flat") return { ...view, lon: lon - (360 * right) / world, lat: latitudeOf(mercatorY(lat) + up / world) };
  // Orthographic: sin(lat) = up · cos(center) + depth · sin(center), solved for the latitude of the center.
  const scale = Math.max(world / (2 * Math.PI), Math.hypot(right, up) / 0.98); // beyond the limb counts as close to it
  const [sx, sy] = [right / scale, up / scale];
  const depth = Math.sqrt(1 - sx * sx - sy * sy);
  const sine = Math.sin(lat * DEGREE) / Math.hypot(sy, depth);
  const center = Math.asin(Math.max(-1, Math.min(1, sine))) - Math.atan2(sy, depth);
  const east = Math.atan2(sx, depth * Math.cos(center) - sy * Math.sin(center));
  return { ...view, lat: center / DEGREE, lon: lon - east / DEGREE };
}

/** The view moved by pixels, as if the map were dragged. */
export function panView(view: View, dx: number, dy: number): View {
  return anchorView(view, [view.lat, view.lon], [view.width / 2 + dx, view.height / 2 + dy]);
}

/** The view at another zoom; what lies at a pixel stays there. */
export function zoomView(view: View, zoom: number, x = view.width / 2, y = view.height / 2): View {
  const next = { ...view, zoom: Math.max(minZoom(view), Math.min(MAX_ZOOM, zoom)) };
  const place = new Projection(view).unproject(x, y);
  return place === null ? next : anchorView(next, place, [x, y]);
}
