/** Markers of the candidates and of the place in EXIF, as elements above the canvas. */
import { h } from "../dom";
import { coordinates, percent, placeName } from "../format";
import type { Result } from "../types";
import type { Box } from "./labels";
import type { Projection } from "./projection";

const EDGE_PX = 70; // where a name to the right of its marker would be cut off

export class Markers {
  readonly element = h("div", { class: "markers" });
  private places: { lat: number; lon: number; element: HTMLElement }[] = [];

  constructor(private readonly onSelect: (candidate: number) => void) {}

  set(result: Result | null, candidate: number): void {
    this.places = (result?.candidates ?? []).map((each, index) => ({
      lat: each.lat,
      lon: each.lon,
      element: h(
        "button",
        {
          type: "button",
          class: `marker${index === candidate ? " chosen" : ""}${index === 0 ? " first" : ""}`,
          tabindex: "-1", // the list beside the map has the same candidates for the keyboard
          "aria-label": `Candidate ${index + 1}: ${placeName(each)}, ${percent(each.probability)}`,
          title: `${placeName(each)} — ${percent(each.probability)}`,
          onclick: () => this.onSelect(index),
        },
        String(index + 1),
      ),
    }));
    if (result?.exif) {
      const { lat, lon } = result.exif;
      const element = h(
        "div",
        { class: "marker-exif", role: "img", "aria-label": `Place in EXIF: ${coordinates(lat, lon)}` },
        h("span", { class: "diamond" }),
        h("span", { class: "marker-name" }, "EXIF"),
      );
      this.places.push({ lat, lon, element });
    }
    // The first candidate lies above the others, the selected one above all.
    this.places.forEach(({ element }, index) => (element.style.zIndex = String(index === candidate ? 1000 : 500 - index)));
    if (result?.exif) this.places.at(-1)!.element.style.zIndex = "900"; // its label is wide
    this.element.replaceChildren(...this.places.map(({ element }) => element));
  }

  /** Positions the markers; returns the boxes that they take. */
  place(at: Projection): Box[] {
    const taken: Box[] = [];
    for (const { lat, lon, element } of this.places) {
      const spot = at.project(lat, lon);
      const isVisible =
        spot !== null && spot[0] > -20 && spot[1] > -20 && spot[0] < at.view.width + 20 && spot[1] < at.view.height + 20;
      element.hidden = !isVisible;
      if (!isVisible) continue;
      element.classList.toggle("at-edge", spot[0] > at.view.width - EDGE_PX);
      element.style.transform = `translate(${spot[0]}px, ${spot[1]}px) translate(-50%, -50%)`;
      taken.push({ x: spot[0] - 13, y: spot[1] - 13, width: 26, height: 26 });
    }
    return taken;
  }
}
