/** The map: a canvas for the basemap, one for the answer, and markers above them. */
import { geoInterpolate } from "d3-geo";
import { announce, h, icon } from "../dom";
import { coordinates, kilometres } from "../format";
import { boxLimit, polygonLimit } from "../limit-syntax";
import type { Candidate, Limit, Result, SetPlace } from "../types";
import { distanceKm, type Position } from "../geo";
import { drawBasemap } from "./basemap";
import { clusterPlaces, drawClusters, type Cluster } from "./clusters";
import { Drawing, type Box, type Tool } from "./drawing";
import { flight } from "./flight";
import { colorRamp, HeatLayer } from "./heatmap";
import { Interaction } from "./interaction";
import { drawLabels } from "./labels";
import { Markers } from "./markers";
import { drawLimits, drawResult, type Layers } from "./overlay";
import { DARK, LIGHT, type Palette } from "./palette";
import { clampView, fitView, Projection, zoomView, type Kind, type View } from "./projection";
import type { Tiles } from "./tiles";
import type { World } from "./world";

export interface MapEvents {
  selectCandidate(candidate: number): void;
  selectDot(index: number): void;
  addLimit(limit: Limit): void;
  selectBox(box: Box): void;
}

const CLICK_PX = 5; // by which a click may be off
const FRAME_MAX_ZOOM = 6;
const FRAME_MARGIN_PX = 90;
const MIN_FRAME_MARGIN_PX = 64; // the buttons do not cover what is framed
const MIN_SHARE_IN_FRAME = 0.05; // less likely candidates, relative to the likeliest, are not framed
const DOT_CLICK_PX = 6; // beyond its edge
const CLUSTER_MAX_ZOOM = 10; // at which places that are still together are one
const SCALE_PX = 140; // at most; at least two fifths of it
const SETTLE_MS = 160; // after the last movement, full detail is drawn

/** Points of the line from the best candidate to the place in EXIF, which is to be in view. */
function lineToExif(best: Candidate | undefined, exif: Position): Position[] {
  if (!best) return [exif];
  const along = geoInterpolate([best.lon, best.lat], exif);
  return [0.25, 0.5, 0.75, 1].map(along);
}

export class WorldMap {
  readonly element = h("div", {
    id: "map",
    class: "map",
    tabindex: "0",
    role: "application",
    "aria-roledescription": "map",
    "aria-label": "Map of the Earth. Arrow keys move it, plus and minus zoom, 0 shows all.",
  });
  readonly layers: Layers = { heat: true, regions: true, others: true };
  private readonly basemap = h("canvas", { class: "map-canvas", "aria-hidden": "true" });
  private readonly overlay = h("canvas", { class: "map-canvas", "aria-hidden": "true" });
  private readonly readout = h("output", { class: "map-readout", "aria-hidden": "true" });
  private readonly scale = h("div", { class: "map-scale", "aria-hidden": "true" });
  private readonly attribution = h("p", { class: "map-attribution", hidden: true });
  private readonly hint = h("p", { class: "map-hint", hidden: true });
  private readonly markers: Markers;
  private readonly drawing: Drawing;
  private readonly interaction: Interaction;
  private readonly heat = new HeatLayer();
  private view: View = { kind: "flat", lat: 20, lon: 10, zoom: 1, width: 0, height: 0 };
  private colors: Palette = LIGHT;
  private ramp = colorRamp(false);
  private result: Result | null = null;
  private limits: readonly Limit[] = [];
  private dots: [number, number][] = [];
  private clusters: Cluster[] = [];
  /** Buttons for many photos, hidden until there are some. */
  private readonly manyButtons = [
    this.button("Show all photos", "layers", () => this.framePlaces([])),
    this.button("Select photos in a box", "box", () => this.selectBox()),
  ];
  private outdated = { basemap: true, overlay: true };
  private frame = 0;
  /** The flight under way: where to, and the frame that is requested. */
  private flying: { goal: View; frame: number } | null = null;
  private settling = 0;
  private isSized = false;

