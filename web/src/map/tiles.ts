/** Raster tiles (imagery or streets) of a server that the operator of this page configured; none by default. */
import type { Projection } from "./projection";

const CACHE_SIZE = 300;
const MAX_LEVEL = 18;
const FALLBACK_LEVELS = 4; // coarser tiles that stand in for one that is still loading

export class Tiles {
  isShown: boolean;
  /** Called when a tile has arrived. */
  onLoad: () => void = () => undefined;
  private readonly cache = new Map<string, HTMLImageElement>();

  /**
   * @param url With {z}, {x} and {y}, and optionally {s} for a subdomain a, b or c.
   * @param attribution Text that the tiles' licence asks for.
   */
  constructor(
    private readonly url: string | null,
    readonly attribution: string | null,
  ) {
    this.isShown = url !== null;
  }

  /** The server that receives the requests for tiles. */
  get host(): string | null {
    return this.url === null ? null : new URL(this.url.replace("{s}.", "").replaceAll(/[{}]/g, ""), location.href).host;
  }

  draw(context: CanvasRenderingContext2D, at: Projection, background: string): void {
    const { width, height, zoom } = at.view;
    const level = Math.max(0, Math.min(MAX_LEVEL, Math.round(zoom)));
    const count = 2 ** level;
    const size = at.world / count;
    context.fillStyle = background;
    context.fillRect(0, 0, width, height);
    const { x: left, y: top } = at.origin;
    const last = Math.min(count - 1, Math.floor((top + height) / size));
    for (let row = Math.max(0, Math.floor(top / size)); row <= last; row++)
      for (let column = Math.floor(left / size); column <= Math.floor((left + width) / size); column++)
        this.drawTile(context, level, ((column % count) + count) % count, row, column * size - left, row * size - top, size + 0.5);
  }

  /** Draws a tile, or while it loads the part of a coarser one that is there. */
  private drawTile(context: CanvasRenderingContext2D, level: number, x: number, y: number, left: number, top: number, size: number): void {
    let tile = this.load(level, x, y);
    let scale = 1;
    for (let up = 1; !isComplete(tile) && up <= Math.min(level, FALLBACK_LEVELS); up++) {
      const coarser = this.cache.get(`${level - up}/${x >> up}/${y >> up}`);
      if (coarser && isComplete(coarser)) [tile, scale] = [coarser, 2 ** up];
    }
    if (!isComplete(tile)) return;
    const part = tile.naturalWidth / scale;
    context.drawImage(tile, (x % scale) * part, (y % scale) * part, part, part, left, top, size, size);
  }

  private load(z: number, x: number, y: number): HTMLImageElement {
    const key = `${z}/${x}/${y}`;
    let tile = this.cache.get(key);
    if (tile === undefined) {
      tile = new Image();
      tile.referrerPolicy = "no-referrer";
      tile.onload = () => this.onLoad();
      const values: Record<string, string> = { z: String(z), x: String(x), y: String(y), s: "abc"[(x + y) % 3]! };
      tile.src = this.url!.replaceAll(/\{([zxys])\}/g, (_, name: string) => values[name]!);
      if (this.cache.size >= CACHE_SIZE) this.cache.delete(this.cache.keys().next().value!);
    } else this.cache.delete(key); // the most recently used are last
    this.cache.set(key, tile);
    return tile;
  }
}

const isComplete = (tile: HTMLImageElement): boolean => tile.complete && tile.naturalWidth > 0;
