"""The commands as a user runs them: what they print, where, and how they end."""

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.cli import app, main
from open_geoclip.weights.load import load_release
from tests.cli.conftest import Command, Ended


@pytest.fixture
def geoclip(command: Command) -> Command:
    """Return a function that runs the command in an empty folder; no warning may be printed."""

    def run(*words: object, status: int = 0) -> Ended:
        done = command(*words, status=status)
        assert "arning" not in done.err
        return done

    return run


@pytest.fixture
def process(tmp_path: Path, shared_cache: Path) -> Command:
    """Return a function that does the same in a process of its own."""
    environment = {"OPEN_GEOCLIP_CACHE": str(shared_cache), "NO_COLOR": "1"}

    def run(*words: object, status: int = 0) -> Ended:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "open_geoclip.cli", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | environment,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        assert "arning" not in done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three views, made by the command itself."""
    folder = tmp_path_factory.mktemp("views")
    for number, place in enumerate(["41.9,12.5", "-8.05,-34.9", "64.1,-21.9"]):
        words = ["render", place, "--width-km", "900", "-o", str(folder / f"view_{number}.png")]
        app(words, result_action="return_value")
    return sorted(folder.iterdir())


def test_help_is_quick_and_needs_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from open_geoclip.cli import app\n"
        "app(['--help'], result_action='return_value')\n"
        "assert not {'torch', 'numpy', 'PIL', 'transformers', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("locate", "embed", "gallery", "models", "pull", "render"):
        assert command in done.stdout


def test_locate_writes_json(process: Command, views: list[Path]) -> None:
    done = process("locate", *views, "--top-k", 3, "--format", "json")
    answers: list[dict[str, Any]] = json.loads(done.out)
    assert [answer["image"] for answer in answers] == [str(view) for view in views]
    asked = (load_release("earth").calibration or {})["sure_probability"]
    for answer in answers:
        assert list(answer) == [
            *("image", "model", "gallery", "version", "candidates"),
            *("credible_radius_km", "within_km", "countries", "sure", "in_distribution", "sha256"),
        ]
        assert len(answer["candidates"]) == 3
        assert list(answer["candidates"][0]) == ["lat", "lon", "score", "probability", "radius_km", "country", "place"]
        assert 0 < answer["credible_radius_km"]["50"] < answer["credible_radius_km"]["90"]
        assert list(answer["within_km"]) == ["1", "25", "200", "750", "2500"]
        assert sorted(answer["within_km"].values()) == list(answer["within_km"].values())
        assert answer["sure"] is (answer["within_km"]["200"] >= asked)
        assert answer["in_distribution"] is True
        assert list(answer["sha256"]) == ["image", "weights", "gallery"]
    assert next(iter(answers[0]["countries"])) == "IT"
    truth = [(41.9, 12.5), (-8.05, -34.9), (64.1, -21.9)]
    for (lat, lon), answer in zip(truth, answers, strict=True):
        best = answer["candidates"][0]
        assert abs(best["lat"] - lat) < 3
        assert abs(best["lon"] - lon) < 6


def test_locate_walks_a_folder_and_writes_csv_to_a_file(geoclip: Command, views: list[Path], tmp_path: Path) -> None:
    done = geoclip("locate", views[0].parent, "--format", "csv", "--top-k", 2, "--output", "answers.csv")
    assert done.out == ""
    rows = list(csv.DictReader(io.StringIO((tmp_path / "answers.csv").read_text())))
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    assert {row["image"] for row in rows} == {str(view) for view in views}
    assert all(-90 <= float(row["lat"]) <= 90 for row in rows)


def test_locate_prints_a_table_and_draws_a_map(geoclip: Command, views: list[Path], tmp_path: Path) -> None:
    done = geoclip("locate", views[0], "--map", "map.png")
    assert str(views[0]) in done.out
    assert "estimates by earth" in done.out
    with Image.open(tmp_path / "map.png") as picture:
        picture.load()
        assert min(picture.size) > 300


def test_the_table_says_first_whether_an_answer_can_be_trusted(geoclip: Command, tmp_path: Path) -> None:
    Image.effect_noise((300, 300), 90).convert("RGB").save(tmp_path / "noise.png")
    done = geoclip("locate", tmp_path / "noise.png")
    first, second, third, name, confidence, best, *_ = done.out.splitlines()
    assert first.startswith("The model earth is for views of the Earth from orbit.")
    assert (second.strip(), third.strip()) == ("geoclip pull geoclip", "geoclip locate --model geoclip PHOTO...")
    assert name.endswith("noise.png")
    assert confidence.strip().startswith("not sure: unlike the images that the model was calibrated on")
    assert (best.split()[0], best.split()[3:5]) == ("1", ["means", "nothing"])
    assert "%" not in done.out
    [answer] = json.loads(geoclip("locate", tmp_path / "noise.png", "--format", "json").out)
    assert next(iter(answer.items())) == ("warning", answer["warning"])
    assert (answer["in_distribution"], answer["sure"]) == (False, False)
    assert answer["warning"].endswith("geoclip pull geoclip; geoclip locate --model geoclip PHOTO...")
    assert max(candidate["probability"] for candidate in answer["candidates"]) < 0.05


def test_hostile_images_are_reported_and_the_rest_is_done(geoclip: Command, views: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty.jpg").write_bytes(b"")
    (bad / "text.jpg").write_text("this is no picture")
    (bad / "cut.png").write_bytes(views[0].read_bytes()[:-2000])
    Image.fromarray(np.zeros((10_000, 10_000), np.uint8)).save(bad / "bomb.png")
    done = geoclip("locate", views[0], bad, tmp_path / "none.png", views[1], "--format", "json", status=1)
    answers = {Path(answer["image"]).name: answer for answer in json.loads(done.out)}
    assert len(answers) == 7
    for name in ("empty.jpg", "text.jpg", "cut.png", "bomb.png", "none.png"):
        assert answers[name].keys() == {"image", "error"}
        assert name in done.err
    assert "pixel" in answers["bomb.png"]["error"]
    assert answers["view_0.png"]["candidates"]
    assert answers["view_1.png"]["candidates"]


def test_a_phone_photo_on_its_side_is_turned(geoclip: Command, views: list[Path], tmp_path: Path) -> None:
    with Image.open(views[0]) as picture:
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by 90 degrees clockwise
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.png", exif=exif)
    done = geoclip("locate", views[0], tmp_path / "side.png", "--format", "json", "--top-k", 1)
    upright, side = json.loads(done.out)
    assert [upright["candidates"][0][key] for key in ("lat", "lon")] == [
        side["candidates"][0][key] for key in ("lat", "lon")
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["locate"], 2, "IMAGES"),
        (["locate", "a.jpg", "--top-k", "many"], 2, "int"),
        (["locate", "a.jpg", "--model", "erth"], 2, "earth"),
        (["locate", "a.jpg", "--gallery", "none.csv"], 1, "there is no such file"),
        (["locate", "a.jpg", "--model", "geoclip"], 1, "geoclip pull"),
        (["locate", "a.jpg", "--formt", "json"], 2, "--format"),
        (["locate", "a.jpg", "--within", "-30,-20,200"], 2, "a radius needs its unit"),
        (["locate", "a.jpg", "--not-within", "none.geojson"], 2, "there is no such file"),
        (["locate", "a.jpg", "--together", "--trip"], 2, "one of the two"),
        (["lokate"], 2, "locate"),
        (["embed", "120,20"], 1, "(lat, lon)"),
        (["embed", "1;2"], 1, "two numbers"),
        (["render", "0,0", "--width-km", "0"], 2, "width of a view"),
        (["render", "0,0", "-o", "view.txt"], 1, ".png"),
        (["render", "0,0", "-o", "none/view.png"], 1, "cannot be written"),
        (["gallery", "info", "none.csv"], 1, "there is no such file"),
        (["pull", "nonsense"], 2, "hub:"),
    ],
)
def test_wrong_use(geoclip: Command, arguments: list[str], status: int, message: str) -> None:
    done = geoclip(*arguments, status=status)
    assert done.out == ""
    assert message in done.err


def test_top_k_out_of_range_is_wrong_use(geoclip: Command, views: list[Path]) -> None:
    assert "top_k: at least 1" in geoclip("locate", views[0], "--top-k", 0, status=2).err


def test_embed_gives_the_released_embeddings(geoclip: Command, released: Path) -> None:
    assert released.is_dir()
    records = json.loads(geoclip("embed", "40.7128,-74.0060", "-33.8568,151.2153", "--format", "json").out)
    assert [(r["lat"], r["lon"]) for r in records] == [(40.7128, -74.006), (-33.8568, 151.2153)]
    assert all(len(record["vector"]) == 512 for record in records)
    np.testing.assert_allclose(records[0]["vector"][:3], [-0.01039, 0.00788, 0.01302], atol=6e-6)
    np.testing.assert_allclose(records[1]["vector"][:3], [-0.01870, 0.00666, 0.00807], atol=6e-6)


def test_gallery_info_and_build(geoclip: Command, tmp_path: Path, released: Path) -> None:
    assert released.is_dir()
    (tmp_path / "places.csv").write_text("lat,lon\n1,2\n3,4\n1,2\n")
    before = json.loads(geoclip("gallery", "info", "places.csv", "--format", "json").out)
    assert (before["places"], before["weight"], before["vectors"]) == (2, 3.0, None)
    built = json.loads(geoclip("gallery", "build", "places.csv", "--format", "json").out)
    assert Path(built["vectors"]).is_file()
    assert "places" in geoclip("gallery", "info", "places.csv").out


def test_the_files_name_says_what_is_written(geoclip: Command, views: list[Path], tmp_path: Path) -> None:
    done = geoclip("locate", views[0], "--output", "a.kmz")
    assert done.out == ""
    with zipfile.ZipFile(tmp_path / "a.kmz") as archive:
        assert archive.namelist() == ["doc.kml", "files/1.jpg"]
        assert b"an estimate, not evidence" in archive.read("doc.kml")
    done = geoclip("locate", views[0], "--format", "geojson")
    kinds = [feature["properties"]["kind"] for feature in json.loads(done.out)["features"]]
    assert kinds.count("candidate") == 5
    assert kinds.count("credible region") == 2


def test_a_name_that_says_nothing_is_refused_before_work(geoclip: Command) -> None:
    done = geoclip("locate", "missing.jpg", "--output", "a.doc", status=2)
    assert "a.doc" in done.err
    assert ".geojson" in done.err


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_threads_that_wait_leave_the_core_soon(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["--version"])
    expected = "3000" if not given else given.get("GOMP_SPINCOUNT")
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_int8_is_quantised_on_the_photos_of_locate(geoclip: Command, views: list[Path]) -> None:
    pytest.importorskip("openvino", reason="the extra fast is not installed")
    done = geoclip("locate", views[0].parent, "--dtype", "int8", status=2)
    assert "with at least 32 photos like those to locate, and there are 3: run geoclip locate FOLDER" in done.err
    assert "merge_tokens: 0 or more, of a CLIP" in geoclip("locate", views[0], "--merge-tokens", 8, status=2).err
