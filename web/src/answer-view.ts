/** The answer for the selected photo: verdict, candidates, EXIF, probabilities, model and data. */
import { announce, fill, h, icon, unique } from "./dom";
import { comparison, coordinates, countryName, disagreementKm, exifConflict, kilometres, percent, placeName, decimalDegrees, isOutOfDistribution, verdict } from "./format";
import { services } from "./map-links";
import type { Store } from "./store";
import type { Candidate, Decision, Item, LookAlike, Result, SetPlace } from "./types";
import { Why, type Explain } from "./why";

export class AnswerView {
  readonly element = h("section", { class: "answer", "aria-label": "Answer", tabindex: "-1" });
  private shown: { item: Item | null; candidate: number } = { item: null, candidate: -1 };
  private readonly why: Why;
  private preview: { file: File; url: string } | null = null;

  /** Without `canReview`, as in a report, decision and note are read-only. */
  constructor(
    private readonly store: Store,
    private readonly canReview: boolean,
    explain: Explain,
    private readonly pick: (use: (place: SetPlace) => void) => void = () => undefined,
  ) {
    this.why = new Why(explain, ({ id }, explanation) => store.update(id, { explanation }), () => this.render());
    store.subscribe(["items", "selected", "candidate"], () => this.update());
    addEventListener("beforeprint", () => this.element.querySelectorAll("details").forEach((details) => (details.open = true)));
    this.update();
  }

  private update(): void {
    const item = this.store.selected;
    const { candidate } = this.store.state;
    if (isSameButNote(item, this.shown.item) && candidate === this.shown.candidate) return;
    this.render();
  }

  private render(): void {
    const item = this.store.selected;
    const { candidate } = this.store.state;
    const note = this.element.querySelector("textarea");
    const isTyping = note !== null && note === document.activeElement;
    const focused = focusSelector(document.activeElement);
    const same = item?.id === this.shown.item?.id;
    this.shown = { item, candidate };
    const scroll = this.element.scrollTop;
    if (item === null) fill(this.element, this.empty());
    else fill(this.element, ...this.content(item));
    this.element.scrollTop = same ? scroll : 0;
    if (same && isTyping) {
      const again = this.element.querySelector("textarea")!;
      again.focus();
      again.setSelectionRange(note.selectionStart, note.selectionEnd);
    } else if (same && focused !== null) this.element.querySelector<HTMLElement>(focused)?.focus();
  }

  private empty(): HTMLElement {
    return h(
      "div",
      { class: "answer-empty" },
      h("p", { class: "lead" }, "Where on Earth was it taken?"),
      h("p", {}, "Drop photos anywhere on this page, or describe a place in words. Each answer says how sure it is, and what else it could be."),
    );
  }

  /** The verdict comes first: whether the answer can be trusted. */
  private content(item: Item): (HTMLElement | null)[] {
    const name = h("h2", { class: "answer-name" }, item.name);
    const picture = this.picture(item);
    if (item.status === "failed") return [name, h("p", { class: "error", role: "alert" }, item.error ?? "It failed."), picture, this.review(item)];
    if (item.result === null) return [name, h("p", { class: "quiet" }, item.status === "sending" ? "Locating…" : "Waiting"), picture];
    const { result } = item;
    return [
      name,
      this.verdict(result),
      this.warnings(item, result),
      this.why.figure(item, this.store.state.candidate, picture) ?? picture,
      this.review(item),
      this.candidates(item, result),
      this.anchors(result),
      this.lookAlikes(result),
      this.exif(result),
      this.reliability(result),
      isOutOfDistribution(result) ? null : this.probabilities(result),
      isOutOfDistribution(result) ? null : this.countries(result),
      this.about(result),
    ];
  }

  private picture(item: Item): HTMLElement | null {
    if (item.kind === "text") return null;
    const file = item.files[0];
    if (file && this.preview?.file !== file) {
      if (this.preview) URL.revokeObjectURL(this.preview.url);
      this.preview = { file, url: URL.createObjectURL(file) };
    }
    const src = file ? this.preview!.url : item.thumbnail;
    if (!src) return h("div", { class: "answer-picture blank" }, icon("photo"));
    const image = h("img", { class: "answer-picture", src, alt: `The photo ${item.name}` });
    image.addEventListener("error", () => {
      if (item.thumbnail !== null && image.src !== item.thumbnail) image.src = item.thumbnail; // the server's
      else {
        const why = item.status === "failed" ? null : h("span", {}, "This browser cannot show this kind of image.");
        image.replaceWith(h("div", { class: "answer-picture blank" }, icon("photo"), why));
      }
    });
    return image;
  }

