/** What is known of the photo, above the map: heat, regions, limits, EXIF. */
import { circle, greatCircle } from "../geo";
import { shapeOf } from "../limits-grammar";
import type { Limit, MultiPolygon, Result } from "../types";
import { fill, stroke } from "./base";
import type { HeatLayer } from "./heat";
import type { Palette } from "./palette";
import type { Projection } from "./projection";
import { ring, type Ring } from "./rings";
import type { World } from "./world";

type Pen = CanvasRenderingContext2D;

export interface Layers {
  heat: boolean;
  regions: boolean;
  others: boolean;
}

/** Rings of a result's regions and limits, made once a result. */
export class Shapes {
  private regions = new WeakMap<MultiPolygon, Ring[]>();
  private limits = new WeakMap<Limit, Ring[]>();

  ofRegion(region: MultiPolygon): Ring[] {
    let found = this.regions.get(region);
    if (found === undefined) {
      found = region.coordinates.flatMap((rings) => rings.map((points) => ring(points.flat(), true)));
      this.regions.set(region, found);
    }
    return found;
  }

  ofLimit(limit: Limit, world: World): Ring[] {
    let found = this.limits.get(limit);
    if (found === undefined) {
      const shape = shapeOf(limit);
      found =
        shape.kind === "country"
          ? world.country(shape.code)
          : shape.rings.map((points) => ring(points.flatMap(([lat, lon]) => [lon, lat]), true));
      this.limits.set(limit, found);
    }
    return found;
  }
}

export function drawLimits(pen: Pen, limits: readonly Limit[], shapes: Shapes, world: World, at: Projection, colours: Palette): void {
  for (const limit of limits) {
    const rings = shapes.ofLimit(limit, world);
    pen.setLineDash(limit.inside ? [] : [2, 3]);
    fill(pen, rings, at, limit.inside ? colours.limitFill : colours.outsideFill);
    stroke(pen, rings, at, limit.inside ? colours.limit : colours.outside, 1.6, true);
  }
  pen.setLineDash([]);
}

/** Whether the cells of the heat are wider than what is known: then they would show a place where there is none. */
function coarse(result: Result): boolean {
  return (result.heat?.cell_km ?? 0) > (result.credible_radius_km?.["90"] ?? Infinity);
}

export function drawResult(
  pen: Pen,
  result: Result,
  layers: Layers,
  shapes: Shapes,
  heat: HeatLayer,
  ramp: Uint8ClampedArray,
  at: Projection,
  colours: Palette,
): void {
  if (layers.heat && result.heat && !coarse(result)) heat.draw(pen, result.heat, at, ramp);
  else if (layers.heat && result.regions)
    for (const [share, value] of [["90", 60], ["50", 150]] as const) {
      const [red, green, blue, alpha] = ramp.subarray(4 * value, 4 * value + 4) as unknown as [number, number, number, number];
      const region = result.regions[share];
      if (region) fill(pen, shapes.ofRegion(region), at, `rgb(${red} ${green} ${blue} / ${(0.75 * alpha) / 255})`);
    }
  if (layers.regions && result.regions) {
    const [half, most] = [result.regions["50"], result.regions["90"]];
    if (most) {
      pen.setLineDash([5, 4]);
      stroke(pen, shapes.ofRegion(most), at, colours.halo, 2.6, true);
      stroke(pen, shapes.ofRegion(most), at, colours.region, 1, true);
    }
    pen.setLineDash([]);
    if (half) {
      stroke(pen, shapes.ofRegion(half), at, colours.halo, 3.2, true);
      stroke(pen, shapes.ofRegion(half), at, colours.region, 1.5, true);
    }
  }
  const best = result.candidates?.[0];
  if (layers.regions && !result.regions && best) {
    for (const [share, dash, width] of [["90", [5, 4], 1], ["50", [], 1.5]] as const) {
      const km = result.credible_radius_km?.[share];
      if (km === undefined || km > 2500) continue; // so wide a circle would say nothing
      const around = [ring(circle(best.lat, best.lon, km).flatMap(([lat, lon]) => [lon, lat]), true)];
      pen.setLineDash([...dash]);
      stroke(pen, around, at, colours.halo, width + 1.6, true);
      stroke(pen, around, at, colours.region, width, true);
    }
    pen.setLineDash([]);
  }
  if (result.exif && best) {
    const line = greatCircle([best.lat, best.lon], [result.exif.lat, result.exif.lon]);
    const path = [ring(line.flatMap(([lat, lon]) => [lon, lat]), false)];
    pen.setLineDash([2, 5]);
    stroke(pen, path, at, colours.halo, 4);
    stroke(pen, path, at, colours.exif, 1.8);
    pen.setLineDash([]);
  }
}

/** The first candidates of all other photos, as dots. */
export function drawDots(pen: Pen, places: readonly [number, number][], at: Projection, colours: Palette): void {
  pen.lineWidth = 1.5;
  pen.strokeStyle = colours.halo;
  pen.fillStyle = colours.dot;
  for (const [lat, lon] of places) {
    const spot = at.project(lat, lon);
    if (spot === null) continue;
    pen.beginPath();
    pen.arc(spot[0], spot[1], 3.6, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
}
