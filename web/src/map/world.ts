/** The map that ships with the page; made by web/world.mjs. */
import { ring, type Ring } from "./rings";

type Arcs = number[];

interface Topology {
  scale: [number, number];
  translate: [number, number];
  /** Each arc as steps on a grid: dx, dy, dx, dy, ... */
  arcs: number[][];
}

export interface Packed {
  base: Topology & { land: Arcs[][]; countries: Record<string, Arcs[][]> };
  water: Topology & { lakes: Arcs[][]; rivers: Arcs[] };
  cities: [string, number, number, number, number][];
}

export interface City {
  name: string;
  lat: number;
  lon: number;
  people: number;
  capital: boolean;
}

export interface World {
  land: Ring[];
  coasts: Ring[];
  borders: Ring[];
  lakes: Ring[];
  rivers: Ring[];
  cities: City[];
  /** Outline of a country by its ISO code, made when first asked for. */
  country(code: string): Ring[];
  /** Where a country's name goes, and how large it is there, in turns of the flat map. */
  labels: { code: string; lat: number; lon: number; width: number }[];
}

/** Reads the packed map out of gzip. */
export async function unpacked(bytes: BufferSource): Promise<World> {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return decode((await new Response(stream).json()) as Packed);
}

export function decode(packed: Packed): World {
  const base = degrees(packed.base);
  const water = degrees(packed.water);
  const polygons = (arcs: Float64Array[], shapes: Arcs[][]): Ring[] =>
    shapes.flatMap((rings) => rings.map((indices) => ring(joined(arcs, indices), true)));

  const uses = new Map<number, number>();
  for (const shapes of Object.values(packed.base.countries))
    for (const index of shapes.flat(2)) uses.set(index < 0 ? ~index : index, (uses.get(index < 0 ? ~index : index) ?? 0) + 1);
  const [coasts, borders]: [Ring[], Ring[]] = [[], []];
  base.forEach((arc, index) => (uses.get(index) === 2 ? borders : coasts).push(ring(arc, false)));

  const known = new Map<string, Ring[]>();
  const country = (code: string): Ring[] => {
    let found = known.get(code);
    if (found === undefined) {
      found = polygons(base, packed.base.countries[code] ?? []);
      known.set(code, found);
    }
    return found;
  };
  return {
    land: polygons(base, packed.base.land),
    coasts,
    borders,
    lakes: polygons(water, packed.water.lakes),
    rivers: packed.water.rivers.map((indices) => ring(joined(water, indices), false)),
    cities: packed.cities.map(([name, lat, lon, people, capital]) => ({ name, lat, lon, people, capital: capital === 1 })),
    country,
    labels: Object.entries(packed.base.countries)
      .filter(([code]) => code !== "")
      .map(([code, shapes]) => labelled(code, base, shapes)),
  };
}

/** Arcs in degrees: longitude, latitude, longitude, ... */
function degrees({ scale, translate, arcs }: Topology): Float64Array[] {
  return arcs.map((steps) => {
    const points = new Float64Array(steps.length);
    let [x, y] = [0, 0];
    for (let i = 0; i < steps.length; i += 2) {
      x += steps[i]!;
      y += steps[i + 1]!;
      points[i] = x * scale[0] + translate[0];
      points[i + 1] = y * scale[1] + translate[1];
    }
    return points;
  });
}

/** Arcs one after the other, a negative one backwards, the points where they meet once. */
function joined(arcs: Float64Array[], indices: Arcs): number[] {
  const points: number[] = [];
  for (const index of indices) {
    const arc = arcs[index < 0 ? ~index : index]!;
    const n = arc.length / 2;
    for (let i = points.length > 0 ? 1 : 0; i < n; i++) {
      const at = 2 * (index < 0 ? n - 1 - i : i);
      points.push(arc[at]!, arc[at + 1]!);
    }
  }
  return points;
}

/** The widest point of the largest polygon, for a name. */
function labelled(code: string, arcs: Float64Array[], shapes: Arcs[][]): World["labels"][number] {
  let best: { area: number; points: number[] } = { area: -1, points: [] };
  for (const rings of shapes) {
    const points = joined(arcs, rings[0]!);
    const area = Math.abs(signedArea(points));
    if (area > best.area) best = { area, points };
  }
  const { lat, lon, width } = widest(best.points);
  return { code, lat, lon, width: width / 360 };
}

function signedArea(points: number[]): number {
  let sum = 0;
  for (let i = 0; i + 3 < points.length; i += 2) {
    if (Math.abs(points[i + 2]! - points[i]!) > 180) continue;
    sum += points[i]! * points[i + 3]! - points[i + 2]! * points[i + 1]!;
  }
  return sum * Math.cos(((points[1] ?? 0) * Math.PI) / 180);
}

/** Of a few parallels through a ring, the one with the longest stretch inside, those near the middle preferred. */
function widest(points: number[]): { lat: number; lon: number; width: number } {
  const lats = points.filter((_, i) => i % 2 === 1);
  const [south, north] = [Math.min(...sample(lats)), Math.max(...sample(lats))];
  let best = { lat: (south + north) / 2, lon: points[0] ?? 0, width: 0 };
  for (let share = 0.25; share < 0.8; share += 0.05) {
    const lat = south + share * (north - south);
    const crossings: number[] = [];
    for (let i = 0; i + 3 < points.length; i += 2) {
      const [x1, y1, x2, y2] = [points[i]!, points[i + 1]!, points[i + 2]!, points[i + 3]!];
      if (y1 > lat !== y2 > lat && Math.abs(x2 - x1) < 180) crossings.push(x1 + ((lat - y1) / (y2 - y1)) * (x2 - x1));
    }
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const width = (crossings[i + 1]! - crossings[i]!) * (1 - Math.abs(share - 0.5) / 2);
      if (width > best.width) best = { lat, lon: (crossings[i]! + crossings[i + 1]!) / 2, width };
    }
  }
  return best;
}

/** Math.min cannot take as many arguments as a coast has points. */
function sample(values: number[]): number[] {
  const step = Math.ceil(values.length / 1000);
  return values.filter((_, i) => i % step === 0);
}
