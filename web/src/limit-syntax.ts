/** The syntax of limits in the API and on the command line, and their shapes on a map. */
import { geoCircle } from "d3-geo";
import type { Country, Limit, Polygon } from "./types";
import { densify, DEGREE, EARTH_RADIUS_KM, rewind, type Position } from "./geo";

const NUMBER = String.raw`\s*([+-]?\d+(?:\.\d+)?)\s*`;
const BOX = new RegExp(`^${[NUMBER, NUMBER, NUMBER, NUMBER].join(",")}$`);
const CIRCLE = new RegExp(`^${NUMBER},${NUMBER},${NUMBER}(km|m)$`, "i");

/** What a limit covers: a country by its code, or a polygon in the winding order of d3-geo. */
export type LimitShape = { type: "Country"; code: string } | GeoJSON.Polygon;

/** The limit that was typed, or an error message. */
export function parseLimit(typed: string, inside: boolean, countries: readonly Country[]): Limit | string {
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
  const wanted = fold(text);
  const short = fold(wanted.replace(FORMAL, ""));
  const named = (name: string): Country | undefined => countries.find((one) => spellings(one).includes(name));
  const country = named(wanted) ?? named(short);
  if (country) return { inside, grammar: country.code, label: country.name };
  return `“${text}”: no country of this name, and not a box (south,west,north,east) or a circle (lat,lon,50km).`;
}

/** Countries that match the typed text, the best matches first. */
export function suggestions(typed: string, countries: readonly Country[], most = 8): Country[] {
  const wanted = fold(typed.trim());
  if (wanted === "") return [];
  const rank = (country: Country): number => {
    const plain = fold(country.name);
    if (spellings(country).includes(wanted)) return 0;
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

/** All that a country may be called, as the server resolves it, folded. */
function spellings({ code, name, spellings }: Country): string[] {
  return [code, name, ...spellings].map(fold);
}

/** Lower case, without accents, punctuation and "the"; "&" and "St." spelled out: as geo/countries.py does. */
function fold(text: string): string {
  const plain = text.replace(/&/g, " and ").normalize("NFKD").toLowerCase().replace(/[\p{M}.'’‘`]/gu, "");
  const words = plain.split(/[^\p{L}\p{N}]+/u).filter(Boolean).map((word) => (word === "st" ? "saint" : word));
  return words.slice(words[0] === "the" && words.length > 1 ? 1 : 0).join(" ");
}

/** Words of formal names: "Kingdom of Norway", "Venezuela, Bolivarian Republic of". */
const FORMAL =
  /\b(the|of|republic|kingdom|federal|federation|islamic|peoples|democratic|socialist|plurinational|bolivarian|commonwealth|principality|grand|duchy|sultanate|hashemite|oriental|cooperative|arab|independent state|union)\b/g;

const round4 = (value: number): string => String(Math.round(value * 1e4) / 1e4);

export function boxLimit(south: number, west: number, north: number, east: number, inside: boolean): Limit {
  return {
    inside,
    grammar: [south, west, north, east].map(round4).join(","),
    label: `Box ${[south, west, north, east].map((edge) => String(Math.round(edge * 10) / 10)).join(", ")}`,
  };
}

/** A polygon from its corners, as (lat, lon). */
export function polygonLimit(corners: readonly [number, number][], inside: boolean): Limit {
  const ring = [...corners, corners[0]!].map(([lat, lon]) => [Number(round4(lon)), Number(round4(lat))] as [number, number]);
  const polygon: Polygon = { type: "Polygon", coordinates: [ring] };
  return { inside, grammar: JSON.stringify(polygon), label: `Polygon of ${corners.length} corners` };
}

const shapes = new WeakMap<Limit, LimitShape>();

/** The shape of a limit, to draw it. */
export function limitShape(limit: Limit): LimitShape {
  let shape = shapes.get(limit);
  if (shape === undefined) shapes.set(limit, (shape = parseShape(limit.grammar)));
  return shape;
}

function parseShape(text: string): LimitShape {
  const polygon = (...rings: Position[][]): LimitShape => ({ type: "Polygon", coordinates: rewind(rings.map((ring) => densify(ring))) });
  if (text.startsWith("{")) return polygon(...(JSON.parse(text) as Polygon).coordinates);
  const box = BOX.exec(text)?.slice(1).map(Number);
  if (box) {
    const [south, west, north, end] = box as [number, number, number, number];
    const east = end < west ? end + 360 : end;
    const middle = (west + east) / 2; // a corner halfway keeps each edge on the way eastwards
    return polygon([[west, south], [middle, south], [east, south], [east, north], [middle, north], [west, north], [west, south]]);
  }
  const circle = CIRCLE.exec(text);
  if (circle) {
    const [lat, lon, radius] = circle.slice(1, 4).map(Number) as [number, number, number];
    const km = circle[4]!.toLowerCase() === "m" ? radius / 1000 : radius;
    return geoCircle().center([lon, lat]).radius(km / EARTH_RADIUS_KM / DEGREE)();
  }
  return { type: "Country", code: text };
}
