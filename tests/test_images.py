"""Decoding: Pillow's bits for ordinary images, and an ImageError, never more, for everything else."""

import errno
import io
import os
import random
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.ImageCms import ImageCmsProfile, createProfile

from open_geoclip.errors import ImageError
from open_geoclip.images import MAX_ASPECT, MAX_PIXELS, ImageSource, find_images, image_name, load_image

Pixels = npt.NDArray[np.uint8]
ORIENTATION = 0x0112


def picture(width: int = 56, height: int = 40) -> Image.Image:
    """Return an image no two of whose sides, corners or colours are alike."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4 % 256, y * 6 % 256, x * y % 256], axis=-1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIF":
        heif = pytest.importorskip("pillow_heif")
        heif.from_pillow(image).save(buffer, format="HEIF", **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """Return EXIF data with a camera's name and the orientation, as a SHORT (3) or a LONG (4)."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + ("H2x" if kind == 3 else "I"), orientation)
    entries = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"Cam\0")
    entries += struct.pack(order + "HHI", ORIENTATION, kind, 1) + value
    return b"Exif\0\0" + mark + struct.pack(order + "IH", 8, 2) + entries + bytes(4)


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image)


def pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return pixels(image.convert("RGB"))


def reason(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    return caught.value.reason


SAMPLES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(picture(), "JPEG", exif=exif(6)),
    "jpeg grey": lambda: encode(picture().convert("L"), "JPEG"),
    "jpeg cmyk": lambda: encode(picture().convert("CMYK"), "JPEG"),
    "jpeg progressive": lambda: encode(picture(), "JPEG", progressive=True),
    "mpo": lambda: encode(picture(), "MPO", save_all=True, append_images=[picture().rotate(180)]),
    "png": lambda: encode(picture(), "PNG", exif=exif(8)),
    "png palette": lambda: encode(picture().quantize(16), "PNG"),
    "png 1 bit": lambda: encode(picture().convert("1"), "PNG"),
    "png 16 bits": lambda: encode(Image.fromarray(np.arange(2240, dtype=np.uint16).reshape(40, 56)), "PNG"),
    "apng": lambda: encode(picture(), "PNG", save_all=True, append_images=[picture().rotate(180)]),
    "webp": lambda: encode(picture(), "WEBP", exif=exif(3)),
    "webp lossless": lambda: encode(picture(), "WEBP", lossless=True),
    "webp animated": lambda: encode(picture(), "WEBP", save_all=True, append_images=[picture().rotate(180)]),
    "avif": lambda: encode(picture(), "AVIF", exif=exif(5)),
    "tiff": lambda: encode(picture(), "TIFF", tiffinfo={ORIENTATION: 7}),
    "tiff lzw": lambda: encode(picture(), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": lambda: encode(picture(), "TIFF", compression="jpeg"),
    "tiff big": lambda: encode(picture(), "TIFF", big_tiff=True),
    "gif": lambda: encode(picture(), "GIF"),
    "gif animated": lambda: encode(picture(), "GIF", save_all=True, append_images=[picture().rotate(180)]),
    "bmp": lambda: encode(picture(), "BMP"),
    "heic": lambda: encode(picture(), "HEIF"),
}
every_sample = pytest.mark.parametrize("sample", SAMPLES)


# What comes out


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"icc_profile": b"any"}])
def test_a_jpeg_gives_the_bits_that_the_released_model_sees(mode: str, options: dict[str, Any]) -> None:
    data = encode(picture().convert(mode), "JPEG", **options)
    assert np.array_equal(pixels(load_image(data)), pillow(data))


@pytest.mark.parametrize("sample", ["png palette", "png 1 bit", "webp lossless", "gif", "bmp", "tiff lzw", "mpo"])
def test_other_formats_give_pillows_bits_too(sample: str) -> None:
    data = SAMPLES[sample]()
    assert np.array_equal(pixels(load_image(data)), pillow(data))


def test_a_colour_profile_changes_nothing() -> None:
    profile = ImageCmsProfile(createProfile("XYZ")).tobytes()
    data = encode(picture(), "PNG", icc_profile=profile)
    assert np.array_equal(pixels(load_image(data)), pixels(picture()))


