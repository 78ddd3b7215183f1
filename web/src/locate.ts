/** Sends photos and texts to the server and stores the answers. */
import * as api from "./api";
import { announce } from "./dom";
import { count } from "./format";
import { createThumbnail, isShowable } from "./files";
import { DEFAULT_SETTINGS, runQueue, sleep, type Job, type QueueSettings } from "./queue";
import type { Session } from "./session";
import { shrink } from "./shrink";
import { optionsKey, type Store } from "./store";
import { createItem, type Candidate, type Explanation, type Item, type Options, type PageSettings, type Result } from "./types";

export class Locating {
  private readonly settings: QueueSettings;
  private cancelling: AbortController | null = null;
  private readonly pending: Item[] = [];
  private readonly withoutThumbnail: Item[] = [];
  private isMakingThumbnails = false;
  private number = 0;
  private readonly idPrefix = `item-${Date.now().toString(36)}`; // ids stay unique when the work is loaded again

  constructor(
    private readonly store: Store,
    { limits }: PageSettings,
  ) {
    this.settings = {
      ...DEFAULT_SETTINGS,
      batch: Math.min(DEFAULT_SETTINGS.batch, limits.max_images),
      batchBytes: Math.min(DEFAULT_SETTINGS.batchBytes, 0.9 * 2 ** 20 * limits.max_request_mb),
    };
  }

  addPhotos(files: readonly File[]): void {
    const added = files.map((file) => this.item("photo", file.name, [file]));
    this.add(added);
    this.withoutThumbnail.push(...added.filter(({ files }) => isShowable(files[0]!)));
    void this.makeThumbnails();
  }

  addText(text: string): void {
    this.add([this.item("text", text, [])]);
  }

  addGroup(items: readonly Item[]): void {
    const files = items.flatMap((item) => item.files);
    const item = this.item("together", count(files.length, "photo") + " as one place", files);
    this.add([{ ...item, thumbnail: items[0]?.thumbnail ?? null }]);
    this.store.select(item.id);
  }

  /** Locates items again, with the current options. */
  retry(items: readonly Item[]): void {
    const ids = new Set(items.map(({ id }) => id));
    this.store.updateAll(ids, { status: "waiting", error: null, explanation: null });
    this.enqueue(this.store.state.items.filter(({ id }) => ids.has(id)));
  }

  /** Locates all photos as one trip, between tracks, photos with GPS and places that the user set; returns notes on clocks. */
  async locateTrip(speedKmh: number): Promise<string[]> {
    const items = this.store.state.items.filter(({ kind, files }) => kind === "photo" && files.length > 0);
    const { options } = this.store;
    const set = items.filter(({ place, result }) => place !== null && result?.time);
    const rows = set.map(({ place, result }) => `${result!.time},${place!.join()}\n`);
    const known = rows.length > 0 ? [new File(["time,lat,lon,accuracy_m\n", ...rows], "places set on the map.csv")] : [];
    const sent = items.map((item) => item.files[0]!);
    const tracks = [...this.store.state.tracks, ...known];
    const { results, notes } = await api.locateTrip(sent, tracks, options, speedKmh, new AbortController().signal);
    results.forEach(({ thumbnail: _, ...result }, n) => {
      const { id, kind } = items[n]!;
      if (typeof result.error === "string") this.store.update(id, { status: "failed", error: result.error });
      else this.store.update(id, { status: "done", error: null, explanation: null, result, optionsKey: optionsKey(options, kind) });
    });
    announce(`${count(results.length, "photo")} located as one trip.`);
    return notes;
  }

  cancel(): void {
    this.cancelling?.abort();
  }

