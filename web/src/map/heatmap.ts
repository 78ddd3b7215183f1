/** Heat map of the probability. Lightness falls (light theme) or rises (dark theme) monotonically, for color-blind readers. */
import type { Heat } from "../types";
import type { Projection } from "./projection";

type Stop = [at: number, red: number, green: number, blue: number, alpha: number];

const LIGHT: Stop[] = [
  [0, 250, 204, 110, 0],
  [0.12, 250, 196, 104, 0.42],
  [0.35, 240, 134, 74, 0.72],
  [0.6, 204, 66, 92, 0.82],
  [0.82, 122, 34, 116, 0.88],
  [1, 52, 12, 82, 0.92],
];

const DARK: Stop[] = [
  [0, 62, 26, 110, 0],
  [0.12, 92, 30, 128, 0.5],
  [0.35, 168, 46, 112, 0.74],
  [0.6, 232, 92, 70, 0.84],
  [0.82, 250, 172, 58, 0.9],
  [1, 255, 246, 196, 0.95],
];

/** Color table of 256 RGBA entries, for values from 0 to 1. */
export function colorRamp(dark: boolean): Uint8ClampedArray {
  const stops = dark ? DARK : LIGHT;
  const table = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i++) {
    const value = i / 255;
    const above = Math.max(1, stops.findIndex(([at]) => at >= value));
    const [low, high] = [stops[above - 1]!, stops[above]!];
    const share = (value - low[0]) / (high[0] - low[0]);
    for (let channel = 0; channel < 4; channel++) {
      const mixed = low[channel + 1]! + share * (high[channel + 1]! - low[channel + 1]!);
      table[4 * i + channel] = channel === 3 ? 255 * mixed : mixed;
    }
  }
  return table;
}

const PIXELS_PER_CELL = 3; // resolution of the density grid
const MAX_SIGMA = 48;

/** Draws the heat map by way of a smaller canvas. */
export class HeatLayer {
  private readonly canvas = document.createElement("canvas");

  draw(context: CanvasRenderingContext2D, heat: Heat, projection: Projection, colors: Uint8ClampedArray): void {
    const width = Math.ceil(projection.view.width / PIXELS_PER_CELL);
    const height = Math.ceil(projection.view.height / PIXELS_PER_CELL);
    if (width < 1 || height < 1 || heat.cells.length === 0) return;
    const field = this.density(heat, projection, width, height);
    this.canvas.width = width;
    this.canvas.height = height;
    const own = this.canvas.getContext("2d")!;
    const image = own.createImageData(width, height);
    for (let i = 0; i < field.length; i++) {
      if (field[i]! <= 0) continue;
      const color = 4 * Math.round(255 * Math.min(1, field[i]!) ** 0.45);
      image.data.set(colors.subarray(color, color + 4), 4 * i);
    }
    own.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, 0, 0, width * PIXELS_PER_CELL, height * PIXELS_PER_CELL);
  }

  /** Density grid: a Gaussian per cell, scaled so that the densest place is about 1. */
  private density(heat: Heat, projection: Projection, width: number, height: number): Float32Array {
    const field = new Float32Array(width * height);
    const top = heat.cells[0]![2];
    for (const [lat, lon, probability] of heat.cells) {
      const at = projection.project(lat, lon);
      if (at === null) continue;
      const cell = heat.cell_km / projection.kmPerPixel(lat) / PIXELS_PER_CELL;
      const sigma = Math.min(MAX_SIGMA, Math.max(0.62 * cell, 1.5));
      const reach = Math.ceil(4 * sigma);
      const [x, y] = [at[0] / PIXELS_PER_CELL, at[1] / PIXELS_PER_CELL];
      if (x < -reach || y < -reach || x > width + reach || y > height + reach) continue;
      const crowd = Math.max(1, 2 * Math.PI * (sigma / Math.max(cell, 1e-6)) ** 2); // cells under one Gaussian
      const weight = probability / Math.min(1, top * crowd);
      const [left, right] = [Math.max(0, Math.floor(x - reach)), Math.min(width - 1, Math.ceil(x + reach))];
      const [first, last] = [Math.max(0, Math.floor(y - reach)), Math.min(height - 1, Math.ceil(y + reach))];
      const narrow = -0.5 / (sigma * sigma);
      for (let row = first; row <= last; row++) {
        const down = weight * Math.exp(narrow * (row - y) ** 2);
        for (let column = left; column <= right; column++)
          field[row * width + column]! += down * Math.exp(narrow * (column - x) ** 2);
      }
    }
    return field;
  }
}
