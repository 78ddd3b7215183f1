"""Evaluating a model: figures, what is left out, resuming after a kill, leaks, and the report of all that."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from open_geoclip.data.packing import pack
from open_geoclip.data.photos import IndexedPhotos, Photo
from open_geoclip.data.sources import open_source
from open_geoclip.errors import BenchmarkError, DataError
from open_geoclip.evaluation.benchmarks import read_labelled
from open_geoclip.evaluation.bounds import ceiling, nearest_km, random_place
from open_geoclip.evaluation.evaluate import Evaluation, evaluate, leaks
from open_geoclip.evaluation.labelled import Labelled, label_source
from open_geoclip.evaluation.metrics import score, summary
from open_geoclip.evaluation.report import markdown
from open_geoclip.geo.sphere import haversine_km
from open_geoclip.search.describe import AnswerSettings
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.locator import Locator

N = 12


def colour_locator(cache: Path, seed: int = 0, crops: int = 1, batch_size: int = 4) -> Any:
    """Return a locator that looks at colours only, with 60 places to choose from."""
    import numpy as np
    import torch

    from open_geoclip.geo.sphere import even_points
    from open_geoclip.model.geoclip import GeoCLIP
    from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
    from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
    from open_geoclip.model.preprocessing import Preprocessing
    from open_geoclip.search.gallery import Gallery
    from open_geoclip.search.locator import Locator

    class Colours(torch.nn.Module):
        dim = 3

        def __init__(self) -> None:
            super().__init__()
            self.sign = 1 - 2 * seed

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.sign * pixels.mean(dim=(2, 3))

    torch.manual_seed(0)
    settings = LocationSettings(sigmas=(1.0,), features=8, width=16, depth=1, output=8, projection="sphere")
    preprocessing = Preprocessing(32, 32, "bicubic", (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
    encoder = ImageEncoder(Colours(), preprocessing, ImageSettings(widths=(3, 16, 8)))
    model = GeoCLIP(encoder, LocationEncoder(settings))
    gallery = Gallery.from_coordinates(even_points(60).astype(np.float32), name="sixty")
    return Locator(model, gallery, model_name="colours", crops=crops, batch_size=batch_size, cache=cache)


@pytest.fixture(scope="module")
def locator(tmp_path_factory: pytest.TempPathFactory) -> Locator:
    found: Locator = colour_locator(tmp_path_factory.mktemp("cache"))
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of photos and their labels."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "data"
    (folder / "photos").mkdir(parents=True)
    lines = ["IMG_ID,AUTHOR,LAT,LON"]
    for number in range(N):
        pixels = rng.integers(0, 256, (1, 1, 3), dtype=np.uint8).repeat(40, 0).repeat(50, 1)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
        lines.append(f"{number}.png,author{number // 3},{rng.uniform(-60, 60):.4f},{rng.uniform(-180, 180):.4f}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def labelled(data: Path) -> Labelled:
    return read_labelled(data)


def run(locator: Locator, labelled: Labelled, folder: Path, **options: Any) -> Evaluation:
    return evaluate(locator, labelled, folder, **{"resamples": 100, **options})


class TestFigures:
    def test_they_are_those_of_score(self, locator: Locator, labelled: Labelled, tmp_path: Path) -> None:
        found = run(locator, labelled, tmp_path / "out")
        expected = np.array([(c.lat, c.lon) for a in locator.locate(labelled.photos, 1) for c in a.candidates])
        np.testing.assert_array_equal(found.predicted, expected)
        figures = score(labelled.truth, expected, resamples=100, groups=labelled.groups)
        assert {key: found.figures[key] for key in figures} == figures
        assert found.figures["intervals"]["groups"] == 4
        assert found.figures["within_km_of_all"] == figures["within_km"]
        assert found.table["distance_km"] == pytest.approx(haversine_km(labelled.truth, expected))
        json.dumps(found.figures)

    def test_bounds_of_the_gallery(self, locator: Locator, labelled: Labelled, tmp_path: Path) -> None:
        found = run(locator, labelled, tmp_path / "out", resamples=0).figures
        places = locator.gallery.coordinates.astype(np.float64)
        pairs = haversine_km(labelled.truth[:, None], places[None])
        best = summary(pairs.min(axis=1))
        assert found["gallery_ceiling"]["median_km"] == pytest.approx(best["median_km"])
        assert found["gallery_ceiling"]["within_km"] == best["within_km"]
        drawn, all_pairs = found["gallery_random_place"], summary(pairs.ravel())
        assert drawn["within_km"]["2500"] == pytest.approx(all_pairs["within_km"]["2500"], rel=0.02)
        assert drawn["mean_km"] == pytest.approx(all_pairs["mean_km"], rel=0.01)
        assert drawn["median_km"] == pytest.approx(all_pairs["median_km"], rel=0.03)
        assert found["best_constant"]["median_km"] <= drawn["median_km"]

    def test_a_random_place_is_drawn_by_its_weight(self) -> None:
        gallery = Gallery.from_coordinates(np.array([[0.0, 0.0], [0.0, 90.0]]), np.array([3.0, 1.0]))
        found = random_place(np.array([[0.0, 0.0]]), gallery)
        assert found["within_km"]["1"] == pytest.approx(75, abs=1)
        assert ceiling(nearest_km(np.array([[0.0, 0.01]]), gallery))["median_km"] == pytest.approx(1.11195, abs=1e-4)

    def test_settings_name_the_weights_and_the_gallery_apart(
        self, locator: Locator, labelled: Labelled, tmp_path: Path
    ) -> None:
        settings = run(locator, labelled, tmp_path / "out").figures["settings"]
        assert settings["weights_sha256"] == locator.weights_sha256
        assert settings["gallery_sha256"] == locator.gallery.fingerprint
        assert settings["weights_sha256"] != settings["gallery_sha256"]

    def test_ten_crops_are_other_settings(self, labelled: Labelled, tmp_path: Path) -> None:
        one, ten = (colour_locator(tmp_path, crops=crops) for crops in (1, 10))
        assert run(one, labelled, tmp_path / "out").figures["settings"]["crops"] == 1
        found = run(ten, labelled, tmp_path / "out")
        assert (found.figures["settings"]["crops"], found.figures["resumed"]) == (10, 0)
        assert len(list((tmp_path / "out").glob("answers-*.jsonl"))) == 2

    def test_countries_and_continents(self, locator: Locator, labelled: Labelled, tmp_path: Path) -> None:
        def hemispheres(places: np.ndarray) -> list[str | None]:
            return [None if abs(lat) < 10 else "north" if lat > 0 else "south" for lat in places[:, 0]]

        found = run(locator, labelled, tmp_path / "out", countries=hemispheres, continents=hemispheres)
        country = found.figures["country"]
        true, answered = hemispheres(labelled.truth), hemispheres(found.predicted)
        right = [t == a for t, a in zip(true, answered, strict=True) if t]
        assert country["n"] == len(right) < N
        assert country["percent"] == pytest.approx(100 * np.mean(right))
        assert country["interval"][0] <= country["percent"] <= country["interval"][1]
        assert sum(one["n"] for one in country["by"].values()) == N
        assert country["by"]["at sea"]["percent"] is None
        assert found.table["true_country"] == true
        text = markdown(found.figures, command="geoclip evaluate")
        assert "## By continent" in text
        assert f"of {len(right)} photos on land" in text


class TestSources:
    def test_photos_as_training_takes_them_are_evaluated_and_resumed(
        self, locator: Locator, data: Path, labelled: Labelled, tmp_path: Path
    ) -> None:
        lines = (data / "labels.csv").read_text().splitlines()
        (data / "photos" / "photos.csv").write_text("\n".join([lines[0], *lines[1:], "none.png,a,1,2", "x.png,a,,"]))
        table = label_source(open_source(data / "photos" / "photos.csv"))
        assert (len(table), table.ids[0], table.groups and table.groups[0]) == (13, "0.png", "author0")
        assert table.counts["rows_without_place"] == 1
        found = run(locator, table, tmp_path / "table").figures
        assert (found["n"], found["counts"]["photos_broken"]) == (12, 1)
        pack(open_source(data / "photos" / "photos.csv"), tmp_path / "shards")
        shards = label_source(open_source(tmp_path / "shards"))
        packed, expected = run(locator, shards, tmp_path / "out"), run(locator, labelled, tmp_path / "folder")
        assert packed.figures["within_km"] == expected.figures["within_km"]
        assert packed.table["sha256"] == expected.table["sha256"], "of the files that were packed"
        again = run(locator, shards, tmp_path / "out")
        assert (again.figures["resumed"], again.table) == (12, packed.table)

    def test_arrays_and_no_photo_at_all(self, locator: Locator, tmp_path: Path) -> None:
        class Rows(IndexedPhotos):
            def entry(self, row: int) -> Photo:
                return Photo("same name", np.full((40, 40, 3), 20 * row, np.uint8), 10.0 * row, 5.0)

        found = run(locator, label_source(Rows("arrays", "1", np.arange(1, 5))), tmp_path / "out")
        assert found.table["image"] == ["same name", "same name#2", "same name#3", "same name#4"]
        assert len(set(found.table["sha256"])) == 4
        with pytest.raises(BenchmarkError, match="arrays: there is no photo whose place is known"):
            label_source(Rows("arrays", "1", np.arange(0)))

    def test_swapped_coordinates_are_no_truth(self, data: Path) -> None:
        (data / "photos" / "swapped.csv").write_text("image,lat,lon\n0.png,120,30\n1.png,80,20\n2.png,60,20\n")
        with pytest.raises(DataError, match=r"swapped\.csv: .* look swapped: 1 of 3 entries"):
            label_source(open_source(data / "photos" / "swapped.csv"))


class TestLeftOut:
    def test_broken_and_missing_photos_are_counted(self, locator: Locator, data: Path, tmp_path: Path) -> None:
        (data / "photos" / "3.png").write_bytes((data / "photos" / "3.png").read_bytes()[:60])
        (data / "photos" / "5.png").unlink()
        found = run(locator, read_labelled(data), tmp_path / "out").figures
        assert (found["n"], found["counts"]["photos_broken"], found["counts"]["photos_missing"]) == (10, 1, 1)
        assert found["broken"][0]["image"] == "photos/3.png"
        assert found["missing"] == ["5.png"]
        assert found["within_km_of_all"]["2500"] == pytest.approx(found["within_km"]["2500"] * 10 / 12)
        text = markdown(found, command="")
        assert "1 photos cannot be read" in text
        assert "missing: 5.png" in text

    def test_no_photo_that_can_be_read(self, locator: Locator, data: Path, tmp_path: Path) -> None:
        for path in (data / "photos").iterdir():
            path.write_bytes(b"no picture")
        with pytest.raises(BenchmarkError, match="none of the 12 photos can be read; the first is"):
            run(locator, read_labelled(data), tmp_path / "out")

    def test_a_single_photo_has_no_interval(self, locator: Locator, data: Path, tmp_path: Path) -> None:
        lines = (data / "labels.csv").read_text().splitlines()
        (data / "labels.csv").write_text("\n".join(lines[:2]) + "\n")
        found = run(locator, read_labelled(data), tmp_path / "out").figures
        assert (found["n"], found["intervals"]) == (1, None)


class TestLeak:
    @pytest.mark.parametrize("leaked", [2, 7, 12])
    def test_figures_with_and_without_photos_whose_coordinates_are_in_the_gallery(
        self, labelled: Labelled, tmp_path: Path, leaked: int
    ) -> None:
        plain = colour_locator(tmp_path)
        places = np.concatenate([plain.gallery.coordinates, labelled.truth[:leaked]])
        knowing = Locator(plain.model, Gallery.from_coordinates(places, name="known"), cache=tmp_path)
        if leaked > 6:
            with pytest.raises(BenchmarkError, match=f"known holds the coordinates of {leaked} of the 12 test photos"):
                run(knowing, labelled, tmp_path / "out")
        evaluation = run(knowing, labelled, tmp_path / "out", allow_leak=leaked > 6)
        found, text = evaluation.figures, markdown(evaluation.figures, command="")
        assert (found["leak"]["photos"], found["leak"]["percent"]) == (leaked, pytest.approx(100 * leaked / 12))
        assert found["n"] == 12
        assert "> **LEAK: the gallery holds" in text
        rest = labelled.truth[leaked:]
        if len(rest):
            groups = labelled.groups and labelled.groups[leaked:]
            expected = score(rest, evaluation.predicted[leaked:], resamples=100, groups=groups)
            assert found["leak"]["without"] == expected
            assert f"## Without the {leaked} photos whose coordinates are in the gallery" in text
        else:
            assert found["leak"]["without"] is None
            assert "must not be quoted" in text

    def test_where_the_line_is(self) -> None:
        near = np.full(1000, 0.0011)
        assert leaks(near, "g")["photos"] == 0
        near[:10] = 0.001
        assert leaks(near, "g")["percent"] == 1.0  # landmarks
        near[:500] = 0.0
        assert leaks(near, "g")["percent"] == 50.0
        near[500] = 0.0
        with pytest.raises(BenchmarkError, match="--allow-leak"):
            leaks(near, "g")


KILLED = """
import os, signal, sys
from pathlib import Path
{source}
from open_geoclip.evaluation.benchmarks import read_labelled
from open_geoclip.evaluation.evaluate import evaluate

