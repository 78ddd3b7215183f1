"""``geoclip calibrate``: fitted once, kept by weights and gallery, used from then on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_geoclip.cli import main
from open_geoclip.data.earth_views import views
from open_geoclip.data.sources import open_source
from open_geoclip.errors import BenchmarkError, WeightsError
from open_geoclip.evaluation import calibrate
from open_geoclip.evaluation.labelled import label_source
from open_geoclip.geo.sphere import even_points
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.locator import Locator
from open_geoclip.weights.calibrations import UserCalibration, user_calibrations

LACKS = (
    '{"format": "open-geoclip-calibration", "model": "a", "gallery": "b", "weights_sha256": "c", '
    '"gallery_sha256": "d", "calibration": {"temperature": 1.0}}'
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a gallery, and what the command wrote there."""
    folder = tmp_path_factory.mktemp("calibrate")
    places = "".join(f"{lat},{lon}\n" for lat, lon in even_points(2000).round(4).tolist())
    (folder / "gallery.csv").write_text("lat,lon\n" + places)
    [batch] = views("validation", 200)
    rows = []
    for row, (view, (lat, lon)) in enumerate(zip(batch.images, batch.coordinates.tolist(), strict=True)):
        Image.fromarray(view).save(folder / f"{row}.jpg", quality=95)
        rows.append(f"{row}.jpg,{lat},{lon}\n")
    for name, count in (("photos.csv", 200), ("few.csv", 199)):
        (folder / name).write_text("path,lat,lon\n" + "".join(rows[:count]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_GEOCLIP_CACHE", str(folder / "cache"))
        patch.setattr(calibrate, "_FOLDS", 2)  # levels take the time: of 2 x 100 + 200 photos, not 5 x 160 + 200
        patch.setattr(calibrate, "_REFINED", 40)
        interrupt(folder)
        run(folder)
    return folder


def interrupt(folder: Path) -> None:
    """Stop a run after 96 of the 200 photos."""

    def stop(done: int, total: int, resumed: int) -> None:
        if done == 96:
            raise KeyboardInterrupt

    locator, labelled = (
        Locator.from_pretrained("earth", gallery=folder / "gallery.csv"),
        label_source(open_source(folder / "photos.csv")),
    )
    with pytest.raises(KeyboardInterrupt):
        calibrate.calibrate(locator, labelled, folder / "out", progress=stop)
    [journal] = (folder / "out").glob("answers-*.jsonl")
    (folder / "interrupted.jsonl").write_bytes(journal.read_bytes())


@pytest.fixture
def kept(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(fitted / "cache"))
    return fitted


def run(folder: Path, *words: str) -> None:
    given = words or (str(folder / "photos.csv"), "-o", str(folder / "out"))
    with pytest.raises(SystemExit) as status:
        main(["calibrate", *given, "--model", "earth", "--gallery", str(folder / "gallery.csv")])
    if status.value.code:
        raise AssertionError(status.value.code)


def test_probabilities_hold_on_photos_that_were_left_out(fitted: Path) -> None:
    report = json.loads((fitted / "out" / "report.json").read_text())
    assert (report["photos"], report["clusters"]) == (200, 200)
    assert report["before"]["sure"] is None
    assert 80 < report["after"]["circle_holds"]["90"] < 98
    assert 38 < report["after"]["circle_holds"]["50"] < 62
    low, high = report["after"]["circle_interval"]["90"]
    assert low < report["after"]["circle_holds"]["90"] < high
    assert report["after"]["nats_per_km2"] < report["before"]["nats_per_km2"]
    assert "| sure answers | not calibrated |" in (fitted / "out" / "report.md").read_text()


def test_locators_of_these_weights_and_this_gallery_use_it(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = UserCalibration.from_file(kept / "out" / "calibration.json")
    assert list(user_calibrations()) == [own]
    locator = Locator.from_pretrained("earth", gallery=kept / "gallery.csv")
    assert locator.calibration.to_dict() == Calibration.from_dict(own.calibration).to_dict()
    assert locator.locate(np.full((8, 8, 3), 128, np.uint8))[0].sure is not None
    with pytest.raises(SystemExit, match="0"):
        main(["models", "--format", "json"])
    [earth, _, *_] = json.loads(capsys.readouterr().out)
    assert [(one["photos"], one["gallery"]) for one in earth["calibrations"]] == [(200, own.gallery)]


def test_an_interrupted_run_resumes(fitted: Path) -> None:
    [journal] = (fitted / "out").glob("answers-*.jsonl")
    before, after = ((path.read_text().splitlines()) for path in (fitted / "interrupted.jsonl", journal))
    assert (len(before), len(after)) == (1 + 96, 1 + 200)
    assert after[:97] == before


def test_it_moves_to_another_machine_and_is_removed(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(tmp_path))
    run(fitted, "--load", str(fitted / "out" / "calibration.json"))
    [own] = user_calibrations()
    own.path.write_text(own.to_json()[:100])
    with pytest.raises(WeightsError, match=r"is not JSON.*: delete .*, or fit it again with geoclip calibrate"):
        Locator.from_pretrained("earth", gallery=fitted / "gallery.csv")
    own.save()
    run(fitted, "--remove")
    assert not list(user_calibrations())
    with pytest.raises(AssertionError, match="2"):
        run(fitted, "--remove")
    assert "earth has no calibration of your own over this gallery" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("lat,lon\n1,2\n3,4\n")
    words = ["--load", str(fitted / "out" / "calibration.json"), "--gallery", str(tmp_path / "other.csv")]
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", *words, "--model", "earth"])
    assert "its gallery has the hash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "give photos to fit on, or --load FILE, or --remove"),
        (["a", "--remove"], 2, "give photos to fit on, or --load FILE, or --remove"),
        (["few.csv"], 1, "199 photos with a place are too few for a calibration: it takes at least 200"),
        (["--load", "none.json"], 1, "none.json cannot be read"),
    ],
)
def test_wrong_use(
    words: list[str],
    status: int,
    message: str,
    fitted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(fitted)
    with pytest.raises(SystemExit, match=str(status)):
        main(["calibrate", *words, "--model", "earth"])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "open-geoclip-calibration"}', "\0", LACKS])
def test_files_that_are_no_calibration(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(WeightsError, match=r"a\.json"):
        UserCalibration.from_file(tmp_path / "a.json")


@pytest.mark.parametrize(
    "clusters", [np.zeros(300, np.int64), np.arange(300) % 19, np.maximum(np.arange(300) - 160, 0)]
)
def test_photos_of_few_places_are_refused(clusters: np.ndarray) -> None:
    with pytest.raises(BenchmarkError, match=r"the 300 photos are of [\d]+ places or groups, the largest of [\d]+"):
        calibrate._folds(clusters)


def test_folds_never_divide_a_cluster_and_are_of_one_size(rng: np.random.Generator) -> None:
    clusters = np.unique(rng.integers(0, 60, 500) ** 2 // 60, return_inverse=True)[1].astype(np.int64)
    folds = calibrate._folds(clusters)
    assert len(np.unique(np.stack([clusters, folds]), axis=1).T) == clusters.max() + 1
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 10
