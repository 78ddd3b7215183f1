"""``geoclip where``: names on stdout, in three forms."""

import csv
import io
import json
from pathlib import Path

import pytest

pytest.importorskip("shapely", reason="the extra places is not installed")

from open_geoclip.cli import app
from open_geoclip.cli._output import PointOutput
from open_geoclip.cli.where import where
from open_geoclip.errors import CoordinateError


def test_names_as_table_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["46.2044,6.1432", "0,-30"]
    where(asked)
    assert capsys.readouterr().out.splitlines() == [
        "  46.20440     6.14320  CH  Geneva, Switzerland",
        "   0.00000   -30.00000  --  at sea, 113 km south-west of Brazil",
    ]
    where(asked, output=PointOutput(format_="json"))
    records = json.loads(capsys.readouterr().out)
    assert [record["country"] for record in records] == ["CH", ""]
    assert records[0]["city"] == "Geneva"
    where(asked, output=PointOutput(format_="csv"))
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["text"] for row in rows] == [record["text"] for record in records]


@pytest.mark.parametrize(
    "words",
    [
        ["where", "-33.9,18.6"],
        ["where", "-33.9,18.6", "-0.5,-78.4"],
        ["similar", "-33.9,18.6", "--to", "-34.6,-58.4", "--model", "earth", "--top-k", "1"],
        ["embed", "-33.9,18.6", "--model", "earth", "--format", "csv"],
        ["render", "-33.9,18.6", "--size", "16", "-o", "view.png"],
    ],
)
def test_southern_coordinates_are_no_options(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app(words, result_action="return_value")
    assert capsys.readouterr().out


def test_a_coordinate_that_is_none_is_refused() -> None:
    with pytest.raises(CoordinateError, match="LAT,LON"):
        where(["Geneva"])
