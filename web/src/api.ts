/** What is asked of `geoclip serve`. */
import { SendError } from "./queue";
import type { Country, Model, Options, PageSettings, Result } from "./types";

interface ErrorBody {
  error?: { message?: string };
  detail?: unknown;
}

interface Answers {
  data: Result[];
}

let token: string | null = null;

/** Sent with each request from now on; a server that wants none ignores it. */
export function useToken(given: string): void {
  token = given;
}

/** The server's answer, or a SendError that says in words what went wrong. */
async function ask(path: string, init: RequestInit = {}): Promise<Response> {
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
  const retry = Number(response.headers.get("Retry-After"));
  const body = (await response.json().catch(() => ({}))) as ErrorBody;
  const message = body.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  throw new SendError(message, response.status, Number.isFinite(retry) && retry > 0 ? retry : null);
}

const json = async <T>(path: string): Promise<T> => (await (await ask(path)).json()) as T;

const posted = (body: unknown, signal: AbortSignal | null): RequestInit => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
  signal,
});

export const settings = (): Promise<PageSettings> => json<PageSettings>("v1/page");
export const models = async (): Promise<Model[]> => (await json<{ data: Model[] }>("v1/models")).data;

export async function countries(): Promise<Country[]> {
  const answer = await json<Country[] | { data: Country[] }>("v1/countries");
  return Array.isArray(answer) ? answer : answer.data;
}

const grammars = (options: Options, inside: boolean): string[] =>
  options.limits.filter((limit) => limit.inside === inside).map(({ grammar }) => grammar);

/** One answer a photo, in order; one for all when they are of one place. */
export async function locate(
  files: readonly File[],
  options: Options,
  together: boolean,
  signal: AbortSignal,
): Promise<Result[]> {
  const form = new FormData();
  for (const file of files) form.append("images", file, file.name);
  form.append("model", options.model);
  form.append("top_k", String(options.topK));
  form.append("detail", "true");
  form.append("exif", "true");
  for (const area of grammars(options, true)) form.append("within", area);
  for (const area of grammars(options, false)) form.append("not_within", area);
  if (together) form.append("together", "true");
  else if (options.text !== "") {
    form.append("text", options.text);
    form.append("text_weight", String(options.textWeight));
  }
  const answer = await ask("v1/locate", { method: "POST", body: form, signal });
  return checked((await answer.json()) as Answers, together ? 1 : files.length);
}

export async function locateText(text: string, options: Options, signal: AbortSignal): Promise<Result> {
  const body = {
    texts: [text],
    model: options.model,
    top_k: options.topK,
    within: grammars(options, true),
    not_within: grammars(options, false),
    detail: true,
  };
  const answer = await ask("v1/text", posted(body, signal));
  return checked((await answer.json()) as Answers, 1)[0]!;
}

/** The file that the server makes of records. */
export async function exported(records: readonly Result[], format: string): Promise<Blob> {
  return await (await ask("v1/export", posted({ format, records }, null))).blob();
}

function checked(answers: Answers, expected: number): Result[] {
  if (answers.data.length !== expected)
    throw new SendError(`The server answered for ${answers.data.length} of ${expected} photos.`, 500);
  return answers.data;
}
