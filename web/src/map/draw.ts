/** Drawing a box or a polygon on the map, by pointer or by keyboard (a cross in the middle sets corners). */
import { boxLimit, polygonLimit } from "../limits-grammar";
import { near } from "../geo";
import type { Limit } from "../types";
import type { Palette } from "./palette";
import type { Projection } from "./projection";
import { ring, trace } from "./rings";

export type Tool = "box" | "polygon";

export interface Board {
  element: HTMLElement;
  projection(): Projection;
  redraw(): void;
  finished(limit: Limit | null): void;
  say(message: string): void;
}

const SNAP_PX = 12;

export class Drawing {
  tool: Tool | null = null;
  private inside = true;
  private corners: [number, number][] = [];
  private hover: [number, number] | null = null;
  private keyboard = false;
  private pressed = false;

  constructor(private readonly board: Board) {
    const { element } = board;
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.moved(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("dblclick", () => this.tool === "polygon" && this.close());
    element.addEventListener("keydown", (event) => this.key(event));
  }

  start(tool: Tool, inside: boolean): void {
    [this.tool, this.inside, this.corners, this.hover, this.keyboard, this.pressed] = [tool, inside, [], null, false, false];
    this.board.element.classList.add("drawing");
    this.board.element.focus();
    this.board.say(
      tool === "box"
        ? "Drag from corner to corner. Or move the map with the arrow keys and press Enter for each corner. Escape ends."
        : "Click each corner, the first again to close. Or move the map with the arrow keys, Enter for a corner, C to close. Escape ends.",
    );
    this.board.redraw();
  }

  stop(limit: Limit | null = null): void {
    if (this.tool === null) return;
    this.tool = null;
    this.corners = [];
    this.board.element.classList.remove("drawing");
    this.board.finished(limit);
  }

  private at(event: MouseEvent): [number, number] | null {
    const box = this.board.element.getBoundingClientRect();
    return this.board.projection().unproject(event.clientX - box.left, event.clientY - box.top);
  }

  private down(event: PointerEvent): void {
    if (this.tool === null || event.button !== 0 || (event.target as Element).closest("button")) return;
    const place = this.at(event);
    if (place === null) return;
    this.keyboard = false;
    this.board.element.setPointerCapture(event.pointerId);
    if (this.tool === "box") {
      this.corners = [place];
      this.pressed = true;
    } else if (this.closes(event)) this.close();
    else if (event.detail < 2) this.corners.push(place);
    this.board.redraw();
  }

  private moved(event: PointerEvent): void {
    if (this.tool === null) return;
    this.hover = this.at(event);
    this.board.redraw();
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
      const { lat, lon } = this.board.projection().view;
      return [lat, lon];
    };
    const keys: Record<string, () => void> = {
      Escape: () => this.stop(),
      Backspace: () => void this.corners.pop(),
      c: () => this.tool === "polygon" && this.close(),
      Enter: () => {
        this.keyboard = true;
        this.corners.push(middle());
        this.board.say(`Corner ${this.corners.length} set.`);
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
    this.board.redraw();
  }

  private closes(event: MouseEvent): boolean {
    if (this.corners.length < 3) return false;
    const box = this.board.element.getBoundingClientRect();
    const first = this.board.projection().project(...this.corners[0]!);
    return first !== null && Math.hypot(first[0] - event.clientX + box.left, first[1] - event.clientY + box.top) < SNAP_PX;
  }

  private close(): void {
    if (this.corners.length < 3) {
      this.board.say("A polygon needs three corners or more.");
      return;
    }
    this.stop(polygonLimit(this.corners, this.inside));
  }

  /** The western edge is that of the two from which the way eastwards is the shorter. */
  private box(a: [number, number], b: [number, number]): void {
    const [south, north] = [Math.min(a[0], b[0]), Math.max(a[0], b[0])];
    const eastwards = near(b[1], a[1]) >= a[1];
    const [west, east] = eastwards ? [a[1], b[1]] : [b[1], a[1]];
    if (north - south < 0.001 || Math.abs(near(east, west) - west) < 0.001) {
      this.corners = [];
      this.board.say("That box has no area: drag from one corner to the opposite one.");
      return;
    }
    this.stop(boxLimit(south, west, north, east, this.inside));
  }

  /** What is drawn so far. */
  paint(pen: CanvasRenderingContext2D, at: Projection, colours: Palette): void {
    if (this.tool === null) return;
    const { lat, lon, width, height } = at.view;
    const end = this.keyboard ? ([lat, lon] as [number, number]) : this.hover;
    const colour = this.inside ? colours.limit : colours.outside;
    pen.strokeStyle = colour;
    pen.lineWidth = 2;
    const first = this.corners[0];
    if (first && end) {
      const path: [number, number][] =
        this.tool === "polygon"
          ? [...this.corners, end]
          : [first, [first[0], near(end[1], first[1])], [end[0], near(end[1], first[1])], [end[0], first[1]], first];
      pen.beginPath();
      trace(pen, [ring(path.flatMap(([y, x]) => [x, y]), false)], at, false);
      pen.stroke();
    }
    for (const corner of this.corners) {
      const spot = at.project(...corner);
      if (spot === null) continue;
      pen.beginPath();
      pen.arc(spot[0], spot[1], 5, 0, 2 * Math.PI);
      pen.fillStyle = colours.halo;
      pen.fill();
      pen.stroke();
    }
    if (this.keyboard) {
      pen.beginPath();
      pen.moveTo(width / 2 - 12, height / 2);
      pen.lineTo(width / 2 + 12, height / 2);
      pen.moveTo(width / 2, height / 2 - 12);
      pen.lineTo(width / 2, height / 2 + 12);
      pen.stroke();
    }
  }
}
