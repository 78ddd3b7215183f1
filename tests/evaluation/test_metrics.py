"""Figures of merit: the reference's, the released evaluation's, and intervals that hold what they promise."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import Float64

from open_geoclip.errors import SettingsError
from open_geoclip.evaluation.metrics import (
    FIGURES,
    THRESHOLDS_KM,
    best_constant,
    bootstrap,
    by_figure,
    distances_km,
    geoscores,
    interval,
    score,
    summary,
)
from open_geoclip.evaluation.predictions import Predictions, read_predictions
from open_geoclip.geo.sphere import even_points

Distances = Float64[np.ndarray, " n"]

distances = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 20_015))


def values(figures: dict[str, object]) -> list[float]:
    within = figures["within_km"]
    assert isinstance(within, dict)
    return [*within.values(), *(figures[name] for name in ("median_km", "mean_km", "geoscore"))]


def like_a_run(rng: np.random.Generator, n: int) -> Distances:
    """Distances from ten metres to the other side of the Earth, as models have them."""
    return 10 ** rng.normal(2.3, 1.3, n).clip(-2, 4.3)


@pytest.fixture(scope="session")
def reference(shared: Path) -> Predictions:
    path = shared / "reference" / "geoclip_predictions_im2gps3k.csv"
    if not path.is_file():
        pytest.skip(f"there is no {path.name} beside the checkout")
    return read_predictions(path)


class TestTheReference:
    def test_published_figures_are_reproduced(self, reference: Predictions) -> None:
        found = summary(distances_km(reference.truth, reference.predicted))
        assert found["n"] == 2997
        shares = {threshold: round(share, 2) for threshold, share in found["within_km"].items()}
        assert shares == {"1": 13.01, "25": 32.10, "200": 47.91, "750": 66.57, "2500": 82.42}
        assert round(found["median_km"], 1) == 242.3

    def test_the_released_evaluation_says_the_same_on_the_ellipsoid(
        self, reference: Predictions, released: Path
    ) -> None:
        spec = importlib.util.spec_from_file_location("released_eval", released / "train" / "eval.py")
        assert spec is not None
        assert spec.loader is not None
        released_eval = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(released_eval)
        truth, predicted = reference.truth[:300], reference.predicted[:300]
        ours = summary(distances_km(truth, predicted, "geodesic"))
        for threshold in THRESHOLDS_KM:
            share, mean_km = released_eval.distance_accuracy(truth, np.arange(300), threshold, predicted)
            assert ours["within_km"][str(threshold)] == pytest.approx(100 * share, abs=1e-9)
            assert ours["mean_km"] == pytest.approx(mean_km, rel=1e-9)

    def test_the_floor_is_the_one_on_record(self, reference: Predictions) -> None:
        within = best_constant(reference.truth)["within_km"]
        # 3.7 / 6.7 / 16.7 / 38.2 were found by trying points between the photos, too.
        assert list(within.values())[1:] == pytest.approx([3.7, 6.7, 16.7, 38.2], abs=0.5)


class TestSummary:
    def test_by_hand(self) -> None:
        found = summary(np.array([0.0, 1.0, 1.001, 25.0, 1492.7, 20_000.0]))
        assert found["within_km"] == {
            "1": pytest.approx(200 / 6),
            "25": pytest.approx(400 / 6),
            "200": pytest.approx(400 / 6),
            "750": pytest.approx(400 / 6),
            "2500": pytest.approx(500 / 6),
        }
        assert found["median_km"] == 13.0005
        assert found["mean_km"] == pytest.approx(21519.701 / 6)
        assert geoscores(np.array([0.0, 1492.7])) == pytest.approx([5000, 5000 / np.e])

    @given(distances)
    def test_properties(self, km: Distances) -> None:
        found = summary(km)
        shares = list(found["within_km"].values())
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 100
        assert km.min() <= found["median_km"] <= km.max()
        assert 0 <= found["geoscore"] <= 5000
        assert values(summary(km[::-1])) == pytest.approx(values(found), rel=1e-12)
        assert by_figure(values(found)) == {key: value for key, value in found.items() if key != "n"}

    def test_json_is_what_is_promised(self) -> None:
        found = json.loads(json.dumps(summary(np.array([3.0, 4.0]))))
        assert list(found) == ["n", "within_km", "median_km", "mean_km", "geoscore"]
        assert list(found["within_km"]) == ["1", "25", "200", "750", "2500"]

    def test_nothing_and_nan_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="no distances"):
            summary(np.array([]))
        with pytest.raises(SettingsError, match="2 distances are not finite"):
            summary(np.array([1.0, np.nan, np.inf]))

    def test_float32_degrees_are_measured_in_float64(self) -> None:
        a, b = np.array([[48.8584, 2.2945]], np.float32), np.array([[48.8584, 2.2946]], np.float32)
        assert distances_km(a, b)[0] == distances_km(a.astype(np.float64), b.astype(np.float64))[0]
        assert distances_km(a, b, "geodesic")[0] == pytest.approx(distances_km(a, b)[0], rel=6e-3)


class TestBootstrap:
    def test_it_is_drawing_photos_again(self, rng: np.random.Generator) -> None:
        km = np.concatenate([like_a_run(rng, 26).round(-1), THRESHOLDS_KM])  # with ties, and right at the thresholds
        draw = np.random.default_rng(0)
        expected = [values(summary(km[draw.integers(31, size=31)])) for _ in range(100)]
        np.testing.assert_allclose(bootstrap(km[None], 100)[0], expected, rtol=1e-12)

    def test_it_is_drawing_whole_groups_again(self, rng: np.random.Generator) -> None:
        km, names = like_a_run(rng, 40), "abbcccdddd" * 4
        draw = np.random.default_rng(0)
        members = [[km[i] for i in range(40) if names[i] == name] for name in "abcd"]
        expected = [
            values(summary(np.array([one for group in draw.integers(4, size=4) for one in members[group]])))
            for _ in range(100)
        ]
        np.testing.assert_allclose(bootstrap(km[None], 100, groups=names)[0], expected, rtol=1e-12)

    def test_all_runs_see_the_same_draws(self, rng: np.random.Generator) -> None:
        one, other = like_a_run(rng, 50), like_a_run(rng, 50)
        both = bootstrap(np.stack([one, other, one]), 100)
        assert np.array_equal(both[0], both[2])
        assert np.array_equal(both[1], bootstrap(other[None], 100)[0])
        assert not np.array_equal(both[0], both[1])

    @given(st.floats(0, 20_015), st.integers(2, 9))
    @settings(max_examples=20)
    def test_what_does_not_vary_has_no_width(self, km: float, n: int) -> None:
        equal = np.full(n, km)
        draws = bootstrap(equal[None], 100)[0]
        np.testing.assert_allclose(draws, np.tile(values(summary(equal)), (100, 1)), rtol=1e-12)

    def test_intervals_hold_the_truth_as_often_as_they_say(self, rng: np.random.Generator) -> None:
        true = np.array(values(summary(like_a_run(rng, 1_000_000))))
        held = np.zeros(len(FIGURES))
        for _ in range(100):
            low, high = np.array(interval(bootstrap(like_a_run(rng, 200)[None], 200)[0])).T
            held += (low <= true) & (true <= high)
        # 95 expected, standard error 2.2; percentile intervals are a little short.
        assert held.min() >= 86
        assert 90 <= held.mean() <= 99

    def test_copies_of_a_photo_add_no_certainty_when_they_are_grouped(self, rng: np.random.Generator) -> None:
        single = like_a_run(rng, 60)
        names = [f"{i:02}" for i in range(60)]

        def width(km: Distances, groups: list[str] | None) -> float:
            low, high = interval(bootstrap(km[None], 400, groups=groups)[0])[6]
            return high - low

        honest = width(single, None)
        assert width(np.repeat(single, 9), [name for name in names for _ in range(9)]) == pytest.approx(honest)
        assert width(np.repeat(single, 9), None) == pytest.approx(honest / 3, rel=0.2)

    def test_the_interval_is_the_middle_95_percent(self) -> None:
        draws = np.random.default_rng(1).permutation(1001.0 + np.arange(1001))
        assert interval(np.stack([draws, -draws], axis=1)) == [[1026, 1976], [-1976, -1026]]

    def test_progress_is_told(self) -> None:
        told: list[tuple[int, int]] = []
        bootstrap(np.ones((1, 2000)), 150, progress=lambda done, total: told.append((done, total)))
        assert told == [(131, 150), (150, 150)]

    @pytest.mark.parametrize(
        ("n", "resamples", "groups", "message"),
        [
            (5, 99, None, "at least 100 resamples, not 99"),
            (1, 100, None, "at least 2 photos, not 1"),
            (0, 100, None, "at least 2 photos, not 0"),
            (4, 100, "aaaa", "at least 2 groups, not 1"),
            (4, 100, "ab", "a group for each of 4 photos"),
        ],
    )
    def test_refusals(self, n: int, resamples: int, groups: str | None, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            bootstrap(np.ones((1, n)), resamples, groups=groups)


class TestBestConstant:
    @given(st.integers(0, 1000), st.integers(1, 30))
    @settings(max_examples=25)
    def test_no_true_place_is_a_better_answer(self, seed: int, n: int) -> None:
        rng = np.random.default_rng(seed)
        truth = even_points(200)[rng.integers(200, size=n)] + rng.normal(0, 0.1, (n, 2)).clip(-0.2, 0.2)
        alone = [values(summary(distances_km(np.tile(place, (n, 1)), truth))) for place in truth]
        expected = [*np.max(alone, axis=0)[:5], *np.min(alone, axis=0)[5:7], np.max(alone, axis=0)[7]]
        assert values(best_constant(truth)) == pytest.approx(expected, rel=1e-6, abs=1e-3)

    def test_one_place(self) -> None:
        found = best_constant(np.tile([[48.8584, 2.2945]], (7, 1)))
        assert list(found["within_km"].values()) == [100] * 5
        assert found["median_km"] == pytest.approx(0, abs=1e-3)
        assert found["geoscore"] == pytest.approx(5000, abs=1e-2)
        with pytest.raises(SettingsError, match="there are no places"):
            best_constant(np.empty((0, 2)))

    def test_a_crowd_is_found_among_many_places(self) -> None:
        crowd = np.tile([[35.6812, 139.7671]], (200, 1))
        within = best_constant(np.concatenate([even_points(5000), crowd]))["within_km"]
        assert within["1"] == pytest.approx(100 * 200 / 5200)


class TestScore:
    def test_all_of_it(self, rng: np.random.Generator) -> None:
        truth, predicted = even_points(30), even_points(31)[:30]
        found = score(truth, predicted, resamples=200, groups=["a", "b", "c"] * 10)
        km = distances_km(truth, predicted)
        assert {key: found[key] for key in summary(km)} == summary(km)
        assert found["distance"] == "haversine"
        assert found["best_constant"] == best_constant(truth)
        intervals = found["intervals"]
        assert {key: intervals[key] for key in ("level", "resamples", "groups")} == {
            "level": 95,
            "resamples": 200,
            "groups": 3,
        }
        low, high = intervals["mean_km"]
        assert low <= found["mean_km"] <= high
        assert list(intervals["within_km"]) == list(found["within_km"])
        assert score(truth, predicted, resamples=200, groups=["a", "b", "c"] * 10) == found, "the same at every call"

    def test_without_intervals_and_on_the_ellipsoid(self) -> None:
        found = score(even_points(5), even_points(6)[:5], distance="geodesic")
        assert found["intervals"] is None
        assert found["distance"] == "geodesic"
        assert found["mean_km"] == distances_km(even_points(5), even_points(6)[:5], "geodesic").mean()
