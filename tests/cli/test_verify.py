"""``geoclip verify`` on files as people hand them over: right, moved, silent and broken; every format read again."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pyogrio
import pytest
import torch

from open_geoclip.errors import DataError
from open_geoclip.export.formats import check_records, render
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.locator import Locator

Command = Callable[..., Any]
Placed = Callable[..., bytes]
ROME, SYDNEY = (41.9, 12.5), (-33.87, 151.21)


@pytest.fixture
def album(tmp_path: Path, placed: Placed) -> Path:
    """Five photos of one view: with its place, another one, none, a broken one; and a file that is no image."""
    folder = tmp_path / "album"
    folder.mkdir()
    true = placed()
    (folder / "=right.jpg").write_bytes(true)
    (folder / "moved.jpg").write_bytes(placed(place=SYDNEY))
    (folder / "silent.jpg").write_bytes(placed(place=None))
    at = true.index(b"Exif\0\0") + 6
    (folder / "broken.jpg").write_bytes(true[: at + 4] + b"\xff\xff\xff\xff" + true[at + 8 :])
    (folder / "text.jpg").write_text("this is no picture")
    return folder


def test_each_photo_gets_its_verdict(command: Command, album: Path) -> None:
    done = command("verify", album, "--format", "json", status=1)
    found = {Path(one["image"]).stem: one for one in json.loads(done.out)}
    assert {name: one.get("verdict") for name, one in found.items()} == {
        "=right": "consistent",
        "moved": "contradicts",
        "silent": "cannot tell",
        "broken": "cannot tell",
        "text": None,
    }
    right, moved = found["=right"], found["moved"]
    assert right["exif"]["lat"] == pytest.approx(ROME[0], abs=1e-5)
    assert right["comparison"]["p_value"] > 0.05
    assert moved["comparison"]["p_value"] <= 0.01
    assert moved["comparison"]["distance_km"] == pytest.approx(16_320, abs=100)
    assert moved["comparison"]["within_km"]["2500"] < 0.01
    assert found["silent"]["reason"] == "the photo does not say where it was taken"
    assert found["silent"]["exif"] is found["silent"]["comparison"] is None
    assert [remark["check"] for remark in found["broken"]["remarks"]] == ["damaged"]
    assert list(found["text"]) == ["image", "error"]
    assert "text.jpg" in done.err
    same = ("candidates", "within_km", "credible_radius_km", "sure")
    assert {json.dumps([one[key] for key in same]) for name, one in found.items() if name != "text"} == {
        json.dumps([right[key] for key in same])
    }, "what a file says takes no part in the answer"


def test_each_batch_is_searched_once(
    command: Command, album: Path, locators: dict[str, Locator], monkeypatch: pytest.MonkeyPatch
) -> None:
    command("verify", album, status=1)  # which loads the model, if no other test has
    sizes: list[int] = []
    logits = GalleryIndex.logits

    def counted(index: GalleryIndex, embeddings: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        sizes.append(len(embeddings))
        return logits(index, embeddings, *arguments, **options)

    monkeypatch.setattr(GalleryIndex, "logits", counted)
    records = json.loads(command("verify", album, "--format", "json", status=1).out)
    assert sum(sizes) == sum("error" not in record for record in records)


def test_a_map_encodes_nothing_again(
    command: Command, album: Path, placed: Placed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(placed())
    sizes: list[int] = []
    encode = GeoCLIP.encode_features

    def counted(model: GeoCLIP, features: torch.Tensor) -> torch.Tensor:
        sizes.append(len(features))
        return encode(model, features)

    monkeypatch.setattr(GeoCLIP, "encode_features", counted)
    command("locate", "a.jpg", "--map", "a.png")
    assert sizes == [1]
    assert (tmp_path / "a.png").is_file()


def test_lines_for_people(command: Command, album: Path) -> None:
    done = command("verify", album / "moved.jpg", album / "silent.jpg")
    assert "moved.jpg: CONTRADICTS" in done.out
    assert "-33.87000   151.21000  (exif" in done.out
    assert "silent.jpg: CANNOT TELL" in done.out
    assert done.out.endswith("a verdict is a reason to look closer, no proof\n")
    assert done.err == ""


def test_tables_have_a_row_a_photo_and_the_same_columns(command: Command, album: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        assert command("verify", album, "-o", name, status=1).out == ""
    read = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(), newline="")))
    rows = polars.read_parquet(tmp_path / "a.parquet")
    assert [Path(row["image"]).name for row in read] == [
        *("=right.jpg", "broken.jpg", "moved.jpg", "silent.jpg", "text.jpg")
    ]
    assert rows["verdict"].to_list() == ["consistent", "cannot tell", "contradicts", "cannot tell", None]
    assert [row["verdict"] or None for row in read] == rows["verdict"].to_list()
    assert rows["exif_lat"].dtype == rows["p_value"].dtype == polars.Float64
    assert rows["remarks"].to_list()[1][0].startswith("its EXIF data are damaged")
    assert rows["error"].to_list()[:4] == [None] * 4
    command("verify", album / "silent.jpg", "-o", "none.parquet")
    assert polars.read_parquet(tmp_path / "none.parquet").schema == rows.schema, "files of several runs fit together"


def test_a_name_that_a_spreadsheet_would_run(command: Command, placed: Placed, tmp_path: Path) -> None:
    (tmp_path / "=cmd().jpg").write_bytes(placed())
    done = command("verify", "=cmd().jpg", "--format", "csv")
    assert [row["image"] for row in csv.DictReader(io.StringIO(done.out, newline=""))] == ["'=cmd().jpg"]


def test_files_for_maps_show_both_places_and_the_verdict(command: Command, album: Path, tmp_path: Path) -> None:
    for name in ("a.geojson", "a.kml"):
        command("verify", album, "-o", name, status=1)
    found = json.loads((tmp_path / "a.geojson").read_text())
    said = [one for one in found["features"] if one["properties"]["kind"].startswith("where the photo itself")]
    assert [one["properties"]["verdict"] for one in said] == ["consistent", "contradicts"]
    assert said[1]["geometry"]["coordinates"] == pytest.approx([SYDNEY[1], SYDNEY[0]], abs=1e-5)
    assert said[1]["properties"]["p_value"] <= 0.01
    best = [one["properties"] for one in found["features"] if one["properties"].get("rank") == 1]
    assert [one["verdict"] for one in best] == ["consistent", "cannot tell", "contradicts", "cannot tell"]
    assert len(found["errors"]) == 1
    table = pyogrio.read_dataframe(tmp_path / "a.kml", layer=str(album / "moved.jpg"))
    [row] = table[table.Name == "where the photo itself says it was taken"].to_dict("records")
    assert row["description"].startswith("Contradicts: ")
    assert (row["geometry"].y, row["geometry"].x) == pytest.approx(SYDNEY, abs=1e-5)


def test_a_place_that_is_not_on_earth_is_told_and_not_drawn(command: Command, placed: Placed, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(placed(place=(95.0, 200.0)))
    found = json.loads(command("verify", "a.jpg", "--format", "geojson").out)
    assert {one["properties"]["kind"] for one in found["features"]} == {"candidate", "credible region"}
    [best] = [one["properties"] for one in found["features"] if one["properties"].get("rank") == 1]
    assert "is not on Earth" in best["remarks"]
    assert best["verdict"] == "cannot tell"


def test_a_record_of_a_verdict_is_checked(command: Command, placed: Placed, tmp_path: Path) -> None:
    """Records come back over HTTP too, written by anybody."""
    (tmp_path / "a.jpg").write_bytes(placed())
    [record] = json.loads(command("verify", "a.jpg", "--format", "json").out)
    assert b"consistent" in render([record], "geojson")
    mistakes: list[dict[str, Any]] = [
        {"verdict": "guilty"},
        {"reason": 1},
        {"comparison": []},
        {"comparison": {"p_value": "low"}},
        {"comparison": {"distance_km": float("nan")}},
        {"remarks": ["none"]},
        {"remarks": "none"},
    ]
    for wrong in mistakes:
        with pytest.raises(DataError, match=f"record 0: {next(iter(wrong))}"):
            check_records([record | wrong])


@pytest.mark.parametrize("name", ["a.docx", "noending"])
def test_what_no_format_is_named_for_is_refused_before_work(command: Command, name: str) -> None:
    done = command("verify", "missing.jpg", "-o", name, status=2)
    assert f"--output {name}: end its name in" in done.err


@pytest.mark.slow
def test_a_folder_of_hundreds_in_its_order(command: Command, placed: Placed, tmp_path: Path) -> None:
    photos = [placed(), placed(place=SYDNEY), placed(place=None)]
    (tmp_path / "many").mkdir()
    for number in range(201):
        (tmp_path / "many" / f"{number:03d}.jpg").write_bytes(photos[number % 3])
    found = json.loads(command("verify", "many", "many/007.jpg", "--format", "json", "--top-k", 1).out)
    assert [Path(one["image"]).stem for one in found] == [f"{number:03d}" for number in range(201)]
    assert [one["verdict"] for one in found] == ["consistent", "contradicts", "cannot tell"] * 67


def test_a_file_that_disappears_meanwhile(
    command: Command, placed: Placed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found in the folder, and gone when its turn comes."""
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(placed())
    real, listed = os.walk, []

    def walk(*arguments: Any, **options: Any) -> Any:
        found = list(real(*arguments, **options))
        listed.append(found)
        (tmp_path / "b.jpg").unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(os, "walk", walk)
    done = command("verify", ".", "--format", "json", status=1)
    told = {one["image"]: one.get("error") for one in json.loads(done.out)}
    assert listed
    assert told == {"a.jpg": None, "b.jpg": "there is no such file", "c.jpg": None}