  constructor(
    private readonly world: World,
    readonly tiles: Tiles,
    private readonly events: MapEvents,
  ) {
    this.markers = new Markers((candidate) => events.selectCandidate(candidate));
    this.attribution.textContent = tiles.attribution;
    this.element.append(this.basemap, this.overlay, this.markers.element, this.readout, this.scale, this.attribution, this.hint);
    this.drawing = new Drawing({
      element: this.element,
      projection: () => new Projection(this.view),
      redraw: () => this.redraw(false),
      showHint: (message) => this.showHint(message),
      finish: () => {
        this.showHint("");
        this.redraw(false);
      },
    });
    this.interaction = new Interaction({
      element: this.element,
      view: () => this.view,
      move: (view) => {
        this.stopFlight();
        this.setView(view);
      },
      zoomBy: (levels) => this.zoomBy(levels),
      isFlying: () => this.flying !== null,
      isDrawing: () => this.drawing.tool !== null,
      click: (x, y) => this.click(x, y),
    });
    tiles.onLoad = () => this.redraw();
    this.element.addEventListener("pointermove", (event) => this.showCoordinates(event));
    this.element.addEventListener("pointerleave", () => (this.readout.textContent = ""));
    this.element.addEventListener("keydown", (event) => event.target === this.element && event.key === "0" && this.fit());
    new ResizeObserver(() => this.resize()).observe(this.element);
    void document.fonts.ready.then(() => this.redraw());
  }

  /** Decodes the detailed map before it is needed. */
  prepareDetail(): void {
    this.world.level(Infinity);
  }

  private button(label: string, name: Parameters<typeof icon>[0], act: () => void): HTMLButtonElement {
    return h("button", { type: "button", class: "tool", "aria-label": label, title: label, onclick: act }, icon(name));
  }

  /** Buttons beside the map; with `hasSelection`, one that selects photos. */
  controls(hasSelection: boolean): HTMLElement[] {
    this.manyButtons.forEach((each) => (each.hidden = true));
    const kind = this.button("Show a globe", "globe", () => {
      const next: Kind = this.view.kind === "flat" ? "globe" : "flat";
      kind.replaceChildren(icon(next === "flat" ? "globe" : "map"));
      kind.title = next === "flat" ? "Show a globe" : "Show a flat map";
      kind.setAttribute("aria-label", kind.title);
      this.setKind(next);
    });
    const tools = h(
      "div",
      { class: "map-tools", role: "group", "aria-label": "Map" },
      this.button("Zoom in", "plus", () => this.zoomBy(1)),
      this.button("Zoom out", "minus", () => this.zoomBy(-1)),
      this.button("Show all of the answer", "frame", () => this.fit()),
      kind,
    );
    const many = hasSelection ? this.manyButtons : this.manyButtons.slice(0, 1);
    return [tools, h("div", { class: "map-tools many", role: "group", "aria-label": "Photos on the map" }, ...many)];
  }

  setTheme(dark: boolean): void {
    this.colors = dark ? DARK : LIGHT;
    this.ramp = colorRamp(dark);
    this.redraw();
  }

  setKind(kind: Kind): void {
    this.view = clampView({ ...this.view, kind });
    this.fit();
    this.redraw();
  }

  /** Shows an answer with one candidate selected: frames a new answer, flies to another candidate of the same one. */
  show(result: Result | null, candidate: number): void {
    const isNew = result !== this.result;
    this.result = result;
    this.markers.set(result, candidate);
    this.redraw(false);
    if (isNew) this.fit();
    else this.flyTo(candidate);
  }

  setLimits(limits: readonly Limit[]): void {
    this.limits = limits;
    this.redraw(false);
  }

  setDots(dots: [number, number][]): void {
    this.dots = dots;
    this.manyButtons.forEach((each) => (each.hidden = dots.length === 0));
    this.redraw(false);
  }

  setLayer(layer: keyof Layers, on: boolean): void {
    this.layers[layer] = on;
    this.redraw(false);
  }

  showTiles(on: boolean): void {
    this.tiles.isShown = on;
    this.redraw();
  }

  draw(tool: Tool, inside: boolean): void {
    this.drawing.start(tool, inside ? "limit" : "outside", (drawn) =>
      this.events.addLimit(
        Array.isArray(drawn) ? polygonLimit(drawn, inside) : boxLimit(drawn.south, drawn.west, drawn.north, drawn.east, inside),
      ),
    );
  }

