/** The list of photos and texts. Rows are updated in place, so that hundreds of them stay fast. */
import { fill, h, icon } from "./dom";
import { exifConflict, isOutOfDistribution, kilometres, percent, placeName, verdict } from "./format";
import { optionsKey, type Store } from "./store";
import type { Item } from "./types";

interface Row {
  element: HTMLLIElement;
  button: HTMLButtonElement;
  check: HTMLInputElement;
  item: Item | null;
  stale: boolean;
}

export interface ListActions {
  retry(item: Item): void;
  remove(item: Item): void;
}

/** On a phone the whole page scrolls, not the list. */
const isNarrow = (): boolean => matchMedia("(max-width: 760px)").matches;

export class List {
  readonly element = h("ol", { class: "list", "aria-label": "Photos and texts" });
  private readonly rows = new Map<string, Row>();
  private current: string | null = null;
  private lastChecked = "";

  /** Without actions the list is read-only, as in a report. */
  constructor(
    private readonly store: Store,
    private readonly actions: ListActions | null,
  ) {
    this.element.addEventListener("keydown", (event) => this.key(event));
    store.subscribe(["items", "arrangement", "limits", "model", "topK", "text", "textWeight"], () => this.sync());
    store.subscribe(["selected"], () => this.highlightSelected());
  }

  /** Updates the rows to the items that are shown. */
  sync(): void {
    const items = this.store.shown;
    const left = new Set(this.rows.keys());
    let before: Element | null = null;
    const prints = new Map<Item["kind"], string>();
    for (const item of items) {
      left.delete(item.id);
      let row = this.rows.get(item.id);
      if (row === undefined) {
        row = this.row(item);
        this.rows.set(item.id, row);
      }
      if (!prints.has(item.kind)) prints.set(item.kind, optionsKey(this.store.options, item.kind));
      const stale = this.actions !== null && item.status === "done" && item.optionsKey !== prints.get(item.kind);
      if (row.item !== item || row.stale !== stale) this.paint(row, item, stale);
      const place: Element | null = before === null ? this.element.firstElementChild : before.nextElementSibling;
      if (place !== row.element) this.element.insertBefore(row.element, place);
      before = row.element;
    }
    for (const id of left) {
      this.rows.get(id)!.element.remove();
      this.rows.delete(id);
    }
    this.highlightSelected();
  }

  focus(): void {
    (this.rows.get(this.store.state.selected ?? "")?.button ?? this.element.querySelector<HTMLElement>(".row-main"))?.focus();
  }

  private row(item: Item): Row {
    const check = h("input", {
      type: "checkbox",
      "aria-label": `Choose ${item.name}`,
      onclick: (event: MouseEvent) => this.check(item.id, check.checked, event.shiftKey),
    });
    const button = h("button", {
      type: "button",
      class: "row-main",
      id: `row-${item.id}`,
      onclick: () => {
        this.store.select(item.id);
        if (isNarrow()) document.querySelector(".answer")?.scrollIntoView({ block: "start" });
      },
    });
    const element = h("li", { class: "row" }, this.actions && h("label", { class: "row-check" }, check), button);
    return { element, button, check, item: null, stale: false };
  }

  /** Checks a row; with the shift key, all rows from the last one that was checked. */
  private check(id: string, checked: boolean, isRange: boolean): void {
    const ids = this.store.shown.map((item) => item.id);
    const [from, to] = [isRange ? ids.indexOf(this.lastChecked) : -1, ids.indexOf(id)];
    const range = from < 0 ? [id] : ids.slice(Math.min(from, to), Math.max(from, to) + 1);
    this.store.updateAll(new Set(range), { checked });
    this.lastChecked = id;
  }

  private paint(row: Row, item: Item, stale: boolean): void {
    row.item = item;
    row.stale = stale;
    row.check.checked = item.checked;
    row.element.dataset["status"] = item.status;
    const picture =
      item.thumbnail === null
        ? h("span", { class: "thumb blank" }, icon(item.kind === "text" ? "text" : "photo"))
        : h("img", { class: "thumb", src: item.thumbnail, alt: "", width: 48, height: 48 });
    if (item.kind === "together") picture.classList.add("several");
    fill(row.button, picture, h("span", { class: "row-words" }, h("span", { class: "row-name" }, item.name), this.summary(item), this.review(item)));
    row.element.querySelectorAll(".row-side").forEach((side) => side.remove());
    row.element.append(this.side(item, stale));
  }

