/** Panning and zooming by mouse, touch, wheel (d3-zoom) and keyboard. */
import { pointer, pointers, select } from "d3-selection";
import { zoom as zoomBehavior, zoomIdentity, zoomTransform, type D3ZoomEvent } from "d3-zoom";
import { anchorView, MAX_ZOOM, minZoom, panView, Projection, zoomView, type View } from "./projection";

export interface Surface {
  element: HTMLElement;
  view(): View;
  move(view: View): void;
  zoomBy(levels: number): void;
  isFlying(): boolean;
  /** True while a shape is drawn, which takes the pointer. */
  isDrawing(): boolean;
  click(x: number, y: number): void;
}

const CLICK_PX = 4;
const KEY_STEP_PX = 90;

export class Interaction {
  private readonly zoom = zoomBehavior<HTMLElement, unknown>();
  /** The place that a drag holds, and by how many fingers. */
  private anchor: { place: [number, number] | null; fingers: number } = { place: null, fingers: 0 };

  constructor(private readonly surface: Surface) {
    const { element } = surface;
    const onControl = (event: Event): boolean => (event.target as Element).closest("button, a, label") !== null;
    this.zoom
      .filter((event: MouseEvent) => event.type === "wheel" || (!surface.isDrawing() && !event.button && !onControl(event)))
      .clickDistance(CLICK_PX)
      .on("start", (event: D3ZoomEvent<HTMLElement, unknown>) => event.sourceEvent && this.hold(this.points(event.sourceEvent)))
      .on("zoom", (event: D3ZoomEvent<HTMLElement, unknown>) => event.sourceEvent && this.zoomed(event));
    select(element).call(this.zoom);
    element.addEventListener("click", (event) => {
      if (!surface.isDrawing() && !onControl(event)) surface.click(...pointer(event, element));
    });
    element.addEventListener("keydown", (event) => this.key(event));
  }

  /** Tells d3-zoom of a view that was not made by a gesture. */
  sync(view: View): void {
    const { element } = this.surface;
    const scale = 2 ** view.zoom;
    this.zoom.scaleExtent([2 ** minZoom(view), 2 ** MAX_ZOOM]);
    if (Math.abs(zoomTransform(element).k / scale - 1) > 1e-9) this.zoom.transform(select(element), zoomIdentity.scale(scale));
  }

  private points(source: MouseEvent | TouchEvent): [number, number][] {
    const { element } = this.surface;
    const lifted = "changedTouches" in source && source.touches.length === 0 ? source.changedTouches[0] : undefined;
    return lifted ? [pointer(lifted, element)] : pointers(source, element);
  }

  private hold(points: readonly [number, number][]): void {
    this.anchor = { place: new Projection(this.surface.view()).unproject(...mean(points)), fingers: points.length };
  }

  private zoomed(event: D3ZoomEvent<HTMLElement, unknown>): void {
    const source = event.sourceEvent as MouseEvent | TouchEvent;
    const view = this.surface.view();
    const zoom = Math.log2(event.transform.k);
    if (source.type === "wheel" && this.surface.isFlying()) return this.surface.zoomBy(zoom - view.zoom);
    const points = this.points(source);
    const isDrag = source.type === "mousemove" || source.type === "touchmove";
    if (!isDrag || points.length !== this.anchor.fingers) this.hold(points);
    const next = { ...view, zoom };
    this.surface.move(this.anchor.place === null ? next : anchorView(next, this.anchor.place, mean(points)));
  }

  private key(event: KeyboardEvent): void {
    const { surface } = this;
    if (event.target !== surface.element || event.ctrlKey || event.metaKey || event.altKey) return;
    const pan = (dx: number, dy: number) => () => surface.move(panView(surface.view(), dx, dy));
    const zoom = (levels: number) => () =>
      surface.isFlying() ? surface.zoomBy(levels) : surface.move(zoomView(surface.view(), surface.view().zoom + levels));
    const actions: Record<string, () => void> = {
      ArrowLeft: pan(KEY_STEP_PX, 0),
      ArrowRight: pan(-KEY_STEP_PX, 0),
      ArrowUp: pan(0, KEY_STEP_PX),
      ArrowDown: pan(0, -KEY_STEP_PX),
      "+": zoom(0.5),
      "=": zoom(0.5),
      "-": zoom(-0.5),
    };
    const action = actions[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action();
  }
}

function mean(points: readonly [number, number][]): [number, number] {
  const sum = points.reduce(([x, y], [dx, dy]) => [x + dx, y + dy], [0, 0] as [number, number]);
  return [sum[0] / points.length, sum[1] / points.length];
}
