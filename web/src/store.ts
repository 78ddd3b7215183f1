/** The state of the page; views subscribe to its changes. */
import { arrange, DEFAULT_ARRANGEMENT, type Arrangement } from "./arrange";
import { count } from "./format";
import type { Country, Decision, Item, Limit, Model, Options, SetPlace } from "./types";

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
  arrangement: Arrangement;
  /** Where the photographer was; not kept when the page is reloaded. */
  tracks: readonly File[];
  /** Whether smaller copies of large photos are sent. */
  shrink: boolean;
  progress: Progress | null;
  /** Why the work is not stored; empty if it is. */
  problem: string;
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
  private arranged: { items: readonly Item[]; by: Arrangement; shown: readonly Item[] } | null = null;

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

  /** The items that the list shows, in its order. */
  get shown(): readonly Item[] {
    const { items, arrangement: by } = this.state;
    if (this.arranged?.items !== items || this.arranged.by !== by) this.arranged = { items, by, shown: arrange(items, by) };
    return this.arranged.shown;
  }

  /** The shown items whose box is checked. */
  get checked(): readonly Item[] {
    return this.shown.filter(({ checked }) => checked);
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

  /** Checks these of the items that are shown, and no others. */
  check(items: readonly Item[]): void {
    const ids = new Set(items.map(({ id }) => id));
    const shown = new Set(this.shown.map(({ id }) => id));
    this.set({
      items: this.state.items.map((item) => {
        const checked = shown.has(item.id) ? ids.has(item.id) : item.checked;
        return checked === item.checked ? item : { ...item, checked };
      }),
    });
  }

  /** Accepts or rejects answers; null takes it back. */
  decide(items: readonly Item[], decision: Decision | null): void {
    const before = items.map(({ id, decision }) => ({ id, decision }));
    this.updateAll(new Set(items.map(({ id }) => id)), { decision });
    const name = items.length === 1 ? items[0]!.name : count(items.length, "answer");
    this.recordUndo(decision === null ? `review of ${name}` : `${name} ${decision}`, () => {
      for (const { id, decision } of before) this.update(id, { decision });
    });
  }

  /** Sets the place of a photo, which accepts it; null takes the place back. */
  setPlace(item: Item, place: SetPlace | null): void {
    const { id, place: before, decision } = item;
    this.update(id, { place, decision: place === null ? decision : "accepted" });
    this.recordUndo(`place of ${item.name}`, () => this.update(id, { place: before, decision }));
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
    arrangement: DEFAULT_ARRANGEMENT,
    tracks: [],
    shrink: false,
    progress: null,
    problem: "",
    models: [],
    countries: [],
    undoLabel: null,
  });
}
