/** Image files from drag and drop, the clipboard, a file dialog or a folder; and their thumbnails. */

const IMAGE_NAME = /\.(jpe?g|jpe|png|webp|gif|tiff?|bmp|heic|heif|avif|jp2|jxl|ppm|pgm)$/i;
/** Kinds that most browsers cannot show: the server makes their thumbnails. */
const UNSHOWABLE_NAME = /\.(tiff?|heic|heif|jp2|jxl|ppm|pgm)$/i;
const THUMBNAIL_PX = 160;

export const isShowable = (file: File): boolean => !UNSHOWABLE_NAME.test(file.name);

/** Files that were dropped. In folders, other files than images are skipped; single files are kept, so that their errors are shown. */
export async function filesFromTransfer(data: DataTransfer): Promise<{ files: File[]; skipped: number }> {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  if (entries.every((entry) => entry === null || entry.isFile)) return { files: [...data.files], skipped: 0 };
  const found: File[] = [];
  let skipped = 0;
  for (const entry of entries) {
    if (entry === null) continue;
    if (entry.isFile) found.push(await fileOf(entry as FileSystemFileEntry));
    else skipped += await walk(entry as FileSystemDirectoryEntry, found);
  }
  return { files: found, skipped };
}

export function filesFromFolder(list: FileList): { files: File[]; skipped: number } {
  const files = [...list].filter((file) => IMAGE_NAME.test(file.name));
  return { files, skipped: list.length - files.length };
}

/** Pasted images have no name of their own. */
export function filesFromClipboard(data: DataTransfer): File[] {
  return [...data.files].map((file) =>
    file.name === "image.png" ? new File([file], `pasted ${new Date().toISOString().slice(11, 19)}.png`, { type: file.type }) : file,
  );
}

async function walk(folder: FileSystemDirectoryEntry, found: File[]): Promise<number> {
  const reader = folder.createReader();
  let skipped = 0;
  for (;;) {
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (entries.length === 0) return skipped;
    for (const entry of entries.sort((a, b) => a.name.localeCompare(b.name))) {
      if (entry.isDirectory) skipped += await walk(entry as FileSystemDirectoryEntry, found);
      else if (IMAGE_NAME.test(entry.name)) found.push(await fileOf(entry as FileSystemFileEntry));
      else skipped++;
    }
  }
}

const fileOf = (entry: FileSystemFileEntry): Promise<File> =>
  new Promise((resolve, reject) => entry.file(resolve, reject));

/** A small upright JPEG as a data URI; null if the browser cannot decode the image. */
export async function createThumbnail(file: File): Promise<string | null> {
  const canvas = await drawScaled(file, ({ width, height }) => THUMBNAIL_PX / Math.max(width, height));
  return canvas?.toDataURL("image/jpeg", 0.8) ?? null;
}

/** The upright image on a canvas, scaled down; null if the browser cannot decode it. */
export async function drawScaled(file: File, scaleOf: (bitmap: ImageBitmap) => number): Promise<HTMLCanvasElement | null> {
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return null;
  }
  const scale = Math.min(1, scaleOf(bitmap));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d")!;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}
