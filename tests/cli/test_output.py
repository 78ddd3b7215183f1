"""The format is told by --format or by the name of --output, alike on every command; what cannot be is said."""

import codecs
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyogrio
import pytest
from PIL import Image

from open_geoclip.cli import _output, app
from open_geoclip.cli._output import DetailOutput, PointOutput
from open_geoclip.data.columns import Column
from open_geoclip.data.sources import open_source
from open_geoclip.data.tables import format_csv, read_table
from open_geoclip.errors import SettingsError
from open_geoclip.export.formats import About, render
from open_geoclip.export.tables import format_rows

ROWS = [
    {"lat": 46.2, "lon": 6.1, "name": "Geneva", "km": None},
    {"lat": -17.0, "lon": 180.0, "name": "=cmd()", "km": 3.5},
]


@pytest.mark.parametrize(
    ("format_", "output", "chosen"),
    [
        (None, None, "table"),
        ("csv", None, "csv"),
        (None, "a.JSON", "json"),
        (None, "b.txt", "table"),
        ("json", "a.csv", "json"),
        ("csv", "no-ending", "csv"),
    ],
)
def test_what_is_chosen(format_: Any, output: str | None, chosen: str) -> None:
    assert PointOutput(format_=format_, target=None if output is None else Path(output)).format == chosen


@pytest.mark.parametrize(
    ("format_", "output", "says"),
    [
        (
            None,
            "a.docx",
            r"--output a\.docx: end its name in \.txt, \.json, \.csv, \.geojson, \.parquet, or say --format",
        ),
        (None, "noending", "say --format"),
        (None, "a.kml", r"--output a\.kml: this command writes table, json"),
    ],
)
def test_formats_that_cannot_be_chosen(format_: Any, output: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        PointOutput(format_=format_, target=Path(output))


def test_nothing_binary_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PointOutput(format_="parquet").format == "parquet"  # into a pipe
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SettingsError, match="--output"):
        PointOutput(format_="parquet")


def test_rows_are_read_back(tmp_path: Path) -> None:
    read = list(csv.DictReader(io.StringIO(format_rows("csv", ROWS).decode(), newline="")))
    assert [row["name"] for row in read] == ["Geneva", "'=cmd()"]
    assert [row["km"] for row in read] == ["", "3.5"]
    assert read[1]["lat"] == "-17.0"  # a number is no formula
    assert polars.read_parquet(io.BytesIO(format_rows("parquet", ROWS))).to_dicts() == ROWS
    path = tmp_path / "a.geojson"
    path.write_bytes(format_rows("geojson", ROWS))
    table = pyogrio.read_dataframe(path)
    assert [(point.y, point.x) for point in table.geometry] == [(46.2, 6.1), (-17.0, 180.0)]
    assert table.name.tolist() == ["Geneva", "=cmd()"]


HOSTILE = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "a\r=1",
    "a\n=1",
    "a,=1",
    'a"=1',
    "a;=1",
    "plain",
]


