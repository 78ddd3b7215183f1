/** Rings and lines as numbers ready to be drawn, on the flat map and on the globe. */
import { DEGREE } from "../geo";
import { mercatorX, mercatorY, Projection } from "./projection";

export interface Ring {
  /** Turns on the flat map; x does not jump at 180 degrees, so it may leave 0 to 1. */
  mx: Float32Array;
  my: Float32Array;
  /** On the sphere: x, y, z, x, y, z, ... */
  xyz: Float32Array;
  west: number;
  east: number;
  top: number;
  bottom: number;
  /** Of the cap that holds it all: its middle, and the angle to its edge. */
  middle: [number, number, number];
  reach: number;
}

const BELOW = 1.1; // where a ring around a pole is closed: beyond the edge of any map
const CLOSE_PX = 0.6; // points nearer to the one before are left out

/** Makes a ring of longitudes and latitudes (degrees, one after the other). `closed` rings may go around a pole. */
export function ring(lonLat: ArrayLike<number>, closed: boolean): Ring {
  const n = lonLat.length / 2;
  const size = closed ? n + 3 : n;
  const mx = new Float32Array(size);
  const my = new Float32Array(size);
  const xyz = new Float32Array(3 * size);
  let [sx, sy, sz, lon] = [0, 0, 0, lonLat[0]!];
  for (let i = 0; i < n; i++) {
    lon += ((((lonLat[2 * i]! - lon) % 360) + 540) % 360) - 180;
    const lat = lonLat[2 * i + 1]!;
    mx[i] = mercatorX(lon);
    my[i] = mercatorY(lat);
    const across = Math.cos(lat * DEGREE);
    const [x, y, z] = [across * Math.cos(lon * DEGREE), across * Math.sin(lon * DEGREE), Math.sin(lat * DEGREE)];
    xyz.set([x, y, z], 3 * i);
    [sx, sy, sz] = [sx + x, sy + y, sz + z];
  }
  let used = n;
  if (closed && Math.abs(mx[n - 1]! - mx[0]!) > 0.5) {
    const pole = sz < 0 ? BELOW : 1 - BELOW;
    for (const x of [mx[n - 1]!, mx[0]!]) {
      mx[used] = x;
      my[used] = pole;
      xyz.set([0, 0, Math.sign(sz)], 3 * used++);
    }
    mx[used] = mx[0]!;
    my[used] = my[0]!;
    xyz.set(xyz.subarray(0, 3), 3 * used++);
  }
  const length = Math.hypot(sx, sy, sz) || 1;
  const middle: [number, number, number] = [sx / length, sy / length, sz / length];
  let least = 1;
  let [west, east, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < used; i++) {
    west = Math.min(west, mx[i]!);
    east = Math.max(east, mx[i]!);
    top = Math.min(top, my[i]!);
    bottom = Math.max(bottom, my[i]!);
    const cosine = middle[0] * xyz[3 * i]! + middle[1] * xyz[3 * i + 1]! + middle[2] * xyz[3 * i + 2]!;
    least = Math.min(least, cosine);
  }
  const reach = Math.acos(Math.max(-1, least));
  return {
    mx: mx.subarray(0, used),
    my: my.subarray(0, used),
    xyz: xyz.subarray(0, 3 * used),
    west,
    east,
    top,
    bottom,
    middle,
    reach,
  };
}

export type Pen = Pick<CanvasRenderingContext2D, "moveTo" | "lineTo" | "closePath">;

/** Adds rings (filled ones are closed) or lines to the path of a canvas; what is out of sight is left out. */
export function trace(pen: Pen, rings: readonly Ring[], projection: Projection, closed: boolean): void {
  for (const each of rings) {
    if (projection.flat) traceFlat(pen, each, projection, closed);
    else traceGlobe(pen, each, projection, closed);
  }
}

function traceFlat(pen: Pen, of: Ring, at: Projection, closed: boolean): void {
  const { width, height } = at.view;
  const [halfX, halfY] = [width / 2 / at.world, height / 2 / at.world];
  if (of.bottom < at.y - halfY || of.top > at.y + halfY) return;
  const first = Math.ceil(at.x - halfX - of.east);
  const last = Math.floor(at.x + halfX - of.west);
  for (let copy = first; copy <= last; copy++) {
    const dx = width / 2 + (copy - at.x) * at.world;
    const dy = height / 2 - at.y * at.world;
    const n = of.mx.length;
    let px = of.mx[0]! * at.world + dx;
    let py = of.my[0]! * at.world + dy;
    pen.moveTo(px, py);
    for (let i = 1; i < n; i++) {
      const x = of.mx[i]! * at.world + dx;
      const y = of.my[i]! * at.world + dy;
      if (Math.abs(x - px) + Math.abs(y - py) < CLOSE_PX && i < n - 1) continue;
      pen.lineTo(x, y);
      px = x;
      py = y;
    }
    if (closed) pen.closePath();
  }
}

/** Points behind the globe are moved to its edge, which fills the visible part of a ring right. */
function traceGlobe(pen: Pen, of: Ring, at: Projection, closed: boolean): void {
  const { east, north, front, radius } = at;
  const [cx, cy] = [at.view.width / 2, at.view.height / 2];
  const toMiddle = Math.acos(
    Math.max(-1, Math.min(1, of.middle[0] * front[0] + of.middle[1] * front[1] + of.middle[2] * front[2])),
  );
  if (toMiddle - of.reach > Math.PI / 2) return;
  const n = of.mx.length;
  let [px, py, turn, started, hidden] = [0, 0, 0, false, false];
  for (let i = 0; i < n; i++) {
    const [x, y, z] = [of.xyz[3 * i]!, of.xyz[3 * i + 1]!, of.xyz[3 * i + 2]!];
    let right = x * east[0] + y * east[1] + z * east[2];
    let up = x * north[0] + y * north[1] + z * north[2];
    const behind = x * front[0] + y * front[1] + z * front[2] < 0;
    if (behind) {
      if (!closed) {
        started = false;
        continue;
      }
      const length = Math.hypot(right, up) || 1;
      right /= length;
      up /= length;
      const now = Math.atan2(up, right);
      if (hidden) {
        const swing = Math.atan2(Math.sin(now - turn), Math.cos(now - turn));
        const steps = Math.floor(Math.abs(swing) / 0.1);
        for (let step = 1; step <= steps; step++) {
          const angle = turn + (swing * step) / (steps + 1);
          pen.lineTo(cx + radius * Math.cos(angle), cy - radius * Math.sin(angle));
        }
      }
      turn = now;
    }
    hidden = behind;
    const sx = cx + radius * right;
    const sy = cy - radius * up;
    if (!started) pen.moveTo(sx, sy);
    else if (Math.abs(sx - px) + Math.abs(sy - py) < CLOSE_PX && i < n - 1) continue;
    else pen.lineTo(sx, sy);
    started = true;
    px = sx;
    py = sy;
  }
  if (closed) pen.closePath();
}
