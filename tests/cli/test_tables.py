"""Tables as people have them, alike in every command: names of columns, delimiters, decimal commas, encodings, ends."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.cli import app
from open_geoclip.cli._trips import hours_of
from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.evaluation.benchmarks import read_labelled
from open_geoclip.search.prior import _read_prior

PLACES = [(-33.9, 18.6), (48.8584, 2.2945), (-0.5, -78.25)]
HEADER = ["file", "time", "lat", "lon", "true_lat", "true_lon", "pred_lat", "pred_lon"]
Bounds = list[float]  # south, west, north, east
BOUNDS = [-33.9, -78.25, 48.8584, 18.6]


def rows(number: Callable[[float], str] = str) -> list[list[str]]:
    made = []
    for i, (lat, lon) in enumerate(PLACES):
        degrees = [number(value) for value in (lat, lon)]
        made.append([f"{i}.png", f"2026-05-0{i + 1}T10:00", *degrees * 3])
    return made


def text(
    header: list[str] = HEADER,
    delimiter: str = ",",
    number: Callable[[float], str] = str,
    end: str = "\n",
    quote: str = "",
) -> str:
    lines = [header, *rows(number)]
    return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in line) + end for line in lines)


def named(lat: str, lon: str) -> list[str]:
    return [{"lat": lat, "lon": lon}.get(name, name) for name in HEADER]


def comma(value: float) -> str:
    return str(value).replace(".", ",")


def geojson(_: Path) -> bytes:
    features = [
        {
            "type": "Feature",
            "properties": dict(zip(HEADER, row, strict=True)),
            "geometry": {"type": "Point", "coordinates": [lon, lat]},
        }
        for row, (lat, lon) in zip(rows(), PLACES, strict=True)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def parquet(folder: Path) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    columns: dict[str, Any] = dict(zip(HEADER, map(list, zip(*rows(), strict=True)), strict=True))
    numbers = {
        name: [float(cell) for cell in cells] for name, cells in columns.items() if name.endswith(("lat", "lon"))
    }
    writer.write_table(pyarrow.table(columns | numbers), folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


READ: dict[str, tuple[str, bytes | Callable[[Path], bytes]]] = {
    "comma": (".csv", text().encode()),
    "semicolon": (".csv", text(delimiter=";").encode()),
    "decimal comma": (".csv", text(delimiter=";", number=comma).encode()),
    "tab": (".tsv", text(delimiter="\t").encode()),
    "tab and decimal comma": (".txt", text(delimiter="\t", number=comma).encode()),
    "bar": (".csv", text(delimiter="|").encode()),
    "quoted": (".csv", text(quote='"').encode()),
    "quoted decimal comma": (".csv", text(quote='"', number=comma).encode()),
    "quoted after spaces": (".csv", text(delimiter=", ", quote='"').encode()),
    "typographic minus": (".csv", text(number=lambda value: str(value).replace("-", "\N{MINUS SIGN}")).encode()),
    "sep=": (".csv", ("sep=;\r\n" + text(delimiter=";", end="\r\n")).encode()),
    "CR LF": (".csv", text(end="\r\n").encode()),
    "CR": (".csv", text(end="\r").encode()),
    "BOM": (".csv", text().encode("utf-8-sig")),
    "UTF-16": (".csv", text(delimiter="\t").encode("utf-16")),
    "UTF-16, little-endian": (".csv", text().encode("utf-16-le")),
    "UTF-16, big-endian": (".csv", text().encode("utf-16-be")),
    "UTF-16, decimal comma": (".csv", text(delimiter=";", number=comma, end="\r\n").encode("utf-16")),
    "BOM, sep=": (".csv", ("sep=\t\n" + text(delimiter="\t")).encode("utf-8-sig")),
    "delimiters behind the last cells": (".csv", text().replace("\n", ",,\n").encode()),
    "delimiters behind the cells of rows": (".csv", text().replace("\n", ",\n").replace(",\n", "\n", 1).encode()),
    "written for a spreadsheet": (
        ".csv",
        text(number=lambda value: f"'{value}" if value < 0 else f"+{value}").encode(),
    ),
    "blank lines": (".csv", ("\n\n" + text(end="\n\n")).encode()),
    "Ctrl-Z": (".csv", (text() + "\x1a").encode()),
    "Ctrl-Z behind the last cell": (".csv", (text().rstrip() + "\x1a").encode()),
    "NUL behind the last cell": (".csv", (text().rstrip() + "\0" * 64).encode()),
    "NUL behind the end": (".csv", (text() + "\0" * 64).encode()),
    "no end of the last line": (".csv", text().rstrip().encode()),
    "spaces": (".csv", text(delimiter=" , ").encode()),
    "capitals": (".csv", text([name.upper() for name in HEADER]).encode()),
    "lat, lng": (".csv", text(named("lat", "lng")).encode()),
    "decimalLatitude": (".csv", text(named("decimalLatitude", "decimalLongitude")).encode()),
    "Lat (deg)": (".csv", text(named("Lat (deg)", "Lon (deg)")).encode()),
    "Latitude (°)": (".csv", text(named("Latitude (°)", "Longitude (°)")).encode()),
    "Latitude (decimal degrees)": (
        ".csv",
        text(named("Latitude (decimal degrees)", "Longitude (decimal degrees)")).encode(),
    ),
    "LAT_DD": (".csv", text(named("LAT_DD", "LONG_DD")).encode()),
    "GPSLatitude": (".csv", text(["SourceFile", *named("GPSLatitude", "GPSLongitude")[1:]]).encode()),
    "y, x": (".csv", text(named("y", "x")).encode()),
    "two names that fit": (".csv", text().replace("time,", "Latitude,time,").replace(".png,", ".png,7,").encode()),
    "GeoJSON": (".geojson", geojson),
    "Parquet": (".parquet", parquet),
}
REFUSED = {
    "a total": (text() + "total\n", r"line 5\b.*1 cell, where the header has 8"),
    "a total below blank lines": ("\n\n" + text() + "\n" + "total\n", r"line 8\b.*1 cell, where the header has 8"),
    "a total below sep=": ("\nsep=,\n" + text() + "total\n", r"line 7\b.*1 cell, where the header has 8"),
    "NUL": (text().replace("-33.9", "-33\0.9"), r"line 2\b"),
    "no number": (text().replace("-33.9", "north"), r"line 2\b.*'north', not a number in degrees"),
    "degrees and minutes": (text().replace("-33.9", "33 54 S"), r"line 2\b"),
    "exiftool without -n": (
        text().replace("-33.9", '"33 deg 54\' 0.00"" S"'),
        r"line 2\b.*33 deg 54.*exiftool -n writes numbers",
    ),
    "a comma too many": (
        text().replace("0.png", "0, the first.png"),
        r"line 2\b.*9 cells, where the header has 8",
    ),
    "an open quotation mark": (text().replace("1.png", '"1.png'), r"line 3\b.*quotation mark"),
    "a name twice": (
        text([*HEADER[:4], "pred_lat", "pred_lon", *HEADER[6:]]).replace("time", "lat"),
        "2 columns named",
    ),
    "no header": ("\n".join(",".join(row) for row in rows()), "first line must name the columns"),
    "nothing": ("", "it is empty"),
    "Excel": ("PK\x03\x04", "Excel workbook: save the sheet as CSV"),
    "Latin-1": (text().replace("0.png", "caf\xe9.png"), "line 2 holds the byte 0xe9"),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(len(PLACES)):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def bounds(coordinates: np.ndarray) -> Bounds:
    return [*coordinates.min(axis=0).tolist(), *coordinates.max(axis=0).tolist()]


def by_embed(table: Path) -> Bounds:
    kind = {".parquet": "--parquet", ".geojson": "--geojson"}.get(table.suffix, "--csv")
    out = table.with_name("out.npz")
    app(["embed", kind, str(table), "-o", str(out), "--model", "earth"], result_action="return_value")
    return bounds(np.load(out)["coordinates"])


def by_gallery(table: Path) -> Bounds:
    out = table.with_name("out.json")
    app(["gallery", "info", str(table), "--model", "earth", "-o", str(out)], result_action="return_value")
    found = json.loads(out.read_text())
    return [found[side] for side in ("south", "west", "north", "east")]


def by_data(table: Path) -> Bounds:
    out = table.with_name("out.json")
    try:
        app(["data", "check", str(table), "-o", str(out)], result_action="return_value")
    except SystemExit:  # some rows cannot be used: it says which
        raise OpenGeoCLIPError(out.read_text()) from None
    bounds: Bounds = json.loads(out.read_text())["bounds"]
    return bounds


def by_score(table: Path) -> Bounds:
    out = table.with_name("out.json")
    app(["score", str(table), "-o", str(out), "--bootstrap", "0"], result_action="return_value")
    assert json.loads(out.read_text())["mean_km"] == 0
    return BOUNDS


def by_compare(table: Path) -> Bounds:
    out = table.with_name("out.json")
    app(["compare", str(table), str(table), "-o", str(out)], result_action="return_value")
    assert json.loads(out.read_text())["n"] == len(PLACES)
    return BOUNDS


def by_evaluate(table: Path) -> Bounds:
    found = read_labelled(table.parent, table=table)
    if found.notes:  # damaged rows are named and counted
        raise OpenGeoCLIPError(" ".join(found.notes))
    return bounds(found.truth)


def by_prior(table: Path) -> Bounds:
    return bounds(_read_prior(str(table)).coordinates)


def by_similar(table: Path) -> Bounds:
    out = table.with_name("out.json")
    words = ["similar", "0,0", "--gallery", str(table), "--model", "earth", "--apart-km", "0", "-o", str(out)]
    app(words, result_action="return_value")
    [answer] = json.loads(out.read_text())["answers"]
    return bounds(np.array([(place["lat"], place["lon"]) for place in answer["places"]]))


def by_times(table: Path) -> Bounds:
    hours = hours_of([table.with_name(f"{i}.png") for i in range(len(PLACES))], table)
    assert np.diff(hours).tolist() == [24, 24]
    return BOUNDS


COMMANDS = [by_embed, by_gallery, by_data, by_score, by_compare, by_evaluate, by_prior, by_similar, by_times]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", READ)
def test_every_command_reads(command: Callable[[Path], Bounds], case: str, photos: Path) -> None:
    suffix, content = READ[case]
    table = photos / f"table{suffix}"
    table.write_bytes(content if isinstance(content, bytes) else content(photos))
    np.testing.assert_allclose(command(table), BOUNDS, rtol=1e-6)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", REFUSED)
def test_every_command_refuses(command: Callable[[Path], Bounds], case: str, photos: Path) -> None:
    content, says = REFUSED[case]
    numbers = case in ("NUL", "no number", "degrees and minutes", "exiftool without -n")
    if command is by_times and (numbers or case == "a name twice"):
        pytest.skip("it reads no coordinates")
    table = photos / "table.csv"
    table.write_text(content, encoding="latin-1", newline="")
    with pytest.raises(OpenGeoCLIPError) as raised:
        command(table)
    assert re.search(says, str(raised.value)), raised.value
