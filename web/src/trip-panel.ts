/** Photos of one trip: tracks, a button that locates all photos between known places, and a time line. */
import { fill, h, icon } from "./dom";
import { count, placeName } from "./format";
import type { Locating } from "./locate";
import type { Store } from "./store";
import type { Item } from "./types";

const TRACK_NAME = /\.(gpx|json|geojson|csv|tsv)$/i;

export const isTrack = (file: File): boolean => TRACK_NAME.test(file.name);

export function tripPanel(store: Store, locating: Locating): HTMLElement {
  const tracks = h("ul", { class: "tracks" });
  const problem = h("p", { class: "error small", role: "alert", hidden: true });
  const notes = h("p", { class: "quiet small", "aria-live": "polite" });
  const speed = h("input", { type: "number", min: 1, max: 100000, value: 900, "aria-label": "Highest speed in km/h" });
  const locate = h("button", { type: "button", class: "button" }, "Locate as one trip");
  locate.addEventListener("click", () => {
    problem.hidden = true;
    notes.textContent = "";
    locate.disabled = true;
    locating
      .locateTrip(Number(speed.value) || 900)
      .then((found) => (notes.textContent = found.join(" · ")))
      .catch((error: unknown) => {
        problem.textContent = error instanceof Error ? error.message : String(error);
        problem.hidden = false;
      })
      .finally(() => (locate.disabled = false));
  });
  const line = h("ol", { class: "time-line", "aria-label": "Time line" });
  const ends = h("p", { class: "time-line-ends quiet small" });
  const element = h(
    "details",
    { class: "options trip", hidden: true },
    h("summary", {}, "One trip"),
    h(
      "div",
      { class: "options-body" },
      h("p", { class: "quiet small" }, "Photos are located between known places: a track (drop GPX, Google Timeline or CSV), photos with GPS, and places that you set on the map."),
      tracks,
      h("div", { class: "line" }, h("label", {}, "At most ", speed, " km/h"), locate),
      problem,
      notes,
      line,
      ends,
    ),
  );
  store.subscribe(["items", "tracks", "selected"], () => {
    const { items, tracks: files, selected } = store.state;
    element.hidden = files.length === 0 && items.filter(({ kind }) => kind === "photo").length < 2;
    if (files.length > 0) element.open = true;
    fill(
      tracks,
      ...files.map((file) =>
        h(
          "li",
          {},
          h("span", {}, file.name),
          h(
            "button",
            {
              type: "button",
              class: "tool small faint",
              "aria-label": `Remove ${file.name}`,
              title: "Remove",
              onclick: () => store.set({ tracks: store.state.tracks.filter((other) => other !== file) }),
            },
            icon("close"),
          ),
        ),
      ),
    );
    renderLine(line, ends, items, selected, (id) => store.select(id));
  });
  return element;
}

function renderLine(line: HTMLElement, ends: HTMLElement, items: readonly Item[], selected: string | null, select: (id: string) => void): void {
  const timed = items
    .flatMap((item) => (item.result?.time ? [{ item, time: Date.parse(item.result.time) }] : []))
    .sort((a, b) => a.time - b.time);
  line.hidden = ends.hidden = timed.length === 0;
  const [first, last] = [timed[0]?.time ?? 0, timed.at(-1)?.time ?? 0];
  const clock = (time: number): string => `${new Date(time).toISOString().slice(0, 16).replace("T", " ")} UTC`;
  ends.textContent = timed.length > 0 ? `${count(timed.length, "photo")}, ${clock(first)} to ${clock(last)}` : "";
  fill(
    line,
    ...timed.map(({ item, time }) => {
      const best = item.result?.candidates?.[0];
      const state = item.decision ?? "not reviewed";
      const label = `${item.name}, ${clock(time)}, ${best ? placeName(best) : "no place"}, ${state}`;
      const button = h("button", {
        type: "button",
        class: `stop ${item.decision ?? ""}`,
        "aria-label": label,
        "aria-current": item.id === selected ? "true" : null,
        title: label,
        onclick: () => select(item.id),
      });
      const stop = h("li", {}, button);
      stop.style.left = `${last > first ? (100 * (time - first)) / (last - first) : 50}%`;
      return stop;
    }),
  );
}