@every_sample
def test_every_format_is_decoded_upright(sample: str) -> None:
    data = SAMPLES[sample]()
    image = load_image(data)
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    assert image.info == {}
    assert dict(image.getexif()) == {}
    assert image.size == ((40, 56) if sample in {"jpeg", "png", "avif", "tiff"} else (56, 40))
    if sample not in {"heic", "png 16 bits"}:
        with Image.open(io.BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened)
        assert np.array_equal(pixels(image), pixels(upright.convert("RGB")))
    assert np.array_equal(pixels(load_image(image)), pixels(image))  # turned once, not twice


def test_heic_is_near_the_original_and_turned_once() -> None:
    flat = Image.new("RGB", (64, 48), (200, 30, 60))
    flat.paste((20, 180, 90), (0, 0, 32, 24))
    image = load_image(encode(flat, "HEIF", quality=95, exif=exif(6)))
    assert image.size == (48, 64)
    expected = pixels(flat.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(pixels(image) - expected).mean() < 4


# Where the first and the last pixel of the first stored row are seen, as (row, column), by the EXIF standard.
SEEN = {
    1: ((0, 0), (0, -1)),
    2: ((0, -1), (0, 0)),
    3: ((-1, -1), (-1, 0)),
    4: ((-1, 0), (-1, -1)),
    5: ((0, 0), (-1, 0)),
    6: ((0, -1), (-1, -1)),
    7: ((-1, -1), (0, -1)),
    8: ((-1, 0), (0, 0)),
}


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("way", ["png", "webp", "tiff", "info", "getexif", "xmp", "big-endian", "long"])
def test_each_orientation_is_seen_as_the_standard_says(orientation: int, way: str) -> None:
    stored = Image.new("RGB", (5, 3), "white")
    stored.putpixel((0, 0), (255, 0, 0))
    stored.putpixel((4, 0), (0, 0, 255))
    source: bytes | Image.Image = stored
    if way in {"png", "big-endian", "long"}:
        order, kind = (">" if way == "big-endian" else "<"), (4 if way == "long" else 3)
        source = encode(stored, "PNG", exif=exif(orientation, order, kind))
    elif way == "webp":
        source = encode(stored, "WEBP", lossless=True, exif=exif(orientation))
    elif way == "tiff":
        source = encode(stored, "TIFF", tiffinfo={ORIENTATION: orientation})
    elif way == "info":
        stored.info["exif"] = b"Exif\0\0" + exif(orientation)  # some programs write the prefix twice
    elif way == "getexif":
        stored.getexif()[ORIENTATION] = orientation
    else:  # beside EXIF data that do not tell it
        xmp = f'<x tiff:Orientation="{orientation}"/>'.encode()
        source = encode(stored, "WEBP", lossless=True, xmp=xmp, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    seen = pixels(load_image(source))
    first, last = SEEN[orientation]
    assert seen.shape == ((3, 5, 3) if orientation < 5 else (5, 3, 3))
    assert seen[first].tolist() == [255, 0, 0]
    assert seen[last].tolist() == [0, 0, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_never_costs_the_image(kind: str) -> None:
    upright = load_image(encode(picture(), kind))
    turns = [upright, *(upright.transpose(turn) for turn in Image.Transpose)]
    dice = random.Random(1)
    for _ in range(150):
        damaged = bytearray(exif(dice.randrange(12))[: dice.randrange(8, 46)])
        for _ in range(dice.randrange(6)):
            damaged[dice.randrange(6, len(damaged))] = dice.randrange(256)
        with warnings.catch_warnings(record=True, action="always") as leaked:
            image = load_image(encode(picture(), kind, exif=bytes(damaged)))
        assert not leaked
        assert any(np.array_equal(pixels(image), pixels(turn)) for turn in turns)


def test_16_bit_grey_is_scaled_rather_than_clipped() -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    deep = levels * 257
    expected = np.repeat(levels.astype(np.uint8)[:, :, None], 3, axis=2)
    big_endian = Image.frombytes("I;16B", (16, 16), deep.astype(">u2").tobytes())
    wide = Image.fromarray(deep.astype(np.int32))
    sources: list[ImageSource] = [
        encode(Image.fromarray(deep), "PNG"),
        encode(Image.fromarray(deep), "TIFF"),
        encode(big_endian, "TIFF"),
        encode(wide, "TIFF"),
        big_endian,
        wide,
        Image.fromarray(levels.astype(np.int32)),
        encode(Image.fromarray(levels.astype(np.float32)), "TIFF"),
        encode(Image.fromarray((levels / 255).astype(np.float32)), "TIFF"),
        Image.fromarray(deep.astype(np.float32)),
    ]
    for source in sources:
        assert np.array_equal(pixels(load_image(source)), expected)


def test_float_grey_without_numbers_is_black_there() -> None:
    values = np.array([[np.nan, -np.inf, -3e38, 0, 0.5, 1, np.inf]], dtype=np.float32)
    grey = pixels(load_image(encode(Image.fromarray(values), "TIFF")))[0, :, 0]
    assert grey.tolist() == [0, 0, 0, 0, 128, 255, 255]
    assert pixels(load_image(Image.fromarray(values[:, :1]))).max() == 0


def test_transparent_parts_become_white() -> None:
    # Full colour, half, none; alpha 128 leaves 127/255 of the white.
    colour = np.array([[[200, 100, 0, 255], [200, 100, 0, 128], [200, 100, 0, 0]]], dtype=np.uint8)
    rgba = Image.fromarray(colour)
    expected = [[200, 100, 0], [227, 177, 127], [255, 255, 255]]
    sources: list[ImageSource] = [
        encode(rgba, "PNG"),
        encode(rgba, "TIFF"),
        colour,
        rgba,
        rgba.convert("RGBa"),
    ]
    for source in sources:
        assert np.abs(pixels(load_image(source))[0] - np.array(expected)).max() <= 1
    lossless = load_image(encode(rgba, "WEBP", lossless=True, exact=True))
    assert pixels(lossless)[0].tolist() == expected

    grey = Image.new("LA", (2, 1), (80, 255))
    grey.putpixel((1, 0), (80, 0))
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([80, 80, 80])
    indexed.putalpha(grey.getchannel("A"))
    assert indexed.mode == "PA"
    sources = [grey, encode(grey, "PNG"), indexed]
    for source in sources:
        assert pixels(load_image(source))[0, :, 0].tolist() == [80, 255]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_entry_of_the_palette_becomes_white(kind: str) -> None:
    indexed = Image.new("P", (2, 1), 1)
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.putpixel((0, 0), 0)
    image = load_image(encode(indexed, kind, transparency=0))
    assert pixels(image)[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_a_transparent_colour_becomes_white() -> None:
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert pixels(load_image(encode(rgb, "PNG", transparency=(1, 2, 3))))[0].tolist() == [
        [255] * 3,
        [4, 5, 6],
    ]
    deep = Image.fromarray(np.array([[257, 514]], dtype=np.uint16))
    assert pixels(load_image(encode(deep, "PNG", transparency=257)))[0, :, 0].tolist() == [255, 2]


def test_full_alpha_equals_no_alpha() -> None:
    data = encode(picture().convert("RGBA"), "PNG")
    assert np.array_equal(pixels(load_image(data)), pillow(data))


# What goes in


class Stream:
    """Bytes from somewhere that has neither seek nor name."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def read(self, size: int = -1, /) -> bytes:
        return self._rest.read(min(size, 100))


class Pipe(Stream):
    """The same with a seek that refuses, as a network answer has."""

    def seek(self, position: int) -> None:
        raise io.UnsupportedOperation("seek")


def test_all_sources_give_the_same_image(tmp_path: Path) -> None:
    data = encode(picture(), "PNG")
    path = tmp_path / "picture.of.no.kind"
    path.write_bytes(data)
    at_end = io.BytesIO(data)
    at_end.seek(0, io.SEEK_END)
    with path.open("rb") as file, tempfile.TemporaryFile() as temporary, Image.open(path) as opened:
        temporary.write(data)
        sources: list[ImageSource] = [path, str(path), data, bytearray(data), memoryview(data), at_end]
        sources += [file, file, temporary, Stream(data), Pipe(data), opened, picture(), pixels(picture())]
        for source in sources:
            assert np.array_equal(pixels(load_image(source)), pixels(picture()))
        assert not file.closed


def test_arrays_may_be_grey_or_strided() -> None:
    grey = pixels(picture().convert("L"))
    for source in [grey, grey[:, :, None], np.asfortranarray(grey), np.stack([grey] * 3, axis=-1)]:
        assert np.array_equal(pixels(load_image(source))[:, :, 1], grey)
    mirrored = pixels(picture())[::-1, ::-2]
    assert np.array_equal(pixels(load_image(mirrored)), mirrored)


def test_the_result_shares_nothing_with_the_source() -> None:
    array = pixels(picture()).copy()
    image = picture()
    image.info["exif"] = exif(6)
    outcomes = [load_image(array), load_image(picture()), load_image(image)]
    assert image.info["exif"] == exif(6)
    assert image.size == (56, 40)
    same = picture()
    outcomes.append(load_image(same))
    before = [pixels(outcome).copy() for outcome in outcomes]
    array[:] = 0
    same.paste("black", (0, 0, 56, 40))
    assert all(np.array_equal(pixels(now), then) for now, then in zip(outcomes, before, strict=True))


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 must be uint8: multiply it by 255"),
        (np.zeros((4, 4, 3), np.uint16), "uint16 must be uint8: scale it"),
        (np.zeros((4, 4), bool), "bool must be uint8"),
        (np.zeros((3, 40, 56), np.uint8), r"\(3, 40, 56\).*transpose\(1, 2, 0\)"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_an_array_that_is_no_image_is_told_why(array: npt.NDArray[Any], told: str) -> None:
    with pytest.raises(ImageError, match=f"^array: .*{told}"):
        load_image(array)


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    def error(source: Any) -> str:
        with pytest.raises(ImageError) as caught:
            load_image(source)
        return str(caught.value)

    missing = tmp_path / "missing.jpg"
    assert error(missing) == f"{missing}: there is no such file"
    assert error(tmp_path) == f"{tmp_path}: is a folder, not an image"
    assert error("") == "empty path: there is no such file"
    assert error("a\0b").startswith("a\0b: cannot be read")
    assert "cannot be read" in error("x" * 5000)
    assert error(b"") == "bytes: is empty (0 bytes)"
    closed = io.BytesIO(b"x")
    closed.close()
    assert "closed file" in error(closed)
    assert "binary mode" in error(io.StringIO("x"))
    with_no_reader = type("Book", (), {"read": "a noun"})()
    assert "object of type Book" in error(with_no_reader)

    class Broken(Stream):
        def read(self, size: int = -1, /) -> bytes:
            raise PermissionError(13, "no")

    assert error(Broken(b"")) == "stream: may not be read (permission denied)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_geoclip.images.sources.MAX_FILE_BYTES", 2**20)
        assert "too large" in error(Stream(bytes(2**20 + 1)))
    with pytest.raises(ImageError, match=r"^holiday: is empty"):
        load_image(b"", name="holiday")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(SAMPLES["jpeg"]())
    path.chmod(0)
    assert reason(path) == "may not be read (permission denied)"


@pytest.mark.parametrize("url", ["http://x.org/a.jpg", "HTTPS://x", "ftp://x/a", "s3://b/a", "data:image/png;base64,"])
def test_urls_are_not_fetched(url: str) -> None:
    assert "URLs are not fetched" in reason(url)
    assert "URLs are not fetched" in reason(Path(url))
    with pytest.raises(ImageError, match="URLs are not fetched"):
        find_images([url])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"This is text, not a photo.", "not an image this package knows; JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file"),
        (b"P6 1 1 255 abc", "not an image this package knows"),
        (b"BM", "the BMP is damaged or cut off"),
        (b"\xff\xd8\xff", "the JPEG is damaged or cut off"),
        (b"\x89PNG\r\n\x1a\n", "the PNG is damaged or cut off"),
        (bytes(1000), "not an image"),
    ],
)
def test_a_file_that_is_no_image_is_told_what_it_is(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert caught.value.name == str(path)
    assert caught.value.reason.startswith(told) or told in caught.value.reason


@pytest.mark.parametrize("tags", [{0xFE: 1}, {0xC612: b"\1\4\0\0"}])
def test_the_thumbnail_of_a_raw_file_is_not_taken_for_the_photo(tags: dict[int, Any]) -> None:
    assert "camera's raw file" in reason(encode(picture(), "TIFF", tiffinfo=tags))


def test_a_tag_with_too_many_values_is_passed_over_in_silence() -> None:
    data = encode(picture(), "TIFF", tiffinfo={0xFE: 0})
    at = data.index(struct.pack("<HHI", 0xFE, 4, 1))
    assert np.array_equal(outcome(data[: at + 4] + struct.pack("<II", 2, 8) + data[at + 12 :]), pixels(picture()))


def test_heic_without_its_extra_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = SAMPLES["heic"]()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install 'open-geoclip[heic]'" in reason(data)


# What is refused for its size


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def large(kind: str) -> bytes:
    """Return a small file whose header tells 100 megapixels (JPEG: 400), and whose pixels are missing."""
    if kind == "png":
        return png(10_000, 10_000, chunk(b"IDAT", b""))
    if kind == "jpeg":
        return with_jpeg_size(SAMPLES["jpeg"](), 20_000, 20_000)
    if kind == "gif":
        return b"GIF89a" + struct.pack("<HH", 10_000, 10_000) + SAMPLES["gif"]()[10:]
    if kind == "bmp":
        data = SAMPLES["bmp"]()
        return data[:18] + struct.pack("<ii", 10_000, 10_000) + data[26:]
    if kind == "webp":
        # A lossless file of one colour needs no bits for its pixels, so the tiny one is a true bomb.
        data = encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True)
        assert data[12:16] == b"VP8L"
        return data[:21] + struct.pack("<I", 9_999 | 9_999 << 14) + data[25:]
    entries = [(0x100, 10_000), (0x101, 10_000), (0x103, 1), (0x106, 1), (0x111, 8), (0x117, 10**8)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 6) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in entries)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_a_bomb_is_refused_for_its_size_before_it_is_decoded(kind: str) -> None:
    bound = Image.MAX_IMAGE_PIXELS
    told = reason(large(kind))
    assert told.startswith("20000 x 20000" if kind == "jpeg" else "10000 x 10000")
    assert "megapixels" in told
    assert bound == Image.MAX_IMAGE_PIXELS


def test_pillows_own_bound_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(encode(picture(), "PNG")).size == load_image(encode(picture(), "JPEG")).size == (56, 40)


def test_an_opened_image_is_bounded_but_one_in_memory_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    with Image.open(path) as opened:
        assert "megapixels" in reason(opened, max_pixels=2239)
    assert load_image(picture(), max_pixels=1).size == (56, 40)
    assert load_image(path, max_pixels=2240).size == (56, 40)


def test_a_jpeg_above_the_bound_is_read_at_half_its_size() -> None:
    data = encode(picture(201, 99), "JPEG", quality=95, exif=exif(6))
    assert load_image(data, max_pixels=201 * 99).size == (99, 201)
    half = load_image(data, max_pixels=201 * 99 - 1)
    assert half.size == (50, 101)
    assert load_image(data, max_pixels=5000).size == (25, 51)  # rounding up makes the half 5050
    assert "megapixels" in reason(data, max_pixels=201 * 99 // 4)
    smooth = picture(201, 99).resize((101, 50), Image.Resampling.BOX).transpose(Image.Transpose.ROTATE_270)
    assert np.abs(pixels(half).astype(int) - pixels(smooth)).mean() < 12


@pytest.mark.parametrize(("edge", "size"), [(0, (600, 800)), (75, (75, 100)), (76, (150, 200)), (301, (600, 800))])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_read_at_the_smallest_scale_that_is_large_enough(
    edge: int, size: tuple[int, int], progressive: bool
) -> None:
    data = encode(picture(800, 600), "JPEG", quality=95, exif=exif(6), progressive=progressive)
    found = load_image(data, shortest_edge=edge)
    assert found.size == size
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, size[::-1])
        assert np.array_equal(pixels(found), pixels(image.convert("RGB").transpose(Image.Transpose.ROTATE_270)))
    assert load_image(data, shortest_edge=edge, max_pixels=240_000).size <= (300, 400), "nor more than is allowed"
    assert load_image(data[:-2], shortest_edge=edge).size == size, "without its end marker"
    assert load_image(encode(picture(800, 600), "PNG"), shortest_edge=75).size == (800, 600)


def test_a_jpeg_in_several_scans_must_fit_whole() -> None:
    def held(least: int, **options: Any) -> bool:
        data = encode(picture(128, 64), "JPEG", progressive=True, **options)
        load_image(data, max_pixels=least)
        return "megapixels" in reason(data, max_pixels=least - 1)

    # Coefficients take two bytes, a pixel of the bound gives eight; 4:2:0 colours have 1.5 a pixel, 4:4:4 3.
    assert held(128 * 64 * 3 // 8, subsampling="4:2:0")
    assert held(128 * 64 * 3 // 4, subsampling="4:4:4")
    # One scan for the first layer alone: not progressive, and still to be held whole.
    data = encode(picture(128, 64), "JPEG", subsampling="4:4:4")
    at = data.index(b"\xff\xda")
    assert "megapixels" in reason(data[:at] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + data[at + 14 :], max_pixels=4000)
    assert load_image(data, max_pixels=4000).size == (64, 32)


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    data = SAMPLES["jpeg progressive"]()
    last = data[data.rindex(b"\xff\xda") : -2]
    assert "scans" in reason(data[:-2] + last * 1000 + data[-2:])


@pytest.mark.parametrize("turned", [False, True])
def test_long_thin_images_are_refused_and_tiny_ones_are_not(turned: bool) -> None:
    def size(width: int) -> tuple[int, int]:
        return (1, width) if turned else (width, 1)

    for long in (1, MAX_ASPECT):
        image = Image.new("RGB", size(long), "red")
        assert load_image(encode(image, "PNG")).size == load_image(image).size == size(long)
    thin = Image.new("RGB", size(20_000), "red")
    for source in [encode(thin, "PNG"), encode(thin, "JPEG"), thin, pixels(thin)]:
        assert "too long and thin" in reason(source)
    assert "no pixels" in reason(Image.new("RGB", (0, 5)))


def test_the_bound_is_what_pillow_calls_safe() -> None:
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    assert MAX_PIXELS < 10_000 * 10_000


def test_metadata_that_unpack_to_megabytes_are_refused_or_left() -> None:
    rows = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))
    assert "the PNG is damaged" in reason(png(8, 8, bomb, rows))
    prefixes = chunk(b"eXIf", b"Exif\0\0" * 10**6)
    assert load_image(png(8, 8, prefixes, rows)).size == (8, 8)
    assert load_image(png(8, 8, chunk(b"tEXt", b"k\0" + b"x" * 10**6), rows)).size == (8, 8)


# What is damaged


def decode(data: bytes) -> Pixels | str:
    try:
        image = load_image(data)
    except ImageError as error:
        return error.reason
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    return pixels(image)


def outcome(data: bytes) -> Pixels | str:
    """Decode, and fail unless that gives an RGB image or an ImageError, and nothing on the side."""
    with warnings.catch_warnings(record=True, action="always") as leaked:
        found = decode(data)
    assert not leaked
    return found


@every_sample
def test_an_image_that_is_cut_off_is_whole_or_an_error(sample: str) -> None:
    data = SAMPLES[sample]()
    whole = pixels(load_image(data))
    cut_off = [outcome(data[:end]) for end in {*range(0, len(data), 23), *range(len(data) - 20, len(data))}]
    assert all(isinstance(found, str) or np.array_equal(found, whole) for found in cut_off)
    assert sum(isinstance(found, str) for found in cut_off) > len(cut_off) // 4


def test_a_download_that_never_finished_is_refused() -> None:
    data = encode(picture(), "JPEG")
    assert pillow(data[:900] + bytes(len(data))).shape == (40, 56, 3)  # Pillow fills the rest with grey
    assert "filled with zeros" in reason(data[:900] + bytes(len(data)))
    for tail in (bytes(5000), b"anything", data):
        assert np.array_equal(pixels(load_image(data + tail)), pillow(data))


@every_sample
def test_fuzzed_images_are_decoded_or_refused(sample: str) -> None:
    data = SAMPLES[sample]()
    dice = random.Random(sample)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(dice.choice([1, 1, 2, 4, 16])):
            at = dice.randrange(min(len(damaged), dice.choice([60, 200, 10**6])))
            match dice.randrange(5):
                case 0:
                    damaged[at] = dice.randrange(256)
                case 1:
                    damaged[at] ^= 1 << dice.randrange(8)
                case 2:
                    del damaged[at : at + dice.randrange(1, 20)]
                case 3:
                    damaged[at:at] = damaged[at : at + dice.randrange(1, 20)]
                case 4:
                    damaged[at : at + 4] = dice.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])
        refused += isinstance(outcome(bytes(damaged)), str)
    assert refused > 5


@given(st.sampled_from(sorted(SAMPLES)), st.binary(max_size=200))
def test_any_bytes_after_a_true_beginning_are_refused_or_decoded(sample: str, rest: bytes) -> None:
    outcome(SAMPLES[sample]()[:16] + rest)


def test_damaged_png_with_true_checksums() -> None:
    # Random damage rarely gets past the checksums; these chunks are damaged beneath them.
    dice = random.Random(3)
    rows = zlib.compress(bytes(9 * 8))
    kinds = [
        b"PLTE",
        b"tRNS",
        b"gAMA",
        b"cHRM",
        b"iCCP",
        b"eXIf",
        b"pHYs",
        b"acTL",
        b"fcTL",
        b"fdAT",
        b"iTXt",
        b"sRGB",
    ]
    for _ in range(400):
        chunks = [chunk(dice.choice(kinds), dice.randbytes(dice.choice([0, 1, 4, 8, 26, 90]))) for _ in range(2)]
        head = struct.pack(
            ">IIBBBBB",
            8,
            8,
            dice.choice([1, 2, 4, 8, 16]),
            dice.choice([0, 2, 3, 4, 6]),
            0,
            0,
            dice.choice([0, 1]),
        )
        outcome(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        )


def test_threads_decode_side_by_side_and_leave_the_warning_filters_alone() -> None:
    damaged = bytearray(SAMPLES["tiff"]())
    damaged[-60:-50] = b"\xff" * 10
    sources = [
        bytes(damaged),
        *(SAMPLES[name]() for name in ("tiff", "jpeg", "png", "apng", "gif", "avif")),
    ] * 8
    filters = list(warnings.filters)
    alone = [outcome(source) for source in sources[:7]]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode, sources))
    assert list(warnings.filters) == filters
    for found, expected in zip(together, alone * 8, strict=True):
        assert np.array_equal(found, expected)


# Names and folders


def test_names(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    assert image_name("photos/a.jpg", 3) == "photos/a.jpg"
    assert image_name(path, 3) == str(path)
    assert image_name(b"x", 3) == "bytes #3"
    assert image_name(memoryview(b"x"), 0) == "bytes #0"
    assert image_name(np.zeros((2, 2), np.uint8), 3) == "array #3"
    assert image_name(io.BytesIO(), 3) == "stream #3"
    assert image_name(picture(), 3) == "image #3"
    assert image_name(picture()) == "image"
    with path.open("rb") as file, Image.open(path) as opened:
        assert image_name(file, 3) == image_name(opened, 3) == str(path)
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as numbered:
        assert image_name(numbered, 1) == "stream #1"
    assert len(image_name("x" * 10**6)) == 4096
    assert image_name(os.fsdecode(b"caf\xe9.jpg")).encode() == b"caf\\udce9.jpg"


def test_folders_are_walked_in_order(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.PNG", "a/b/c.HeIc", "a.webp", "c/1.tiff", "c/10.tif", "c/2.gif"]
    others = ["a/notes.txt", ".hidden.jpg", ".cache/x.jpg", "a/.git/x.png", "jpg", "c/x.jpg.part"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    expected = sorted(tmp_path / name for name in names)
    assert find_images([tmp_path]) == find_images(tmp_path) == find_images(str(tmp_path)) == expected
    notes = tmp_path / "a/notes.txt"
    assert find_images([notes, str(tmp_path / "c"), notes])[::4] == [notes, notes]
    assert find_images([tmp_path / ".cache"]) == [tmp_path / ".cache/x.jpg"]
    assert find_images([]) == []


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    for name in ("photos/a/1.jpg", "elsewhere/2.jpg", "beside.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    photos = tmp_path / "photos"
    (photos / "a" / "loop").symlink_to(photos)
    (photos / "up").symlink_to(tmp_path)
    (photos / "all").symlink_to("/")
    (photos / "x").symlink_to(tmp_path / "elsewhere")
    (photos / "y").symlink_to(tmp_path / "elsewhere")
    (photos / "lost.jpg").symlink_to("nowhere")
    (photos / "self.jpg").symlink_to("self.jpg")
    found = [str(path.relative_to(photos)) for path in find_images([photos])]
    assert found == ["a/1.jpg", "lost.jpg", "self.jpg", "x/2.jpg"]
    assert reason(photos / "lost.jpg") == "there is no such file"
    assert reason(photos / "self.jpg") == f"cannot be read: {os.strerror(errno.ELOOP)}"
    (tmp_path / "link").symlink_to(photos)
    assert len(find_images(tmp_path / "link")) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_a_folder_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").touch()
    assert find_images([tmp_path]) == [tmp_path / "b.jpg"]


def test_nothing_to_find_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match=r"holds no images .*\.heic .*\.jpg"):
        find_images([tmp_path])
    with pytest.raises(ImageError, match=r"gone\.jpg: there is no such file"):
        find_images([tmp_path / "gone.jpg"])
    for path in ("", "a\0b"):
        with pytest.raises(ImageError):
            find_images(path)
