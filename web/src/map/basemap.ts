/** The drawn map below the answer: water, land, coasts, rivers, borders. */
import { geoGraticule, type GeoPermissibleObjects } from "d3-geo";
import { fill, stroke } from "./canvas";
import type { Palette } from "./palette";
import type { Projection } from "./projection";
import { visible, type Shape, type World } from "./world";

type Context = CanvasRenderingContext2D;

const GRATICULE = geoGraticule().step([30, 30])();
const SPHERE: GeoPermissibleObjects[] = [{ type: "Sphere" }];
const RIVERS_ZOOM = 2.2;
const LAKE_SHORES_ZOOM = 4;

/** Draws the map; above tiles only the borders. */
export function drawBasemap(context: Context, world: World, at: Projection, colors: Palette, hasTiles: boolean, isMoving: boolean): void {
  const { zoom, width, height } = at.view;
  const { countries, coasts, borders } = world.level(zoom, isMoving);
  const shapes = (all: readonly Shape[]): GeoPermissibleObjects[] => visible(all, at).map(({ geometry }) => geometry);
  const line = (objects: readonly GeoPermissibleObjects[], color: string, width: number): void =>
    stroke(context, objects, at, { color, width, precision: 0 });
  const area = (objects: readonly GeoPermissibleObjects[], color: string): void => fill(context, objects, at, color, 0);
  if (!hasTiles) {
    context.fillStyle = at.flat ? colors.water : colors.space;
    context.fillRect(0, 0, width, height);
    if (!at.flat) area(SPHERE, colors.water);
    line([GRATICULE], colors.grid, 1);
    area([...countries.values()].flatMap(shapes), colors.land);
    if (zoom > RIVERS_ZOOM) line(shapes(world.rivers), colors.river, Math.min(2, 0.3 + 0.22 * zoom));
    const lakes = shapes(world.lakes);
    area(lakes, colors.lake);
    if (zoom > LAKE_SHORES_ZOOM) line(lakes, colors.coast, 0.5);
  }
  line(shapes(borders), colors.border, zoom < 3 ? 0.6 : 1);
  if (hasTiles) return;
  line(shapes(coasts), colors.coast, zoom < 3 ? 0.6 : 0.9);
  if (!at.flat) line(SPHERE, colors.coast, 0.8);
}
