"""Commands run in this process, as a user calls them, on views of the Earth that say where they were taken."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.cli import main
from open_geoclip.data.earth import Earth
from open_geoclip.search.locator import Locator

ROME = (41.9, 12.5)


class Ended:
    """How a command ended, and what it printed."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


Command = Callable[..., Ended]


@pytest.fixture(scope="session")
def locators(earth: Locator) -> dict[str, Locator]:
    """Return the locators that were loaded so far, by the names of their models, backbones and galleries."""
    return {"earth": earth}


@pytest.fixture
def command(
    locators: dict[str, Locator],
    tmp_path: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Return a function that runs ``geoclip`` with these words in an empty folder. A model is loaded once for all."""
    real = Locator.from_pretrained

    def once(name: str, **options: Any) -> Locator:
        asked = ("backbone", "gallery", "dtype", "merge_tokens")
        key = " ".join([name, *(str(options[one]) for one in asked if options.get(one) not in (None, "auto", 0))])
        if key not in locators:
            locators[key] = real(name, **options)
        return locators[key]

    monkeypatch.setattr(Locator, "from_pretrained", once)
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(shared_cache))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)

    def run(*words: object, status: int = 0) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        code = end.value.code if isinstance(end.value.code, int) else int(end.value.code is not None)
        assert code == status, printed.err
        assert "Traceback" not in printed.err
        return Ended(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def view() -> np.ndarray:
    """Return the pixels of a view of Rome from orbit, which the embedded model is sure of."""
    return Earth("bluemarble").render(np.array([ROME]), np.array([900.0]), np.array([0.0]), size=224)[0]


@pytest.fixture(scope="session")
def placed(view: np.ndarray) -> Callable[..., bytes]:
    """Return a function of a kind of file and a place: the view as a photo that says it was taken there."""

    def photo(kind: str = "jpg", place: tuple[float, float] | None = ROME, **tags: Any) -> bytes:
        exif = Image.Exif()
        exif[0x010F] = "Maker"
        if place is not None:
            lat, lon = place
            record = {1: "S" if lat < 0 else "N", 2: (abs(lat), 0, 0), 3: "W" if lon < 0 else "E", 4: (abs(lon), 0, 0)}
            exif.get_ifd(0x8825).update({**record, **tags.pop("gps", {})})
        out = io.BytesIO()
        if kind == "heic":
            pillow_heif = pytest.importorskip("pillow_heif")
            pillow_heif.from_pillow(Image.fromarray(view)).save(out, exif=exif.tobytes(), quality=90)
            return out.getvalue()
        formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}
        options = {"lossless": True} if kind == "webp" else {"quality": 95} if kind == "jpg" else {}
        Image.fromarray(view).save(out, formats[kind], exif=exif.tobytes(), **options)
        return out.getvalue()

    return photo
