/** The drawn map below the answer: land, water, borders, names. */
import { countryName } from "../format";
import type { Palette } from "./palette";
import { type Projection } from "./projection";
import { ring, trace, type Ring } from "./rings";
import type { World } from "./world";

type Pen = CanvasRenderingContext2D;

/** Parallels and meridians, a line of points each. */
const GRID: Ring[] = (() => {
  const lines: number[][] = [];
  for (let lon = -180; lon < 180; lon += 30)
    lines.push(Array.from({ length: 61 }, (_, n) => [lon, -84 + 2.8 * n]).flat());
  for (let lat = -60; lat <= 60; lat += 30) lines.push(Array.from({ length: 121 }, (_, n) => [-180 + 3 * n, lat]).flat());
  return lines.map((line) => ring(line, false));
})();

export function drawBase(pen: Pen, world: World, at: Projection, colours: Palette, tiles: boolean): void {
  if (!tiles) drawGround(pen, world, at, colours);
  stroke(pen, world.borders, at, colours.border, at.view.zoom < 3 ? 0.6 : 1);
  if (!tiles) stroke(pen, world.coasts, at, colours.coast, at.view.zoom < 3 ? 0.6 : 0.9);
}

function drawGround(pen: Pen, world: World, at: Projection, colours: Palette): void {
  const { width, height } = at.view;
  pen.fillStyle = at.flat ? colours.water : colours.space;
  pen.fillRect(0, 0, width, height);
  if (!at.flat) drawGlobe(pen, at, colours);
  stroke(pen, GRID, at, colours.grid, 1);
  fill(pen, world.land, at, colours.land);
  if (at.view.zoom > 2.2) stroke(pen, world.rivers, at, colours.river, Math.min(2, 0.3 + 0.22 * at.view.zoom));
  fill(pen, world.lakes, at, colours.lake);
  if (at.view.zoom > 4) stroke(pen, world.lakes, at, colours.coast, 0.5);
}

function drawGlobe(pen: Pen, at: Projection, colours: Palette): void {
  const [x, y, radius] = [at.view.width / 2, at.view.height / 2, at.radius];
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = colours.water;
  pen.fill();
  pen.strokeStyle = colours.coast;
  pen.lineWidth = 0.8;
  pen.stroke();
}

export function fill(pen: Pen, rings: readonly Ring[], at: Projection, colour: string): void {
  pen.beginPath();
  trace(pen, rings, at, true);
  pen.fillStyle = colour;
  pen.fill("evenodd");
}

export function stroke(pen: Pen, rings: readonly Ring[], at: Projection, colour: string, width: number, closed = false): void {
  pen.beginPath();
  trace(pen, rings, at, closed);
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.lineJoin = "round";
  pen.stroke();
}

interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** Names that do not lie over each other: countries first, then cities by size. */
export function drawLabels(pen: Pen, world: World, at: Projection, colours: Palette, taken: Box[]): void {
  const { zoom, width, height } = at.view;
  const free = (box: Box): boolean =>
    box.x > 2 &&
    box.y > 2 &&
    box.x + box.width < width - 2 &&
    box.y + box.height < height - 2 &&
    taken.every((o) => box.x > o.x + o.width || o.x > box.x + box.width || box.y > o.y + o.height || o.y > box.y + box.height);
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  pen.strokeStyle = colours.halo;
  pen.lineWidth = 3;

  if (zoom < 7) {
    pen.textAlign = "center";
    pen.fillStyle = colours.country;
    const size = zoom < 3.5 ? 12 : 14;
    pen.font = `italic 500 ${size}px Newsreader, Georgia, serif`;
    for (const label of [...world.labels].sort((a, b) => b.width - a.width)) {
      const room = label.width * at.world;
      if (room < 44) break;
      const spot = at.project(label.lat, label.lon);
      if (spot === null) continue;
      const name = countryName(label.code);
      const wide = pen.measureText(name).width;
      if (wide > room * 1.25) continue;
      const box = { x: spot[0] - wide / 2 - 4, y: spot[1] - size / 2 - 2, width: wide + 8, height: size + 4 };
      if (!free(box)) continue;
      taken.push(box);
      pen.strokeText(name, ...spot);
      pen.fillText(name, ...spot);
    }
  }
  if (zoom < 3) return;
  pen.textAlign = "left";
  const fewest = 2.4e7 / 2.6 ** (zoom - 2);
  let shown = 0;
  for (const city of world.cities) {
    if (city.people < fewest && !(city.capital && zoom > 4.2 && city.people * 6 > fewest)) continue;
    const spot = at.project(city.lat, city.lon);
    if (spot === null || spot[0] < 0 || spot[1] < 0 || spot[0] > width || spot[1] > height) continue;
    const size = city.people > 3e6 ? 12.5 : 11.5;
    pen.font = `${city.capital ? 600 : 400} ${size}px "IBM Plex Sans", system-ui, sans-serif`;
    const wide = pen.measureText(city.name).width;
    const box = { x: spot[0] - 3, y: spot[1] - size / 2 - 1, width: wide + 12, height: size + 2 };
    if (!free(box)) continue;
    taken.push(box);
    pen.beginPath();
    pen.arc(spot[0], spot[1], city.capital ? 2.4 : 1.8, 0, 2 * Math.PI);
    pen.fillStyle = colours.city;
    pen.fill();
    pen.strokeText(city.name, spot[0] + 6, spot[1]);
    pen.fillText(city.name, spot[0] + 6, spot[1]);
    if (++shown > 140) break;
  }
}