def progress(done, total, resumed):
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)

evaluate(colour_locator(Path(sys.argv[1])), read_labelled(sys.argv[2]), Path(sys.argv[3]), progress=progress)
"""


class TestResuming:
    def test_a_killed_run_goes_on(self, locator: Locator, data: Path, labelled: Labelled, tmp_path: Path) -> None:
        whole = run(locator, labelled, tmp_path / "whole")
        script = KILLED.format(source="from typing import Any\n" + inspect.getsource(colour_locator))
        out = tmp_path / "out"
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(data), str(out)], check=False)
        assert done.returncode == -9
        [journal] = out.glob("answers-*.jsonl")
        assert len(journal.read_text().splitlines()) == 1 + 7
        with journal.open("a") as file:
            file.write('{"image": "photos/9.p')  # what was being written when it was killed
        calls: list[tuple[int, int, int]] = []
        found = run(locator, labelled, out, progress=lambda *counts: calls.append(counts))
        assert calls == [(done, N, 7) for done in range(7, N + 1)]
        assert found.figures["resumed"] == 7
        for name, column in whole.table.items():  # batches fall otherwise, which the last bits show
            # Batches differ in their last digits; between gallery places that is some metres.
            near = {"score": 1e-5, "probability": 1e-4, "pred_lat": 1e-3, "pred_lon": 1e-3, "distance_km": 0.1}
            close = pytest.approx(column, rel=1e-5, abs=near[name]) if name in near else column
            assert found.table[name] == close, name
        again = run(locator, labelled, out)
        assert (again.figures["resumed"], again.figures["photos_per_second"]) == (N, None)

    def test_damaged_lines_are_answered_again(self, locator: Locator, labelled: Labelled, tmp_path: Path) -> None:
        run(locator, labelled, tmp_path)
        [journal] = tmp_path.glob("answers-*.jsonl")
        lines = journal.read_bytes().splitlines(keepends=True)
        wrong = [b'{"image": "pho\n', bytes(40) + b"\n", b"[]\n", b'{"image": "photos/9.png"}\n']
        journal.write_bytes(b"".join([*lines[:3], *wrong, *lines[3 + len(wrong) :]]))
        assert run(locator, labelled, tmp_path).figures["resumed"] == N - len(wrong)
        journal.write_bytes(b"".join([wrong[0], *lines[1:]]))
        assert run(locator, labelled, tmp_path).figures["resumed"] == 0
        assert run(locator, labelled, tmp_path).figures["resumed"] == N

    def test_other_answers_of_one_model_are_not_taken_for_these(
        self, locator: Locator, labelled: Labelled, tmp_path: Path
    ) -> None:
        run(locator, labelled, tmp_path)

        def density(places: np.ndarray) -> np.ndarray:
            return np.abs(places[:, 0])

        for options in (
            {"refine": True},
            {"answers": AnswerSettings("distance")},
            {"answers": AnswerSettings(prior=density)},
        ):
            other = Locator(locator.model, locator.gallery, model_name="colours", cache=tmp_path, **options)
            assert run(other, labelled, tmp_path).figures["resumed"] == 0

    def test_a_photo_that_can_be_read_by_now_is_answered(
        self, locator: Locator, data: Path, labelled: Labelled, tmp_path: Path
    ) -> None:
        path = data / "photos" / "3.png"
        content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        path.write_bytes(bytes(len(content)))
        os.utime(path, ns=times)
        assert run(locator, labelled, tmp_path).figures["counts"]["photos_broken"] == 1
        path.write_bytes(content)
        os.utime(path, ns=times)  # as the permissions of a file change neither its size nor its time
        found = run(locator, labelled, tmp_path)
        assert (found.figures["resumed"], found.figures["counts"]["photos_broken"]) == (N - 1, 0)

    def test_a_photo_that_was_changed_is_answered_again(
        self, locator: Locator, data: Path, labelled: Labelled, tmp_path: Path
    ) -> None:
        first = run(locator, labelled, tmp_path / "out")
        touched, changed = data / "photos" / "1.png", data / "photos" / "2.png"
        touched.write_bytes(touched.read_bytes())
        Image.new("RGB", (40, 40), "red").save(changed)
        found = run(locator, labelled, tmp_path / "out")
        assert found.figures["resumed"] == N - 1
        assert found.figures["photos_sha256"] != first.figures["photos_sha256"]

    def test_another_backbone_of_the_same_name_begins_anew(self, labelled: Labelled, tmp_path: Path) -> None:
        run(colour_locator(tmp_path), labelled, tmp_path / "out")
        assert run(colour_locator(tmp_path, seed=1), labelled, tmp_path / "out").figures["resumed"] == 0
        assert run(colour_locator(tmp_path, seed=1), labelled, tmp_path / "out").figures["resumed"] == N

    def test_another_gallery_begins_anew(self, locator: Locator, labelled: Labelled, tmp_path: Path) -> None:
        run(locator, labelled, tmp_path / "out")
        fewer = Gallery.from_coordinates(locator.gallery.coordinates[::2], name="sixty")
        other = Locator(locator.model, fewer, model_name="colours", cache=tmp_path)
        assert run(other, labelled, tmp_path / "out").figures["resumed"] == 0

    def test_labels_may_change(self, locator: Locator, labelled: Labelled, tmp_path: Path) -> None:
        run(locator, labelled, tmp_path / "out")
        moved = replace(labelled, truth=-labelled.truth)
        assert run(locator, moved, tmp_path / "out").figures["resumed"] == N

    def test_two_runs_do_not_write_into_one_folder(self, locator: Locator, labelled: Labelled, tmp_path: Path) -> None:
        with FileLock(tmp_path / ".lock"), pytest.raises(BenchmarkError, match="another run is writing there"):
            run(locator, labelled, tmp_path)
        run(locator, labelled, tmp_path)

    def test_a_folder_that_cannot_be_written(self, locator: Locator, labelled: Labelled, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BenchmarkError, match="cannot be written"):
            run(locator, labelled, tmp_path / "file" / "out")
