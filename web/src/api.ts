/** Requests to `geoclip serve`. */
import { SendError } from "./queue";
import { currentToken, replaceToken } from "./token";
import type { Candidate, Country, Explanation, Model, Options, PageSettings, Result } from "./types";

interface ErrorBody {
  error?: { message?: string };
}

interface Answers {
  data: Result[];
}

/** The server's response; asks the user for a token if the server needs another one.
 *
 * @throws SendError with a message for the user.
 */
async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const token = currentToken();
  let response: Response;
  try {
    const headers = new Headers(init.headers);
    if (token !== null) headers.set("Authorization", `Bearer ${token}`);
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new SendError("The server cannot be reached. Is geoclip serve still running?", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    await replaceToken(token);
    return request(path, init);
  }
  const retry = Number(response.headers.get("Retry-After"));
  const body = (await response.json().catch(() => ({}))) as ErrorBody;
  const message = body.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  throw new SendError(message, response.status, Number.isFinite(retry) && retry > 0 ? retry : null);
}

const json = async <T>(path: string): Promise<T> => (await (await request(path)).json()) as T;

const postJson = (body: unknown, signal: AbortSignal | null): RequestInit => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
  signal,
});

export const settings = (): Promise<PageSettings> => json<PageSettings>("v1/page");
export const models = async (): Promise<Model[]> => (await json<{ data: Model[] }>("v1/models")).data;
export const countries = (): Promise<Country[]> => json<Country[]>("v1/countries");

const areas = (options: Options, inside: boolean): string[] =>
  options.limits.filter((limit) => limit.inside === inside).map(({ grammar }) => grammar);

/** One answer per photo, in order; with `together`, one answer for all; with `thumbnail`, small images beside them. */
export async function locate(
  files: readonly File[],
  options: Options,
  { together, thumbnail }: { together: boolean; thumbnail: boolean },
  signal: AbortSignal,
): Promise<Result[]> {
  const form = new FormData();
  for (const file of files) form.append("images", file, file.name);
  form.append("model", options.model);
  form.append("top_k", String(options.topK));
  form.append("detail", "true");
  form.append("exif", "true");
  if (thumbnail) form.append("thumbnail", "true");
  for (const area of areas(options, true)) form.append("within", area);
  for (const area of areas(options, false)) form.append("not_within", area);
  if (together) form.append("together", "true");
  else if (options.text !== "") {
    form.append("text", options.text);
    form.append("text_weight", String(options.textWeight));
  }
  const answer = await request("v1/locate", { method: "POST", body: form, signal });
  return checkCount((await answer.json()) as Answers, together ? 1 : files.length);
}

/** One answer per photo, in order, and how clocks were found. */
export async function locateTrip(
  files: readonly File[],
  tracks: readonly File[],
  options: Options,
  speedKmh: number,
  signal: AbortSignal,
): Promise<{ results: Result[]; notes: string[] }> {
  const form = new FormData();
  for (const file of files) form.append("images", file, file.name);
  for (const track of tracks) form.append("tracks", track, track.name);
  for (const [name, value] of Object.entries({ model: options.model, top_k: options.topK, speed_kmh: speedKmh })) form.append(name, String(value));
  for (const flag of ["use_gps", "detail", "exif"]) form.append(flag, "true");
  for (const area of areas(options, true)) form.append("within", area);
  for (const area of areas(options, false)) form.append("not_within", area);
  const answer = (await (await request("v1/trip", { method: "POST", body: form, signal })).json()) as Answers & { notes: string[] };
  return { results: checkCount(answer, files.length), notes: answer.notes };
}

export async function locateText(text: string, options: Options, signal: AbortSignal): Promise<Result> {
  const body = {
    texts: [text],
    model: options.model,
    top_k: options.topK,
    within: areas(options, true),
    not_within: areas(options, false),
    detail: true,
  };
  const answer = await request("v1/text", postJson(body, signal));
  return checkCount((await answer.json()) as Answers, 1)[0]!;
}

/** What in a photo speaks for a place. */
export async function explain(file: File, place: Candidate, options: Options): Promise<Explanation> {
  const form = new FormData();
  form.append("images", file, file.name);
  form.append("model", options.model);
  form.append("place", `${place.lat},${place.lon}`);
  for (const area of areas(options, true)) form.append("within", area);
  for (const area of areas(options, false)) form.append("not_within", area);
  return (await (await request("v1/explain", { method: "POST", body: form })).json()) as Explanation;
}

/** The records as a file of an export format. */
export async function exportRecords(records: readonly Result[], format: string): Promise<Blob> {
  return await (await request("v1/export", postJson({ format, records }, null))).blob();
}

function checkCount(answers: Answers, expected: number): Result[] {
  if (answers.data.length !== expected)
    throw new SendError(`The server answered for ${answers.data.length} of ${expected} photos.`, 500);
  return answers.data;
}