  /** Accept, reject, and a note. */
  private review(item: Item): HTMLElement | null {
    const { id, kind, decision, place, note } = item;
    if (!this.canReview) {
      const words = [decision && (decision === "accepted" ? "Accepted" : "Rejected"), note].filter(Boolean);
      return words.length > 0 ? h("p", { class: "review-words" }, words.join(": ")) : null;
    }
    const choice = (value: Decision, label: string): HTMLElement =>
      h(
        "button",
        {
          type: "button",
          class: `button small ${value}`,
          "aria-pressed": String(decision === value),
          onclick: () => this.decide(id, decision === value ? null : value),
        },
        icon(value === "accepted" ? "accept" : "close"),
        label,
      );
    const text = h("textarea", {
      rows: 1,
      "aria-label": "Note",
      placeholder: "Note",
      maxlength: 5000,
      oninput: () => this.store.update(id, { note: text.value }),
    });
    text.value = note;
    const set = h(
      "button",
      { type: "button", class: "button small", onclick: () => this.pick((chosen) => this.store.setPlace(item, chosen)) },
      icon("map"),
      place === null ? "Set the place" : "Set another place",
    );
    const chosen =
      place !== null &&
      h(
        "p",
        {},
        `Your place: ${coordinates(place[0], place[1])} `,
        h("button", { type: "button", class: "link-button", onclick: () => this.store.setPlace(item, null) }, "Take it back"),
      );
    return h(
      "div",
      { class: "review" },
      h("div", { class: "pair" }, choice("accepted", "Accept"), choice("rejected", "Reject")),
      text,
      kind === "photo" && h("div", { class: "review-place" }, set, chosen),
    );
  }

  private decide(id: string, decision: Decision | null): void {
    const item = this.store.state.items.find((each) => each.id === id);
    if (!item) return;
    this.store.decide([item], decision);
    queueMicrotask(() => this.element.querySelector<HTMLElement>(`.review .${decision ?? item.decision}`)?.focus());
  }

  private verdict(result: Result): HTMLElement {
    const { key, word, meaning } = verdict(result);
    return h("p", { class: `sure ${key}` }, h("strong", {}, word), h("span", {}, meaning));
  }

  private warnings(item: Item, result: Result): HTMLElement | null {
    const conflict = exifConflict(result);
    const apart = item.kind === "together" ? disagreementKm(this.singleAnswers(item)) : null;
    const texts = [
      apart !== null && `The photos disagree: located one by one, they are up to ${kilometres(apart)} apart. They may not be of one place.`,
      conflict !== null && `The place in the photo's EXIF does not fit this answer (${conflict}).`,
    ].filter((text) => text !== false);
    return texts.length > 0 ? h("ul", { class: "warnings" }, ...texts.map((text) => h("li", {}, text))) : null;
  }

  /** Answers to the photos of a group that were also located one by one. */
  private singleAnswers(group: Item): Result[] {
    return this.store.state.items.flatMap(({ kind, files, result }) =>
      kind === "photo" && result && group.files.includes(files[0]!) ? [result] : [],
    );
  }

  private candidates(item: Item, result: Result): HTMLElement {
    const list = h("ol", { class: "candidates", "aria-label": "Candidates" });
    const most = Math.max(...(result.candidates ?? []).map(({ probability }) => probability), 1e-9);
    (result.candidates ?? []).forEach((each, index) => list.append(this.candidate(item, each, index, most)));
    if (list.children.length === 0) return list;
    if (isOutOfDistribution(result)) {
      list.classList.add("meaningless");
      return h("div", {}, h("p", { class: "candidates-note" }, "These candidates mean nothing: the model is not for such photos."), list);
    }
    return h("div", {}, list, h("p", { class: "candidates-note" }, "90 % of a candidate's probability lies within its radius."));
  }

