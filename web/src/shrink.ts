/** Smaller copies of JPEG files, with their metadata, for slow connections. */
import { drawScaled } from "./files";

const PIXELS_PER_MODEL_PIXEL = 3; // what the model's own resizing still averages
const QUALITY = 0.9;
const [SOI, APP1, SOS] = [0xffd8, 0xffe1, 0xffda];
const ORIENTATION_TAG = 0x0112;

/** A copy whose shortest edge is three times what the model needs; the file itself if that is not smaller. */
export async function shrink(file: File, shortestEdge: number): Promise<File> {
  if (file.type !== "image/jpeg") return file;
  const canvas = await drawScaled(file, ({ width, height }) => (PIXELS_PER_MODEL_PIXEL * shortestEdge) / Math.min(width, height));
  const blob = await new Promise<Blob | null>((resolve) => (canvas ? canvas.toBlob(resolve, "image/jpeg", QUALITY) : resolve(null)));
  if (blob === null) return file;
  const metadata = uprightMetadata(new Uint8Array(await file.arrayBuffer()));
  const copy = new File([blob.slice(0, 2), ...metadata, blob.slice(2)], file.name, { type: file.type, lastModified: file.lastModified });
  return copy.size < file.size ? copy : file;
}

/** The EXIF and XMP segments of a JPEG, changed to say that the image is upright. */
export function uprightMetadata(jpeg: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer>[] {
  const view = new DataView(jpeg.buffer, jpeg.byteOffset, jpeg.byteLength);
  const segments: Uint8Array<ArrayBuffer>[] = [];
  if (jpeg.length < 4 || view.getUint16(0) !== SOI) return segments;
  for (let at = 2; at + 4 <= jpeg.length && view.getUint16(at) >= 0xffc0; ) {
    const [marker, end] = [view.getUint16(at), at + 2 + view.getUint16(at + 2)];
    if (marker === SOS || end > jpeg.length) break;
    const segment = jpeg.slice(at, end);
    const start = String.fromCharCode(...segment.subarray(4, 33));
    if (marker === APP1 && start.startsWith("Exif\0\0")) segments.push(setExifUpright(segment));
    if (marker === APP1 && start.startsWith("http://ns.adobe.com/xap/1.0/")) segments.push(setXmpUpright(segment));
    at = end;
  }
  return segments;
}

function setExifUpright(segment: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const tiff = new DataView(segment.buffer, 10);
  try {
    const little = tiff.getUint16(0) === 0x4949;
    const directory = tiff.getUint32(4, little);
    for (let entry = 0; entry < tiff.getUint16(directory, little); entry++) {
      const at = directory + 2 + 12 * entry;
      if (tiff.getUint16(at, little) === ORIENTATION_TAG) tiff.setUint16(at + 8, 1, little);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // damaged: the server says so
  }
  return segment;
}

function setXmpUpright(segment: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const text = Array.from(segment, (byte) => String.fromCharCode(byte)).join(""); // a character per byte
  for (const { index, 0: found } of text.matchAll(/tiff:Orientation\s*(?:=\s*["']|>)\s*\d/g)) segment[index + found.length - 1] = 0x31;
  return segment;
}
