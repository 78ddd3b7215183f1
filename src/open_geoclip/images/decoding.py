"""Decode anything a person may hand over into an upright RGB image, or say clearly why it cannot be done.

An image is read into memory, recognised by its first bytes (never by its suffix) and given to exactly one of Pillow's
decoders: JPEG, PNG, WebP, AVIF, TIFF, GIF (first frame), BMP, and HEIC with the extra ``heic``. ``Image.open`` is not
used: it would try decoders that have no business here (EPS starts Ghostscript), and its guard against decompression
bombs is one number for the whole process. The guard here looks at the size in the header, before decoding:

* At most `MAX_PIXELS` pixels are decoded, the number at which Pillow starts to warn.
* A JPEG may have four times as many, as telephones write 108 and 200 megapixels. Its decoder reads it at half its
  width and height then. A progressive one is held whole before that: it may need no more than 8 bytes for each of
  `MAX_PIXELS`, which 200 megapixels with the usual 4:2:0 colours do not exceed.
* No side is more than `MAX_ASPECT` times the other: the shorter side is scaled to 224 pixels later, which would turn
  a 1 x 20000 image of a few kB into one of a thousand megapixels.

**Colours.** As in the released GeoCLIP, ``image.convert("RGB")``: a plain RGB file gives the same bits, and embedded
colour profiles are ignored. Where ``convert`` loses the image, this differs: transparent parts become white rather
than the colour beneath, and grey values of 16 or 32 bits are scaled rather than cut off at 255.

A JPEG that lacks only its end marker is decoded, with a warning in the log; one that lacks pixels is refused, unless a
program sets Pillow's global ``ImageFile.LOAD_TRUNCATED_IMAGES``.
"""

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from open_geoclip.errors import ImageError, MissingExtraError
from open_geoclip.images.sources import ImageSource, image_name, in_words, read_bytes
from open_geoclip.images.structure import check_structure
from open_geoclip.images.upright import TURNS, orientation, to_rgb

__all__ = [
    "MAX_ASPECT",
    "MAX_PIXELS",
    "load_image",
    "open_header",
    "open_image",
    "quiet_pillow",
    "sniff",
]

MAX_PIXELS = 89_478_485
"""The most pixels that are decoded: a quarter of a GiB at three bytes each, as Pillow counts it."""

MAX_ASPECT = 50
"""The longer side over the shorter. Of an image at the bound, the model looks at a square that is 2 %."""

_log = logging.getLogger(__name__)

_END = b"\xff\xd9"
_READS = "JPEG, PNG, WebP, AVIF, TIFF, GIF, BMP and HEIC are read"
_JPEG_ALLOWANCE = 4  # times max_pixels
_COEFFICIENT_BYTES = 8  # times max_pixels: what a CMYK JPEG of max_pixels needs
_MAX_SCANS = 50  # a scan can be a few bytes long and still cost a walk over the whole image


def load_image(
    source: ImageSource, *, name: str | None = None, max_pixels: int = MAX_PIXELS, shortest_edge: int = 0
) -> Image.Image:
    """Decode one image into an upright RGB image of 8 bits a channel.

    The result is fully loaded, shares nothing with the source, and carries no metadata: the EXIF orientation is applied
    once. A file object is read from its start where it can seek, and is left open. Grey images of 32 bits do not say
    which value is white: it is the first of 1 (floats only), 255 and 65535 that is not below the greatest value, or
    else the greatest value.

    Args:
        source: The image; see `ImageSource`.
        name: What errors call the image; default: its path or its kind, as `image_name` says.
        max_pixels: The most pixels to decode (of a file; arrays are decoded already). For JPEGs see the module.
        shortest_edge: Decode a JPEG at 1/2, 1/4 or 1/8 of its size, the smallest whose shortest edge has at least so
            many pixels. Its decoder then computes fewer values of each block: twice as fast, and not the same image as
            the whole one resized. 0: the whole image.

    Raises:
        ImageError: The image is missing, damaged, cut off, too large, too long and thin, or not one at all.
    """
    label = image_name(source) if name is None else name
    if isinstance(source, np.ndarray):
        image = _from_array(source, label)
    elif isinstance(source, Image.Image):
        image = source
    else:
        image = open_image(read_bytes(source, label), label, max_pixels, shortest_edge)
    # An image made in memory has spent its memory already; one that Pillow opened may yet have to be decoded.
    bound = max_pixels if isinstance(image, ImageFile.ImageFile) else None
    _check_size(image.size, label, bound)
    try:
        with quiet_pillow(image.format == "TIFF"):
            image.load()
        upright = to_rgb(image)
        turn = TURNS.get(orientation(image))
        if turn is not None:
            upright = upright.transpose(turn)
        elif upright is source:
            upright = upright.copy()
        elif upright is image:
            # The decoder's own object, with its metadata and its file, is dropped; its pixels need no copy.
            upright = image._new(image.im)
    except Exception as error:  # decoders fail on hostile bytes in any way they like
        raise ImageError(label, _why_undecoded(image.format, error)) from error
    upright.info.clear()
    return upright


