/**
 * The path of a flight from one view to another: out, over, and in again. Van Wijk and Nuij, "Smooth and efficient
 * zooming and panning" (InfoVis 2003), equation 9.
 */
import { DEGREE, greatCircle, near } from "../geo";
import { latitudeOf, mercatorX, mercatorY, type View } from "./projection";

const RHO = 1.3;

/** Gives the view at each share (0 to 1) of a flight, and how long it takes. */
export function flight(from: View, to: View): { ms: number; at(share: number): View } {
  const size = Math.max(1, Math.min(from.width, from.height));
  const [w0, w1] = [size / (256 * 2 ** from.zoom), size / (256 * 2 ** to.zoom)];
  const lon = near(to.lon, from.lon);
  const [x0, y0, x1, y1] = [mercatorX(from.lon), mercatorY(from.lat), mercatorX(lon), mercatorY(to.lat)];
  const globe = from.kind === "globe";
  const path = globe ? greatCircle([from.lat, from.lon], [to.lat, lon], 32) : [];
  const u1 = globe ? arc(path) : Math.hypot(x1 - x0, y1 - y0);
  const place = (share: number): [number, number] => {
    if (!globe) return [latitudeOf(y0 + share * (y1 - y0)), (x0 + share * (x1 - x0) - 0.5) * 360];
    const step = Math.min(share, 1) * (path.length - 1);
    const [a, b] = [path[Math.floor(step)]!, path[Math.ceil(step)]!];
    const part = step - Math.floor(step);
    return [a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1])];
  };
  let length: number;
  let state: (s: number) => [share: number, width: number];
  if (u1 < 1e-9) {
    length = Math.abs(Math.log(w1 / w0)) / RHO;
    state = (s) => [1, w0 * Math.exp(Math.sign(w1 - w0) * RHO * s)];
  } else {
    const b = (w: number, sign: number): number =>
      (w1 * w1 - w0 * w0 + sign * RHO ** 4 * u1 * u1) / (2 * w * RHO * RHO * u1);
    const r = (value: number): number => Math.log(Math.sqrt(value * value + 1) - value);
    const [r0, r1] = [r(b(w0, 1)), r(b(w1, -1))];
    length = (r1 - r0) / RHO;
    state = (s) => {
      const u = (w0 / RHO ** 2) * (Math.cosh(r0) * Math.tanh(RHO * s + r0) - Math.sinh(r0));
      return [u / u1, (w0 * Math.cosh(r0)) / Math.cosh(RHO * s + r0)];
    };
  }
  return {
    ms: Math.min(1600, Math.max(250, 420 * length)),
    at(share) {
      if (share >= 1) return to;
      const eased = share < 0.5 ? 4 * share ** 3 : 1 - (2 - 2 * share) ** 3 / 2;
      const [along, width] = state(eased * length);
      const [lat, lonNow] = place(along);
      return { ...to, lat, lon: lonNow, zoom: Math.log2(size / (256 * width)) };
    },
  };
}

/** Length of a path on the sphere, in turns. */
function arc(path: [number, number][]): number {
  let sum = 0;
  for (let i = 1; i < path.length; i++) {
    const [a, b] = [path[i - 1]!, path[i]!];
    sum += Math.hypot(a[0] - b[0], (a[1] - b[1]) * Math.cos(((a[0] + b[0]) / 2) * DEGREE));
  }
  return sum / 360;
}
