/**
 * Many photos in small batches, a few at a time. One that fails does not stop the rest; a server that is busy is
 * waited for; a batch that is refused is sent again one by one, so that only the photo at fault fails.
 */

export interface Job {
  id: string;
  bytes: number;
}

export interface QueueSettings {
  batch: number;
  batchBytes: number;
  concurrency: number;
  /** How often in a row a job may be sent away by a busy or unreachable server. */
  patience: number;
}

export const QUEUE: QueueSettings = { batch: 4, batchBytes: 24_000_000, concurrency: 2, patience: 30 };

/** What an HTTP answer other than a good one, or none at all, means to the queue. */
export class SendError extends Error {
  constructor(
    message: string,
    /** 0 when the server was not reached. */
    readonly status: number,
    readonly retryAfterS: number | null = null,
  ) {
    super(message);
  }

  get busy(): boolean {
    return this.status === 429 || (this.status === 503 && this.retryAfterS !== null);
  }
}

export interface Hooks<T> {
  send(jobs: readonly Job[], signal: AbortSignal): Promise<T[]>;
  started(jobs: readonly Job[]): void;
  done(job: Job, answer: T): void;
  failed(job: Job, reason: string): void;
  /** Seconds until the queue goes on, or null when it does. */
  waiting(seconds: number | null): void;
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

/** Batches in order: at most so many photos, at most so many bytes, at least one photo. */
export function batches(jobs: readonly Job[], settings: QueueSettings): Job[][] {
  const found: Job[][] = [];
  let bytes = 0;
  for (const job of jobs) {
    const last = found.at(-1);
    if (last === undefined || last.length >= settings.batch || bytes + job.bytes > settings.batchBytes) {
      found.push([job]);
      bytes = job.bytes;
    } else {
      last.push(job);
      bytes += job.bytes;
    }
  }
  return found;
}

/** Sends everything; ends when all is done, failed, or cancelled by the signal. */
export async function run<T>(
  jobs: readonly Job[],
  hooks: Hooks<T>,
  signal: AbortSignal,
  settings: QueueSettings = QUEUE,
): Promise<void> {
  const left = batches(jobs, settings);
  let pause: Promise<void> | null = null;

  const hold = (seconds: number): Promise<void> => {
    pause ??= (async () => {
      hooks.waiting(seconds);
      await hooks.sleep(seconds * 1000, signal);
      hooks.waiting(null);
      pause = null;
    })();
    return pause;
  };

  const deliver = async (batch: Job[]): Promise<void> => {
    for (let refused = 0; !signal.aborted; refused++) {
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
        if (error.busy && refused < settings.patience) await hold(Math.min(60, Math.max(1, error.retryAfterS ?? 2)));
        else if (error.status === 0 && refused < 2) await hold(1 + refused);
        else if (batch.length > 1 && error.status !== 0 && !error.busy) {
          for (const job of batch) await deliver([job]);
          return;
        } else {
          batch.forEach((job) => hooks.failed(job, error.message));
          return;
        }
      }
    }
  };

  const worker = async (): Promise<void> => {
    for (let batch = left.shift(); batch !== undefined && !signal.aborted; batch = left.shift()) await deliver(batch);
  };
  await Promise.all(Array.from({ length: settings.concurrency }, worker));
}

/** A pause that a signal ends early. */
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
