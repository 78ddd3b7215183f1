import assert from "node:assert/strict";
import { test } from "node:test";
import { splitIntoBatches, runQueue, SendError, type Hooks, type Job } from "../src/queue";

const SETTINGS = { batch: 3, batchBytes: 100, concurrency: 2, maxRetries: 5 };
const jobs = (...bytes: number[]): Job[] => bytes.map((size, n) => ({ id: String(n), bytes: size }));

/** Hooks that keep what happened; `send` is what the server does. */
function recorder(send: (ids: string[]) => string[] | SendError) {
  const seen = { done: new Map<string, string>(), failed: new Map<string, string>(), slept: [] as number[], sent: [] as string[][] };
  let [open, most] = [0, 0];
  const hooks: Hooks<string> = {
    async send(batch) {
      most = Math.max(most, ++open);
      await Promise.resolve();
      open--;
      const ids = batch.map(({ id }) => id);
      seen.sent.push(ids);
      const answer = send(ids);
      if (answer instanceof SendError) throw answer;
      return answer;
    },
    started() {},
    done: (job, answer) => void seen.done.set(job.id, answer),
    failed: (job, reason) => void seen.failed.set(job.id, reason),
    waiting() {},
    async sleep(ms) {
      seen.slept.push(ms);
    },
  };
  return { hooks, seen, most: () => most };
}

const never = new AbortController().signal;

test("batches keep order and both limits, and a photo over the limit goes alone", () => {
  const found = splitIntoBatches(jobs(10, 10, 10, 10, 95, 10, 500, 1), SETTINGS).map((batch) => batch.map(({ id }) => Number(id)));
  assert.deepEqual(found, [[0, 1, 2], [3], [4], [5], [6], [7]]);
});

test("every job is done once, with its own answer, by no more workers than allowed", async () => {
  const { hooks, seen, most } = recorder((ids) => ids.map((id) => `answer ${id}`));
  await runQueue(jobs(...Array<number>(20).fill(1)), hooks, never, SETTINGS);
  assert.equal(seen.done.size, 20);
  for (const [id, answer] of seen.done) assert.equal(answer, `answer ${id}`);
  assert.equal(most(), 2);
});

test("a busy server is retried after the time that it asks for, and nothing is lost", async () => {
  let refusals = 3;
  const { hooks, seen } = recorder((ids) => (refusals-- > 0 ? new SendError("busy", 429, 7) : ids));
  await runQueue(jobs(1, 1, 1, 1), hooks, never, SETTINGS);
  assert.deepEqual([...seen.done.keys()].sort(), ["0", "1", "2", "3"]);
  assert.equal(seen.failed.size, 0);
  assert.ok(seen.slept.length >= 1 && seen.slept.every((ms) => ms === 7000));
});

test("a server that stays busy ends in an error", async () => {
  const { hooks, seen } = recorder(() => new SendError("busy", 429, 1));
  await runQueue(jobs(1), hooks, never, SETTINGS);
  assert.equal(seen.failed.get("0"), "busy");
  assert.equal(seen.sent.length, SETTINGS.maxRetries + 1);
});

test("a rejected batch is sent again photo by photo: only the faulty one fails", async () => {
  const { hooks, seen } = recorder((ids) => (ids.includes("1") ? new SendError("too large", 413) : ids));
  await runQueue(jobs(1, 1, 1), hooks, never, SETTINGS);
  assert.deepEqual([...seen.done.keys()].sort(), ["0", "2"]);
  assert.deepEqual([...seen.failed], [["1", "too large"]]);
});

test("an unreachable server is tried three times, then every photo fails", async () => {
  const { hooks, seen } = recorder(() => new SendError("not reached", 0));
  await runQueue(jobs(1, 1), hooks, never, SETTINGS);
  assert.equal(seen.failed.size, 2);
  assert.equal(seen.sent.length, 3);
});

test("nothing is sent after cancelling", async () => {
  const stop = new AbortController();
  const { hooks, seen } = recorder((ids) => {
    stop.abort();
    return ids;
  });
  await runQueue(jobs(...Array<number>(30).fill(1)), hooks, stop.signal, SETTINGS);
  assert.ok(seen.sent.length <= 2);
});

test("an error of the page itself fails the photo, not the queue", async () => {
  const { hooks, seen } = recorder((ids) => ids);
  const send = hooks.send.bind(hooks);
  hooks.send = (batch, signal) => (batch[0]!.id === "0" ? Promise.reject(new TypeError("oops")) : send(batch, signal));
  await runQueue(jobs(99, 99), hooks, never, SETTINGS);
  assert.equal(seen.failed.get("0"), "oops");
  assert.ok(seen.done.has("1"));
});
