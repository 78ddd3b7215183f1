/** Geometry of the Earth, in degrees and kilometres. */
import type { MultiPolygon, Polygon } from "./types";

export const EARTH_RADIUS_KM = 6371.0088;
export const DEGREE = Math.PI / 180;

/** Along the great circle. */
export function distanceKm(lat1: number, lon1: number, lat2: number, lon2: number): number {
  const a = Math.sin(((lat2 - lat1) * DEGREE) / 2);
  const b = Math.sin(((lon2 - lon1) * DEGREE) / 2);
  const h = a * a + Math.cos(lat1 * DEGREE) * Math.cos(lat2 * DEGREE) * b * b;
  return 2 * EARTH_RADIUS_KM * Math.asin(Math.min(1, Math.sqrt(h)));
}

/** A longitude within -180 and 180. */
export function wrapped(lon: number): number {
  return lon >= -180 && lon <= 180 ? lon : ((((lon + 180) % 360) + 360) % 360) - 180;
}

/** The same longitude, written within 180 degrees of another. */
export function near(lon: number, other: number): number {
  return lon - 360 * Math.round((lon - other) / 360);
}

/** Points along the great circle from one place to another, both included; longitudes do not jump. */
export function greatCircle(from: [number, number], to: [number, number], steps = 48): [number, number][] {
  const angle = distanceKm(...from, ...to) / EARTH_RADIUS_KM;
  if (angle < 1e-9) return [from, to];
  const [a, b] = [vector(...from), vector(...to)];
  const points: [number, number][] = [];
  let before = from[1];
  for (let step = 0; step <= steps; step++) {
    const share = step / steps;
    const wa = Math.sin((1 - share) * angle) / Math.sin(angle);
    const wb = Math.sin(share * angle) / Math.sin(angle);
    const [x, y, z] = [wa * a[0] + wb * b[0], wa * a[1] + wb * b[1], wa * a[2] + wb * b[2]];
    before = near(Math.atan2(y, x) / DEGREE, before);
    points.push([Math.atan2(z, Math.hypot(x, y)) / DEGREE, before]);
  }
  return points;
}

/** Points around a centre, `radiusKm` away. */
export function circle(lat: number, lon: number, radiusKm: number, steps = 72): [number, number][] {
  const angle = radiusKm / EARTH_RADIUS_KM;
  return Array.from({ length: steps + 1 }, (_, step) => {
    const bearing = (2 * Math.PI * step) / steps;
    const sine = Math.sin(lat * DEGREE) * Math.cos(angle) + Math.cos(lat * DEGREE) * Math.sin(angle) * Math.cos(bearing);
    const east = Math.atan2(
      Math.sin(bearing) * Math.sin(angle) * Math.cos(lat * DEGREE),
      Math.cos(angle) - Math.sin(lat * DEGREE) * sine,
    );
    return [Math.asin(Math.max(-1, Math.min(1, sine))) / DEGREE, lon + east / DEGREE];
  });
}

/** A vector of length 1: x to (0, 0), z to the north pole. */
export function vector(lat: number, lon: number): [number, number, number] {
  const across = Math.cos(lat * DEGREE);
  return [across * Math.cos(lon * DEGREE), across * Math.sin(lon * DEGREE), Math.sin(lat * DEGREE)];
}

/** Whether a place lies in polygons whose edges are straight in longitude and latitude, as RFC 7946 says. */
export function contains(area: MultiPolygon | Polygon, lat: number, lon: number): boolean {
  const polygons = area.type === "Polygon" ? [area.coordinates] : area.coordinates;
  return polygons.some((rings) => rings.reduce((odd, ring) => odd !== crossesOddly(ring, lat, lon), false));
}

function crossesOddly(ring: readonly [number, number][], lat: number, lon: number): boolean {
  let odd = false;
  for (let here = 0, before = ring.length - 1; here < ring.length; before = here++) {
    const [x1, y1] = ring[here]!;
    const [x2, y2] = ring[before]!;
    if (y1 > lat !== y2 > lat && lon < ((x2 - x1) * (lat - y1)) / (y2 - y1) + x1) odd = !odd;
  }
  return odd;
}
