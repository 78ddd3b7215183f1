/** Names of countries and cities that do not overlap: countries first, then cities by population. */
import { countryName } from "../format";
import type { Palette } from "./palette";
import type { Projection } from "./projection";
import type { World } from "./world";

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

const MAX_CITIES = 140;

const overlap = (a: Box, b: Box): boolean => a.x <= b.x + b.width && b.x <= a.x + a.width && a.y <= b.y + b.height && b.y <= a.y + a.height;

/** Draws names around the boxes that are `taken` already; adds the boxes of the names to them. */
export function drawLabels(context: CanvasRenderingContext2D, world: World, at: Projection, colors: Palette, taken: Box[]): void {
  const { zoom, width, height } = at.view;
  const claim = (box: Box): boolean => {
    const isInside = box.x > 2 && box.y > 2 && box.x + box.width < width - 2 && box.y + box.height < height - 2;
    if (!isInside || taken.some((other) => overlap(box, other))) return false;
    taken.push(box);
    return true;
  };
  const write = (text: string, x: number, y: number): void => {
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  };
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.strokeStyle = colors.halo;
  context.lineWidth = 3;

  if (zoom < 7) {
    const size = zoom < 3.5 ? 12 : 14;
    context.textAlign = "center";
    context.fillStyle = colors.country;
    context.font = `italic 500 ${size}px Newsreader, Georgia, serif`;
    for (const label of world.labels) {
      const room = (label.width / 360) * at.world;
      if (room < 44) break;
      const spot = at.project(label.lat, label.lon);
      if (spot === null) continue;
      const name = countryName(label.code);
      const textWidth = context.measureText(name).width;
      if (textWidth > room * 1.25) continue;
      if (claim({ x: spot[0] - textWidth / 2 - 4, y: spot[1] - size / 2 - 2, width: textWidth + 8, height: size + 4 })) write(name, ...spot);
    }
  }
  if (zoom < 3) return;
  context.textAlign = "left";
  context.fillStyle = colors.city;
  const minPopulation = 2.4e7 / 2.6 ** (zoom - 2);
  let count = 0;
  for (const { name, lat, lon, population, isCapital } of world.cities) {
    if (population < minPopulation && !(isCapital && zoom > 4.2 && population * 6 > minPopulation)) continue;
    const spot = at.project(lat, lon);
    if (spot === null || spot[0] < 0 || spot[1] < 0 || spot[0] > width || spot[1] > height) continue;
    const size = population > 3e6 ? 12.5 : 11.5;
    context.font = `${isCapital ? 600 : 400} ${size}px "IBM Plex Sans", system-ui, sans-serif`;
    const textWidth = context.measureText(name).width;
    if (!claim({ x: spot[0] - 3, y: spot[1] - size / 2 - 1, width: textWidth + 12, height: size + 2 })) continue;
    context.beginPath();
    context.arc(spot[0], spot[1], isCapital ? 2.4 : 1.8, 0, 2 * Math.PI);
    context.fill();
    write(name, spot[0] + 6, spot[1]);
    if (++count > MAX_CITIES) break;
  }
}
