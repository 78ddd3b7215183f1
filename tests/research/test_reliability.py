"""The fit of the reliability, on blocks of places and on the published answers where they are."""

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from open_geoclip import Gallery, Reliability
from open_geoclip.evaluation.metrics import distances_km
from open_geoclip.evaluation.predictions import Predictions, read_predictions
from research import reliability

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = "shared/reference/geoclip_predictions_im2gps3k.csv"


@pytest.fixture(scope="module")
def made() -> tuple[Gallery, Predictions]:
    """Answers that are right more often where the gallery is dense."""
    rng = np.random.default_rng(0)
    cities = np.stack([rng.uniform(-60, 70, 40), rng.uniform(-180, 180, 40)], axis=1)
    places = np.concatenate([cities[:10].repeat(30, axis=0) + rng.normal(0, 0.05, (300, 2)), cities])
    answered = places[rng.integers(0, len(places), 600)]
    step = np.where(rng.random(600) < 0.1, 0.001, rng.choice([0.1, 1.0, 4.0, 15.0, 60.0], 600))
    is_dense = (np.abs(answered[:, None] - cities[:10]).max(axis=2) < 1).any(axis=1)
    step = np.where(is_dense & (rng.random(600) < 0.5), 0.002, step)
    truth = np.stack([np.clip(answered[:, 0] + step, -90, 90), answered[:, 1]], axis=1)
    return Gallery.from_coordinates(places), Predictions("made", truth, answered)


def test_the_fit_ranks_matches_the_means_and_is_deterministic(
    made: tuple[Gallery, Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_RESAMPLES": 20, "_SEEDS": 1, "_BLOCKS_DEG": (20,)}.items():
        monkeypatch.setattr(reliability, name, value)
    gallery, answers = made
    model = reliability.fit(gallery, answers)
    assert model == reliability.fit(gallery, answers)
    fitted = Reliability(gallery, **model)
    within = fitted.within_km(answers.predicted)
    km = distances_km(answers.truth, answers.predicted)
    right = km[:, None] <= np.array([1, 25, 200, 750, 2500])
    np.testing.assert_allclose(within.mean(axis=0), right.mean(axis=0), atol=0.04)
    alone, dense = within[fitted.log_counts(answers.predicted)[:, 1] < 2], within[-1:]
    assert alone.mean(axis=0)[0] < within.mean(axis=0)[0]
    assert np.all(np.diff(dense) > 0)
    assert np.all(np.array(model["highest"]["recognisable"]) < 1)
    assert len("\n".join(reliability.page(gallery, answers, fitted)).splitlines()) > 48


def test_folds_are_whole_blocks_of_about_one_size() -> None:
    blocks = np.random.default_rng(0).integers(0, 100, 1000)
    folds = reliability.assign_folds(blocks, 0)
    assert all(len(set(folds[blocks == block])) == 1 for block in range(100))
    assert np.bincount(folds).min() > 80
    assert (reliability.assign_folds(blocks, 1) != folds).any()


@pytest.mark.slow
def test_what_is_shipped_is_what_the_published_answers_give(released: Path) -> None:
    found = [parent / ANSWERS for parent in ROOT.parents if (parent / ANSWERS).is_file()]
    if not found:
        pytest.skip(f"the published answers are not here: {ANSWERS} in a folder above the repository")
    answers = read_predictions(found[0])
    shipped = json.loads(files("open_geoclip").joinpath("weights", "geoclip", "reliability.json").read_bytes())["model"]
    gallery = Reliability.from_pretrained().gallery
    model = json.loads(json.dumps(reliability.fit(gallery, answers)))
    for name in ("coefficients", "radii_km"):
        np.testing.assert_allclose(model[name], shipped[name], atol=2e-3)
    for name in ("shifts", "highest"):
        for kind, values in shipped[name].items():
            np.testing.assert_allclose(model[name][kind], values, atol=2e-3)
    table = "\n".join(reliability.page(gallery, answers, Reliability(gallery, **shipped)))
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for text in (table, page) for line in text.splitlines() if line.startswith("| ")]
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]
    worst = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| \d+° \|", line)]
    assert [size for size, *_ in worst] == ["10°", "20°", "30°"]
    assert all(float(points) <= 5 for _, *differences in worst for points in differences)
