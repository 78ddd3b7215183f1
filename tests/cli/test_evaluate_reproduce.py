"""`geoclip evaluate` and `geoclip reproduce` on the embedded model: files, formats, exit status, what is refused."""

import csv
import json
from pathlib import Path

import pytest
from cyclopts import App
from PIL import Image

from open_geoclip.cli.evaluate import evaluate
from open_geoclip.cli.reproduce import reproduce
from open_geoclip.cli.score import score
from open_geoclip.data.earth_views import views
from open_geoclip.data.packing import pack
from open_geoclip.data.sources import open_source
from open_geoclip.errors import BenchmarkError, SettingsError

pytestmark = pytest.mark.usefixtures("command")  # for it loads a model once

N = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in the layout of Im2GPS3k: test views of the Earth, one broken, one missing, one label NaN."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    [batch] = views("test", N)
    rows = []
    for number, (pixels, (lat, lon)) in enumerate(zip(batch.images, batch.coordinates, strict=True)):
        rows.append((f"{number}.jpg", f"{number // 2}@N00", f"{lat:.6f}", f"{lon:.6f}"))
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
    broken = folder / "images" / "broken.jpg"
    broken.write_bytes((folder / "images" / "0.jpg").read_bytes()[:1000])
    rows += [("broken.jpg", "9@N00", "1", "2"), ("gone.jpg", "9@N00", "1", "2"), ("0.jpg", "", "NaN", "NaN")]
    with (folder / "im2gps3k_places365.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("IMG_ID", "AUTHOR", "LAT", "LON"), *rows])
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results") / "out"


@pytest.fixture
def app() -> App:
    app = App(result_action="return_value")
    app.command(evaluate)
    app.command(reproduce)
    app.command(score)
    return app


def test_results_of_a_named_benchmark(app: App, data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["evaluate", "im2gps3k", "--data", str(data), "--output", str(out), "--bootstrap", "200"]
    with pytest.raises(SystemExit) as end:
        app([*call, "--format", "json"])
    assert end.value.code == 1  # a photo could not be read
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert list(found)[:5] == ["n", "within_km", "median_km", "mean_km", "geoscore"]
    assert (found["n"], found["data"]) == (N, "Im2GPS3k")
    assert {key: found["counts"][key] for key in ("photos_missing", "photos_broken", "rows_without_place")} == {
        "photos_missing": 1,
        "photos_broken": 1,
        "rows_without_place": 1,
    }
    assert "images/broken.jpg: the JPEG is damaged" in captured.err
    assert "Im2GPS3k has 2,997" in captured.err
    assert found["country"]["n"] > 0
    assert json.loads((out / "evaluation.json").read_text()) == found
    report = (out / "report.md").read_text()
    assert "![Percent of answers within a distance](curve.png)" in report
    for name in ("curve.png", "map.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 1000
    app(["score", str(out / "predictions.csv"), "--format", "json", "--group", "group", "--bootstrap", "200"])
    scored = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in scored} == scored
    app(["score", str(out / "predictions.parquet"), "--format", "json", "--group", "group", "--bootstrap", "200"])
    assert json.loads(capsys.readouterr().out) == scored
    with pytest.raises(SystemExit):
        app(call)
    table = capsys.readouterr()
    assert "6 of 7 photos are done already" in table.err, "the broken one is tried again"
    assert "ceiling" in table.out


def test_reproduce_holds_answers_against_published_ones(
    app: App, data: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = out / "predictions.csv"
    assert own.is_file(), "the test before this one writes it"
    lines = [line.split(",") for line in own.read_text().splitlines()]
    columns = [lines[0].index(name) for name in ("idx", "true_lat", "true_lon", "pred_lat", "pred_lon")]
    published = tmp_path / "published.csv"
    published.write_text("".join(",".join(line[at] for at in columns) + "\n" for line in lines))
    call = ["reproduce", "im2gps3k", "--data", str(data), "--model", "earth", "--dtype", "auto", "--output", str(out)]
    app([*call, "--published", str(published), "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["answers"]["n"], found["answers"]["same_answer"]) == (N, 100.0)
    assert found["answers"]["within_sampling_error"]
    assert found["figures"]["1"]["published"] == 13.01
    with pytest.raises(SystemExit) as end:
        app(call)
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "these are not the benchmark's labels" in printed
    assert "for a check photo by photo" in printed


def test_a_folder_of_shards_is_no_folder_with_a_table(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(open_source("earth-views:test:2"), tmp_path / "shards")
    (tmp_path / "shards" / "README.txt").write_text("Two views of the Earth.")
    app(["evaluate", "--data", str(tmp_path / "shards"), "-o", str(tmp_path / "out"), "--bootstrap", "0"])
    assert "on shards: 2 photos" in capsys.readouterr().out


def test_what_is_refused(app: App, data: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--bootstrap is a number of resamples"):
        app(["evaluate", "--data", str(data), "--bootstrap", "-1"])
    with pytest.raises(BenchmarkError, match="say which it is with --table FILE"):
        app(["evaluate", "osv5m", "--data", str(data)])
    gallery = tmp_path / "gallery.csv"
    labels = [line.split(",") for line in (data / "im2gps3k_places365.csv").read_text().splitlines()]
    gallery.write_text("lat,lon\n" + "".join(f"{line[2]},{line[3]}\n" for line in labels[1 : N + 1]))
    with pytest.raises(BenchmarkError, match="holds the coordinates of 6 of the 7 test photos"):
        app(["evaluate", "--data", str(data), "--gallery", str(gallery), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit):  # for the broken photo
        app(["evaluate", "--data", str(data), "--gallery", str(gallery), "-o", str(tmp_path / "o"), "--allow-leak"])
    assert "> **LEAK:" in (tmp_path / "o" / "report.md").read_text()
