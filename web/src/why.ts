/** "Why?": what in a photo speaks for a candidate, drawn over the photo. */
import { announce, h, icon } from "./dom";
import { kilometres, percent } from "./format";
import type { Candidate, CoveredRegion, Explanation, Item } from "./types";

/** Asks the server; null in a report, which has what was asked before. */
export type Explain = ((item: Item, place: Candidate) => Promise<Explanation>) | null;

type Layer = "map" | "parts";

const COLORS = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"]; // cividis: for all kinds of color vision
const WIDTH = 480;
const SHOWN_PARTS = 3;

export class Why {
  private shown: { item: string; candidate: number } | null = null;
  private layer: Layer = "map";
  private pending: string | null = null;
  private problem: { item: string; text: string } | null = null;

  constructor(
    private readonly explain: Explain,
    private readonly explained: (item: Item, explanation: Explanation) => void,
    private readonly changed: () => void,
  ) {}

  /** The button at a candidate; null where there is nothing to show. */
  button(item: Item, index: number): HTMLElement | null {
    const place = item.result?.candidates?.[index];
    if (item.kind !== "photo" || !place || !(canAsk(item, this.explain) || isOf(item.explanation, place))) return null;
    const isShown = this.isShown(item, index);
    const isPending = this.pending === item.id;
    return h(
      "div",
      { class: "why-ask" },
      h(
        "button",
        {
          type: "button",
          class: "button small why-button",
          "aria-pressed": String(isShown),
          "aria-disabled": String(isPending),
          title: "What in the photo speaks for this place",
          onclick: () => void this.toggle(item, index, place),
        },
        icon("layers"),
        isPending ? "Covering parts of the photo…" : "Why?",
      ),
      this.problem?.item === item.id && h("p", { class: "error", role: "alert" }, this.problem.text),
    );
  }

  /** The photo with what was found over it, in place of the photo; null where it is not shown. */
  figure(item: Item, candidate: number, image: HTMLElement | null): HTMLElement | null {
    const { explanation } = item;
    const place = item.result?.candidates?.[candidate];
    if (!explanation || !place || !this.isShown(item, candidate)) return null;
    const parts = explanation.regions ?? [];
    const layer = parts.length > 0 ? this.layer : "map";
    const canvas = h("canvas", { role: "img", "aria-label": describe(explanation, layer) });
    paint(canvas, explanation, layer);
    const stack = h("div", { class: "why-picture" }, image, canvas);
    stack.style.aspectRatio = String(ratio(explanation));
    const choice = (value: Layer, label: string): HTMLElement =>
      h("button", { type: "button", class: "button small", "aria-pressed": String(value === layer), "data-layer": value, onclick: () => this.show(value) }, label);
    const most = Math.max(...parts.map(({ moved_km }) => moved_km), 1);
    const scale = h("span", { class: "why-scale", "aria-hidden": "true" });
    scale.style.background = `linear-gradient(to right, ${COLORS.join(", ")})`;
    return h(
      "figure",
      { class: "why" },
      stack,
      h("div", { class: "why-legend" }, h("span", {}, layer === "map" ? "least" : "0 km"), scale, h("span", {}, layer === "map" ? "most" : kilometres(most))),
      parts.length > 0 && h("div", { class: "pair why-layers" }, choice("map", "What raises the score"), choice("parts", "Parts covered")),
      explanation.warning && h("p", {}, explanation.warning),
      h(
        "figcaption",
        {},
        layer === "map"
          ? `What raises the score of candidate ${candidate + 1}, by ${explanation.method}. It shows what the model uses, not whether the model is right.`
          : `How far the answer moves when each part is covered. With all parts, ${percent(explanation.probability)} of the probability lies within 200 km of candidate ${candidate + 1}.`,
        layer === "parts" && h("ul", {}, ...strongest(parts).map((part) => h("li", {}, inWords(part, explanation)))),
        hasOutside(explanation) && h("p", { class: "quiet" }, "The model does not look at the hatched part."),
      ),
    );
  }

  private isShown({ id, explanation, result }: Item, candidate: number): boolean {
    return this.shown?.item === id && this.shown.candidate === candidate && isOf(explanation, result?.candidates?.[candidate]);
  }

  private show(layer: Layer): void {
    this.layer = layer;
    this.changed();
  }

  private async toggle(item: Item, index: number, place: Candidate): Promise<void> {
    if (this.pending !== null) return;
    this.problem = null;
    if (this.isShown(item, index)) this.shown = null;
    else if (isOf(item.explanation, place)) this.shown = { item: item.id, candidate: index };
    else if (this.explain) {
      this.pending = item.id;
      this.changed();
      try {
        const found = await this.explain(item, place);
        this.shown = { item: item.id, candidate: index };
        this.explained(item, found);
        announce(describe(found, "map"));
      } catch (error) {
        this.problem = { item: item.id, text: error instanceof Error ? error.message : String(error) };
      }
      this.pending = null;
    }
    this.changed();
  }
}

