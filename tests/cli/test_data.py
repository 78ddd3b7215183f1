"""``geoclip data`` as a user runs it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.cli import main

# The whole of main() is run, which takes its arguments from the process.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

Run = Callable[..., Any]


@pytest.fixture
def geoclip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, in a folder of its own."""

    def run(*arguments: object, status: int = 0) -> Any:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["geoclip", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert (ended.value.code or 0) == status, told.err
        return told

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    lines = ["IMG_FILE;LAT;LON;AUTHOR"]
    for i in range(8):
        pixels = np.random.default_rng(i % 7).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png;{i + 1};{10 * i};a{i}")
    lines += ["gone.png;1;2;b", "0.png;120;30;b", "0.png;0;0;b", "0.png;;;b"]
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    return tmp_path / "photos.csv"


def test_check_pack_and_split(geoclip: Run, photos: Path, tmp_path: Path) -> None:
    told = json.loads(geoclip("check", "photos.csv", "--format", "json", status=1).out)
    assert (told["entries"], told["usable"], told["groups"]) == (12, 8, 8)
    assert told["unusable"] == {"missing": 1, "no coordinates": 1, "zero": 1, "out of range": 1}
    assert told["duplicates"] == 1
    assert {"key": "7.png", "kind": "duplicate", "reason": "it has the pixels of 0.png"} in told["faults"]
    table = geoclip("check", "photos.csv", "--no-decode", status=1).out
    assert "8 of 12 photos can be used" in table
    assert "latitude and longitude look exchanged" in table
    packed = geoclip("pack", "photos.csv", "shards", "--shard-mb", "0.01")
    assert "8 photos in" in packed.out
    assert "left out" in packed.err
    assert "1 duplicate, used all the same" in geoclip("check", "shards").out
    sides = json.loads(geoclip("split", "shards", "sides", "--format", "json").out)["sides"]
    assert {name: side["photos"] for name, side in sides.items()} == {"train": 6, "validation": 1, "test": 1}
    assert "of 1 photos can be used" in geoclip("check", "sides/test.csv", "--images", "shards").out


def test_columns_that_look_swapped_are_told(geoclip: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "swapped.csv").write_text("file,lat,lon\n0.png,120,30\n1.png,80,20\n2.png,60,20\n")
    told = geoclip("check", "swapped.csv", status=1)
    assert "2 of 3 photos can be used" in told.out
    assert "swapped.csv: latitude and longitude look swapped: 1 of 3 entries" in told.err


def test_a_table_without_its_images_says_how_to_name_their_folder(geoclip: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "t.csv").write_text("file,lat,lon\n0.png,1,2\n1.png,3,4\n")
    assert "with --images" in geoclip("check", "elsewhere/t.csv", status=1).err
    assert geoclip("check", "elsewhere/t.csv", "--images", ".").err == ""


def test_wrong_use(geoclip: Run, photos: Path) -> None:
    assert "no such file" in geoclip("check", "none.csv", status=1).err
    assert "train=0.8" in geoclip("split", "photos.csv", "out", "--shares", "8:1:1", status=2).err
    assert "buffer_km" in geoclip("split", "photos.csv", "out", "--buffer-km", "5000", status=2).err
    assert "hang together" in geoclip("split", "photos.csv", "out", "--shares", "a=1,b=99999", status=1).err
