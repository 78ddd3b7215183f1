/**
 * Sends many photos in small batches, with limited concurrency. A failed photo does not stop the others, a busy server
 * is retried after the time that it asks for, and a rejected batch is sent again photo by photo.
 */

export interface Job {
  id: string;
  bytes: number;
}

export interface QueueSettings {
  batch: number;
  batchBytes: number;
  concurrency: number;
  /** Retries of a batch while the server is busy. */
  maxRetries: number;
}

export const DEFAULT_SETTINGS: QueueSettings = { batch: 4, batchBytes: 24_000_000, concurrency: 2, maxRetries: 30 };

/** A failed request. */
export class SendError extends Error {
  constructor(
    message: string,
    /** HTTP status; 0 if the server was not reached. */
    readonly status: number,
    readonly retryAfterS: number | null = null,
  ) {
    super(message);
  }

  get isBusy(): boolean {
    return this.status === 429 || (this.status === 503 && this.retryAfterS !== null);
  }
}

export interface Hooks<T> {
  send(jobs: readonly Job[], signal: AbortSignal): Promise<T[]>;
  started(jobs: readonly Job[]): void;
  done(job: Job, answer: T): void;
  failed(job: Job, reason: string): void;
  /** Seconds until the next attempt; null when the queue continues. */
  waiting(seconds: number | null): void;
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

/** Splits jobs into batches, in order. A job above `batchBytes` gets a batch of its own. */
export function splitIntoBatches(jobs: readonly Job[], settings: QueueSettings): Job[][] {
  const batches: Job[][] = [];
  let bytes = 0;
  for (const job of jobs) {
    const last = batches.at(-1);
    if (last === undefined || last.length >= settings.batch || bytes + job.bytes > settings.batchBytes) {
      batches.push([job]);
      bytes = job.bytes;
    } else {
      last.push(job);
      bytes += job.bytes;
    }
  }
  return batches;
}

/** Sends all jobs; resolves when each is done or failed, or when the signal aborts. */
export async function runQueue<T>(
  jobs: readonly Job[],
  hooks: Hooks<T>,
  signal: AbortSignal,
  settings: QueueSettings = DEFAULT_SETTINGS,
): Promise<void> {
  const pending = splitIntoBatches(jobs, settings);
  let pause: Promise<void> | null = null;

  const pauseAll = (seconds: number): Promise<void> => {
    pause ??= (async () => {
      hooks.waiting(seconds);
      await hooks.sleep(seconds * 1000, signal);
      hooks.waiting(null);
      pause = null;
    })();
    return pause;
  };

  const sendBatch = async (batch: Job[]): Promise<void> => {
    for (let retries = 0; !signal.aborted; retries++) {
      if (pause !== null) await pause;
      if (signal.aborted) return;
      hooks.started(batch);
      try {
        const answers = await hooks.send(batch, signal);
        batch.forEach((job, n) => hooks.done(job, answers[n]!));
        return;
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof SendError)) {
          batch.forEach((job) => hooks.failed(job, error instanceof Error ? error.message : String(error)));
          return;
        }
        if (error.isBusy && retries < settings.maxRetries) await pauseAll(Math.min(60, Math.max(1, error.retryAfterS ?? 2)));
        else if (error.status === 0 && retries < 2) await pauseAll(1 + retries);
        else if (batch.length > 1 && error.status !== 0 && !error.isBusy) {
          for (const job of batch) await sendBatch([job]);
          return;
        } else {
          batch.forEach((job) => hooks.failed(job, error.message));
          return;
        }
      }
    }
  };

  const worker = async (): Promise<void> => {
    for (let batch = pending.shift(); batch !== undefined && !signal.aborted; batch = pending.shift()) await sendBatch(batch);
  };
  await Promise.all(Array.from({ length: settings.concurrency }, worker));
}

/** Resolves after a time, or when the signal aborts. */
export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const finish = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", finish);
      resolve();
    };
    const timer = setTimeout(finish, ms);
    signal.addEventListener("abort", finish);
  });
}