const canAsk = (item: Item, explain: Explain): boolean => explain !== null && item.files.length > 0;

const isOf = (explanation: Explanation | null | undefined, place: Candidate | undefined): boolean =>
  !!explanation && !!place && Math.abs(explanation.place[0] - place.lat) < 1e-5 && Math.abs(explanation.place[1] - place.lon) < 1e-5;

/** Width to height of the upright photo: the crop is a square of it. */
const ratio = ({ crop: [left, top, right, bottom] }: Explanation): number => (bottom - top) / (right - left);

const hasOutside = ({ crop: [left, top, right, bottom] }: Explanation): boolean => right - left < 0.99 || bottom - top < 0.99;

export const strongest = (parts: readonly CoveredRegion[]): CoveredRegion[] =>
  [...parts].sort((a, b) => b.moved_km - a.moved_km).slice(0, SHOWN_PARTS);

/** Where in the crop a point lies: "top left". */
export function position(x: number, y: number): string {
  const words = [["top", "", "bottom"][Math.min(2, Math.floor(3 * y))]!, ["left", "", "right"][Math.min(2, Math.floor(3 * x))]!];
  return words.filter(Boolean).join(" ") || "middle";
}

function inWords({ box, moved_km, probability_lost }: CoveredRegion, { crop, probability }: Explanation): string {
  const [x, y] = [0, 1].map((axis) => ((box[axis]! + box[axis + 2]!) / 2 - crop[axis]!) / (crop[axis + 2]! - crop[axis]!));
  const change = `${percent(probability)} become ${percent(Math.max(0, probability - probability_lost))}`;
  return `Without a part at the ${position(x!, y!)} the answer moves ${kilometres(moved_km)}, and ${change}.`;
}

function describe(explanation: Explanation, layer: Layer): string {
  if (layer === "parts") return strongest(explanation.regions ?? []).map((part) => inWords(part, explanation)).join(" ");
  const { map } = explanation;
  const row = map.findIndex((values) => values.includes(Math.max(...map.flat())));
  const column = map[row]!.indexOf(Math.max(...map[row]!));
  return `What raises the score most is at the ${position((column + 0.5) / map[0]!.length, (row + 0.5) / map.length)} of what the model sees.`;
}

function color(share: number): [number, number, number] {
  const at = Math.min(Math.max(share, 0), 1) * (COLORS.length - 1);
  const [low, high] = [Math.floor(at), Math.ceil(at)].map((index) => [1, 3, 5].map((start) => parseInt(COLORS[index]!.slice(start, start + 2), 16)));
  return low!.map((value, channel) => Math.round(value + (high![channel]! - value) * (at - Math.floor(at)))) as [number, number, number];
}

function paint(canvas: HTMLCanvasElement, explanation: Explanation, layer: Layer): void {
  canvas.width = WIDTH;
  canvas.height = Math.round(WIDTH / ratio(explanation));
  const context = canvas.getContext("2d")!;
  const inPixels = ([left, top, right, bottom]: readonly number[]): [number, number, number, number] => [
    left! * canvas.width,
    top! * canvas.height,
    (right! - left!) * canvas.width,
    (bottom! - top!) * canvas.height,
  ];
  if (layer === "map") {
    const { map } = explanation;
    const small = h("canvas", { width: map[0]!.length, height: map.length });
    const pixels = new ImageData(small.width, small.height);
    pixels.data.set(map.flat().flatMap((value) => [...color(value), 90 + 120 * value]));
    small.getContext("2d")!.putImageData(pixels, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, ...inPixels(explanation.crop));
  } else {
    const most = Math.max(...explanation.regions!.map(({ moved_km }) => moved_km), 1);
    for (const { box, moved_km } of explanation.regions!) {
      const [x, y, width, height] = inPixels(box);
      context.fillStyle = `rgb(${color(moved_km / most).join(" ")} / 72%)`;
      context.fillRect(x + 0.5, y + 0.5, width - 1, height - 1);
    }
  }
  hatchOutside(context, inPixels(explanation.crop));
}

/** Darkens and hatches all but a rectangle. */
function hatchOutside(context: CanvasRenderingContext2D, [x, y, width, height]: readonly [number, number, number, number]): void {
  const { width: right, height: bottom } = context.canvas;
  const outside = new Path2D();
  outside.rect(0, 0, right, bottom);
  outside.rect(x, y, width, height);
  context.save();
  context.clip(outside, "evenodd");
  context.fillStyle = "rgb(0 0 0 / 55%)";
  context.fillRect(0, 0, right, bottom);
  context.strokeStyle = "rgb(255 255 255 / 60%)";
  context.beginPath();
  for (let start = -bottom; start < right; start += 12) {
    context.moveTo(start, bottom);
    context.lineTo(start + bottom, 0);
  }
  context.stroke();
  context.restore();
}
