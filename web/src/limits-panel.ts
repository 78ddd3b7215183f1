/** The panel for limits on where photos were taken: countries, boxes, circles, shapes drawn on the map. */
import { announce, fill, h, icon, unique } from "./dom";
import { parseLimit, suggestions } from "./limit-syntax";
import type { Tool } from "./map/drawing";
import type { Store } from "./store";
import type { Country, Limit } from "./types";

export class LimitsPanel {
  readonly element: HTMLElement;
  inside = true;
  private readonly chips = h("ul", { class: "chips", "aria-label": "Limits" });
  private readonly input: HTMLInputElement;
  private readonly options = h("ul", { class: "suggestions", role: "listbox", id: unique("suggestions"), "aria-label": "Countries", hidden: true });
  private readonly problem = h("p", { class: "error small", role: "alert", hidden: true });
  private matches: Country[] = [];
  private active = -1;

  constructor(
    private readonly store: Store,
    draw: (tool: Tool, inside: boolean) => void,
  ) {
    const name = unique("side");
    const side = (inside: boolean, label: string): HTMLElement =>
      h(
        "label",
        {},
        h("input", { type: "radio", name, checked: inside === this.inside, onchange: () => (this.inside = inside) }),
        h("span", {}, label),
      );
    this.input = h("input", {
      type: "text",
      id: unique("limit"),
      role: "combobox",
      "aria-expanded": "false",
      "aria-autocomplete": "list",
      "aria-controls": this.options.id,
      autocomplete: "off",
      spellcheck: "false",
      placeholder: "Country, or 48.86,2.29,50km",
      oninput: () => this.suggest(),
      onkeydown: (event: KeyboardEvent) => this.key(event),
      onblur: () => this.closeSuggestions(),
    });
    const tool = (which: Exclude<Tool, "point">, label: string): HTMLElement =>
      h("button", { type: "button", class: "button quiet-button", onclick: () => draw(which, this.inside) }, icon(which), label);
    this.element = h(
      "fieldset",
      { class: "limits" },
      h("legend", {}, "Limits"),
      h("div", { class: "segmented", role: "radiogroup", "aria-label": "What the next limit means" }, side(true, "Only inside"), side(false, "Not inside")),
      h("label", { class: "visually-hidden", for: this.input.id }, "Country, box (south,west,north,east) or circle (latitude,longitude,radius)"),
      h("div", { class: "combo" }, this.input, this.options),
      this.problem,
      h("div", { class: "pair" }, tool("box", "Draw a box"), tool("polygon", "Draw a polygon")),
      this.chips,
    );
    store.subscribe(["limits"], () => this.render());
  }

  add(limit: Limit): void {
    const { limits } = this.store.state;
    if (limits.some(({ inside, grammar }) => inside === limit.inside && grammar === limit.grammar)) return;
    this.change([...limits, limit], `add the limit ${limit.label}`);
    announce(`Limit added: ${limit.inside ? "only inside" : "not inside"} ${limit.label}.`);
  }

  private change(limits: readonly Limit[], label: string): void {
    const before = this.store.state.limits;
    this.store.set({ limits });
    this.store.recordUndo(label, () => this.store.set({ limits: before }));
  }

  private render(): void {
    fill(
      this.chips,
      ...this.store.state.limits.map((limit) =>
        h(
          "li",
          { class: limit.inside ? "chip" : "chip outside" },
          h("span", {}, limit.inside ? "in " : "not in ", limit.label),
          h(
            "button",
            {
              type: "button",
              "aria-label": `Remove the limit ${limit.label}`,
              onclick: () => {
                this.change(this.store.state.limits.filter((other) => other !== limit), `remove the limit ${limit.label}`);
                this.input.focus();
              },
            },
            icon("close"),
          ),
        ),
      ),
    );
  }

  private suggest(): void {
    this.problem.hidden = true;
    this.matches = suggestions(this.input.value, this.store.state.countries);
    this.active = -1;
    fill(
      this.options,
      ...this.matches.map((country, index) =>
        h(
          "li",
          {
            role: "option",
            id: `${this.options.id}-${index}`,
            "aria-selected": "false",
            onpointerdown: (event: Event) => {
              event.preventDefault(); // the input keeps the focus
              this.addCountry(country);
            },
          },
          h("span", {}, country.name),
          h("span", { class: "code" }, country.code),
        ),
      ),
    );
    this.options.hidden = this.matches.length === 0;
    this.input.setAttribute("aria-expanded", String(this.matches.length > 0));
    this.input.removeAttribute("aria-activedescendant");
  }

  private closeSuggestions(): void {
    this.options.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  private addCountry(country: Country): void {
    this.add({ inside: this.inside, grammar: country.code, label: country.name });
    this.input.value = "";
    this.closeSuggestions();
  }

  private key(event: KeyboardEvent): void {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (this.matches.length === 0) return;
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      this.active = (this.active + step + this.matches.length + (this.active < 0 && step < 0 ? 1 : 0)) % this.matches.length;
      [...this.options.children].forEach((option, index) => option.setAttribute("aria-selected", String(index === this.active)));
      this.input.setAttribute("aria-activedescendant", `${this.options.id}-${this.active}`);
    } else if (event.key === "Escape") {
      this.closeSuggestions();
    } else if (event.key === "Enter") {
      event.preventDefault();
      const choice = this.matches[this.active];
      if (choice && !this.options.hidden) return this.addCountry(choice);
      if (this.input.value.trim() === "") return;
      const limit = parseLimit(this.input.value, this.inside, this.store.state.countries);
      if (typeof limit !== "string") {
        this.add(limit);
        this.input.value = "";
        this.closeSuggestions();
      } else if (this.matches.length === 1) this.addCountry(this.matches[0]!);
      else {
        this.problem.textContent = limit;
        this.problem.hidden = false;
      }
    }
  }
}
