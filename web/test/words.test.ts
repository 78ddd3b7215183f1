import assert from "node:assert/strict";
import { test } from "node:test";
import { comparison, coordinates, countryName, disagreementKm, exifConflict, kilometres, percent, placeName, verdict } from "../src/format";
import { boxLimit, parseLimit, polygonLimit, limitShape, suggestions } from "../src/limit-syntax";
import { services, zoomFor } from "../src/map-links";
import { metadataEntries } from "../src/report";
import { optionsKey } from "../src/store";
import type { Candidate, Limit } from "../src/types";

const COUNTRIES = [
  { code: "CI", name: "Côte d’Ivoire", spellings: ["CI"] },
  { code: "FR", name: "France", spellings: ["FR"] },
  { code: "PF", name: "French Polynesia", spellings: ["PF"] },
  { code: "CF", name: "Central African Republic", spellings: ["CF"] },
  { code: "UA", name: "Ukraine", spellings: ["UA", "UKR"] },
  { code: "GB", name: "United Kingdom", spellings: ["GB", "GBR", "UK", "Great Britain"] },
];

test("numbers are rounded to their significant digits", () => {
  assert.deepEqual([0, 0.00005, 0.042, 0.634, 0.9978, 0.9996, 1].map(percent), ["0 %", "< 0.1 %", "4.2 %", "63 %", "99.8 %", "> 99.9 %", "100 %"]);
  assert.deepEqual([0.05, 4.21, 85.2, 15345].map(kilometres), ["50 m", "4.2 km", "85 km", "15,345 km"]);
  assert.equal(coordinates(-22.9, -43.2, 1), "22.9° S, 43.2° W");
  assert.equal(countryName("IT"), "Italy");
  assert.equal(countryName("not a code"), "not a code");
});

test("a place has the best name there is", () => {
  const at = { lat: 1, lon: 2, score: 0, probability: 1, radius_km: 3 };
  assert.equal(placeName({ ...at, place: "12 km south of Lyon, France", country: "FR" }), "12 km south of Lyon, France");
  assert.equal(placeName({ ...at, country: "FR" }), "France");
  assert.equal(placeName({ ...at, country: "" }), "At sea");
  assert.equal(placeName({ ...at, country: null }), "1.00° N, 2.00° E");
});

test("how sure an answer is, in three words that differ", () => {
  assert.deepEqual([true, false, null].map((sure) => verdict({ sure }).word), ["Sure", "Not sure", "Not calibrated"]);
  assert.match(verdict({ sure: true, within_km: { "200": 0.93 } }).meaning, /93 %/);
  assert.match(verdict({ sure: false, within_km: { "200": 0.6 } }).meaning, /60 %/);
  const strange = { sure: false, in_distribution: false, within_km: { "200": 0.93 } };
  assert.match(verdict(strange).meaning, /unlike/);
  assert.equal(verdict({ ...strange, warning: "Use another model." }).meaning, "Use another model.");
  assert.equal(verdict({ ...strange, sure: null }).word, "Not for this model");
  const reliability = { text: "answers here were right …", within_km: {}, radius_km: {}, measured_on: "" };
  assert.match(verdict({ sure: null, reliability }).meaning, /being right\. Answers here were right …\.$/);
});

test("EXIF is compared by distance and by region", () => {
  const best: Candidate = { lat: 0, lon: 0, score: 1, probability: 1, radius_km: 10 };
  const square = (size: number) => ({
    type: "MultiPolygon" as const,
    coordinates: [[[[-size, -size], [size, -size], [size, size], [-size, size], [-size, -size]]]] as [number, number][][][],
  });
  const result = { candidates: [best], regions: { "50": square(1), "90": square(3) } };
  assert.equal(comparison(result, { lat: 0, lon: 0.5 }).words, "56 km from candidate 1, inside the 50 % region");
  assert.match(comparison(result, { lat: 0, lon: 2 }).words, /inside the 90 % region/);
  assert.match(comparison(result, { lat: 0, lon: 40 }).words, /outside the 90 % region/);
});

test("a place in EXIF that does not fit, and photos of different places, are reported", () => {
  const at = (lat: number, lon: number): Candidate => ({ lat, lon, score: 1, probability: 1, radius_km: 10 });
  const result = { candidates: [at(0, 0.1)], credible_radius_km: { "90": 60 } };
  assert.equal(exifConflict({ ...result, exif: { lat: 0, lon: 0 } }), "EXIF is 0, 0");
  assert.equal(exifConflict({ ...result, exif: { lat: 0, lon: 0.5 } }), null);
  assert.equal(exifConflict({ ...result, exif: { lat: 10, lon: 0.1 } }), "EXIF 1,112 km away");
  assert.equal(exifConflict(result), null);
  const other = (lon: number) => ({ candidates: [at(0, lon)], credible_radius_km: { "90": 60 } });
  assert.equal(disagreementKm([result, other(1)]), null);
  assert.equal(Math.round(disagreementKm([result, other(1), other(20)])!), 2213);
  assert.equal(disagreementKm([result]), null);
});