  private candidate(item: Item, each: Candidate, index: number, most: number): HTMLElement {
    const meansNothing = item.result !== null && isOutOfDistribution(item.result);
    const chosen = index === this.store.state.candidate;
    const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: "bar-fill" }));
    (bar.firstElementChild as HTMLElement).style.width = `${(100 * each.probability) / most}%`;
    const button = h(
      "button",
      {
        type: "button",
        class: "candidate",
        "data-candidate": index,
        "aria-pressed": chosen ? "true" : "false",
        onclick: () => this.store.set({ candidate: index }),
      },
      h("span", { class: "disc", "aria-hidden": "true" }, String(index + 1)),
      h("span", { class: "candidate-place" }, h("span", { class: "visually-hidden" }, `Candidate ${index + 1}: `), placeName(each)),
      h("span", { class: "candidate-share" }, meansNothing ? "means nothing" : percent(each.probability)),
      meansNothing ? null : bar,
      h(
        "span",
        { class: "candidate-numbers" },
        h("span", {}, coordinates(each.lat, each.lon)),
        h("span", {}, `radius ${kilometres(each.radius_km)}`),
      ),
    );
    return h("li", { class: chosen ? "chosen" : "" }, button, chosen && this.why.button(item, index), chosen && this.links(each));
  }

  private links(each: Candidate): HTMLElement {
    const note = unique("note");
    const copy = h(
      "button",
      {
        type: "button",
        class: "link-button",
        onclick: () => void this.copy(decimalDegrees(each.lat, each.lon)),
      },
      icon("copy"),
      "Copy coordinates",
    );
    return h(
      "div",
      { class: "links" },
      copy,
      h("p", { class: "links-note", id: note }, "Open in a map service. The service learns the place, not the photo:"),
      h(
        "ul",
        { "aria-describedby": note },
        ...services(each.lat, each.lon, each.radius_km).map(({ name, url }) =>
          h("li", {}, h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, name, icon("out"))),
        ),
      ),
    );
  }

  private async copy(text: string): Promise<void> {
    try {
      await navigator.clipboard.writeText(text);
      announce(`Copied ${text}.`);
    } catch {
      announce(`The browser does not let this page copy. The coordinates are ${text}.`);
    }
  }

  private anchors({ anchors, time }: Result): HTMLElement | null {
    if (!anchors?.length || !time) return null;
    return h(
      "section",
      { class: "block" },
      h("h3", {}, "Estimated between known places"),
      ...anchors.map((anchor) => {
        const minutes = Math.round((Date.parse(anchor.time) - Date.parse(time)) / 60_000);
        const when = minutes === 0 ? "within a minute" : `${Math.abs(minutes).toLocaleString("en")} min ${minutes < 0 ? "before" : "after"}`;
        return h("p", {}, `${anchor.source}, ${when}: ${coordinates(anchor.lat, anchor.lon)}`);
      }),
    );
  }

  private exif(result: Result): HTMLElement | null {
    const { exif } = result;
    if (!exif) return null;
    const { words } = comparison(result, exif);
    const accuracy = exif.accuracy_m ? ` ± ${kilometres(exif.accuracy_m / 1000)}` : "";
    return h(
      "section",
      { class: "block exif" },
      h("h3", {}, "Place in the photo's EXIF"),
      h("p", { class: "mono" }, coordinates(exif.lat, exif.lon) + accuracy),
      h("p", {}, words, exif.time ? ` · ${exif.time.replace("T", " ")}` : null),
      result.verdict ? h("p", {}, h("strong", {}, `${result.verdict}: `), result.reason ?? "") : null,
      ...(result.remarks ?? []).map(({ text }) => h("p", { class: "quiet" }, text)),
      h("p", { class: "quiet" }, "EXIF can be wrong or forged. It is not used for the estimate."),
    );
  }

  /** Photos of an index that look like this one, with their pictures if the index has them. */
  private lookAlikes({ look_alikes }: Result): HTMLElement | null {
    if (!look_alikes?.length) return null;
    const one = ({ id, similarity, lat, lon, distance_km, thumbnail }: LookAlike): HTMLElement =>
      h(
        "li",
        {},
        thumbnail ? h("img", { src: thumbnail, alt: "", loading: "lazy" }) : h("span", { class: "blank" }, icon("photo")),
        h("span", { class: "look-alike-name" }, id),
        h("span", { class: "quiet" }, `${coordinates(lat, lon)}, ${kilometres(distance_km)} from the first candidate; similarity ${similarity.toFixed(2)}`),
      );
    return h(
      "section",
      { class: "block" },
      h("h3", {}, "Photos with known places that look alike"),
      h("ul", { class: "look-alikes" }, ...look_alikes.map(one)),
    );
  }

  private reliability({ reliability }: Result): HTMLElement | null {
    if (!reliability) return null;
    const entries = Object.entries(reliability.within_km).sort(([a], [b]) => Number(a) - Number(b));
    return h(
      "section",
      { class: "block reliability" },
      h("h3", {}, "How often answers at such places were right"),
      shares(entries.map(([km, [any, recognisable]]) => [kilometres(Number(km)), recognisable, `${percent(any)} to ${percent(recognisable)}`])),
      h("p", { class: "quiet" }, "From photos of any kind to photos chosen for recognisable places. This photo itself is not taken into account."),
      h("p", { class: "quiet" }, `Measured on ${reliability.measured_on}.`),
    );
  }

  private probabilities(result: Result): HTMLElement | null {
    const entries = Object.entries(result.within_km ?? {}).sort(([a], [b]) => Number(a) - Number(b));
    if (entries.length === 0) return null;
    const radius = result.credible_radius_km?.["90"];
    return h(
      "section",
      { class: "block" },
      h("h3", {}, result.sure === null || result.sure === undefined ? "Share of probability around candidate 1" : "Chance that candidate 1 is right within"),
      shares(entries.map(([km, share]) => [kilometres(Number(km)), share])),
      radius !== undefined && h("p", { class: "quiet" }, `90 % of all probability lies within ${kilometres(radius)} of candidate 1.`),
    );
  }

  private countries(result: Result): HTMLElement | null {
    const entries = Object.entries(result.countries ?? {}).filter(([, share]) => share >= 0.005);
    if (entries.length === 0) return null;
    return h(
      "section",
      { class: "block" },
      h("h3", {}, "Countries"),
      shares(entries.slice(0, 6).map(([code, share]) => [countryName(code), share])),
    );
  }

  private about(result: Result): HTMLElement {
    const entries: [string, string | undefined][] = [
      ["Model", result.model],
      ["Gallery", result.gallery],
      ["OpenGeoCLIP", result.version],
      ...Object.entries(result.sha256 ?? {}).map(([file, hash]): [string, string] => [`sha256, ${file}`, hash]),
    ];
    return h(
      "section",
      { class: "block about" },
      h(
        "details",
        {},
        h("summary", {}, h("h3", {}, "Model and data")),
        h("dl", {}, ...entries.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value ?? "unknown")])),
      ),
      h("p", { class: "quiet" }, "An estimate, not evidence. Check it against what the photo shows."),
    );
  }
}

/** What selects the control that has the focus, after it was made anew. */
function focusSelector(active: Element | null): string | null {
  if (active?.matches(".why-button")) return ".why-button";
  const control = active?.closest<HTMLElement>("[data-candidate], [data-layer]");
  const [name, value] = Object.entries(control?.dataset ?? {})[0] ?? [];
  return name === undefined ? null : `[data-${name}="${value}"]`;
}

function isSameButNote(a: Item | null, b: Item | null): boolean {
  if (a === b) return true;
  return a !== null && b !== null && (Object.keys(a) as (keyof Item)[]).every((key) => key === "note" || a[key] === b[key]);
}

/** Names with a bar and a percentage each, or other words for it. */
function shares(entries: readonly (readonly [string, number, string?])[]): HTMLElement {
  const list = h("dl", { class: "shares" });
  for (const [name, share, words] of entries) {
    const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: "bar-fill" }));
    (bar.firstElementChild as HTMLElement).style.width = `${Math.min(100, 100 * share)}%`;
    list.append(h("dt", {}, name), h("dd", {}, bar, h("span", { class: "share" }, words ?? percent(share))));
  }
  return list;
}
