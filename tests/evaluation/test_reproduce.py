"""Answers held against published ones: what agrees, what does not, and what cannot be compared."""

from dataclasses import replace

import numpy as np
import pytest

from open_geoclip.errors import PredictionsError
from open_geoclip.evaluation.predictions import Predictions
from open_geoclip.evaluation.reproduce import agreement, figures_agree
from open_geoclip.geo.sphere import destination

N = 200


@pytest.fixture
def ours(rng: np.random.Generator) -> Predictions:
    truth = np.stack([rng.uniform(-60, 60, N), rng.uniform(-170, 170, N)], axis=1)
    answers = destination(truth, rng.uniform(0, 360, N), 10 ** rng.uniform(-1, 4, N))
    return Predictions("ours", truth, answers, {"id": [f"p{i}" for i in range(N)], "idx": [str(i) for i in range(N)]})


def test_the_same_answers_agree_though_they_were_rounded(ours: Predictions) -> None:
    published = replace(ours, predicted=np.round(ours.predicted, 3), ids={"idx": ours.ids["idx"]})
    found = agreement(ours, published, resamples=1000)
    assert (found.n, found.same, found.only_here, found.only_published) == (N, 100.0, 0, 0)
    assert found.median_km < 0.1
    assert found.differing == []
    assert found.to_dict()["within_sampling_error"]


def test_photos_in_one_of_them_only_are_counted_and_order_does_not_matter(ours: Predictions) -> None:
    rows = np.arange(N)[::-1][:150]
    published = Predictions(
        "published", ours.truth[rows], ours.predicted[rows], {"idx": [*map(str, rows[:149].tolist()), "9999"]}
    )
    found = agreement(ours, published, resamples=1000)
    assert (found.n, found.only_here, found.only_published, found.same) == (149, 51, 1, 100.0)


def test_a_worse_model_differs_by_more_than_chance(ours: Predictions) -> None:
    worse = ours.predicted.copy()
    worse[::3] = destination(ours.truth[::3], 90.0, 9000.0)
    found = agreement(replace(ours, predicted=worse), replace(ours, name="published"), resamples=1000)
    assert found.same == pytest.approx(100 * 2 / 3, abs=1)
    assert "within_2500_km" in found.differing
    assert found.comparison.differences["within_2500_km"].better == "A"  # what was published


def test_what_cannot_be_compared_is_refused(ours: Predictions) -> None:
    with pytest.raises(PredictionsError, match="published does not name its photos in a column id, idx: add idx"):
        agreement(ours, replace(ours, name="published", ids={}))
    with pytest.raises(PredictionsError, match="published has no photo of ours, by id"):
        agreement(ours, replace(ours, name="published", ids={"id": [f"q{i}" for i in range(N)]}))
    with pytest.raises(PredictionsError, match="the true places of 200 of 200 photos differ"):
        agreement(ours, replace(ours, name="published", truth=ours.truth[::-1].copy()))


def test_figures_alone_are_held_against_the_sampling_error() -> None:
    within = {"1": 13.2, "25": 25.0, "200": 47.91, "750": 66.57, "2500": 100.0}
    found = figures_agree(within, 2997, (13.01, 32.10, 47.91, 66.57, 100.0))
    assert [one["agrees"] for one in found.values()] == [True, False, True, True, True]
    assert found["1"]["standard_error"] == pytest.approx(0.6145, abs=1e-3)
