/** Draws a box, a polygon or a point on the map, by pointer or by keyboard (the center of the map sets corners). */
import { densify, nearestLongitude, type Position } from "../geo";
import { stroke } from "./canvas";
import type { Palette } from "./palette";
import type { Projection } from "./projection";

export type Tool = "box" | "polygon" | "point";

/** Degrees; the west may be east of the east, over 180 degrees. */
export interface Box {
  south: number;
  west: number;
  north: number;
  east: number;
}

/** What was drawn: a box, or the corners of a polygon as (lat, lon); a point is a single corner. */
export type Drawn = Box | [number, number][];

export interface DrawingHost {
  element: HTMLElement;
  projection(): Projection;
  redraw(): void;
  /** Called when drawing ends. */
  finish(): void;
  showHint(message: string): void;
}

const SNAP_PX = 12;

export class Drawing {
  tool: Tool | null = null;
  private color: "limit" | "outside" = "limit";
  private use: (drawn: Drawn) => void = () => undefined;
  private corners: [number, number][] = [];
  private hover: [number, number] | null = null;
  private keyboard = false;
  private pressed = false;

  constructor(private readonly host: DrawingHost) {
    const { element } = host;
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.moved(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("dblclick", () => this.tool === "polygon" && this.close());
    element.addEventListener("keydown", (event) => this.key(event));
  }

  /** @param use Called with what was drawn, unless it is given up. */
  start(tool: Tool, color: "limit" | "outside", use: (drawn: Drawn) => void): void {
    [this.tool, this.color, this.use, this.corners, this.hover, this.keyboard, this.pressed] = [tool, color, use, [], null, false, false];
    this.host.element.classList.add("drawing");
    this.host.element.focus();
    this.host.showHint(
      tool === "point"
        ? "Click the place. Or move the map with the arrow keys and press Enter. Escape ends."
        : tool === "box"
        ? "Drag from corner to corner. Or move the map with the arrow keys and press Enter for each corner. Escape ends."
        : "Click each corner, the first again to close. Or move the map with the arrow keys, Enter for a corner, C to close. Escape ends.",
    );
    this.host.redraw();
  }

  private stop(drawn: Drawn | null = null): void {
    this.tool = null;
    this.corners = [];
    this.host.element.classList.remove("drawing");
    this.host.finish();
    if (drawn) this.use(drawn);
  }

  private at(event: MouseEvent): [number, number] | null {
    const box = this.host.element.getBoundingClientRect();
    return this.host.projection().unproject(event.clientX - box.left, event.clientY - box.top);
  }

  private down(event: PointerEvent): void {
    if (this.tool === null || event.button !== 0 || (event.target as Element).closest("button")) return;
    const place = this.at(event);
    if (place === null) return;
    this.keyboard = false;
    if (this.tool === "point") {
      event.stopPropagation();
      return this.stop([place]);
    }
    this.host.element.setPointerCapture(event.pointerId);
    if (this.tool === "box") {
      this.corners = [place];
      this.pressed = true;
    } else if (this.closes(event)) this.close();
    else if (event.detail < 2) this.corners.push(place);
    this.host.redraw();
  }

  private moved(event: PointerEvent): void {
    if (this.tool === null) return;
    this.hover = this.at(event);
    this.host.redraw();
  }

  private up(event: PointerEvent): void {
    if (this.tool !== "box" || !this.pressed) return;
    this.pressed = false;
    const place = this.at(event);
    if (place) this.box(this.corners[0]!, place);
  }

  private key(event: KeyboardEvent): void {
    if (this.tool === null) return;
    const middle = (): [number, number] => {
      const { lat, lon } = this.host.projection().view;
      return [lat, lon];
    };
    const keys: Record<string, () => void> = {
      Escape: () => this.stop(),
      Backspace: () => void this.corners.pop(),
      c: () => this.tool === "polygon" && this.close(),
      Enter: () => {
        this.keyboard = true;
        if (this.tool === "point") return this.stop([middle()]);
        this.corners.push(middle());
        this.host.showHint(`Corner ${this.corners.length} set.`);
        if (this.tool === "box" && this.corners.length === 2) this.box(this.corners[0]!, this.corners[1]!);
      },
    };
    const act = keys[event.key];
    if (act === undefined) {
      if (event.key.startsWith("Arrow")) this.keyboard = true;
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    act();
    this.host.redraw();
  }

  private closes(event: MouseEvent): boolean {
    if (this.corners.length < 3) return false;
    const box = this.host.element.getBoundingClientRect();
    const first = this.host.projection().project(...this.corners[0]!);
    return first !== null && Math.hypot(first[0] - event.clientX + box.left, first[1] - event.clientY + box.top) < SNAP_PX;
  }

  private close(): void {
    if (this.corners.length < 3) {
      this.host.showHint("A polygon needs three corners or more.");
      return;
    }
    this.stop(this.corners);
  }

  /** The western edge is that of the two from which the way eastwards is the shorter. */
  private box(a: [number, number], b: [number, number]): void {
    const [south, north] = [Math.min(a[0], b[0]), Math.max(a[0], b[0])];
    const eastwards = nearestLongitude(b[1], a[1]) >= a[1];
    const [west, east] = eastwards ? [a[1], b[1]] : [b[1], a[1]];
    if (north - south < 0.001 || Math.abs(nearestLongitude(east, west) - west) < 0.001) {
      this.corners = [];
      this.host.showHint("That box has no area: drag from one corner to the opposite one.");
      return;
    }
    this.stop({ south, west, north, east });
  }

  /** What is drawn so far. */
  paint(context: CanvasRenderingContext2D, at: Projection, colors: Palette): void {
    if (this.tool === null) return;
    const { lat, lon, width, height } = at.view;
    const end = this.keyboard ? ([lat, lon] as [number, number]) : this.hover;
    const color = colors[this.color];
    context.strokeStyle = color;
    context.lineWidth = 2;
    const first = this.corners[0];
    if (first && end) {
      const path = this.tool === "polygon" ? [...this.corners, end] : [first, [first[0], end[1]], end, [end[0], first[1]], first];
      const coordinates = densify(path.map(([lat, lon]) => [lon!, lat!] as Position));
      stroke(context, [{ type: "LineString", coordinates }], at, { color, width: 2 });
    }
    for (const corner of this.corners) {
      const spot = at.project(...corner);
      if (spot === null) continue;
      context.beginPath();
      context.arc(spot[0], spot[1], 5, 0, 2 * Math.PI);
      context.fillStyle = colors.halo;
      context.fill();
      context.stroke();
    }
    if (this.keyboard) {
      context.beginPath();
      context.moveTo(width / 2 - 12, height / 2);
      context.lineTo(width / 2 + 12, height / 2);
      context.moveTo(width / 2, height / 2 - 12);
      context.lineTo(width / 2, height / 2 + 12);
      context.stroke();
    }
  }
}