  remove(ids: ReadonlySet<string>): void {
    const removed = this.store.state.items.flatMap((item, index) => (ids.has(item.id) ? [{ item, index }] : []));
    if (removed.length === 0) return;
    this.drop(removed.map(({ item }) => item));
    this.store.recordUndo(`remove ${removed.length === 1 ? removed[0]!.item.name : count(removed.length, "item")}`, () => {
      const restored = [...this.store.state.items];
      for (const { item, index } of removed) restored.splice(index, 0, item);
      this.store.set({ items: restored });
      this.store.select(removed[0]!.item.id);
      this.resume(removed.map(({ item }) => item));
    });
  }

  private drop(dropped: readonly Item[]): void {
    const ids = new Set(dropped.map(({ id }) => id));
    const { items, selected } = this.store.state;
    const { shown } = this.store;
    const left = shown.filter(({ id }) => !ids.has(id));
    const at = shown.findIndex(({ id }) => id === selected);
    this.store.set({ items: items.filter(({ id }) => !ids.has(id)) });
    if (selected !== null && ids.has(selected)) this.store.select(left[Math.min(Math.max(at, 0), left.length - 1)]?.id ?? null);
  }

  /** Replaces the work by a loaded one, and goes on with what was not located yet. */
  load(session: Session): void {
    const { models, model } = this.store.state;
    // Work that was saved before items could be reviewed has no decisions and notes.
    const items = session.items.map((item) => ({ ...createItem(item.id, item.kind, item.name, item.files), ...item }));
    this.store.set({ ...session, items, model: models.some(({ id }) => id === session.model) ? session.model : model });
    this.resume(items);
  }

  private resume(items: readonly Item[]): void {
    const open = items.filter(({ status }) => status === "waiting" || status === "sending");
    if (open.length > 0) this.retry(open);
    this.withoutThumbnail.push(...items.filter(({ kind, thumbnail, files: [file] }) => kind === "photo" && thumbnail === null && file && isShowable(file)));
    void this.makeThumbnails();
  }

  private item(kind: Item["kind"], name: string, files: readonly File[]): Item {
    return createItem(`${this.idPrefix}-${++this.number}`, kind, name, files);
  }

  private add(items: Item[]): void {
    if (items.length === 0) return;
    this.store.set({ items: [...this.store.state.items, ...items] });
    if (this.store.state.selected === null) this.store.select(items[0]!.id);
    this.store.recordUndo(`add ${items.length === 1 ? items[0]!.name : count(items.length, "photo")}`, () => this.drop(items));
    this.enqueue(items);
  }

  private enqueue(items: readonly Item[]): void {
    this.pending.push(...items);
    const { progress } = this.store.state;
    if (progress) this.store.set({ progress: { ...progress, total: progress.total + items.length } });
    if (this.cancelling === null) void this.run();
  }

  private async run(): Promise<void> {
    const stop = (this.cancelling = new AbortController());
    const progress = { total: this.pending.length, done: 0, failed: 0, startedAt: performance.now(), retryIn: null };
    this.store.set({ progress });
    while (this.pending.length > 0 && !stop.signal.aborted) {
      const pending = this.pending.splice(0);
      for (const photos of [true, false]) {
        const items = pending.filter(({ kind }) => (kind === "photo") === photos);
        await this.sendAll(items, stop.signal, photos ? this.settings : { ...this.settings, batch: 1 });
      }
    }
    this.pending.length = 0;
    const { items, progress: last } = this.store.state;
    const open = new Set(items.filter(({ status }) => status === "waiting" || status === "sending").map(({ id }) => id));
    if (open.size > 0) this.store.updateAll(open, { status: "failed", error: "Cancelled before it was located." });
    this.cancelling = null;
    this.store.set({ progress: null });
    if (last) announce(`${count(last.done, "answer")}${last.failed ? `, ${last.failed} failed` : ""}${open.size ? `, ${open.size} cancelled` : ""}.`);
  }

