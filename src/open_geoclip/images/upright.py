"""Pixels as a person would see them: upright, in red, green and blue of 8 bits."""

import re
import struct
from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import Image

__all__ = ["RESAMPLE", "TURNS", "orientation", "resize_image", "small_jpeg", "to_rgb"]

RESAMPLE = {resampling.name.lower(): resampling for resampling in Image.Resampling}
"""Pillow's filters by name."""


def resize_image(image: Image.Image, length: int, resample: str, *, squash: bool = False) -> Image.Image:
    """The image with its shortest edge, or both if it is squashed, ``length`` pixels long; a second time is free."""
    if squash:
        return image.resize((length, length), RESAMPLE[resample])
    width, height = image.size
    longest = int(length * max(width, height) / min(width, height))
    return image.resize((length, longest) if width <= height else (longest, length), RESAMPLE[resample])


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, of 8 bits a channel, on white where it is transparent; itself where it is so already."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _grey_to_8_bits(image)
    if image.has_transparency_data:
        cut_out = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(cut_out, mask=cut_out)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32)
    white = 65535.0
    if not image.mode.startswith("I;16"):
        greatest = float(np.max(values, initial=0, where=np.isfinite(values)))
        levels = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((level for level in levels if greatest <= level), greatest)
    grey = np.rint(np.nan_to_num(values).clip(0, white) * np.float32(255 / white)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def small_jpeg(image: Image.Image, side: int) -> bytes:
    """Return an upright RGB image as a JPEG of at most ``side`` pixels a side; it has no EXIF, and so no place."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    Image.frombytes("RGB", small.size, small.tobytes()).save(file, "JPEG", quality=80)
    return file.getvalue()


TURNS = {  # by the orientation that EXIF names
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """Read the orientation (1 to 8) where ``ImageOps.exif_transpose`` looks, but never warn and never fail.

    TIFF and HEIC images are turned by their decoders, which then take the tag away.
    """
    info = image.info
    exif, raw = info.get("exif"), info.get("Raw profile type exif")
    if exif is None and isinstance(raw, str):  # how ImageMagick puts EXIF data into a PNG
        with suppress(ValueError):
            exif = bytes.fromhex("".join(raw.split("\n")[3:]))
    found = _exif_orientation(exif) if isinstance(exif, bytes) else None
    if exif is None and raw is None:  # the tag may have been set on an image in memory
        found = image.getexif().get(0x0112)
    if isinstance(found, int):
        return found
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    match = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(match[1]) if match else 1


def _exif_orientation(exif: bytes) -> int | None:
    # Pillow's reader takes in every tag and stumbles over each damaged one; this needs one tag of one table.
    for _ in range(2):  # some programs write the prefix twice
        exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    with suppress(struct.error):  # the data end early
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, at)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + {1: "B", 4: "I"}.get(kind, "H"), exif, at + 8)
                return int(value)
    return None