class _Jpeg(JpegImageFile):
    # Pillow looks for the resolution in the EXIF data when it opens a JPEG, and warns if those are damaged.
    # Nothing here needs it. The first image of a multi-image file (MPO) is read as a JPEG, too.
    def _read_dpi_from_exif(self) -> None:
        pass


_FORMATS: dict[str, tuple[bytes, type[ImageFile.ImageFile]]] = {  # how a file begins, as a pattern
    "JPEG": (rb"\xff\xd8\xff", _Jpeg),
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "WEBP": (rb"(?s)RIFF....WEBP", WebPImageFile),
    "AVIF": (rb"(?s)....ftyp(....)*?avi[fs]", AvifImageFile),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
    "GIF": (rb"GIF8[79]a", GifImageFile),
    "BMP": (rb"BM", BmpImageFile),
}
_HEIF = rb"(?s)....ftyp(....)*?(hei[cmsx]|hev[cmsx]|mif1|msf1)"

_OTHERS = {
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript file",
    b"8bps": "a Photoshop file",
    b"pk\x03\x04": "a zip archive",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cjxl ": "a JPEG XL image",
    b"\0\0\0\x0cjp  ": "a JPEG 2000 image",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer (git lfs pull brings the image)",
}


def sniff(data: bytes, name: str) -> str:
    """Tell an image's format by its first bytes: JPEG, PNG, WEBP, AVIF, TIFF, GIF, BMP or HEIF.

    Raises:
        ImageError: it is none of them; says what it is instead, if that is known.
    """
    start = data[:64]
    if start[4:8] == b"ftyp":  # AVIF, HEIC and MP4 share a container: the brands in its first box tell them apart
        start = start[: int.from_bytes(start[:4], "big")]
    for kind, (pattern, _) in _FORMATS.items():
        if re.match(pattern, start):
            return kind
    if re.match(_HEIF, start):
        return "HEIF"
    text = start.lstrip().lower()
    what = next((told for magic, told in _OTHERS.items() if text.startswith(magic)), None)
    if what is None and start[4:8] == b"ftyp":
        what = "a camera's raw file" if start[8:12] == b"crx " else "a video"
    raise ImageError(name, f"{what or 'not an image this package knows'}; {_READS}")


def open_header(stream: BufferedIOBase, name: str) -> ImageFile.ImageFile:
    """Open an image with the decoder of its format, and read no more than that needs; nothing is decoded.

    Raises:
        ImageError: it is not an image, or too damaged to be opened.
    """
    kind = sniff(stream.read(64), name)
    stream.seek(0)
    check_structure(stream, kind, name)
    stream.seek(0)
    if kind == "HEIF":
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            raise ImageError(name, str(MissingExtraError("HEIC", "heic"))) from error
        decoder = HeifImageFile
    else:
        decoder = _FORMATS[kind][1]
    try:
        with quiet_pillow(kind in ("AVIF", "GIF", "TIFF", "PNG")):
            return decoder(stream)
    except Exception as error:
        raise ImageError(name, _why_undecoded(kind, error)) from error


def open_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS, shortest_edge: int = 0) -> ImageFile.ImageFile:
    """Open an image that is small enough to be decoded, which its ``load`` does; see :func:`load_image`.

    Raises:
        ImageError: it is not an image, too damaged to be opened, too large, or a camera's raw file.
    """
    image = open_header(BytesIO(data), name)
    if isinstance(image, TiffImageFile):
        with quiet_pillow():
            # Most raw formats are TIFFs that begin with a thumbnail (NewSubfileType 1); DNG has a DNGVersion.
            is_raw = 0xC612 in image.tag_v2 or image.tag_v2.get(0xFE) == 1 or data[8:10] == b"CR"
        if is_raw:
            raise ImageError(name, f"a camera's raw file: save it as JPEG first; {_READS}")
    if isinstance(image, _Jpeg):
        assert image.fp is not None
        scan = image.fp.tell()
        _check_jpeg(image, data, name, max_pixels, shortest_edge)
        whole = data.removesuffix(b"\xff")
        if data.rfind(_END, scan) < 0 and _lacks_only_its_end(image, whole, name, max_pixels):
            _log.warning("%s: the JPEG lacks its end marker", name)
            image = _Jpeg(BytesIO(whole + _END))
            _check_jpeg(image, data, name, max_pixels, shortest_edge)
    return image