@pytest.mark.parametrize("written", ["rows", "answers", "evaluation"])
def test_no_cell_begins_a_formula_and_the_reader_gives_the_text_back(written: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    if written == "rows":
        path.write_bytes(format_rows("csv", [{"image": text} for text in HOSTILE]))
    elif written == "answers":
        records = [{"image": text, "error": text, "model": text, "version": text} for text in HOSTILE]
        path.write_bytes(render(records, "csv"))
    else:
        path.write_bytes(format_csv(["image", "km"], zip(HOSTILE, range(len(HOSTILE)), strict=True)).encode())
    assert b"\r" not in path.read_bytes().replace(b"\r\n", b"").replace(b'"a\r=1"', b"").replace(b'"\'\r=1"', b"")
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\n＝＋－＠"))]
    images = list(read_table(path, {"image": Column(("image",))}).texts["image"])
    assert images == HOSTILE


def test_names_that_look_like_formulas_survive_a_split(tmp_path: Path) -> None:
    names = ["=1+1.jpg", "-1.jpg", "@a.jpg", "plain.jpg"]
    rows = "".join(f"{name},{lat},1\n" for lat, name in enumerate(names))
    (tmp_path / "t.csv").write_text(f"file,lat,lon\n{rows}")
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    run("data", "split", str(tmp_path / "t.csv"), str(tmp_path / "out"), "--shares", "train=0.5,test=0.5")
    photos = [photo for side in ("train", "test") for photo in open_source(tmp_path / "out" / f"{side}.csv")]
    assert sorted(Path(str(photo.image)).name for photo in photos) == sorted(names)
    assert sorted(photo.key for photo in photos) == sorted(names)


def test_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    run("where", "-23.55,-46.63", "--format", "csv-bom", "-o", str(tmp_path / "a.csv"))
    run("where", "-23.55,-46.63", "-o", str(tmp_path / "b.csv"))
    assert (tmp_path / "a.csv").read_bytes() == codecs.BOM_UTF8 + (tmp_path / "b.csv").read_bytes()
    assert render([], "csv-bom", about=About("now")) == codecs.BOM_UTF8 + render([], "csv", about=About("now"))


def run(*words: str) -> None:
    app(list(words), result_action="return_value")


def test_where_as_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("where", "46.2044,6.1432", "0,-30", "-o", str(tmp_path / "a.parquet"))
    assert polars.read_parquet(tmp_path / "a.parquet")["country"].to_list() == ["CH", ""]
    run("where", "46.2044,6.1432", "-o", str(tmp_path / "a.geojson"))
    found: dict[str, Any] = json.loads((tmp_path / "a.geojson").read_text())
    assert found["features"][0]["geometry"]["coordinates"] == [6.1432, 46.2044]
    assert capsys.readouterr().out == ""
    with pytest.raises(SettingsError, match="this command writes"):
        run("where", "46.2044,6.1432", "-o", str(tmp_path / "a.kml"))


def test_models_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("models", "-o", str(tmp_path / "models.json"))
    run("models", "-o", str(tmp_path / "models.txt"))
    assert "earth" in {one["name"] for one in json.loads((tmp_path / "models.json").read_text())}
    assert re.search(r"earth\b", (tmp_path / "models.txt").read_text())
    assert capsys.readouterr().out == ""


def test_score_into_files(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text("true_lat,true_lon,pred_lat,pred_lon\n1,2,1,2\n3,4,3.5,4\n5,6,50,6\n")
    for name in ("a.csv", "a.json", "a.parquet", "a.txt"):
        run("score", str(table), "--bootstrap", "0", "-o", str(tmp_path / name))
    rows = polars.read_parquet(tmp_path / "a.parquet")
    read = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(), newline="")))
    assert rows["figure"].to_list() == [row["figure"] for row in read]
    assert rows["value"].to_list() == [float(row["value"]) for row in read]
    assert rows["low"].to_list() == [None] * len(rows)


@pytest.mark.slow
def test_files_for_maps_have_the_regions(tmp_path: Path) -> None:
    view = str(tmp_path / "view.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(view)
    for name in ("a.kml", "a.geojson", "a.json"):
        run("locate", view, "-o", str(tmp_path / name))
    names = pyogrio.read_dataframe(tmp_path / "a.kml").Name.tolist()
    assert names[-2:] == ["smallest region that holds 50 %", "smallest region that holds 90 %"]
    table = pyogrio.read_dataframe(tmp_path / "a.geojson")
    regions = table[table.kind == "credible region"]
    assert regions.geometry.is_valid.all()
    assert regions["percent"].tolist() == [90, 50]
    [answer] = json.loads((tmp_path / "a.json").read_text())
    assert "regions" not in answer
    run("locate", view, "--detail", "-o", str(tmp_path / "a.json"))
    [answer] = json.loads((tmp_path / "a.json").read_text())
    assert set(answer["regions"]) == {"50", "90"}
    assert sum(cell[2] for cell in answer["heat"]["cells"]) == pytest.approx(0.99, abs=0.01)


def test_a_file_without_regions_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert DetailOutput(format_="kml").has_detail
    assert not DetailOutput(format_="csv").has_detail
    assert not DetailOutput(format_="kml", detail=False).has_detail
    assert DetailOutput(format_="csv", detail=True).has_detail
    monkeypatch.setattr(_output, "find_spec", lambda name: None)
    assert not DetailOutput(format_="kml").has_detail
    assert "open-geoclip[places]" in capsys.readouterr().err
