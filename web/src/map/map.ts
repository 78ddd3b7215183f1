/** The map: two canvases, markers above them, and all that moves them. */
import { announce, h, icon } from "../dom";
import { coordinates, kilometres } from "../format";
import type { Limit, Result } from "../types";
import { drawBase, drawLabels } from "./base";
import { Drawing, type Tool } from "./draw";
import { flight } from "./fly";
import { attach, zoomed } from "./gestures";
import { HeatLayer, ramp } from "./heat";
import { Markers } from "./markers";
import { drawDots, drawLimits, drawResult, type Layers, Shapes } from "./overlay";
import { DARK, LIGHT, type Palette } from "./palette";
import { bounded, fitting, Projection, type Kind, type View } from "./projection";
import { Tiles } from "./tiles";
import type { World } from "./world";

export interface MapEvents {
  chosen(candidate: number): void;
  dot(index: number): void;
  drawn(limit: Limit | null): void;
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
  readonly drawing: Drawing;
  readonly tiles: Tiles;
  private readonly ground = h("canvas", { class: "map-canvas", "aria-hidden": "true" });
  private readonly above = h("canvas", { class: "map-canvas", "aria-hidden": "true" });
  private readonly readout = h("output", { class: "map-readout", "aria-hidden": "true" });
  private readonly scale = h("div", { class: "map-scale", "aria-hidden": "true" });
  private readonly hint = h("p", { class: "map-hint", hidden: true });
  private readonly markers: Markers;
  private readonly shapes = new Shapes();
  private readonly heat = new HeatLayer();
  private view: View = { kind: "flat", lat: 20, lon: 10, zoom: 1, width: 0, height: 0 };
  private colours: Palette = LIGHT;
  private ramp = ramp(false);
  private result: Result | null = null;
  private limits: readonly Limit[] = [];
  private dots: [number, number][] = [];
  private stale = { ground: true, above: true };
  private frame = 0;
  private flying = 0;
  private shown = false;

  constructor(
    private readonly world: World,
    tileUrl: string | null,
    private readonly events: MapEvents,
  ) {
    this.tiles = new Tiles(tileUrl, () => this.redraw());
    this.markers = new Markers((candidate) => events.chosen(candidate));
    this.element.append(this.ground, this.above, this.markers.element, this.readout, this.scale, this.hint);
    this.drawing = new Drawing({
      element: this.element,
      projection: () => new Projection(this.view),
      redraw: () => this.redraw(false),
      say: (message) => this.say(message),
      finished: (limit) => {
        this.say("");
        this.redraw(false);
        events.drawn(limit);
      },
    });
    attach({
      element: this.element,
      view: () => this.view,
      move: (view) => this.move(view),
      drawing: () => this.drawing.tool !== null,
      clicked: (x, y) => this.clicked(x, y),
    });
    this.element.addEventListener("pointermove", (event) => this.tell(event));
    this.element.addEventListener("pointerleave", () => (this.readout.textContent = ""));
    this.element.addEventListener("keydown", (event) => event.target === this.element && event.key === "0" && this.fit());
    new ResizeObserver(() => this.resized()).observe(this.element);
    void document.fonts.ready.then(() => this.redraw());
  }

  /** Buttons beside the map. */
  controls(toggled: (kind: Kind) => void): HTMLElement {
    const button = (label: string, name: Parameters<typeof icon>[0], act: () => void): HTMLButtonElement =>
      h("button", { type: "button", class: "tool", "aria-label": label, title: label, onclick: act }, icon(name));
    const kind = button("Show a globe", "globe", () => {
      const next: Kind = this.view.kind === "flat" ? "globe" : "flat";
      kind.replaceChildren(icon(next === "flat" ? "globe" : "map"));
      kind.title = next === "flat" ? "Show a globe" : "Show a flat map";
      kind.setAttribute("aria-label", kind.title);
      this.setKind(next);
      toggled(next);
    });
    return h(
      "div",
      { class: "map-tools", role: "group", "aria-label": "Map" },
      button("Zoom in", "plus", () => this.animate(zoomed(this.view, 1), 200)),
      button("Zoom out", "minus", () => this.animate(zoomed(this.view, -1), 200)),
      button("Show all of the answer", "frame", () => this.fit()),
      kind,
    );
  }

  setTheme(dark: boolean): void {
    this.colours = dark ? DARK : LIGHT;
    this.ramp = ramp(dark);
    this.redraw();
  }

  setKind(kind: Kind): void {
    this.view = bounded({ ...this.view, kind });
    this.fit();
    this.redraw();
  }

  /** Shows an answer and the candidate that is chosen; flies there when it is another. */
  show(result: Result | null, candidate: number, move: boolean): void {
    const changed = result !== this.result;
    this.result = result;
    this.markers.set(result, candidate);
    this.redraw(false);
    if (move && changed) this.fit();
    else if (move && result?.candidates?.[candidate]) this.flyTo(candidate);
  }

  setLimits(limits: readonly Limit[]): void {
    this.limits = limits;
    this.redraw(false);
  }

  setDots(dots: [number, number][]): void {
    this.dots = dots;
    this.redraw(false);
  }

  setLayer(layer: keyof Layers, on: boolean): void {
    this.layers[layer] = on;
    this.redraw(false);
  }

  showTiles(on: boolean): void {
    this.tiles.shown = on;
    this.redraw();
  }

  draw(tool: Tool, inside: boolean): void {
    this.drawing.start(tool, inside);
  }

