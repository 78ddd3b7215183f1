import assert from "node:assert/strict";
import { test } from "node:test";
import { contains, densify, distanceKm, nearestLongitude, outlines, type Position } from "../src/geo";
import { limitShape, polygonLimit } from "../src/limit-syntax";
import { clusterPlaces } from "../src/map/clusters";
import { flight } from "../src/map/flight";
import { colorRamp } from "../src/map/heatmap";
import { anchorView, clampView, fitView, minZoom, panView, Projection, zoomView, type View } from "../src/map/projection";

const SIZE = { width: 800, height: 600 };
const flat = (lat: number, lon: number, zoom: number): View => ({ kind: "flat", lat, lon, zoom, ...SIZE });
const globe = (lat: number, lon: number, zoom: number): View => ({ ...flat(lat, lon, zoom), kind: "globe" });
const close = (a: number, b: number, by = 1e-6): void => assert.ok(Math.abs(a - b) <= by, `${a} is not ${b}`);

test("distances are those of the great circle", () => {
  close(distanceKm(48.8566, 2.3522, 51.5074, -0.1278), 343.56, 0.1); // Paris to London
  close(distanceKm(0, 179.5, 0, -179.5), 111.195, 0.01);
  close(distanceKm(90, 0, -90, 0), Math.PI * 6371.0088, 1e-6);
});

for (const view of [flat, globe])
  test(`a pixel of the ${view(0, 0, 0).kind} view leads back to its place, across 180 degrees too`, () => {
    for (const [lat, lon, zoom] of [[0, 0, 3], [60, 179.9, 5], [-75, -179, 4], [41.9, 12.5, 11]] as const) {
      const at = new Projection(view(lat, lon, zoom));
      for (const [x, y] of [[400, 300], [390, 320], [431, 266]] as const) {
        const place = at.unproject(x, y)!;
        const back = at.project(...place)!;
        close(back[0], x, 1e-4);
        close(back[1], y, 1e-4);
      }
    }
  });

test("what is behind the globe has no pixel, and outside of it there is no place", () => {
  const at = new Projection(globe(0, 0, 1));
  assert.equal(at.project(0, 180), null);
  assert.equal(at.unproject(1, 1), null);
});

test("a flat map shows nothing south of its edge, and at most a strip of water north of it", () => {
  const view = clampView(flat(85, 0, -3));
  assert.equal(view.zoom, minZoom(view));
  const { y } = new Projection(view).origin;
  const { world } = new Projection(view);
  assert.ok(y >= -0.051 * world && y + view.height <= world + 1e-6);
});

test("fitting shows all places with a margin, the short way over 180 degrees", () => {
  const places: Position[] = [[178, -17], [-178, -15]];
  const view = fitView(places, { kind: "flat", ...SIZE });
  assert.ok(view.zoom > 5, `${view.zoom}`);
  for (const [lon, lat] of places) {
    const [x, y] = new Projection(view).project(lat, lon)!;
    assert.ok(x > 60 && x < 740 && y > 60 && y < 540);
  }
});

test("the Earth is framed without Antarctica, unless a place lies there", () => {
  for (const [width, height] of [[650, 780], [360, 385], [1210, 950], [900, 420]] as const) {
    const size = { kind: "flat" as const, width, height };
    const south = (view: View): number => new Projection(view).unproject(width / 2, height - 1)![0];
    assert.ok(south(fitView([], size)) > -68, `${width}: ${south(fitView([], size))}`);
    assert.ok(south(fitView([[-60, 10], [100, 40]], size)) > -66);
    const polar = fitView([[-60, -75], [100, 40]], size);
    const [, y] = new Projection(polar).project(-75, -60)!;
    assert.ok(y > 0 && y < height);
  }
});

for (const view of [flat, globe])
  test(`zooming holds the place under the pointer, dragging takes it along (${view(0, 0, 0).kind})`, () => {
    const start = view(40, 10, 5);
    const place = new Projection(start).unproject(620, 130)!;
    const [x, y] = new Projection(zoomView(start, 6, 620, 130)).project(...place)!;
    close(x, 620, 1e-6);
    close(y, 130, 1e-6);
    const [dx, dy] = new Projection(anchorView(start, place, [650, 110])).project(...place)!;
    close(dx, 650, 1e-6);
    close(dy, 110, 1e-6);
    const [px, py] = new Projection(panView(start, 30, -20)).project(40, 10)!;
    close(px, 430, 1e-6);
    close(py, 280, 1e-6);
  });

