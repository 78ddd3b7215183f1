/** Places that are close to each other on the screen, drawn as one. */
import type { Palette } from "./palette";
import type { Projection } from "./projection";

export interface Cluster {
  x: number;
  y: number;
  /** Pixels. */
  radius: number;
  /** Indices of the places. */
  members: number[];
}

const MERGE_PX = 26;
const DOT_PX = 3.6;

/** Each place joins the nearest cluster in reach, or begins one. Places out of view are left out. */
export function clusterPlaces(places: readonly [number, number][], at: Projection): Cluster[] {
  const clusters: Cluster[] = [];
  const cells = new Map<string, Cluster[]>();
  const cellOf = (x: number, y: number): [number, number] => [Math.floor(x / MERGE_PX), Math.floor(y / MERGE_PX)];
  places.forEach((place, index) => {
    const spot = at.project(...place);
    if (spot === null || spot[0] < -MERGE_PX || spot[1] < -MERGE_PX || spot[0] > at.view.width + MERGE_PX || spot[1] > at.view.height + MERGE_PX) return;
    const [column, row] = cellOf(...spot);
    let [best, nearest]: [Cluster | null, number] = [null, MERGE_PX];
    for (const dx of [-1, 0, 1])
      for (const dy of [-1, 0, 1])
        for (const cluster of cells.get(`${column + dx},${row + dy}`) ?? []) {
          const distance = Math.hypot(cluster.x - spot[0], cluster.y - spot[1]);
          if (distance < nearest) [best, nearest] = [cluster, distance];
        }
    if (best) best.members.push(index);
    else {
      const cluster = { x: spot[0], y: spot[1], radius: DOT_PX, members: [index] };
      clusters.push(cluster);
      const key = `${column},${row}`;
      cells.set(key, [...(cells.get(key) ?? []), cluster]);
    }
  });
  for (const cluster of clusters) if (cluster.members.length > 1) cluster.radius = 8 + 1.6 * Math.log2(cluster.members.length);
  return clusters;
}

/** Dots, and discs with the number of places in them. */
export function drawClusters(context: CanvasRenderingContext2D, clusters: readonly Cluster[], colors: Palette): void {
  context.lineWidth = 1.5;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = '600 11.5px "IBM Plex Sans", system-ui, sans-serif';
  for (const { x, y, radius, members } of clusters) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = colors.dot;
    context.strokeStyle = colors.halo;
    context.fill();
    context.stroke();
    context.fillStyle = colors.dotText;
    if (members.length > 1) context.fillText(String(members.length), x, y + 0.5);
  }
}
