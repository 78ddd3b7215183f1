/** Geometry on the sphere, in degrees and kilometres, on top of d3-geo. */
import { geoContains, geoDistance } from "d3-geo";
import type { MultiPolygon, Polygon } from "./types";

export const EARTH_RADIUS_KM = 6371.0088;
const CUT_TOLERANCE = 1e-3;
export const DEGREE = Math.PI / 180;

/** [longitude, latitude], as in GeoJSON. */
export type Position = [number, number];

/** Great-circle distance. */
export function distanceKm(lat1: number, lon1: number, lat2: number, lon2: number): number {
  return EARTH_RADIUS_KM * geoDistance([lon1, lat1], [lon2, lat2]);
}

/** A longitude within -180 and 180. */
export function wrapLongitude(lon: number): number {
  return lon >= -180 && lon <= 180 ? lon : ((((lon + 180) % 360) + 360) % 360) - 180;
}

/** The same longitude, written within 180 degrees of another. */
export function nearestLongitude(lon: number, other: number): number {
  return lon - 360 * Math.round((lon - other) / 360);
}

/**
 * Rings of a polygon in the winding order of d3-geo: exteriors clockwise, holes counterclockwise.
 *
 * RFC 7946 asks for the opposite, and d3-geo would fill the rest of the Earth instead.
 */
export function rewind(rings: readonly Position[][]): Position[][] {
  return rings.map((ring, index) => (signedArea(ring) > 0 === (index === 0) ? [...ring].reverse() : ring));
}

/** Positive if the ring is counterclockwise in longitude and latitude. */
function signedArea(ring: readonly Position[]): number {
  return ring.slice(1).reduce((sum, [x, y], index) => sum + ring[index]![0] * y - x * ring[index]![1], 0) / 2;
}

/** A line with points at most `step` degrees apart: its edges stay straight in longitude and latitude. */
export function densify(line: readonly Position[], step = 2): Position[] {
  return line.slice(1).reduce<Position[]>((points, [lon, lat]) => {
    const [x, y] = points.at(-1)!;
    const goal = nearestLongitude(lon, x);
    const parts = Math.max(1, Math.ceil(Math.max(Math.abs(goal - x), Math.abs(lat - y)) / step));
    for (let part = 1; part <= parts; part++) points.push([x + ((goal - x) * part) / parts, y + ((lat - y) * part) / parts]);
    return points;
  }, line.slice(0, 1));
}

/** Rings as lines, without the edges along 180 degrees and the poles, where GeoJSON cuts polygons. */
export function outlines(rings: readonly (readonly GeoJSON.Position[])[]): GeoJSON.Position[][] {
  const isAt = (a: number | undefined, b: number | undefined, edge: number): boolean =>
    Math.abs(Math.abs(a!) - edge) < CUT_TOLERANCE && Math.abs(Math.abs(b!) - edge) < CUT_TOLERANCE;
  return rings.flatMap((ring) => {
    const lines: GeoJSON.Position[][] = [[ring[0]!]];
    ring.slice(1).forEach((point, index) => {
      const before = ring[index]!;
      if (isAt(before[0], point[0], 180) || isAt(before[1], point[1], 90)) lines.push([point]);
      else lines.at(-1)!.push(point);
    });
    return lines.filter(({ length }) => length > 1);
  });
}

/** Whether a place lies in an area of GeoJSON. */
export function contains(area: MultiPolygon | Polygon, lat: number, lon: number): boolean {
  const polygons = area.type === "Polygon" ? [area.coordinates] : area.coordinates;
  return geoContains({ type: "MultiPolygon", coordinates: polygons.map(rewind) }, [lon, lat]);
}