  flyTo(candidate: number): void {
    const place = this.result?.candidates?.[candidate];
    if (!place) return;
    const zoom = Math.log2(40_030 / Math.max(place.radius_km, 8)) - 1.6 + Math.log2(Math.min(this.view.width, this.view.height) / 700);
    this.animate({ ...this.view, lat: place.lat, lon: place.lon, zoom: Math.max(3.6, Math.min(9.5, zoom)) });
  }

  /** Shows what is on the map: the answer with its regions, or all photos. */
  fit(): void {
    const candidates = this.result?.candidates ?? [];
    const most = Math.max(0, ...candidates.map(({ probability }) => probability));
    const likely = candidates.filter(({ probability }, index) => index === 0 || probability > 0.05 * most);
    const places: [number, number][] = likely.map(({ lat, lon }) => [lat, lon]);
    if (this.result?.exif) places.push([this.result.exif.lat, this.result.exif.lon]);
    for (const rings of this.result?.regions?.["50"]?.coordinates ?? [])
      for (const [lon, lat] of rings[0] ?? []) places.push([lat, lon]);
    const margin = Math.min(90, Math.min(this.view.width, this.view.height) / 7);
    this.animate(fitting(places.length > 0 ? places : this.result ? [] : this.dots, this.view, 6, margin));
  }

  private move(view: View): void {
    cancelAnimationFrame(this.flying);
    this.set(view);
  }

  private set(view: View): void {
    this.view = bounded(view);
    this.redraw();
  }

  private animate(to: View, ms?: number): void {
    cancelAnimationFrame(this.flying);
    const goal = bounded(to);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches || !this.shown || document.hidden;
    if (still) {
      this.set(goal);
      this.element.dataset["still"] = "true";
      return;
    }
    this.element.dataset["still"] = "false";
    const path = flight(this.view, goal);
    const start = performance.now();
    const step = (now: number): void => {
      const share = Math.min(1, Math.max(0, now - start) / (ms ?? path.ms));
      this.set(path.at(share));
      if (share < 1) this.flying = requestAnimationFrame(step);
      else this.element.dataset["still"] = "true";
    };
    this.flying = requestAnimationFrame(step);
  }

  private say(message: string): void {
    this.hint.textContent = message;
    this.hint.hidden = message === "";
    if (message) announce(message);
  }

  private clicked(x: number, y: number): void {
    const at = new Projection(this.view);
    let [best, nearest] = [-1, 10];
    if (this.layers.others)
      this.dots.forEach((place, index) => {
        const spot = at.project(...place);
        const away = spot === null ? Infinity : Math.hypot(spot[0] - x, spot[1] - y);
        if (away < nearest) [best, nearest] = [index, away];
      });
    if (best >= 0) this.events.dot(best);
  }

  private tell(event: PointerEvent): void {
    const box = this.element.getBoundingClientRect();
    const place = new Projection(this.view).unproject(event.clientX - box.left, event.clientY - box.top);
    this.readout.textContent = place === null ? "" : coordinates(place[0], place[1], this.view.zoom > 6 ? 3 : 1);
  }

  private resized(): void {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (width === 0 || height === 0) return;
    this.view = bounded({ ...this.view, width, height });
    const dense = Math.min(2, devicePixelRatio || 1);
    for (const canvas of [this.ground, this.above]) {
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
      canvas.getContext("2d")!.setTransform(dense, 0, 0, dense, 0, 0);
    }
    if (!this.shown) this.fit();
    this.shown = true;
    this.stale = { ground: true, above: true };
    this.paint(); // at once: an emptied canvas would flicker
  }

  private redraw(ground = true): void {
    this.stale = { ground: this.stale.ground || ground, above: true };
    if (this.frame === 0) this.frame = requestAnimationFrame(() => this.paint());
  }

  private paint(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const { width, height } = this.view;
    if (width === 0) return;
    const at = new Projection(this.view);
    if (this.stale.ground) {
      const pen = this.ground.getContext("2d")!;
      pen.clearRect(0, 0, width, height);
      const tiled = this.tiles.shown && at.flat;
      if (tiled) this.tiles.draw(pen, at, this.colours.water);
      drawBase(pen, this.world, at, this.colours, tiled);
    }
    const pen = this.above.getContext("2d")!;
    pen.clearRect(0, 0, width, height);
    drawLimits(pen, this.limits, this.shapes, this.world, at, this.colours);
    if (this.result) drawResult(pen, this.result, this.layers, this.shapes, this.heat, this.ramp, at, this.colours);
    const taken = this.markers.place(at);
    if (!(this.tiles.shown && at.flat)) drawLabels(pen, this.world, at, this.colours, taken);
    if (this.layers.others) drawDots(pen, this.dots, at, this.colours);
    this.drawing.paint(pen, at, this.colours);
    this.stale = { ground: false, above: false };
    this.paintScale(at);
    this.element.dataset["view"] = `${this.view.lat.toFixed(3)},${this.view.lon.toFixed(3)},${this.view.zoom.toFixed(2)}`;
  }

  private paintScale(at: Projection): void {
    const per = at.kmPerPixel(this.view.lat);
    const most = 110 * per;
    const power = 10 ** Math.floor(Math.log10(most));
    const km = [5, 2, 1].map((step) => step * power).find((step) => step <= most) ?? power;
    this.scale.style.width = `${km / per}px`;
    this.scale.textContent = kilometres(km);
  }
}
