"""``geoclip index``: what is written, and what is refused before anything is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.data.earth import Earth
from open_geoclip.images import load_image
from open_geoclip.search import photo_indexing
from open_geoclip.search.answer import Answer

from .conftest import Command


@pytest.fixture
def photos(placed: Callable[..., bytes], tmp_path: Path) -> Path:
    """Return a folder of four photos with GPS, and one without."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(placed(place=(41.5 + number / 10, 12.5)))
    (folder / "nowhere.jpg").write_bytes(placed(place=None))
    return folder


def test_build_add_info_and_remove(command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = command("index", "build", "photos", "-o", "index", "--thumbnails", 40)
    assert "photos added: 4, left out: 1; 4 in index" in built.err
    manifest = Path("index/manifest.json").read_text()
    assert (
        "add photos -o index continues or extends it"
        in command("index", "build", "photos", "-o", "index", status=2).err
    )
    again = command("index", "add", "photos", "-o", "index")
    assert "photos added: 0, there already: 4, left out: 1; 4 in index" in again.err
    assert Path("index/manifest.json").read_text() == manifest
    info: dict[str, Any] = json.loads(command("index", "info", "index", "--format", "json").out)
    assert (info["photos"], info["thumbnails"], info["backbone"]) == (4, 4, "earth")
    assert "north  41.8" in command("index", "info", "index").out
    assert "has no 'other'; nothing is removed" in command("index", "remove", "index", "0.jpg", "other", status=1).err
    assert "photos removed: 1; 3 left" in command("index", "remove", "index", "0.jpg").err
    assert "photos added: 1, there already: 3" in command("index", "add", "photos", "-o", "index").err
    assert "would be left" in command("index", "remove", "index", *(f"{i}.jpg" for i in range(4)), status=1).err
    assert "name the photos" in command("index", "remove", "index", status=2).err


def test_an_interrupted_index_is_continued(
    command: Command, photos: Path, placed: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_indexing, "_SAVE_SECONDS", -1.0)
    monkeypatch.setattr(photo_indexing, "small_jpeg", lambda *_: b"")
    calls: list[Any] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return load_image(*arguments, **options)

    monkeypatch.setattr(photo_indexing, "load_image", interrupted)
    ended = command("index", "build", "photos", "-o", "index", "--workers", 0, "--batch-size", 1, status=130)
    assert "geoclip index add photos -o index continues" in ended.err
    assert json.loads(command("index", "info", "index", "--format", "json").out)["photos"] == 3
    assert "photos added: 1, there already: 3" in command("index", "add", "photos", "-o", "index").err


def test_nothing_is_written_for_wrong_sources(command: Command, tmp_path: Path, placed: Callable[..., bytes]) -> None:
    Path("empty").mkdir()
    Path("bad.safetensors").write_bytes(b"no")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/a.jpg").write_bytes(placed(place=None))
    (tmp_path / "same").mkdir()
    for name in ("a", "b"):  # one photo, twice
        (tmp_path / f"same/{name}.jpg").write_bytes(placed(place=(41.9, 12.5)))
    for source in ("nowhere", "empty", "bad.safetensors", "bare", "same"):
        command("index", "build", source, "-o", "index", status=1)
        assert not Path("index").exists()
    assert "no photo index" in command("index", "add", "bare", "-o", "index", status=1).err
    assert "no photo index" in command("index", "info", "index", status=1).err


def test_locate_shows_look_alikes_but_not_the_photo_itself(
    command: Command, photos: Path, placed: Callable[..., bytes]
) -> None:
    other = Earth("bluemarble").render(np.array([[42.6, 12.9]]), np.array([900.0]), np.array([0.3]), size=224)[0]
    Image.fromarray(other).save(photos / "other.png")
    Path("table.csv").write_text("file,lat,lon,group\n0.jpg,41.9,12.5,alice\nother.png,42.6,12.9,bob\n")
    command("index", "build", "table.csv", "--images", "photos", "-o", "index", "--thumbnails", 48)
    (answer,) = json.loads(command("locate", "photos/1.jpg", "--index", "index", "--format", "json").out)
    (found,) = answer["look_alikes"]  # 0.jpg has the same pixels, other EXIF
    assert found["id"] == "other.png"
    assert found["thumbnail"].startswith("data:image/jpeg;base64,")
    assert found["distance_km"] < 400
    assert answer["sure"] is None
    assert Answer.from_dict(answer).look_alikes[0].lat == 42.6
    table = command("locate", "photos/1.jpg", "--index", "index").out
    assert "most like it in the index: other.png (similarity -1.00)" in table  # of two photos, centred
    none = command("locate", "photos/1.jpg", "--index", "index", "--exclude-group", "bob", "--format", "json")
    assert "look_alikes" not in json.loads(none.out)[0]
    command("locate", "photos/1.jpg", "--exclude-group", "bob", status=2)
    command("locate", "photos/1.jpg", "--index", "nowhere", status=1)
    command("locate", "photos/1.jpg", "--index", "index", "--text", "sea", status=2)
