/** What is known of the photo, above the map: heat map, regions, limits, the place in EXIF. */
import { geoCircle, type GeoPermissibleObjects } from "d3-geo";
import { EARTH_RADIUS_KM, DEGREE, outlines, rewind } from "../geo";
import { limitShape } from "../limit-syntax";
import type { Limit, MultiPolygon, Result } from "../types";
import { fill, stroke } from "./canvas";
import type { HeatLayer } from "./heatmap";
import type { Palette } from "./palette";
import type { Projection } from "./projection";
import type { World } from "./world";

type Context = CanvasRenderingContext2D;

export interface Layers {
  heat: boolean;
  regions: boolean;
  others: boolean;
}

const MAX_CIRCLE_KM = 2500; // a wider circle says nothing

export function drawLimits(context: Context, limits: readonly Limit[], world: World, at: Projection, colors: Palette): void {
  for (const limit of limits) {
    const shape = limitShape(limit);
    const polygons =
      shape.type === "Country"
        ? (world.level(at.view.zoom).countries.get(shape.code) ?? []).map(({ geometry }) => geometry as GeoJSON.Polygon)
        : [shape];
    fill(context, polygons, at, limit.inside ? colors.limitFill : colors.outsideFill);
    const outline: GeoJSON.MultiLineString = { type: "MultiLineString", coordinates: polygons.flatMap(({ coordinates }) => outlines(coordinates)) };
    stroke(context, [outline], at, { color: limit.inside ? colors.limit : colors.outside, width: 1.6, dash: limit.inside ? [] : [2, 3] });
  }
}

/** Whether the cells of the heat map are wider than the answer is uncertain: they would show a place where there is none. */
function isCoarse(result: Result): boolean {
  return (result.heat?.cell_km ?? 0) > (result.credible_radius_km?.["90"] ?? Infinity);
}

export function drawResult(
  context: Context,
  result: Result,
  layers: Layers,
  heat: HeatLayer,
  ramp: Uint8ClampedArray,
  at: Projection,
  colors: Palette,
): void {
  const { regions } = result;
  if (layers.heat && result.heat && !isCoarse(result)) heat.draw(context, result.heat, at, ramp);
  else if (layers.heat && regions)
    for (const [share, value] of [["90", 60], ["50", 150]] as const) {
      const [red, green, blue, alpha] = ramp.subarray(4 * value, 4 * value + 4) as unknown as [number, number, number, number];
      const region = regions[share];
      if (region) fill(context, [regionShapes(region).area], at, `rgb(${red} ${green} ${blue} / ${(0.75 * alpha) / 255})`);
    }
  const best = result.candidates?.[0];
  if (layers.regions)
    for (const [share, width, dash] of [["90", 1, [5, 4]], ["50", 1.5, []]] as const) {
      const region = regions?.[share];
      const km = result.credible_radius_km?.[share];
      const outline = region
        ? regionShapes(region).outline
        : !regions && best && km !== undefined && km <= MAX_CIRCLE_KM
          ? geoCircle().center([best.lon, best.lat]).radius(km / EARTH_RADIUS_KM / DEGREE)()
          : null;
      if (outline) stroke(context, [outline], at, { color: colors.region, width, dash, halo: colors.halo });
    }
  if (result.exif && best) {
    const line: GeoPermissibleObjects = { type: "LineString", coordinates: [[best.lon, best.lat], [result.exif.lon, result.exif.lat]] };
    stroke(context, [line], at, { color: colors.exif, width: 1.8, dash: [2, 5], halo: colors.halo });
  }
}

interface RegionShapes {
  area: GeoJSON.MultiPolygon;
  outline: GeoJSON.MultiLineString;
}

const shapesOfRegions = new WeakMap<MultiPolygon, RegionShapes>();

function regionShapes(region: MultiPolygon): RegionShapes {
  let shapes = shapesOfRegions.get(region);
  if (shapes === undefined) {
    shapes = {
      area: { type: "MultiPolygon", coordinates: region.coordinates.map(rewind) },
      outline: { type: "MultiLineString", coordinates: outlines(region.coordinates.flat()) },
    };
    shapesOfRegions.set(region, shapes);
  }
  return shapes;
}
