/** The smooth path from one view to another: out, over, and in again (van Wijk and Nuij 2003, by d3-interpolate). */
import { easeCubicInOut } from "d3-ease";
import { geoDistance, geoInterpolate } from "d3-geo";
import { interpolateZoom } from "d3-interpolate";
import { nearestLongitude, type Position } from "../geo";
import { latitudeOf, mercatorY, worldPixels, type View } from "./projection";

const SPEED = 2.2; // times that of d3-interpolate

/** The view at each share (0 to 1) of a flight, and its duration. */
export function flight(from: View, to: View): { ms: number; at(share: number): View } {
  const size = Math.max(1, Math.min(from.width, from.height));
  const visible = ({ zoom }: View): number => size / worldPixels(zoom);
  const globe = from.kind === "globe";
  const [start, end]: Position[] = [[from.lon, from.lat], [nearestLongitude(to.lon, from.lon), to.lat]];
  const distance = geoDistance(start!, end!) / (2 * Math.PI);
  const along = geoInterpolate(start!, end!);
  const path = globe
    ? interpolateZoom([0, 0, visible(from)], [distance, 0, visible(to)])
    : interpolateZoom([start![0] / 360, mercatorY(from.lat), visible(from)], [end![0] / 360, mercatorY(to.lat), visible(to)]);
  return {
    ms: Math.min(1600, Math.max(250, path.duration / SPEED)),
    at(share) {
      if (share >= 1) return to;
      const [x, y, width] = path(easeCubicInOut(share));
      const [lon, lat] = globe ? along(distance > 0 ? x / distance : 1) : [360 * x, latitudeOf(y)];
      return { ...to, lat, lon, zoom: Math.log2(size / width / 256) };
    },
  };
}
