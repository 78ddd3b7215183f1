"""Files with millions of parts are refused before anybody walks over them; what programs write passes."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from open_geoclip.errors import ImageError
from open_geoclip.images import load_image, sniff
from open_geoclip.images.structure import check_structure
from open_geoclip.metadata.read import read_place


def encoded(format_: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


JPEG, PNG, GIF = encoded("JPEG"), encoded("PNG"), encoded("GIF")
AFTER_PALETTE = 13 + (3 << (GIF[10] & 7) + 1)
HOSTILE = {
    "segments": JPEG[:2] + b"\xff\xe1\x00\x04ab" * 2_500_000 + JPEG[2:],
    "EXIF segments": JPEG[:2] + b"\xff\xe1\x00\x0aExif\0\0II" * 1_200_000 + JPEG[2:],
    "markers without a length": JPEG[:2] + b"\xff\xd0" * 5_000_000 + JPEG[2:],
    "fill bytes": JPEG[:2] + b"\xff" * 20_000_000 + JPEG[2:],
    "bytes that are no marker": JPEG[:20] + bytes(20_000_000) + JPEG[20:],
    "fill between segments": JPEG[:2] + (b"\xff" * 60_000 + b"\xff\xe1\x00\x02") * 300 + JPEG[2:],
    "texts of a PNG": PNG[:33] + chunk(b"tEXt", b"a\0b") * 600_000 + PNG[33:],
    "texts behind the pixels": PNG[:-12] + chunk(b"tEXt", b"a\0b") * 600_000 + PNG[-12:],
    "empty pixels": PNG[:33] + chunk(b"IDAT", b"") * 600_000 + PNG[33:],
    "comments of a GIF": GIF[:AFTER_PALETTE] + b"!\xfe" + b"\xffx" + b"x" * 254 * 1 + (b"\xff" + b"x" * 255) * 60_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_with_millions_of_parts_is_refused_at_once(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ImageError, match="malicious"):
        load_image(HOSTILE[name])
    with pytest.raises(ImageError, match="malicious"):
        read_place(HOSTILE[name])
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        encoded("JPEG", progressive=True, comment=b"x" * 60_000, icc_profile=bytes(3_000_000)),
        JPEG[:2] + b"\xff" * 1000 + JPEG[2:],
        JPEG + bytes(10_000_000),
        PNG,
        GIF,
        encoded("GIF", comment=b"x" * 200_000),
        b"\xff\xd8\xff",
        PNG[:20],
        b"GIF89a",
    ],
)
def test_what_programs_write_passes(data: bytes) -> None:
    check_structure(io.BytesIO(data), sniff(data, "x"), "x")