  private summary(item: Item): HTMLElement {
    const best = item.result?.candidates?.[0];
    if (item.status === "failed") return h("span", { class: "row-error" }, item.error ?? "It failed.");
    if (item.status !== "done" || item.result === null)
      return h("span", { class: "row-quiet" }, item.status === "sending" ? "Locating…" : "Waiting");
    if (best === undefined) return h("span", { class: "row-quiet" }, "No candidate");
    const { key, word } = verdict(item.result);
    const conflict = exifConflict(item.result);
    const radius = item.result.credible_radius_km?.["90"];
    if (isOutOfDistribution(item.result))
      return h("span", { class: "row-summary" }, h("span", { class: "row-numbers" }, h("span", { class: `verdict ${key}` }, word), " · candidates mean nothing"));
    return h(
      "span",
      { class: "row-summary" },
      h("span", { class: "row-place" }, placeName(best)),
      h(
        "span",
        { class: "row-numbers" },
        h("span", { class: `verdict ${key}` }, word),
        h("span", {}, ` · ${percent(best.probability)}${radius === undefined ? "" : " ·"}`),
        " ",
        radius !== undefined && h("span", {}, `90 % within ${kilometres(radius)}`),
      ),
      conflict !== null && h("span", { class: "row-conflict" }, conflict),
    );
  }

  /** What the user decided and wrote. */
  private review({ decision, note }: Item): HTMLElement | null {
    if (decision === null && note === "") return null;
    return h(
      "span",
      { class: "row-review" },
      decision !== null && h("strong", { class: decision }, decision === "accepted" ? "Accepted" : "Rejected"),
      decision !== null && note !== "" && ": ",
      note,
    );
  }

  private side(item: Item, stale: boolean): HTMLElement {
    if (this.actions === null) return h("span", { class: "row-side", hidden: true });
    const again = item.status === "failed" || stale;
    const label = stale ? "Locate again" : "Retry";
    return h(
      "span",
      { class: "row-side" },
      again &&
        h(
          "button",
          {
            type: "button",
            class: "tool small",
            "aria-label": `${label}: ${item.name}`,
            title: stale ? "Made with other settings: locate again" : "Retry",
            onclick: () => this.actions!.retry(item),
          },
          icon("retry"),
        ),
      h(
        "button",
        {
          type: "button",
          class: "tool small faint",
          "aria-label": `Remove ${item.name}`,
          title: "Remove",
          onclick: () => this.actions!.remove(item),
        },
        icon("close"),
      ),
    );
  }

  private highlightSelected(): void {
    const { selected } = this.store.state;
    if (this.current !== selected) this.rows.get(this.current ?? "")?.button.removeAttribute("aria-current");
    const row = this.rows.get(selected ?? "");
    row?.button.setAttribute("aria-current", "true");
    if (this.current !== selected && !isNarrow()) row?.element.scrollIntoView({ block: "nearest" });
    this.current = selected;
  }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (!target.classList.contains("row-main")) return;
    const items = this.store.shown;
    const at = items.findIndex(({ id }) => id === this.store.state.selected);
    const moves: Record<string, number> = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 };
    const to = moves[event.key];
    if (to !== undefined) {
      event.preventDefault();
      const next = items[Math.max(0, Math.min(items.length - 1, to))];
      if (next) {
        this.store.select(next.id);
        this.rows.get(next.id)?.button.focus();
      }
      return;
    }
    const item = items[at];
    if (this.actions === null || item === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Delete") {
      event.preventDefault();
      this.actions.remove(item);
      queueMicrotask(() => this.focus());
    } else if (event.key === "a" || event.key === "r") {
      const decision = event.key === "a" ? "accepted" : "rejected";
      this.store.decide([item], item.decision === decision ? null : decision);
    }
  }
}
