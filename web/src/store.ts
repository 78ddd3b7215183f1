/** The state of the page; views subscribe to its changes. */
import type { Country, Item, Limit, Model, Options } from "./types";

export interface Progress {
  total: number;
  done: number;
  failed: number;
  startedAt: number;
  /** Seconds until a busy server is asked again, or null. */
  retryIn: number | null;
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
  /** What undo() would revert, or null. */
  undoLabel: string | null;
}

type Key = keyof State;

export class Store {
  private readonly subscriptions: { keys: readonly Key[]; listener: () => void }[] = [];
  private changed = new Set<Key>();
  private isScheduled = false;
  private readonly undoStack: { label: string; revert: () => void }[] = [];

  constructor(readonly state: State) {}

  /** Changes the state. Subscribers are called once, in a microtask. */
  set(changes: Partial<State>): void {
    Object.assign(this.state, changes);
    for (const key of Object.keys(changes) as Key[]) this.changed.add(key);
    if (this.isScheduled) return;
    this.isScheduled = true;
    queueMicrotask(() => this.notify());
  }

  subscribe(keys: readonly Key[], listener: () => void): void {
    this.subscriptions.push({ keys, listener });
  }

  private notify(): void {
    const changed = this.changed;
    this.changed = new Set();
    this.isScheduled = false;
    for (const { keys, listener } of this.subscriptions) if (keys.some((key) => changed.has(key))) listener();
  }

  /** Makes a change that was just made undoable. */
  recordUndo(label: string, revert: () => void): void {
    this.undoStack.push({ label, revert });
    this.set({ undoLabel: label });
  }

  undo(): void {
    this.undoStack.pop()?.revert();
    this.set({ undoLabel: this.undoStack.at(-1)?.label ?? null });
  }

  get options(): Options {
    const { model, topK, text, textWeight, limits } = this.state;
    return { model, topK, text, textWeight, limits };
  }

  get selected(): Item | null {
    return this.state.items.find(({ id }) => id === this.state.selected) ?? null;
  }

  /** Replaces one item; the list of items is a new array. */
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

/** The options that an answer depends on, as one string; answers to other options are stale. */
export function optionsKey(options: Options, kind: Item["kind"]): string {
  const { model, topK, text, textWeight, limits } = options;
  const context = kind === "photo" && text !== "" ? [text, textWeight] : [];
  return JSON.stringify([model, topK, context, limits.map(({ inside, grammar }) => [inside, grammar])]);
}

export function createStore(): Store {
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
    undoLabel: null,
  });
}
