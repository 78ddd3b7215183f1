/** Tiles of a server that whoever runs the page has set; there are none otherwise. */
import type { Projection } from "./projection";

const MOST_KEPT = 300;

export class Tiles {
  shown: boolean;
  private readonly kept = new Map<string, HTMLImageElement>();

  constructor(
    private readonly url: string | null,
    private readonly arrived: () => void,
  ) {
    this.shown = url !== null;
  }

  /** The server that learns which parts of the map are looked at. */
  get host(): string | null {
    return this.url === null ? null : new URL(this.url.replaceAll(/[{}]/g, ""), location.href).host;
  }

  draw(pen: CanvasRenderingContext2D, at: Projection, blank: string): void {
    const { width, height, zoom } = at.view;
    const level = Math.max(0, Math.min(18, Math.round(zoom)));
    const count = 2 ** level;
    const size = at.world / count;
    pen.fillStyle = blank;
    pen.fillRect(0, 0, width, height);
    const [left, top] = [at.x * at.world - width / 2, at.y * at.world - height / 2];
    for (let row = Math.max(0, Math.floor(top / size)); row <= Math.min(count - 1, Math.floor((top + height) / size)); row++)
      for (let column = Math.floor(left / size); column <= Math.floor((left + width) / size); column++) {
        const tile = this.tile(level, ((column % count) + count) % count, row);
        if (tile.complete && tile.naturalWidth > 0)
          pen.drawImage(tile, column * size - left, row * size - top, size + 0.5, size + 0.5);
      }
  }

  private tile(z: number, x: number, y: number): HTMLImageElement {
    const key = `${z}/${x}/${y}`;
    let found = this.kept.get(key);
    if (found === undefined) {
      found = new Image();
      found.referrerPolicy = "no-referrer";
      found.onload = this.arrived;
      found.src = this.url!.replace("{z}", String(z)).replace("{x}", String(x)).replace("{y}", String(y));
      if (this.kept.size >= MOST_KEPT) this.kept.delete(this.kept.keys().next().value!);
    } else this.kept.delete(key);
    this.kept.set(key, found);
    return found;
  }
}
