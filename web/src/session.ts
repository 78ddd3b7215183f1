/** What the user works on, kept in the browser's IndexedDB so that it survives a reload. */
import { announce } from "./dom";
import type { State, Store } from "./store";
import type { Item } from "./types";

const SESSION_KEYS = ["selected", "limits", "model", "topK", "text", "textWeight"] as const;
const SAVE_DELAY_MS = 400;

/** The part of the state that is worth keeping. */
export type Session = Pick<State, (typeof SESSION_KEYS)[number] | "items">;

type StoredItem = Omit<Item, "files">;
type StoredState = Omit<Session, "items"> & { order: string[] };

export function sessionOf(state: State): Session {
  const { items, selected, limits, model, topK, text, textWeight } = state;
  return { items, selected, limits, model, topK, text, textWeight };
}

/** Items are stored one by one, and their files apart: a photo is written once, whatever becomes of its answer. */
export class SessionDatabase {
  private saved = new Map<string, Item>();
  private timer = 0;

  private constructor(private readonly database: IDBDatabase) {}

  /** Null if the browser does not allow storage. */
  static async open(): Promise<SessionDatabase | null> {
    try {
      const request = indexedDB.open("open-geoclip", 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("items", { keyPath: "id" });
        request.result.createObjectStore("files");
        request.result.createObjectStore("state");
      };
      return new SessionDatabase(await result(request));
    } catch {
      return null;
    }
  }

  async load(): Promise<Session | null> {
    const transaction = this.database.transaction(["items", "files", "state"]);
    const [state, stored, ids, files] = await Promise.all([
      result<StoredState | undefined>(transaction.objectStore("state").get("state")),
      result<StoredItem[]>(transaction.objectStore("items").getAll()),
      result(transaction.objectStore("files").getAllKeys()),
      result<File[][]>(transaction.objectStore("files").getAll()),
    ]);
    if (state === undefined) return null;
    const filesById = new Map(ids.map((id, index) => [id, files[index]!]));
    const itemsById = new Map(stored.map((item) => [item.id, { ...item, files: filesById.get(item.id) ?? [] }]));
    const { order, ...rest } = state;
    const items = order.flatMap((id) => itemsById.get(id) ?? []);
    this.saved = new Map(items.map((item) => [item.id, item]));
    return { ...rest, items };
  }

  /** Saves the state after each change. */
  follow(store: Store): void {
    const save = (): void => {
      clearTimeout(this.timer);
      this.timer = 0;
      this.save(sessionOf(store.state)).catch(() => announce("The browser cannot store this work; it will be lost on reload."));
    };
    store.subscribe([...SESSION_KEYS, "items"], () => (this.timer ||= window.setTimeout(save, SAVE_DELAY_MS)));
    document.addEventListener("visibilitychange", () => document.hidden && this.timer && save());
    addEventListener("pagehide", () => this.timer && save());
  }

  private async save({ items, ...rest }: Session): Promise<void> {
    const transaction = this.database.transaction(["items", "files", "state"], "readwrite");
    const [itemStore, fileStore] = [transaction.objectStore("items"), transaction.objectStore("files")];
    for (const item of items) {
      const before = this.saved.get(item.id);
      if (before === item) continue;
      const { files, ...stored } = item;
      itemStore.put(stored);
      if (before?.files !== files) fileStore.put(files, item.id);
    }
    const kept = new Map(items.map((item) => [item.id, item]));
    for (const id of this.saved.keys())
      if (!kept.has(id)) {
        itemStore.delete(id);
        fileStore.delete(id);
      }
    transaction.objectStore("state").put({ ...rest, order: [...kept.keys()] } satisfies StoredState, "state");
    await new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
    });
    this.saved = kept;
  }
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