  /** Lets the user choose a place. */
  pick(use: (place: SetPlace) => void): void {
    this.drawing.start("point", "limit", (drawn) => {
      if (!Array.isArray(drawn)) return;
      const [lat, lon] = drawn[0]!;
      const at = new Projection(this.view);
      const [x, y] = at.project(lat, lon)!;
      const near = at.unproject(x + CLICK_PX, y) ?? at.unproject(x - CLICK_PX, y) ?? [lat, lon + 1];
      use([lat, lon, Math.max(1, 1000 * distanceKm(lat, lon, near[0]!, near[1]!))]);
    });
  }

  private selectBox(): void {
    this.drawing.start("box", "limit", (drawn) => !Array.isArray(drawn) && this.events.selectBox(drawn));
  }

  private flyTo(candidate: number): void {
    const place = this.result?.candidates?.[candidate];
    if (!place) return;
    const zoom = Math.log2(40_030 / Math.max(place.radius_km, 8)) - 1.6 + Math.log2(Math.min(this.view.width, this.view.height) / 700);
    this.animate({ ...this.view, lat: place.lat, lon: place.lon, zoom: Math.max(3.6, Math.min(9.5, zoom)) });
  }

  /** Frames the answer with its 50 % region and the place in EXIF; without an answer, the other photos. */
  fit(): void {
    const { candidates = [], exif, regions } = this.result ?? {};
    const highest = Math.max(0, ...candidates.map(({ probability }) => probability));
    const likely = candidates.filter(({ probability }, index) => index === 0 || probability > MIN_SHARE_IN_FRAME * highest);
    const places: Position[] = [
      ...likely.map(({ lat, lon }): Position => [lon, lat]),
      ...(exif ? lineToExif(candidates[0], [exif.lon, exif.lat]) : []),
      ...(regions?.["50"]?.coordinates ?? []).flatMap(([exterior]) => exterior ?? []),
    ];
    this.framePlaces(places);
  }

  /** Frames places; without any, all photos. */
  private framePlaces(places: Position[]): void {
    const best = this.result?.candidates?.[0];
    const photos = [...this.dots, ...(best ? [[best.lat, best.lon] as const] : [])].map(([lat, lon]): Position => [lon, lat]);
    const margin = Math.max(MIN_FRAME_MARGIN_PX, Math.min(FRAME_MARGIN_PX, Math.min(this.view.width, this.view.height) / 7));
    this.animate(fitView(places.length > 0 ? places : photos, this.view, FRAME_MAX_ZOOM, margin));
  }

  /** Zooms in or out; a flight goes on to its goal, nearer or farther. */
  private zoomBy(levels: number): void {
    const from = this.flying?.goal ?? this.view;
    this.animate(zoomView(from, from.zoom + levels), 200);
  }

  private stopFlight(): void {
    if (this.flying) cancelAnimationFrame(this.flying.frame);
    this.flying = null;
    this.element.dataset["still"] = "true";
  }

  private setView(view: View): void {
    this.view = clampView(view);
    this.interaction.sync(this.view);
    clearTimeout(this.settling);
    this.settling = window.setTimeout(() => {
      this.settling = 0;
      this.redraw();
    }, SETTLE_MS);
    this.redraw();
  }

  private animate(to: View, minMs = 0): void {
    this.stopFlight();
    const goal = clampView(to);
    const isInstant = matchMedia("(prefers-reduced-motion: reduce)").matches || !this.isSized || document.hidden;
    if (isInstant) return this.setView(goal);
    const path = flight(this.view, goal);
    const ms = Math.max(minMs, path.ms);
    const start = performance.now();
    const step = (now: number): void => {
      const share = Math.min(1, Math.max(0, now - start) / ms);
      this.setView(path.at(share));
      if (share < 1) this.flying = { goal, frame: requestAnimationFrame(step) };
      else this.stopFlight();
    };
    this.element.dataset["still"] = "false";
    this.flying = { goal, frame: requestAnimationFrame(step) };
  }