  private async sendAll(items: readonly Item[], signal: AbortSignal, settings: QueueSettings): Promise<void> {
    const options = this.store.options; // the same for all items of this call
    const byId = new Map(items.map((item) => [item.id, item]));
    const jobs: Job[] = items.map(({ id, files }) => ({ id, bytes: files.reduce((sum, file) => sum + file.size, 0) }));
    await runQueue<Result>(
      jobs,
      {
        send: async (batch) => {
          const batchItems = batch.map(({ id }) => byId.get(id)!);
          const [first] = batchItems;
          if (first!.kind === "text") return [await api.locateText(first!.name, options, signal)];
          const files = batchItems.flatMap((item) => item.files);
          return this.locateFiles(files, options, first!.kind === "together", signal);
        },
        started: (batch) => this.store.updateAll(new Set(batch.map(({ id }) => id)), { status: "sending" }),
        done: (job, answer) => this.done(byId.get(job.id)!, answer, optionsKey(options, byId.get(job.id)!.kind)),
        failed: (job, reason) => this.failed(job.id, reason),
        waiting: (seconds) => {
          const { progress } = this.store.state;
          if (progress) this.store.set({ progress: { ...progress, retryIn: seconds } });
          if (seconds !== null) announce(`The server is busy. Retrying in ${Math.ceil(seconds)} seconds.`);
        },
        sleep,
      },
      signal,
      settings,
    );
  }

  /** What in a photo speaks for one of its candidates. */
  async explain({ files }: Item, place: Candidate): Promise<Explanation> {
    const { options } = this.store;
    const [file] = await this.filesToSend(files.slice(0, 1), options);
    return api.explain(file!, place, options);
  }

  /** Smaller copies, where that is asked for. */
  private filesToSend(files: readonly File[], options: Options): Promise<File[]> {
    const { shrink: isShrinking, models } = this.store.state;
    const edge = models.find(({ id }) => id === options.model)?.shortest_edge;
    return Promise.all(files.map((file) => (isShrinking && edge ? shrink(file, edge) : file)));
  }

  private async locateFiles(files: readonly File[], options: Options, together: boolean, signal: AbortSignal): Promise<Result[]> {
    const sent = await this.filesToSend(files, options);
    const thumbnail = !files.every(isShowable);
    const results = await api.locate(sent, options, { together, thumbnail }, signal);
    if (sent.every((file, index) => file === files[index])) return results;
    // Answers name the hash of what was sent; that of the file itself is wanted.
    const hashes = await Promise.all(files.map(sha256));
    return results.map((result, index) => {
      const { image: _, ...others } = result.sha256 ?? {};
      const image = (together ? hashes : [hashes[index]!]).join(", ");
      return { ...result, sha256: hashes.includes("") ? others : { image, ...others } };
    });
  }

  private done(item: Item, { thumbnail, ...result }: Result, key: string): void {
    if (typeof result.error === "string") return this.failed(item.id, result.error);
    this.count({ done: 1 });
    const preview = thumbnail && item.files.length > 0 && !isShowable(item.files[0]!) ? { thumbnail } : {};
    this.store.update(item.id, { status: "done", error: null, result, optionsKey: key, ...preview });
  }

  private failed(id: string, reason: string): void {
    this.count({ failed: 1 });
    this.store.update(id, { status: "failed", error: reason });
  }

  private count({ done = 0, failed = 0 }): void {
    const { progress } = this.store.state;
    if (progress) this.store.set({ progress: { ...progress, done: progress.done + done, failed: progress.failed + failed } });
  }

  /** One after the other, so that many large photos are not in memory at once. */
  private async makeThumbnails(): Promise<void> {
    if (this.isMakingThumbnails) return;
    this.isMakingThumbnails = true;
    for (let item = this.withoutThumbnail.shift(); item !== undefined; item = this.withoutThumbnail.shift()) {
      const thumbnail = await createThumbnail(item.files[0]!);
      if (thumbnail !== null) this.store.update(item.id, { thumbnail });
    }
    this.isMakingThumbnails = false;
  }
}

/** SHA-256 of a file in hexadecimal; empty where the browser computes none: on pages of plain HTTP. */
async function sha256(file: File): Promise<string> {
  if (crypto.subtle === undefined) return "";
  const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
