"""Photos with everything in them that a camera and its programs write."""

import io
import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from open_geoclip.errors import MissingProgramError
from open_geoclip.metadata.exiftool import ExifTool

LAT, LON = 48.8584, -2.2945
_PACKET = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="A toolkit 1">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:e="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:ph="http://ns.adobe.com/photoshop/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
    e:GPSLatitude="48,51.504N" e:GPSLongitude='2,17.67W' xmp:Rating="4" ph:City="S&#xE8;te">
   <e:GPSAltitude>351/10</e:GPSAltitude>
   <dc:title><rdf:Alt><rdf:li xml:lang="x-default">A &lt;day&gt; out</rdf:li></rdf:Alt></dc:title>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
                                                                      \n<?xpacket end="w"?>"""


def _dms(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
    whole = Fraction(round(abs(degrees) * 360_000), 360_000)
    d, m = int(whole), int(whole % 1 * 60)
    return IFDRational(d, 1), IFDRational(m, 1), IFDRational(int((whole * 60) % 1 * 6000), 100)


def _gps_record(lat: float = LAT, lon: float = LON) -> dict[int, Any]:
    return {1: "S" if lat < 0 else "N", 2: _dms(lat), 3: "W" if lon < 0 else "E", 4: _dms(lon)}


def _exif(place: tuple[float, float] | None = (LAT, LON), thumbnail: bool = False) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Maker 7", 1
    exif[0x0131] = "A program 1.0"
    camera = exif.get_ifd(0x8769)
    camera[0x9003], camera[0x9011] = "2026:05:01 14:03:00", "+02:00"
    camera[0x927C] = b"a maker's note " + bytes(range(200))
    if place is not None:
        exif.get_ifd(0x8825).update(
            _gps_record(*place)
            | {5: b"\0", 6: IFDRational(351, 10), 7: (12, 3, 0), 29: "2026:05:01", 31: IFDRational(65, 10)}
            | {18: "WGS-84", 27: b"ASCII\0\0\0GPS", 17: IFDRational(225, 1), 0: b"\2\3\0\0"}
        )
    return exif


def _picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _photo(
    kind: str = "jpg",
    *,
    place: tuple[float, float] | None = (LAT, LON),
    xmp: bytes | None = None,
    icc: bool = False,
    seed: int = 0,
    bare: bool = False,
) -> bytes:
    """A photo's file: EXIF with a maker note, and what else is asked for."""
    out = io.BytesIO()
    options: dict[str, Any] = {} if bare else {"exif": _exif(place).tobytes()}
    if icc:
        from PIL import ImageCms

        options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if xmp is not None and kind in ("jpg", "webp", "heic", "avif"):
        options["xmp"] = xmp
    if xmp is not None and kind == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
        options["pnginfo"] = info
    if kind == "heic":
        pillow_heif = pytest.importorskip("pillow_heif")
        heif = pillow_heif.from_pillow(_picture(seed))
        heif.save(out, exif=options.get("exif"), xmp=xmp)
        return out.getvalue()
    if kind == "tif":
        exif = Image.Exif() if bare else _exif(place)
        if xmp is not None:
            exif[700] = xmp
        _picture(seed).save(
            out, "TIFF", exif=exif.tobytes(), **({"icc_profile": options["icc_profile"]} if icc else {})
        )
        return out.getvalue()
    formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "avif": "AVIF"}
    if kind == "jpg":
        options["comment"] = b"a comment"
    _picture(seed).save(out, formats[kind], **options)
    return out.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    """What a decoder makes of a file."""
    import warnings

    if data[4:8] == b"ftyp" and data[8:12] != b"avif":
        pillow_heif = pytest.importorskip("pillow_heif")
        return np.asarray(pillow_heif.open_heif(io.BytesIO(data)).to_pillow().convert("RGB"))
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture(scope="session")
def tool() -> Iterator[ExifTool]:
    """Yield the package's ExifTool, running."""
    try:
        running = ExifTool()
    except MissingProgramError as error:
        pytest.skip(str(error))
    with running:
        yield running


@pytest.fixture(scope="session")
def exiftool() -> Callable[..., dict[str, Any]]:
    """Return a function that asks ExifTool, a program that shares nothing with this package, what a file says."""
    program = shutil.which("exiftool")
    if program is None:
        pytest.skip("exiftool is not installed (apt-get install libimage-exiftool-perl)")

    def ask(path: Path, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [program, "-json", "-n", "-G1", "-struct", *arguments, str(path)], capture_output=True, check=False
        )
        [found] = json.loads(done.stdout)
        return dict(found)

    return ask


def _segments(data: bytes) -> list[bytes]:
    """The segments of a JPEG up to its pixels, and the pixels, by a walk of its own."""
    parts, at = [], 2
    while data[at + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", data, at + 2)
        parts.append(data[at : at + 2 + size])
        at += 2 + size
    return [*parts, data[at:]]


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """Return a function of a kind of file and what is to be in it: the bytes of a photo."""
    return _photo


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Return a function of a seed and a size: an image of noise."""
    return _picture


@pytest.fixture(scope="session")
def pixels() -> Callable[[bytes], np.ndarray]:
    """Return a function of a file's bytes: what a decoder makes of it."""
    return _pixels


@pytest.fixture(scope="session")
def segments() -> Callable[[bytes], list[bytes]]:
    """Return a function of a JPEG: its segments, and its pixels last."""
    return _segments


@pytest.fixture(scope="session")
def gps_record() -> Callable[..., dict[int, Any]]:
    """Return a function of (lat, lon): a GPS record."""
    return _gps_record


@pytest.fixture(scope="session")
def packet() -> bytes:
    """Return an XMP packet with a place as attributes and elements, under prefixes of its own."""
    return _PACKET
