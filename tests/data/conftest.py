"""Photos made for the tests."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational


def _picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _jpeg(seed: int, gps: Mapping[int, Any] | None = None, size: tuple[int, int] = (40, 30)) -> bytes:
    exif = Image.Exif()
    if gps is not None:
        exif.get_ifd(0x8825).update(gps)
    out = io.BytesIO()
    _picture(seed, size).save(out, "JPEG", exif=exif)
    return out.getvalue()


def _dms(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
    """Degrees as cameras write them: whole degrees, whole minutes, seconds in hundredths."""
    whole = Fraction(round(abs(degrees) * 360_000), 360_000)
    d, m = int(whole), int(whole % 1 * 60)
    return IFDRational(d, 1), IFDRational(m, 1), IFDRational(int((whole * 60) % 1 * 6000), 100)


def _gps(lat: float, lon: float) -> dict[int, Any]:
    return {1: "S" if lat < 0 else "N", 2: _dms(lat), 3: "W" if lon < 0 else "E", 4: _dms(lon)}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Return a function of a seed and a size: an image of noise."""
    return _picture


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """Return a function of a seed, a GPS record and a size: the bytes of a JPEG."""
    return _jpeg


@pytest.fixture(scope="session")
def dms() -> Callable[[float], Any]:
    """Return a function of degrees: how EXIF data hold them."""
    return _dms


@pytest.fixture(scope="session")
def gps() -> Callable[[float, float], dict[int, Any]]:
    """Return a function of (lat, lon): a GPS record."""
    return _gps


@pytest.fixture(scope="session")
def add() -> Callable[[tarfile.TarFile, str, bytes], None]:
    """Return a function that adds a file to a tar."""
    return _add


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV of n photos beside their images; every third has the same author."""

    def make(n: int = 12, name: str = "photos.csv") -> Path:
        lines = ["IMG_ID,AUTHOR,LAT,LON"]
        for i in range(n):
            (tmp_path / f"{i:03d}.jpg").write_bytes(_jpeg(i))
            lines.append(f"{i:03d}.jpg,author {i % 3},{i - 5.5},{10 * i - 60.25}")
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return make


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Write shards of photos p000, p001...: .jpg and .json each."""

    def make(shards: int = 3, each: int = 5, folder: str = "shards", **options: Any) -> Path:
        (tmp_path / folder).mkdir()
        for shard in range(shards):
            with tarfile.open(tmp_path / folder / f"{shard:03d}.tar", "w", **options) as tar:
                for i in range(shard * each, (shard + 1) * each):
                    facts = {"lat": i + 0.5, "lng": -i - 0.25, "author": f"a{i % 2}"}
                    _add(tar, f"p{i:03d}.jpg", _jpeg(i))
                    _add(tar, f"p{i:03d}.json", json.dumps(facts).encode())
                    _add(tar, f"p{i:03d}.cls", b"7")
        return tmp_path / folder

    return make
