/** Moving about the map: drag, pinch, wheel, double click, arrow keys. */
import { DEGREE } from "../geo";
import { latitudeOf, Projection, type View } from "./projection";

export interface Surface {
  element: HTMLElement;
  view(): View;
  move(view: View): void;
  /** True while a shape is drawn, which takes the pointer. */
  drawing(): boolean;
  clicked(x: number, y: number): void;
}

const STEP = 90;

/** A view moved by pixels, as if the map were dragged. */
export function dragged(view: View, dx: number, dy: number): View {
  const at = new Projection(view);
  if (at.flat) return { ...view, lon: (at.x - dx / at.world - 0.5) * 360, lat: latitudeOf(at.y - dy / at.world) };
  const across = Math.max(0.15, Math.cos(view.lat * DEGREE));
  return { ...view, lon: view.lon - dx / at.radius / across / DEGREE, lat: view.lat + dy / at.radius / DEGREE };
}

/** A view zoomed so that what lies at a pixel stays there. */
export function zoomed(view: View, by: number, x = view.width / 2, y = view.height / 2): View {
  const next = { ...view, zoom: view.zoom + by };
  const held = new Projection(view).unproject(x, y);
  const now = held === null ? null : new Projection(next).project(...held);
  return now === null ? next : dragged(next, x - now[0], y - now[1]);
}

export function attach(surface: Surface): void {
  const { element } = surface;
  const pointers = new Map<number, { x: number; y: number }>();
  let [travelled, spread] = [0, 0];

  const spot = (event: MouseEvent): { x: number; y: number } => {
    const box = element.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  element.addEventListener("pointerdown", (event) => {
    if (surface.drawing() || event.button !== 0 || (event.target as Element).closest("button, a, label")) return;
    element.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, spot(event));
    [travelled, spread] = [0, distance(pointers)];
  });
  element.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (before === undefined) return;
    const now = spot(event);
    pointers.set(event.pointerId, now);
    const [dx, dy] = [now.x - before.x, now.y - before.y];
    travelled += Math.abs(dx) + Math.abs(dy);
    if (travelled < 4) return;
    let view = dragged(surface.view(), dx / pointers.size, dy / pointers.size);
    if (pointers.size === 2) {
      const wider = distance(pointers);
      if (spread > 0) view = zoomed(view, Math.log2(wider / spread), now.x, now.y);
      spread = wider;
    }
    surface.move(view);
  });
  const lift = (event: PointerEvent): void => {
    const at = pointers.get(event.pointerId);
    pointers.delete(event.pointerId);
    if (at && travelled < 4 && event.type === "pointerup") surface.clicked(at.x, at.y);
    spread = distance(pointers);
  };
  element.addEventListener("pointerup", lift);
  element.addEventListener("pointercancel", lift);
  element.addEventListener("dblclick", (event) => {
    if (surface.drawing() || (event.target as Element).closest("button")) return;
    const { x, y } = spot(event);
    surface.move(zoomed(surface.view(), event.shiftKey ? -1 : 1, x, y));
  });
  element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const { x, y } = spot(event);
      const lines = event.deltaMode === 1 ? 16 : 1;
      const by = Math.max(-0.6, Math.min(0.6, (-event.deltaY * lines) / 320));
      surface.move(zoomed(surface.view(), by, x, y));
    },
    { passive: false },
  );
  element.addEventListener("keydown", (event) => {
    if (event.target !== element || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves: Record<string, () => View> = {
      ArrowLeft: () => dragged(surface.view(), STEP, 0),
      ArrowRight: () => dragged(surface.view(), -STEP, 0),
      ArrowUp: () => dragged(surface.view(), 0, STEP),
      ArrowDown: () => dragged(surface.view(), 0, -STEP),
      "+": () => zoomed(surface.view(), 0.5),
      "=": () => zoomed(surface.view(), 0.5),
      "-": () => zoomed(surface.view(), -0.5),
    };
    const move = moves[event.key];
    if (move === undefined) return;
    event.preventDefault();
    surface.move(move());
  });
}

function distance(pointers: Map<number, { x: number; y: number }>): number {
  const [a, b] = [...pointers.values()];
  return a && b ? Math.hypot(a.x - b.x, a.y - b.y) : 0;
}