test("places close to each other on the screen are one cluster, and come apart when zoomed in", () => {
  const places: [number, number][] = [[41.9, 12.5], [42, 12.6], [48.9, 2.3], [-33.9, 151.2]];
  const members = (view: View): number[][] => clusterPlaces(places, new Projection(view)).map((cluster) => cluster.members);
  assert.deepEqual(members(flat(45, 8, 3)), [[0, 1], [2]]);
  assert.deepEqual(members(flat(42, 12.5, 10)), [[0], [1]]);
  assert.deepEqual(members(globe(45, 8, 2)).flat().length, 3, "not what is behind the globe");
});

test("a flight begins and ends where it should, and goes out between far places", () => {
  for (const view of [flat, globe]) {
    const [from, to] = [view(48, 2, 7), view(-17, 178, 6)];
    const path = flight(from, to);
    close(path.at(0).lat, 48, 1e-6);
    close(path.at(0).zoom, 7, 1e-6);
    assert.deepEqual(path.at(1), to);
    assert.ok(path.at(0.5).zoom < 5);
    const late = path.at(0.999);
    close(late.lat, -17, 0.5);
    close(nearestLongitude(late.lon, 178), 178, 0.5);
  }
});

/** A canvas context that records the corners of what is drawn. */
function recorder() {
  const paths: [number, number][][] = [];
  const context = {
    moveTo: (x: number, y: number) => void paths.push([[x, y]]),
    lineTo: (x: number, y: number) => void paths.at(-1)!.push([x, y]),
    closePath: () => undefined,
  } as unknown as CanvasRenderingContext2D;
  return { paths, context };
}

test("a polygon over 180 degrees is drawn in one piece, whichever way its corners go", () => {
  for (const corners of [[[-10, 170], [-10, 190], [10, 190], [10, 170]], [[10, 170], [10, -170], [-10, -170], [-10, 170]]] as [number, number][][]) {
    const { paths, context } = recorder();
    new Projection(flat(0, 180, 4)).path(context)(limitShape(polygonLimit(corners, true)) as GeoJSON.Polygon);
    assert.equal(paths.length, 1);
    const xs = paths[0]!.map(([x]) => x);
    close(Math.max(...xs) - Math.min(...xs), (20 / 360) * 256 * 16, 0.1);
  }
});

test("edges of limits are straight in longitude and latitude, the short way around", () => {
  const line = densify([[170, 50], [-170, 50]]);
  assert.ok(line.every(([lon, lat]) => lat === 50 && lon >= 170 && lon <= 190));
  assert.equal(line.length, 11);
});

test("outlines leave out the cuts at 180 degrees", () => {
  const lines = outlines([[[170, 0], [180, 0], [180, 10], [170, 10], [170, 0]]]);
  assert.deepEqual(lines, [[[170, 0], [180, 0]], [[180, 10], [170, 10], [170, 0]]]);
});

test("polygons contain what lies inside, except in holes", () => {
  const area = {
    type: "MultiPolygon" as const,
    coordinates: [[[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]], [[4, 4], [6, 4], [6, 6], [4, 6], [4, 4]]]] as [number, number][][][],
  };
  assert.ok(contains(area, 2, 2));
  assert.ok(!contains(area, 5, 5));
  assert.ok(!contains(area, 2, 12));
});

/** Relative luminance of a color over a background. */
function lightness(colours: Uint8ClampedArray, at: number, ground: number): number {
  const alpha = colours[4 * at + 3]! / 255;
  const [r, g, b] = [0, 1, 2].map((channel) => (alpha * colours[4 * at + channel]! + (1 - alpha) * ground) / 255) as [number, number, number];
  const linear = (value: number): number => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
}

test("the heat map falls in lightness on a light map and rises on a dark one", () => {
  for (const [dark, ground] of [[false, 240], [true, 20]] as const) {
    const colours = colorRamp(dark);
    for (let i = 16; i < 256; i += 16) {
      const step = lightness(colours, i, ground) - lightness(colours, i - 16, ground);
      assert.ok(dark ? step > 0 : step < 0, `${dark} ${i}: ${step}`);
    }
  }
});
