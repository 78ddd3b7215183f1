/**
 * Project files: photos, answers and options in one file, to continue later or elsewhere.
 *
 * Layout: a line `open-geoclip-project 1 LENGTH`, LENGTH bytes of JSON, then the bytes of the photos in the order of
 * the JSON's `files`.
 */
import type { Session } from "./session";
import type { Item } from "./types";

export const PROJECT_SUFFIX = ".geoclip";

const MAGIC = "open-geoclip-project 1";
const MAX_FIRST_LINE = 64;

interface Header extends Omit<Session, "items"> {
  items: (Omit<Item, "files"> & { files: number[] })[];
  files: { name: string; type: string; size: number; lastModified: number }[];
}

export function writeProject({ items, ...rest }: Session): Blob {
  const files = [...new Set(items.flatMap((item) => item.files))];
  const header: Header = {
    ...rest,
    items: items.map((item) => ({ ...item, files: item.files.map((file) => files.indexOf(file)) })),
    files: files.map(({ name, type, size, lastModified }) => ({ name, type, size, lastModified })),
  };
  const json = new Blob([JSON.stringify(header)]);
  return new Blob([`${MAGIC} ${json.size}\n`, json, ...files], { type: "application/octet-stream" });
}

/** @throws Error with a message for the user, if the file is not a project or incomplete. */
export async function readProject(file: File): Promise<Session> {
  const start = await file.slice(0, MAX_FIRST_LINE).text();
  const length = new RegExp(`^${MAGIC} (\\d+)\\n`).exec(start);
  if (length === null) throw new Error(`${file.name} is not a project file, or another version of OpenGeoCLIP saved it.`);
  const json = file.slice(length[0].length, length[0].length + Number(length[1]));
  let header: Header;
  try {
    header = JSON.parse(await json.text()) as Header;
  } catch {
    throw new Error(`${file.name} is damaged: save or copy the project again.`);
  }
  let offset = length[0].length + Number(length[1]);
  if (offset + header.files.reduce((sum, { size }) => sum + size, 0) !== file.size) throw new Error(`${file.name} is incomplete: save or copy the project again.`);
  const files = header.files.map(({ name, type, size, lastModified }) => {
    offset += size;
    return new File([file.slice(offset - size, offset)], name, { type, lastModified });
  });
  const { files: _, items, ...rest } = header;
  return { ...rest, items: items.map((item) => ({ ...item, files: item.files.map((index) => files[index]!) })) };
}
