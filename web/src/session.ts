/** What the user works on, kept in the browser's IndexedDB so that it survives a reload. */
import type { State, Store } from "./store";
import type { Item } from "./types";

const SESSION_KEYS = ["selected", "limits", "model", "topK", "text", "textWeight", "arrangement", "shrink"] as const;
const SAVE_DELAY_MS = 400;
const LOCK_WAIT_MS = 10_000; // a page that goes away may still hold its lock for a moment, longer on a busy machine
const NUMBER_KEY = "geoclip-session";

/** The part of the state that is worth keeping. */
export type Session = Pick<State, (typeof SESSION_KEYS)[number] | "items">;

type StoredItem = Omit<Item, "files">;
/** `page` is the page that saves; another one that opened the same session replaces it. */
type StoredState = Omit<Session, "items"> & { order: string[]; page: string };

export function sessionOf(state: State): Session {
  const { items, selected, limits, model, topK, text, textWeight, arrangement, shrink } = state;
  return { items, selected, limits, model, topK, text, textWeight, arrangement, shrink };
}

/** Thrown when another tab saves this session. */
class TakenOverError extends Error {}

/**
 * The number of a session that no other tab has open, held by a lock until this tab is closed: the tab's own before a
 * reload, else the one that was saved last, else the first that is free. A copy of a tab has the number of the first,
 * which answers that it is open.
 *
 * Browsers have no locks on pages of plain HTTP from other hosts: there, the tab that opened the session last saves it.
 */
async function claimSession(): Promise<number> {
  const { locks } = navigator;
  if (locks === undefined) return 1;
  const claim = (number: number, options: LockOptions): Promise<boolean> =>
    new Promise((resolve) => {
      const hold = (lock: Lock | null): Promise<void> | void => {
        resolve(lock !== null);
        if (lock) return new Promise(() => undefined); // until the page is gone
      };
      locks.request(`open-geoclip-${number}`, options, hold).catch(() => resolve(false));
    });
  const [own, last] = [sessionStorage, localStorage].map((storage) => Number(storage.getItem(NUMBER_KEY)));
  const channel = new BroadcastChannel("open-geoclip-sessions");
  const waiting = new AbortController();
  channel.onmessage = ({ data }) => data.open === own && waiting.abort();
  setTimeout(() => waiting.abort(), LOCK_WAIT_MS);
  channel.postMessage({ asked: own });
  const chosen = async (): Promise<number> => {
    if (own && (await claim(own, { signal: waiting.signal }))) return own;
    if (last && (await claim(last, { ifAvailable: true }))) return last;
    for (let number = 1; ; number++) if (await claim(number, { ifAvailable: true })) return number;
  };
  const number = await chosen();
  channel.onmessage = ({ data }) => data.asked === number && channel.postMessage({ open: number });
  return number;
}

/** Items are stored one by one, and their files apart: a photo is written once, whatever becomes of its answer. */
export class SessionDatabase {
  private saved = new Map<string, Item>();
  private timer = 0;
  private savedAt = -SAVE_DELAY_MS;
  private readonly page = `${Date.now()}-${Math.random()}`;

  private constructor(
    private readonly database: IDBDatabase,
    private readonly number: number,
  ) {}

  /** Null if the browser does not allow storage. */
  static async open(): Promise<SessionDatabase | null> {
    try {
      const number = await claimSession();
      sessionStorage.setItem(NUMBER_KEY, String(number));
      const request = indexedDB.open(number === 1 ? "open-geoclip" : `open-geoclip-${number}`, 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("items", { keyPath: "id" });
        request.result.createObjectStore("files");
        request.result.createObjectStore("state");
      };
      return new SessionDatabase(await result(request), number);
    } catch {
      return null;
    }
  }

  /** Loads the session, which this page saves from now on. */
  async load(): Promise<Session | null> {
    const transaction = this.database.transaction(["items", "files", "state"], "readwrite");
    const [state, stored, ids, files] = await Promise.all([
      result<StoredState | undefined>(transaction.objectStore("state").get("state")),
      result<StoredItem[]>(transaction.objectStore("items").getAll()),
      result(transaction.objectStore("files").getAllKeys()),
      result<File[][]>(transaction.objectStore("files").getAll()),
    ]);
    if (state === undefined) return null;
    transaction.objectStore("state").put({ ...state, page: this.page }, "state");
    const filesById = new Map(ids.map((id, index) => [id, files[index]!]));
    const itemsById = new Map(stored.map((item) => [item.id, { ...item, files: filesById.get(item.id) ?? [] }]));
    const { order, page: _, ...rest } = state;
    const items = order.flatMap((id) => itemsById.get(id) ?? []);
    this.saved = new Map(items.map((item) => [item.id, item]));
    return { ...rest, items };
  }

  /** Saves the state after a change: at once after the first, then at most each SAVE_DELAY_MS. The message says why it cannot, and is empty when it can again. */
  follow(store: Store, showProblem: (message: string) => void): void {
    let isTakenOver = false;
    const failed = (error: unknown): void => {
      isTakenOver ||= error instanceof TakenOverError;
      showProblem(
        isTakenOver
          ? "This work was opened in another tab, which saves it from now on. Reload this tab to continue here."
          : "The browser cannot store this work: it will be lost on reload. Save a project file.",
      );
    };
    const save = (): void => {
      clearTimeout(this.timer);
      this.timer = 0;
      this.savedAt = performance.now();
      if (!isTakenOver) this.save(sessionOf(store.state)).then(() => showProblem(""), failed);
    };
    const saveSoon = (): void => {
      this.timer ||= window.setTimeout(save, Math.max(0, this.savedAt + SAVE_DELAY_MS - performance.now()));
    };
    store.subscribe([...SESSION_KEYS, "items"], saveSoon);
    document.addEventListener("visibilitychange", () => document.hidden && this.timer && save());
    addEventListener("pagehide", () => this.timer && save());
  }

  private async save({ items, ...rest }: Session): Promise<void> {
    const transaction = this.database.transaction(["items", "files", "state"], "readwrite");
    const [itemStore, fileStore, stateStore] = (["items", "files", "state"] as const).map((name) => transaction.objectStore(name));
    if (navigator.locks === undefined) {
      const before = await result<StoredState | undefined>(stateStore!.get("state"));
      if (before !== undefined && before.page !== this.page) throw new TakenOverError();
    }
    for (const item of items) {
      const before = this.saved.get(item.id);
      if (before === item) continue;
      const { files, ...stored } = item;
      itemStore!.put(stored);
      if (before?.files !== files) fileStore!.put(files, item.id);
    }
    const kept = new Map(items.map((item) => [item.id, item]));
    for (const id of this.saved.keys())
      if (!kept.has(id)) {
        itemStore!.delete(id);
        fileStore!.delete(id);
      }
    stateStore!.put({ ...rest, order: [...kept.keys()], page: this.page } satisfies StoredState, "state");
    transaction.commit(); // at once: the page may be about to go
    await new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
    });
    this.saved = kept;
    localStorage.setItem(NUMBER_KEY, String(this.number));
  }
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