def _lacks_only_its_end(image: _Jpeg, data: bytes, name: str, max_pixels: int) -> bool:
    """Whether all pixels of a JPEG without an end marker are there: then no bits behind them change anything."""
    if "progressive" in image.info:
        left = {component: set(range(64)) for component, *_ in image.layer}
        for scan in re.finditer(rb"(?s)\xff\xda..([\x01-\x04])", data):  # ISO 10918-1, B.2.3
            components = data[scan.end() : scan.end() + 2 * scan[1][0] : 2]
            first, last, precision = (*data[scan.end() + 2 * scan[1][0] :][:3], 0, 0, 1)[:3]
            for component in components if precision & 15 == 0 else ():
                left.get(component, set()).difference_update(range(first, last + 1))
        if any(left.values()):
            return False
    decoded = set()
    for bits in (b"", b"\xff\0" * 64, b"\x55" * 64, b"\xaa" * 64):
        padded = _Jpeg(BytesIO(data + bits + _END))
        _check_jpeg(padded, data, name, max_pixels)
        try:
            decoded.add(hash(padded.tobytes()))
        except Exception:  # noqa: BLE001  # as in load_image, which decodes it again and reports the reason
            return False
    return len(decoded) == 1


def _check_jpeg(image: _Jpeg, data: bytes, name: str, max_pixels: int, shortest_edge: int = 0) -> None:
    """Ask for a smaller image where that is enough or all that is allowed, and refuse what Pillow would let through."""
    assert image.fp is not None
    scan = image.fp.tell()
    if data.endswith(bytes(16)) and data.find(b"\xff\xd9", scan) < 0:
        # An unfinished download whose file was made in full length: it decodes, the lower part grey.
        raise ImageError(name, "the JPEG is cut off: its end is filled with zeros")
    is_progressive = "progressive" in image.info
    if is_progressive and data.count(b"\xff\xda", scan) > _MAX_SCANS:
        raise ImageError(name, f"the JPEG has more than {_MAX_SCANS} scans, as only a malicious file has")
    (width, height), layers = image.size, image.layers
    part = 1
    if width * height > max_pixels:
        allowed = _JPEG_ALLOWANCE * max_pixels
        # One scan with all the layers is decoded row by row; else all coefficients are held, two bytes each.
        one_scan = bytes([0xFF, 0xDA, 0, 6 + 2 * layers, layers])
        if is_progressive or not data.startswith(one_scan, scan - 8 - 2 * layers):
            areas = [down * across for _, down, across, _ in image.layer]
            full_layers = sum(areas) / max(1, *areas)
            allowed = min(allowed, int(_COEFFICIENT_BYTES * max_pixels / 2 / max(1, full_layers)))
        _check_size(image.size, name, allowed)
        part = next(n for n in (2, 4) if -(-width // n) * -(-height // n) <= max_pixels)
    if shortest_edge:
        part = max(part, next((n for n in (8, 4, 2) if min(width, height) // n >= shortest_edge), 1))
    if part > 1:
        image.draft(None, (max(1, width // part), max(1, height // part)))


def _check_size(size: tuple[int, int], name: str, max_pixels: int | None) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(name, f"has no pixels ({width} x {height})")
    if max_pixels is not None and width * height > max_pixels:
        most = f"{max_pixels / 1e6:.3g} megapixels, the most that are decoded"
        mend = "save it smaller, or raise max_pixels if you trust it"
        raise ImageError(name, f"{width} x {height} pixels are more than {most}: {mend}")
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(name, f"{width} x {height} is too long and thin, over {MAX_ASPECT} to 1: crop it")


_warnings_lock = threading.Lock()


@contextmanager
def quiet_pillow(needed: bool = True) -> Iterator[None]:
    """Keep Pillow's warnings about damaged metadata from the user, who asked for pixels.

    ``catch_warnings`` changes the state of the whole process, so threads take turns, and it is left out for
    what does not warn: JPEG, WebP, BMP, HEIC, and PNG without animation.
    """
    if not needed:
        yield
        return
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _why_undecoded(kind: str | None, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    return f"the {kind or 'image'} is damaged or cut off: {in_words(error)}"


def _from_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    if array.dtype != np.uint8:
        scale = "multiply it by 255 if it runs from 0 to 1" if array.dtype.kind in "fb" else "scale it to 0..255"
        raise ImageError(name, f"an array of {array.dtype} must be uint8: {scale}, then .astype(np.uint8)")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        told = ": channels come last, .transpose(1, 2, 0)" if array.shape[:1] in ((1,), (3,), (4,)) else ""
        raise ImageError(name, f"an array of shape {array.shape} must be (height, width[, 1, 3 or 4]){told}")
    _check_size((array.shape[1], array.shape[0]), name, None)
    return Image.fromarray(np.ascontiguousarray(array))
