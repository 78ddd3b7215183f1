/** Photos as people hand them over: dropped, chosen, pasted, whole folders; and small pictures of them. */

const PICTURE = /\.(jpe?g|jpe|png|webp|gif|tiff?|bmp|heic|heif|avif|jp2|jxl|ppm|pgm)$/i;
const THUMBNAIL_PX = 160;

/** A file of a folder that is no picture is left out; one that was handed over by itself is not, so that its error is told. */
export async function fromTransfer(data: DataTransfer): Promise<{ files: File[]; leftOut: number }> {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  if (entries.every((entry) => entry === null || entry.isFile)) return { files: [...data.files], leftOut: 0 };
  const found: File[] = [];
  let leftOut = 0;
  for (const entry of entries) {
    if (entry === null) continue;
    if (entry.isFile) found.push(await fileOf(entry as FileSystemFileEntry));
    else leftOut += await walk(entry as FileSystemDirectoryEntry, found);
  }
  return { files: found, leftOut };
}

export function fromFolder(list: FileList): { files: File[]; leftOut: number } {
  const files = [...list].filter((file) => PICTURE.test(file.name));
  return { files, leftOut: list.length - files.length };
}

/** A pasted picture has no name of its own. */
export function fromClipboard(data: DataTransfer): File[] {
  return [...data.files].map((file) =>
    file.name === "image.png" ? new File([file], `pasted ${new Date().toISOString().slice(11, 19)}.png`, { type: file.type }) : file,
  );
}

async function walk(folder: FileSystemDirectoryEntry, found: File[]): Promise<number> {
  const reader = folder.createReader();
  let leftOut = 0;
  for (;;) {
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (entries.length === 0) return leftOut;
    for (const entry of entries.sort((a, b) => a.name.localeCompare(b.name))) {
      if (entry.isDirectory) leftOut += await walk(entry as FileSystemDirectoryEntry, found);
      else if (PICTURE.test(entry.name)) found.push(await fileOf(entry as FileSystemFileEntry));
      else leftOut++;
    }
  }
}

const fileOf = (entry: FileSystemFileEntry): Promise<File> =>
  new Promise((resolve, reject) => entry.file(resolve, reject));

/** A small JPEG as a data URI, upright; null where the browser cannot show the picture (HEIC in most). */
export async function thumbnail(file: File): Promise<string | null> {
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return null; // shown as a placeholder; the server may well read it
  }
  const scale = Math.min(1, THUMBNAIL_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d")!;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.8);
}
