"""`geoclip score` and `geoclip compare`: what is printed, in which format, and what is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from open_geoclip.cli.compare import compare
from open_geoclip.cli.score import score
from open_geoclip.errors import OpenGeoCLIPError, PredictionsError, SettingsError

# Errors in km: 0, 11.1, 111, 1112 and 9,000 or so.
ROWS = [
    ("a", "x", 10, 10, 10, 10),
    ("b", "x", 10, 20, 10.1, 20),
    ("c", "y", 10, 30, 11, 30),
    ("d", "y", 10, 40, 20, 40),
    ("e", "z", 10, 50, -70, 60),
]
HEAD = ("image", "author", "true_lat", "true_lon", "pred_lat", "pred_lon")


def table(path: Path, rows: list[tuple[Any, ...]] = ROWS) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *rows])
    return path


@pytest.fixture
def app() -> App:
    app = App(result_action="return_value")
    app.command(score)
    app.command(compare)
    return app


class TestScore:
    def test_json_is_the_one_that_is_promised(
        self, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        app(["score", str(table(tmp_path / "a.csv")), "--format", "json"])
        captured = capsys.readouterr()
        assert captured.err == ""
        found = json.loads(captured.out)
        assert list(found)[:5] == ["n", "within_km", "median_km", "mean_km", "geoscore"]
        assert found["n"] == 5
        assert found["within_km"] == {"1": 20, "25": 40, "200": 60, "750": 60, "2500": 80}
        assert found["median_km"] == pytest.approx(111.195, abs=1e-3)
        assert found["intervals"]["resamples"] == 1000
        assert list(found["best_constant"]["within_km"].values()) == [20, 20, 20, 20, 100]

    def test_the_reference(self, app: App, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = shared / "reference" / "geoclip_predictions_im2gps3k.csv"
        if not path.is_file():
            pytest.skip(f"there is no {path.name} beside the checkout")
        app(["score", str(path), "--bootstrap", "100"])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        assert lines[0] == f"2,997 photos of {path.name}"
        shown = [line.split("%")[0].split("km")[-1].strip() for line in lines[3:8]]
        assert shown == ["13.01", "32.10", "47.91", "66.57", "82.42"]
        assert lines[8].split()[:3] == ["median", "242.3", "km"]
        assert "haversine; 100 resamples of photos" in lines[-1]

    def test_csv_has_a_figure_a_row(self, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = str(table(tmp_path / "a.csv"))
        app(["score", path, "--format", "csv"])
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [row["figure"] for row in rows][:2] == ["within_1_km", "within_25_km"]
        assert [row["figure"] for row in rows][5:] == ["median_km", "mean_km", "geoscore"]
        assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)
        assert {(row["n"], row["predictions"]) for row in rows} == {("5", "a.csv")}
        app(["score", path, "--format", "csv", "--bootstrap", "0"])
        assert {row["low"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))} == {""}

    def test_groups_and_ellipsoid_are_said(self, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        app(["score", str(table(tmp_path / "a.csv")), "--group", "author", "--distance", "geodesic"])
        assert "distances: geodesic; 1,000 resamples of 3 groups" in capsys.readouterr().out

    def test_output_goes_to_a_file(self, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        goal = tmp_path / "out.json"
        app(["score", str(table(tmp_path / "a.csv")), "--format", "json", "--output", str(goal)])
        assert capsys.readouterr().out == ""
        assert json.loads(goal.read_text())["n"] == 5

    def test_one_photo_has_figures_but_no_interval(
        self, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        app(["score", str(table(tmp_path / "a.csv", ROWS[:1])), "--format", "json"])
        captured = capsys.readouterr()
        assert json.loads(captured.out)["intervals"] is None
        assert captured.err == "geoclip: one photo has no interval\n"

    def test_refusals(self, app: App, tmp_path: Path) -> None:
        path = table(tmp_path / "a.csv")
        with pytest.raises(SettingsError, match="--bootstrap is a number of resamples"):
            app(["score", str(path), "--bootstrap=-1"])
        with pytest.raises(SettingsError, match="at least 100 resamples"):
            app(["score", str(path), "--bootstrap", "5"])
        with pytest.raises(SettingsError, match="leave out one"):
            app(["score", str(path), "--bootstrap", "0", "--group", "author"])
        with pytest.raises(PredictionsError, match="1 of 5 rows has no predicted place; the first is line 4"):
            app(["score", str(table(tmp_path / "b.csv", [*ROWS[:2], ("c", "y", 1, 2, "nan", 3), *ROWS[3:]]))])
        with pytest.raises(OpenGeoCLIPError, match="cannot be written"):
            app(["score", str(path), "-o", str(tmp_path / "none" / "out.txt")])


class TestCompare:
    def test_json(self, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        better = [(*row[:4], row[2], row[3]) for row in ROWS]
        a, b = table(tmp_path / "a.csv"), table(tmp_path / "b.csv", better[::-1])
        app(["compare", str(a), str(b), "--format", "json", "--bootstrap", "1000"])
        found = json.loads(capsys.readouterr().out)
        assert (found["a"]["name"], found["b"]["name"], found["n"]) == ("a.csv", "b.csv", 5)
        assert (found["paired_by"], found["resamples"], found["groups"]) == ("image", 1000, None)
        street = found["differences"]["within_km"]["1"]
        assert (street["only_a"], street["only_b"], street["p_value"]) == (0, 4, pytest.approx(0.125))
        assert street["difference"] == 80

    def test_the_table_says_what_is_real(self, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [(i, "x", 10, i, 10 if i % 10 else 11, i) for i in range(80)]
        worse = [(*row[:4], row[4] - 1, row[5]) for row in rows]
        a, b = table(tmp_path / "a.csv", rows), table(tmp_path / "b.csv", worse)
        app(["compare", str(a), str(b)])
        out = capsys.readouterr().out
        lines = {line[:16].strip(): line for line in out.splitlines()}
        assert lines["within 25 km"].endswith("A is better")
        assert lines["within 200 km"].endswith("no")
        assert lines["median"].endswith("A is better")
        assert "real differences in 5 of 8 figures (Holm, 5 %; 2,000 resamples of photos; haversine)" in out
        app(["compare", str(a), str(a)])
        assert "no difference that is more than chance" in capsys.readouterr().out

    def test_csv_and_groups(self, app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        a = str(table(tmp_path / "a.csv"))
        app(["compare", a, a, "--format", "csv", "--group", "author", "--distance", "geodesic"])
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert len(rows) == 8
        assert {row["test"] for row in rows} == {"bootstrap"}
        assert [row["only_a"] for row in rows] == ["0"] * 5 + [""] * 3
        assert {(row["difference"], row["p_value"], row["better"]) for row in rows} == {("0.0", "1.0", "")}

    def test_refusals(self, app: App, tmp_path: Path) -> None:
        a, fewer = table(tmp_path / "a.csv"), table(tmp_path / "b.csv", ROWS[:3])
        with pytest.raises(PredictionsError, match=r"2 of the 5 in a\.csv are not in b\.csv \(d, e\)"):
            app(["compare", str(a), str(fewer)])
        moved = table(tmp_path / "c.csv", [(*row[:2], -10, *row[3:]) for row in ROWS])
        with pytest.raises(PredictionsError, match="the true places of 5 of 5 photos differ"):
            app(["compare", str(a), str(moved)])
        with pytest.raises(SettingsError, match="at least 1,000"):
            app(["compare", str(a), str(a), "--bootstrap", "100"])