  private showHint(message: string): void {
    this.hint.textContent = message;
    this.hint.hidden = message === "";
    if (message) announce(message);
  }

  /** Selects the photo of a dot; a cluster is zoomed into until its photos are apart. */
  private click(x: number, y: number): void {
    const beyond = ({ x: left, y: top, radius }: Cluster): number => Math.hypot(left - x, top - y) - radius;
    const [hit] = this.clusters.filter((cluster) => beyond(cluster) < DOT_CLICK_PX).sort((a, b) => beyond(a) - beyond(b));
    if (hit === undefined) return;
    const places = hit.members.map((index): Position => [this.dots[index]![1], this.dots[index]![0]]);
    const goal = fitView(places, this.view, CLUSTER_MAX_ZOOM, FRAME_MARGIN_PX);
    if (hit.members.length === 1 || goal.zoom < this.view.zoom + 0.2) this.events.selectDot(hit.members[0]!);
    else this.animate(goal);
  }

  private showCoordinates(event: PointerEvent): void {
    const box = this.element.getBoundingClientRect();
    const place = new Projection(this.view).unproject(event.clientX - box.left, event.clientY - box.top);
    this.readout.textContent = place === null ? "" : coordinates(place[0], place[1], this.view.zoom > 6 ? 3 : 1);
  }

  private resize(): void {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (width === 0 || height === 0) return;
    this.view = clampView({ ...this.view, width, height });
    this.interaction.sync(this.view);
    const density = Math.min(2, devicePixelRatio || 1);
    for (const canvas of [this.basemap, this.overlay]) {
      canvas.width = Math.round(width * density);
      canvas.height = Math.round(height * density);
      canvas.getContext("2d")!.setTransform(density, 0, 0, density, 0, 0);
    }
    if (!this.isSized) this.fit();
    this.isSized = true;
    this.outdated = { basemap: true, overlay: true };
    this.paint(); // at once: an emptied canvas would flicker
  }

  private redraw(basemap = true): void {
    this.outdated = { basemap: this.outdated.basemap || basemap, overlay: true };
    if (this.frame === 0) this.frame = requestAnimationFrame(() => this.paint());
  }

  private paint(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const { width, height } = this.view;
    if (width === 0) return;
    const at = new Projection(this.view);
    const hasTiles = this.tiles.isShown && at.flat;
    this.attribution.hidden = !hasTiles;
    if (this.outdated.basemap) {
      const context = this.basemap.getContext("2d")!;
      context.clearRect(0, 0, width, height);
      if (hasTiles) this.tiles.draw(context, at, this.colors.water);
      drawBasemap(context, this.world, at, this.colors, hasTiles, this.settling !== 0);
    }
    const context = this.overlay.getContext("2d")!;
    context.clearRect(0, 0, width, height);
    drawLimits(context, this.limits, this.world, at, this.colors);
    if (this.result) drawResult(context, this.result, this.layers, this.heat, this.ramp, at, this.colors);
    const taken = this.markers.place(at);
    if (!hasTiles) drawLabels(context, this.world, at, this.colors, taken);
    this.clusters = this.layers.others ? clusterPlaces(this.dots, at) : [];
    drawClusters(context, this.clusters, this.colors);
    this.drawing.paint(context, at, this.colors);
    this.outdated = { basemap: false, overlay: false };
    this.paintScale(at);
    this.element.dataset["clusters"] = this.clusters.map(({ x, y, members }) => `${x.toFixed(1)},${y.toFixed(1)},${members.length}`).join(";");
    this.element.dataset["view"] = `${this.view.lat.toFixed(3)},${this.view.lon.toFixed(3)},${this.view.zoom.toFixed(2)}`;
  }

  private paintScale(at: Projection): void {
    const perPixel = at.kmPerPixel(this.view.lat);
    const max = SCALE_PX * perPixel;
    const power = 10 ** Math.floor(Math.log10(max));
    const km = [5, 2, 1].map((step) => step * power).find((step) => step <= max) ?? power;
    this.scale.style.width = `${km / perPixel}px`;
    this.scale.textContent = kilometres(km);
  }
}
