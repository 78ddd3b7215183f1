/** Filling and stroking GeoJSON on a canvas. */
import type { GeoPermissibleObjects } from "d3-geo";
import type { Projection } from "./projection";

export interface LineStyle {
  color: string;
  width: number;
  dash?: readonly number[];
  /** Color of a wider line below. */
  halo?: string;
  /** See Projection.path. */
  precision?: number;
}

type Objects = readonly GeoPermissibleObjects[];

export function fill(context: CanvasRenderingContext2D, objects: Objects, at: Projection, color: string, precision?: number): void {
  trace(context, objects, at, precision);
  context.fillStyle = color;
  context.fill("evenodd");
}

export function stroke(context: CanvasRenderingContext2D, objects: Objects, at: Projection, style: LineStyle): void {
  const { color, width, dash = [], halo, precision } = style;
  trace(context, objects, at, precision);
  context.setLineDash([...dash]);
  context.lineJoin = "round";
  if (halo !== undefined) {
    context.strokeStyle = halo;
    context.lineWidth = width + 1.6;
    context.stroke();
  }
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke();
  context.setLineDash([]);
}

function trace(context: CanvasRenderingContext2D, objects: Objects, at: Projection, precision?: number): void {
  const path = at.path(context, precision);
  context.beginPath();
  for (const object of objects) path(object);
}
