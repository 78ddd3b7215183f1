import assert from "node:assert/strict";
import { test } from "node:test";
import { contains, distanceKm, greatCircle, near } from "../src/geo";
import { flight } from "../src/map/fly";
import { dragged, zoomed } from "../src/map/gestures";
import { ramp } from "../src/map/heat";
import { bounded, fitting, leastZoom, Projection, type View } from "../src/map/projection";
import { ring, trace } from "../src/map/rings";

const SIZE = { width: 800, height: 600 };
const flat = (lat: number, lon: number, zoom: number): View => ({ kind: "flat", lat, lon, zoom, ...SIZE });
const close = (a: number, b: number, by = 1e-6): void => assert.ok(Math.abs(a - b) <= by, `${a} is not ${b}`);

test("distances are those of the great circle", () => {
  close(distanceKm(48.8566, 2.3522, 51.5074, -0.1278), 343.56, 0.1); // Paris to London
  close(distanceKm(0, 179.5, 0, -179.5), 111.195, 0.01);
  close(distanceKm(90, 0, -90, 0), Math.PI * 6371.0088, 1e-6);
});

for (const kind of ["flat", "globe"] as const)
  test(`a pixel of the ${kind} leads back to its place, across 180 degrees too`, () => {
    for (const [lat, lon, zoom] of [[0, 0, 3], [60, 179.9, 5], [-75, -179, 4], [41.9, 12.5, 11]] as const) {
      const at = new Projection({ ...flat(lat, lon, zoom), kind });
      for (const [x, y] of [[400, 300], [390, 320], [431, 266]] as const) {
        const place = at.unproject(x, y)!;
        const back = at.project(...place)!;
        close(back[0], x, 1e-4);
        close(back[1], y, 1e-4);
      }
    }
  });

test("what is behind the globe has no pixel, and beside it there is no place", () => {
  const at = new Projection({ ...flat(0, 0, 1), kind: "globe" });
  assert.equal(at.project(0, 180), null);
  assert.equal(at.unproject(1, 1), null);
});

test("a view never shows beyond the poles, nor less than its kind's whole Earth", () => {
  const view = bounded(flat(85, 0, -3));
  assert.equal(view.zoom, leastZoom(view));
  const at = new Projection(view);
  assert.ok(at.y * at.world >= view.height / 2 - 1e-6);
});

test("fitting shows all places with a margin, the short way over 180 degrees", () => {
  const places: [number, number][] = [[-17, 178], [-15, -178]];
  const view = fitting(places, { kind: "flat", ...SIZE });
  assert.ok(view.zoom > 5, `${view.zoom}`);
  for (const place of places) {
    const [x, y] = new Projection(view).project(...place)!;
    assert.ok(x > 60 && x < 740 && y > 60 && y < 540);
  }
});

test("zooming holds the place under the pointer, dragging takes it along", () => {
  const view = flat(40, 10, 5);
  const place = new Projection(view).unproject(620, 130)!;
  const [x, y] = new Projection(zoomed(view, 1, 620, 130)).project(...place)!;
  close(x, 620, 1e-6);
  close(y, 130, 1e-6);
  const [dx, dy] = new Projection(dragged(view, 30, -20)).project(...place)!;
  close(dx, 650, 1e-6);
  close(dy, 110, 1e-6);
});

test("a flight begins and ends where it should, and goes out between far places", () => {
  for (const kind of ["flat", "globe"] as const) {
    const [from, to] = [{ ...flat(48, 2, 7), kind }, { ...flat(-17, 178, 6), kind }];
    const path = flight(from, to);
    close(path.at(0).lat, 48, 1e-6);
    close(path.at(0).zoom, 7, 1e-6);
    assert.deepEqual(path.at(1), to);
    assert.ok(path.at(0.5).zoom < 5);
    const late = path.at(0.999);
    close(late.lat, -17, 0.5);
    close(near(late.lon, 178), 178, 0.5);
  }
});

/** Notes the corners of what is drawn. */
function pen() {
  const paths: [number, number][][] = [];
  return {
    paths,
    moveTo: (x: number, y: number) => void paths.push([[x, y]]),
    lineTo: (x: number, y: number) => void paths.at(-1)!.push([x, y]),
    closePath: () => undefined,
  };
}

test("a ring over 180 degrees is drawn in one piece where the map is centred on it", () => {
  const square = ring([170, -10, -170, -10, -170, 10, 170, 10, 170, -10], true);
  const to = pen();
  trace(to, [square], new Projection(flat(0, 180, 4)), true);
  assert.equal(to.paths.length, 1);
  const xs = to.paths[0]!.map(([x]) => x);
  close(Math.max(...xs) - Math.min(...xs), (20 / 360) * 256 * 16, 0.1);
});

test("a ring around the south pole fills the lower edge of a flat map", () => {
  const ice = ring(Array.from({ length: 73 }, (_, n) => [-180 + 5 * n, -70]).flat(), true);
  const to = pen();
  trace(to, [ice], new Projection(bounded(flat(-60, 0, 2))), true);
  const lowest = Math.max(...to.paths.flat().map(([, y]) => y));
  assert.ok(lowest > 600, `${lowest}`);
});

test("of a ring that reaches behind the globe, the rest lies on the edge; one wholly behind is left out", () => {
  const at = new Projection({ ...flat(0, 0, 2), kind: "globe" });
  const half = pen();
  trace(half, [ring([60, -20, 120, -20, 120, 20, 60, 20, 60, -20], true)], at, true);
  const far = Math.max(...half.paths.flat().map(([x, y]) => Math.hypot(x - 400, y - 300)));
  close(far, at.radius, 0.5);
  const none = pen();
  trace(none, [ring([170, -5, -170, -5, -170, 5, 170, 5, 170, -5], true)], at, true);
  assert.equal(none.paths.length, 0);
});

test("polygons know what lies inside, holes taken away", () => {
  const area = {
    type: "MultiPolygon" as const,
    coordinates: [[[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]], [[4, 4], [6, 4], [6, 6], [4, 6], [4, 4]]]] as [number, number][][][],
  };
  assert.ok(contains(area, 2, 2));
  assert.ok(!contains(area, 5, 5));
  assert.ok(!contains(area, 2, 12));
});

test("a great circle keeps its longitudes together over 180 degrees", () => {
  const path = greatCircle([40, 170], [40, -170]);
  assert.ok(path.every(([, lon], n) => n === 0 || Math.abs(lon - path[n - 1]![1]) < 5));
  assert.ok(path[24]![0] > 40, "it bends to the pole");
});

/** How light a colour is to the eye, laid over a ground. */
function lightness(colours: Uint8ClampedArray, at: number, ground: number): number {
  const alpha = colours[4 * at + 3]! / 255;
  const [r, g, b] = [0, 1, 2].map((channel) => (alpha * colours[4 * at + channel]! + (1 - alpha) * ground) / 255) as [number, number, number];
  const linear = (value: number): number => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
}

test("heat is told by lightness alone, which only falls on a light map and only rises on a dark one", () => {
  for (const [dark, ground] of [[false, 240], [true, 20]] as const) {
    const colours = ramp(dark);
    for (let i = 16; i < 256; i += 16) {
      const step = lightness(colours, i, ground) - lightness(colours, i - 16, ground);
      assert.ok(dark ? step > 0 : step < 0, `${dark} ${i}: ${step}`);
    }
  }
});
