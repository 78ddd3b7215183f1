/** Locating: what is handed over becomes items, items are sent, answers come back. */
import * as api from "./api";
import { announce } from "./dom";
import { count } from "./format";
import { thumbnail } from "./photos";
import { QUEUE, run, sleep, type Job, type QueueSettings } from "./queue";
import { fingerprint, type Store } from "./store";
import type { Item, PageSettings, Result } from "./types";

export class Work {
  private readonly settings: QueueSettings;
  private cancelling: AbortController | null = null;
  private readonly waiting: Item[] = [];
  private readonly pictures: Item[] = [];
  private painting = false;
  private number = 0;

  constructor(
    private readonly store: Store,
    page: PageSettings | null,
  ) {
    const limits = page?.limits ?? {};
    this.settings = {
      ...QUEUE,
      batch: Math.max(1, Math.min(QUEUE.batch, limits["max_images"] ?? QUEUE.batch)),
      batchBytes: Math.min(QUEUE.batchBytes, 0.9 * 2 ** 20 * (limits["max_request_mb"] ?? 100)),
    };
  }

  addPhotos(files: readonly File[]): void {
    const added = files.map((file) => this.item("photo", file.name, [file]));
    this.add(added);
    this.pictures.push(...added);
    void this.paint();
  }

  addText(text: string): void {
    this.add([this.item("text", text, [])]);
  }

  addTogether(items: readonly Item[]): void {
    const files = items.flatMap((item) => item.files);
    const item = this.item("together", count(files.length, "photo") + " as one place", files);
    this.add([{ ...item, thumbnail: items[0]?.thumbnail ?? null }]);
    this.store.select(item.id);
  }

  /** Asks again for these, with the options of now. */
  again(items: readonly Item[]): void {
    const ids = new Set(items.map(({ id }) => id));
    this.store.updateAll(ids, { status: "waiting", error: null });
    this.enqueue(this.store.state.items.filter(({ id }) => ids.has(id)));
  }

  cancel(): void {
    this.cancelling?.abort();
  }

  remove(ids: ReadonlySet<string>): void {
    const { items, selected } = this.store.state;
    const left = items.filter(({ id }) => !ids.has(id));
    const at = items.findIndex(({ id }) => id === selected);
    this.store.set({ items: left });
    if (selected !== null && ids.has(selected)) this.store.select(left[Math.min(at, left.length - 1)]?.id ?? null);
  }

  private item(kind: Item["kind"], name: string, files: readonly File[]): Item {
    const id = `item-${++this.number}`;
    return { id, kind, name, files, status: "waiting", error: null, result: null, thumbnail: null, asked: "", checked: false };
  }

  private add(items: Item[]): void {
    if (items.length === 0) return;
    this.store.set({ items: [...this.store.state.items, ...items] });
    if (this.store.state.selected === null) this.store.select(items[0]!.id);
    this.enqueue(items);
  }

  private enqueue(items: readonly Item[]): void {
    this.waiting.push(...items);
    const { progress } = this.store.state;
    if (progress) this.store.set({ progress: { ...progress, total: progress.total + items.length } });
    if (this.cancelling === null) void this.work();
  }

  private async work(): Promise<void> {
    const stop = (this.cancelling = new AbortController());
    const progress = { total: this.waiting.length, done: 0, failed: 0, startedAt: performance.now(), waiting: null };
    this.store.set({ progress });
    while (this.waiting.length > 0 && !stop.signal.aborted) {
      const round = new Map(this.waiting.splice(0).map((item) => [item.id, item]));
      for (const photos of [true, false]) {
        const of = [...round.values()].filter(({ kind }) => (kind === "photo") === photos);
        await this.round(of, stop.signal, photos ? this.settings : { ...this.settings, batch: 1 });
      }
    }
    this.waiting.length = 0;
    const { items, progress: last } = this.store.state;
    const open = new Set(items.filter(({ status }) => status === "waiting" || status === "sending").map(({ id }) => id));
    if (open.size > 0) this.store.updateAll(open, { status: "failed", error: "Cancelled before it was located." });
    this.cancelling = null;
    this.store.set({ progress: null });
    if (last) announce(`${count(last.done, "answer")}${last.failed ? `, ${last.failed} failed` : ""}${open.size ? `, ${open.size} cancelled` : ""}.`);
  }

  private async round(items: readonly Item[], signal: AbortSignal, settings: QueueSettings): Promise<void> {
    const options = this.store.options; // those of now, for all of a round
    const byId = new Map(items.map((item) => [item.id, item]));
    const jobs: Job[] = items.map(({ id, files }) => ({ id, bytes: files.reduce((sum, file) => sum + file.size, 0) }));
    await run<Result>(
      jobs,
      {
        send: async (batch) => {
          const batchItems = batch.map(({ id }) => byId.get(id)!);
          const [first] = batchItems;
          if (first!.kind === "text") return [await api.locateText(first!.name, options, signal)];
          const files = batchItems.flatMap((item) => item.files);
          return api.locate(files, options, first!.kind === "together", signal);
        },
        started: (batch) => this.store.updateAll(new Set(batch.map(({ id }) => id)), { status: "sending" }),
        done: (job, answer) => this.done(byId.get(job.id)!, answer, fingerprint(options, byId.get(job.id)!.kind)),
        failed: (job, reason) => this.failed(job.id, reason),
        waiting: (seconds) => {
          const { progress } = this.store.state;
          if (progress) this.store.set({ progress: { ...progress, waiting: seconds } });
          if (seconds !== null) announce(`The server is busy. Going on in ${Math.ceil(seconds)} seconds.`);
        },
        sleep,
      },
      signal,
      settings,
    );
  }

  private done(item: Item, result: Result, asked: string): void {
    if (result.error !== undefined) return this.failed(item.id, result.error);
    this.count({ done: 1 });
    this.store.update(item.id, { status: "done", error: null, result, asked });
  }

  private failed(id: string, reason: string): void {
    this.count({ failed: 1 });
    this.store.update(id, { status: "failed", error: reason });
  }

  private count({ done = 0, failed = 0 }): void {
    const { progress } = this.store.state;
    if (progress) this.store.set({ progress: { ...progress, done: progress.done + done, failed: progress.failed + failed } });
  }

  /** Small pictures, one after the other, so that many large photos are not in memory at once. */
  private async paint(): Promise<void> {
    if (this.painting) return;
    this.painting = true;
    for (let item = this.pictures.shift(); item !== undefined; item = this.pictures.shift()) {
      const small = await thumbnail(item.files[0]!);
      if (small !== null) this.store.update(item.id, { thumbnail: small });
    }
    this.painting = false;
  }
}
