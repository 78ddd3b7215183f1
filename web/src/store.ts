/** What the page knows, in one place; views are told when it changes. */
import type { Country, Item, Limit, Model, Options } from "./types";

export interface Progress {
  total: number;
  done: number;
  failed: number;
  startedAt: number;
  /** Seconds that a busy server is waited for, or null. */
  waiting: number | null;
}

export interface State {
  items: Item[];
  selected: string | null;
  candidate: number;
  limits: readonly Limit[];
  model: string;
  topK: number;
  text: string;
  textWeight: number;
  progress: Progress | null;
  models: Model[];
  countries: Country[];
}

type Key = keyof State;

export class Store {
  private readonly listeners: { keys: readonly Key[]; act: () => void }[] = [];
  private changed = new Set<Key>();
  private told = false;

  constructor(readonly state: State) {}

  /** Changes the state; those who watch what changed are called once, after all that happens now. */
  set(changes: Partial<State>): void {
    Object.assign(this.state, changes);
    for (const key of Object.keys(changes) as Key[]) this.changed.add(key);
    if (this.told) return;
    this.told = true;
    queueMicrotask(() => this.tell());
  }

  watch(keys: readonly Key[], act: () => void): void {
    this.listeners.push({ keys, act });
  }

  private tell(): void {
    const changed = this.changed;
    this.changed = new Set();
    this.told = false;
    for (const { keys, act } of this.listeners) if (keys.some((key) => changed.has(key))) act();
  }

  get options(): Options {
    const { model, topK, text, textWeight, limits } = this.state;
    return { model, topK, text, textWeight, limits };
  }

  get selected(): Item | null {
    return this.state.items.find(({ id }) => id === this.state.selected) ?? null;
  }

  /** Changes one item, in a new list: the list's own view finds which. */
  update(id: string, changes: Partial<Item>): void {
    this.set({ items: this.state.items.map((item) => (item.id === id ? { ...item, ...changes } : item)) });
  }

  updateAll(ids: ReadonlySet<string>, changes: Partial<Item>): void {
    this.set({ items: this.state.items.map((item) => (ids.has(item.id) ? { ...item, ...changes } : item)) });
  }

  select(id: string | null, candidate = 0): void {
    this.set({ selected: id, candidate });
  }
}

/** Options as one string, to see whether an answer was asked for with others. */
export function fingerprint(options: Options, kind: Item["kind"]): string {
  const { model, topK, text, textWeight, limits } = options;
  const beside = kind === "photo" && text !== "" ? [text, textWeight] : [];
  return JSON.stringify([model, topK, beside, limits.map(({ inside, grammar }) => [inside, grammar])]);
}

export function start(): Store {
  return new Store({
    items: [],
    selected: null,
    candidate: 0,
    limits: [],
    model: "",
    topK: 5,
    text: "",
    textWeight: 0.5,
    progress: null,
    models: [],
    countries: [],
  });
}
