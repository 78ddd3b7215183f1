import assert from "node:assert/strict";
import { test } from "node:test";
import { arrange, DEFAULT_ARRANGEMENT, type Arrangement } from "../src/arrange";
import { uprightMetadata } from "../src/shrink";
import { createItem, type Item } from "../src/types";

const photo = (name: string, country: string, sure: boolean, probability: number, more: Partial<Item> = {}, exifLat?: number): Item => ({
  ...createItem(name, "photo", name, []),
  status: "done",
  result: {
    candidates: [{ lat: 0, lon: 0, score: 1, probability, radius_km: 10, country }],
    credible_radius_km: { "90": 50 },
    sure,
    exif: exifLat === undefined ? null : { lat: exifLat, lon: 0.2 },
  },
  ...more,
});
const ITEMS = [
  photo("b10.jpg", "IT", false, 0.4, { note: "red roofs" }),
  photo("b9.jpg", "FR", true, 0.9, { decision: "accepted" }, 20),
  { ...createItem("x.jpg", "photo", "x.jpg", []), status: "failed" as const, error: "no image" },
  photo("a.jpg", "IT", true, 0.95, { decision: "rejected" }, 0.1),
];
const shown = (by: Partial<Arrangement>): string => arrange(ITEMS, { ...DEFAULT_ARRANGEMENT, ...by }).map(({ name }) => name.split(".")[0]).join(" ");

test("the list is sorted, with what has no answer last", () => {
  assert.equal(shown({}), "b10 b9 x a");
  assert.equal(shown({ sort: "name" }), "a b9 b10 x");
  assert.equal(shown({ sort: "sure" }), "a b9 b10 x");
  assert.equal(shown({ sort: "country" }), "b9 a b10 x");
  assert.equal(shown({ sort: "exif" }), "b9 a b10 x");
});

test("the list is filtered by what answers say, by country, by decision and by words", () => {
  assert.equal(shown({ show: "sure" }), "b9 a");
  assert.equal(shown({ show: "unsure" }), "b10");
  assert.equal(shown({ show: "conflict" }), "b9");
  assert.equal(shown({ show: "country:IT" }), "b10 a");
  assert.equal(shown({ show: "undecided" }), "b10 x");
  assert.equal(shown({ show: "rejected" }), "a");
  assert.equal(shown({ show: "failed" }), "x");
  assert.equal(shown({ search: " Roofs" }), "b10");
  assert.equal(shown({ search: "france" }), "b9");
  assert.equal(shown({ show: "sure", search: "italy" }), "a");
});

test("a smaller copy keeps EXIF and XMP, which say that it is upright", () => {
  const bytes = (text: string): number[] => [...text].map((letter) => letter.charCodeAt(0));
  const segment = (marker: number, content: number[]): number[] => [0xff, marker, (content.length + 2) >> 8, (content.length + 2) & 255, ...content];
  for (const little of [true, false]) {
    const short = (value: number): number[] => (little ? [value, 0] : [0, value]);
    const long = (value: number): number[] => (little ? [value, 0, 0, 0] : [0, 0, 0, value]);
    const tiff = [...bytes(little ? "II" : "MM"), ...short(42), ...long(8), ...short(1), 0x12, 0x01, ...short(3), ...long(1), ...short(6), 0, 0, ...long(0)];
    if (!little) tiff.splice(10, 2, 0x01, 0x12);
    const exif = segment(0xe1, [...bytes("Exif\0\0"), ...tiff]);
    const xmp = segment(0xe1, bytes('http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6" exif:GPSLatitude="6"/>'));
    const jpeg = new Uint8Array([0xff, 0xd8, ...segment(0xe0, bytes("JFIF")), ...exif, ...xmp, ...segment(0xda, [1, 2])]);
    const [first, second, ...rest] = uprightMetadata(jpeg);
    assert.deepEqual(rest, []);
    const at = 10 + 10 + 8;
    assert.deepEqual([...first!], exif.map((byte, index) => (index === at + (little ? 0 : 1) ? 1 : byte)));
    assert.match(String.fromCharCode(...second!), /tiff:Orientation="1" exif:GPSLatitude="6"/);
  }
  assert.deepEqual(uprightMetadata(new Uint8Array([0xff, 0xd8, 0xff, 0xe1, 0xff, 0xff, 1])), []);
});
