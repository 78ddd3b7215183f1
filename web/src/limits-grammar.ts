/** Limits as the API and the command line write them, and what they look like on a map. */
import type { Country, Limit, Polygon } from "./types";
import { circle } from "./geo";

const NUMBER = String.raw`\s*([+-]?\d+(?:\.\d+)?)\s*`;
const BOX = new RegExp(`^${[NUMBER, NUMBER, NUMBER, NUMBER].join(",")}$`);
const CIRCLE = new RegExp(`^${NUMBER},${NUMBER},${NUMBER}(km|m)$`, "i");

export type Shape =
  | { kind: "country"; code: string }
  | { kind: "rings"; rings: [number, number][][] }; // (lat, lon), longitudes without jumps

/** What a person typed, as a limit; or what is wrong with it. */
export function parse(typed: string, inside: boolean, countries: readonly Country[]): Limit | string {
  const text = typed.trim();
  const box = BOX.exec(text)?.slice(1).map(Number);
  if (box) {
    const [south, west, north, east] = box as [number, number, number, number];
    if (Math.abs(south) > 90 || Math.abs(north) > 90) return "A box is south,west,north,east: latitudes lie within ±90.";
    if (south >= north) return "A box is south,west,north,east: the south comes before the north.";
    return boxLimit(south, west, north, east, inside);
  }
  const round = CIRCLE.exec(text);
  if (round) {
    const [lat, lon, radius] = round.slice(1, 4).map(Number) as [number, number, number];
    const unit = round[4]!.toLowerCase();
    if (Math.abs(lat) > 90 || radius <= 0) return "A circle is lat,lon,radius: latitude within ±90, radius above 0.";
    return { inside, grammar: `${lat},${lon},${radius}${unit}`, label: `${radius} ${unit} around ${lat}, ${lon}` };
  }
  const wanted = folded(text);
  const country = countries.find(({ code, name }) => folded(name) === wanted || code.toLowerCase() === wanted);
  if (country) return { inside, grammar: country.code, label: country.name };
  return `“${text}” is no country, box (south,west,north,east) or circle (lat,lon,50km).`;
}

/** Countries whose name or code begins with, or has, what was typed; the first few. */
export function suggestions(typed: string, countries: readonly Country[], most = 8): Country[] {
  const wanted = folded(typed.trim());
  if (wanted === "") return [];
  const rank = ({ code, name }: Country): number => {
    const plain = folded(name);
    if (plain === wanted || code.toLowerCase() === wanted) return 0;
    if (plain.startsWith(wanted)) return 1;
    if (plain.split(/[\s-]+/).some((word) => word.startsWith(wanted))) return 2;
    return plain.includes(wanted) ? 3 : 4;
  };
  return countries
    .map((country) => ({ country, order: rank(country) }))
    .filter(({ order }) => order < 4)
    .sort((a, b) => a.order - b.order || a.country.name.localeCompare(b.country.name))
    .slice(0, most)
    .map(({ country }) => country);
}

/** Letters without accents, small: "Cote d'Ivoire" finds "Côte d’Ivoire". */
export function folded(text: string): string {
  return text.normalize("NFD").replace(/\p{M}/gu, "").replace(/[’‘`]/g, "'").toLowerCase();
}

const short = (value: number): string => String(Math.round(value * 1e4) / 1e4);

export function boxLimit(south: number, west: number, north: number, east: number, inside: boolean): Limit {
  return {
    inside,
    grammar: [south, west, north, east].map(short).join(","),
    label: `Box ${[south, west, north, east].map((edge) => String(Math.round(edge * 10) / 10)).join(", ")}`,
  };
}

/** A polygon drawn on the map, its corners as (lat, lon); the ring is closed here. */
export function polygonLimit(corners: readonly [number, number][], inside: boolean): Limit {
  const ring = [...corners, corners[0]!].map(([lat, lon]) => [Number(short(lon)), Number(short(lat))] as [number, number]);
  const polygon: Polygon = { type: "Polygon", coordinates: [ring] };
  return { inside, grammar: JSON.stringify(polygon), label: `Polygon of ${corners.length} corners` };
}

/** What to draw of a limit. */
export function shapeOf(limit: Limit): Shape {
  const text = limit.grammar;
  if (text.startsWith("{")) {
    const { coordinates } = JSON.parse(text) as Polygon;
    return { kind: "rings", rings: coordinates.map((ring) => ring.map(([lon, lat]) => [lat, lon])) };
  }
  const box = BOX.exec(text)?.slice(1).map(Number);
  if (box) {
    const [south, west, north] = box as [number, number, number];
    let east = box[3]!;
    if (east < west) east += 360;
    const steps = Math.max(1, Math.ceil((east - west) / 5)); // edges follow parallels, on a globe too
    const along = Array.from({ length: steps + 1 }, (_, n) => west + ((east - west) * n) / steps);
    const ring = [...along.map((lon) => [south, lon]), ...along.reverse().map((lon) => [north, lon])];
    return { kind: "rings", rings: [[...ring, ring[0]!] as [number, number][]] };
  }
  const round = CIRCLE.exec(text);
  if (round) {
    const km = Number(round[3]) / (round[4]!.toLowerCase() === "m" ? 1000 : 1);
    return { kind: "rings", rings: [circle(Number(round[1]), Number(round[2]), km)] };
  }
  return { kind: "country", code: text };
}