test("limits are parsed like on the command line, and errors are described", () => {
  const grammar = (typed: string): string => {
    const found = parseLimit(typed, true, COUNTRIES);
    return typeof found === "string" ? `error: ${found}` : found.grammar;
  };
  assert.equal(grammar("france"), "FR");
  assert.equal(grammar("cote d'ivoire"), "CI");
  assert.equal(grammar("fr"), "FR");
  assert.deepEqual(["UK", "u.k.", "great britain", "The United Kingdom"].map(grammar), ["GB", "GB", "GB", "GB"]);
  assert.deepEqual(["Republic of Côte d’Ivoire", "France, Republic of", "Republic of the Ukraine"].map(grammar), ["CI", "FR", "UA"]);
  assert.equal(grammar(" 35, -10,60,30"), "35,-10,60,30");
  assert.equal(grammar("48.86,2.29,50KM"), "48.86,2.29,50km");
  assert.match(grammar("60,-10,35,30"), /error: .*south comes before/);
  assert.match(grammar("100,0,120,5"), /error: .*±90/);
  assert.match(grammar("Atlantis"), /error: “Atlantis”/);
});

test("countries are found by what they begin with first", () => {
  const found = (typed: string): string[] => suggestions(typed, COUNTRIES).map(({ code }) => code);
  assert.deepEqual(found("fr"), ["FR", "PF", "CF"]);
  assert.deepEqual(found("pol"), ["PF"]);
  assert.deepEqual(found("uk"), ["GB", "UA"]);
  assert.deepEqual(found(""), []);
});

test("what is drawn is sent as GeoJSON with longitude first, closed; and drawn again the same", () => {
  const limit = polygonLimit([[10, 170], [10, 185], [20, 180]], false);
  const { coordinates: [sent] } = JSON.parse(limit.grammar) as { coordinates: number[][][] };
  assert.deepEqual(sent, [[170, 10], [185, 10], [180, 20], [170, 10]]);
  const shape = limitShape(limit);
  assert.ok(shape.type === "Polygon" && shape.coordinates[0]!.some(([lon, lat]) => lon === 170 && lat === 10));
  const box = limitShape(boxLimit(-48, 166, -34, -176, true)); // over 180 degrees, as of New Zealand
  const lons = box.type === "Polygon" ? box.coordinates[0]!.map(([lon]) => lon!) : [];
  assert.deepEqual([Math.min(...lons), Math.max(...lons)], [166, 184]);
  assert.deepEqual(limitShape({ inside: true, grammar: "FR", label: "France" }), { type: "Country", code: "FR" });
});

test("links hold the place and fit the radius, and nothing of the photo", () => {
  for (const { url } of services(-22.9, -43.2, 50)) {
    assert.ok(url.startsWith("https://"));
    assert.ok(url.includes("-22.9") && url.includes("-43.2"), url);
  }
  assert.ok(zoomFor(0.5) > zoomFor(50) && zoomFor(50) > zoomFor(2000));
});

test("an answer is stale when anything it was asked with has changed, and only then", () => {
  const asked = { model: "earth", topK: 5, text: "", textWeight: 0.5, limits: [] as Limit[] };
  const now = optionsKey(asked, "photo");
  assert.equal(optionsKey({ ...asked, textWeight: 0.9 }, "photo"), now, "a weight without words means nothing");
  assert.notEqual(optionsKey({ ...asked, text: "snow" }, "photo"), now);
  assert.equal(optionsKey({ ...asked, text: "snow" }, "text"), optionsKey(asked, "text"));
  assert.notEqual(optionsKey({ ...asked, limits: [parseLimit("FR", true, COUNTRIES) as Limit] }, "photo"), now);
  assert.notEqual(optionsKey({ ...asked, topK: 6 }, "photo"), now);
});

test("report metadata is written out, without empty values", () => {
  assert.deepEqual(metadataEntries({ made: "2026", open_geoclip: "1", none: null, hashes: { a: 1 } }), [
    ["Made", "2026"],
    ["Open geoclip", "1"],
    ["Hashes", '{"a":1}'],
  ]);
});
