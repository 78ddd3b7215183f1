"""Two runs on the same photos: exact p-values, pairing, refusals, and alarms that are as rare as promised."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float64

from open_geoclip.errors import PredictionsError, SettingsError
from open_geoclip.evaluation.compare import compare, holm, mcnemar, paired_rows
from open_geoclip.evaluation.metrics import FIGURES, distances_km, summary
from open_geoclip.evaluation.predictions import Predictions
from open_geoclip.geo.sphere import destination, even_points

Places = Float64[np.ndarray, "n 2"]


def run(
    name: str,
    km: Float64[np.ndarray, " n"],
    ids: list[str] | None = None,
    groups: list[str] | None = None,
) -> Predictions:
    """A run on evenly spread photos with the errors given."""
    truth = even_points(len(km))
    named = {"idx": ids if ids is not None else [str(i) for i in range(len(km))]}
    return Predictions(name, truth, destination(truth, 33.0, km), named, groups)


def like_a_run(rng: np.random.Generator, n: int) -> Float64[np.ndarray, " n"]:
    return 10 ** rng.normal(2.3, 1.3, n).clip(-2, 4.2)


class TestMcNemar:
    @given(st.integers(0, 400), st.integers(0, 400))
    def test_it_is_the_exact_binomial(self, only_a: int, only_b: int) -> None:
        n = only_a + only_b
        tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
        assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-9)
        assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)

    @pytest.mark.parametrize(
        ("only_a", "only_b", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (2, 8, 0.109375), (1, 9, 0.021484375)]
    )
    def test_by_hand(self, only_a: int, only_b: int, p: float) -> None:
        assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-12)

    def test_large_counts(self) -> None:
        # The normal approximation with continuity correction is good there.
        a, b = 50_000, 50_800
        z = (abs(a - b) - 1) / math.sqrt(a + b)
        assert mcnemar(a, b) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


class TestHolm:
    def test_by_hand(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.9, 0.9]) == [1.0, 1.0]
        assert holm([]) == []

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
    def test_properties(self, p_values: list[float]) -> None:
        adjusted = holm(p_values)
        assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
        order = sorted(range(len(p_values)), key=p_values.__getitem__)
        assert [adjusted[i] for i in order] == sorted(adjusted)
        assert min(adjusted) == pytest.approx(min(1, len(p_values) * min(p_values)))


class TestCompare:
    def test_a_run_is_like_itself(self, rng: np.random.Generator) -> None:
        km = like_a_run(rng, 50)
        found = compare(run("a", km), run("b", km), resamples=1000)
        for one in found.differences.values():
            assert (one.b - one.a, one.interval, one.p_value, one.better) == (0, [0, 0], 1, None)

    def test_a_real_difference_is_found_at_the_right_threshold(self, rng: np.random.Generator) -> None:
        a = like_a_run(rng, 400)
        b = np.where((a > 25) & (a <= 200) & (rng.random(400) < 0.5), 20.0, a)
        found = compare(run("a", a), run("b", b), resamples=1000)
        moved = int(np.sum(a != b))
        city = found.differences["within_25_km"]
        assert (city.better, city.only_a, city.only_b) == ("B", 0, moved)
        assert city.p_value == pytest.approx(2 * 0.5**moved, rel=1e-9)
        assert city.b - city.a == pytest.approx(100 * moved / 400)
        assert city.interval[0] < city.b - city.a < city.interval[1]
        for name in ("within_1_km", "within_750_km", "within_2500_km"):
            assert found.differences[name].better is None, name
        assert found.differences["mean_km"].better == "B", "fewer kilometres are better"
        assert found.differences["geoscore"].better == "B", "more points are better"
        turned = compare(run("b", b), run("a", a), resamples=1000)
        assert turned.differences["within_25_km"].better == "A"
        assert turned.differences["mean_km"].better == "A"
        assert turned.differences["mean_km"].interval == pytest.approx(
            [-end for end in found.differences["mean_km"].interval[::-1]]
        )

    def test_pairs_tell_more_than_two_intervals(self, rng: np.random.Generator) -> None:
        a = like_a_run(rng, 300)
        b = a * rng.uniform(0.9, 1.0, 300)
        assert compare(run("a", a), run("b", b), resamples=1000).differences["median_km"].better == "B"

    @pytest.mark.parametrize("z", [0.7, 1.6, 2.4])
    def test_the_bootstrap_agrees_with_the_normal_law_where_that_holds(
        self, rng: np.random.Generator, z: float
    ) -> None:
        a, error = rng.uniform(900, 1000, 400), rng.normal(0, 10, 400)
        b = a + (error - error.mean()) + z * error.std() / math.sqrt(400)
        found = compare(run("a", a), run("b", b), resamples=4000).differences["mean_km"]
        assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.3)
        assert found.interval == pytest.approx([(z + end) * error.std() / 20 for end in (-1.96, 1.96)], abs=0.1)

    def test_chance_is_seldom_taken_for_a_difference(self, rng: np.random.Generator) -> None:
        alarms = 0
        for _ in range(60):
            common, own = like_a_run(rng, 120), rng.random((2, 120)) < 0.4
            a, b = (np.where(changed, like_a_run(rng, 120), common) for changed in own)
            found = compare(run("a", a), run("b", b), resamples=1000)
            alarms += any(one.better is not None for one in found.differences.values())
        assert alarms <= 7  # 5 % of 60 is 3; more than 7 has a chance of 2 %

    def test_photos_that_belong_together_are_no_independent_witnesses(self, rng: np.random.Generator) -> None:
        # Six authors, 40 photos each; A is better on two of them, which are 80 photos, but two witnesses.
        a = np.full(240, 100.0)
        b = np.where(np.arange(240) < 160, 10.0, 400.0)
        authors = [str(i // 40) for i in range(240)]
        alone = compare(run("a", a), run("b", b), resamples=1000)
        grouped = compare(run("a", a, groups=authors), run("b", b), resamples=1000)
        assert alone.differences["within_25_km"].test == "mcnemar"
        one = grouped.differences["within_200_km"]
        assert (one.test, one.only_a, grouped.groups) == ("bootstrap", 80, 6)
        assert alone.differences["within_200_km"].better == "A"
        assert one.better is None

    def test_figures_are_those_of_score(self, rng: np.random.Generator) -> None:
        a, b = run("a", like_a_run(rng, 60)), run("b", like_a_run(rng, 60))
        found = compare(a, b, distance="geodesic", resamples=1000)
        assert found.summary_a == summary(distances_km(a.truth, a.predicted, "geodesic"))
        assert found.summary_b == summary(distances_km(b.truth, b.predicted, "geodesic"))
        as_json = json.loads(json.dumps(found.to_dict()))
        assert as_json["a"] == {"name": "a"} | json.loads(json.dumps(found.summary_a))
        assert list(as_json["differences"]["within_km"]) == ["1", "25", "200", "750", "2500"]
        mean = as_json["differences"]["mean_km"]
        assert mean["difference"] == as_json["b"]["mean_km"] - as_json["a"]["mean_km"]
        assert (as_json["paired_by"], as_json["distance"], as_json["n"]) == ("idx", "geodesic", 60)
        assert list(found.differences) == list(FIGURES)

    def test_too_few_resamples(self, rng: np.random.Generator) -> None:
        with pytest.raises(SettingsError, match="at least 1,000 resamples, not 999"):
            compare(run("a", np.ones(5)), run("b", np.ones(5)), resamples=999)


class TestPairing:
    def test_order_does_not_matter_when_photos_are_named(self, rng: np.random.Generator) -> None:
        a, b = run("a", like_a_run(rng, 80)), run("b", like_a_run(rng, 80))
        order = rng.permutation(80)
        mixed = Predictions("b", b.truth[order], b.predicted[order], {"idx": [b.ids["idx"][i] for i in order]})
        assert compare(a, mixed, resamples=1000) == compare(a, b, resamples=1000)
        paired_by, rows = paired_rows(a, mixed)
        assert paired_by == "idx"
        assert np.array_equal(order[rows], np.arange(80))

    def test_by_row_when_no_column_is_in_both(self) -> None:
        truth = even_points(4)
        a = Predictions("a", truth, truth, {"idx": list("1234")})
        b = Predictions("b", truth, truth, {"image": list("wxyz")})
        paired_by, rows = paired_rows(a, b)
        assert (paired_by, rows.tolist()) == ("row", [0, 1, 2, 3])

    def test_missing_photos_are_counted_on_both_sides(self) -> None:
        a = run("a", np.ones(5), ids=list("12345"))
        b = run("b", np.ones(4), ids=list("126x"))
        with pytest.raises(PredictionsError) as caught:
            paired_rows(a, b)
        assert "by idx" in str(caught.value)
        assert "3 of the 5 in a are not in b (3, 4, 5)" in str(caught.value)
        assert "2 of the 4 in b are not in a (6, x)" in str(caught.value)

    def test_unnamed_runs_of_different_length(self) -> None:
        a, b = (Predictions(name, even_points(n), even_points(n)) for name, n in (("a", 4), ("b", 5)))
        with pytest.raises(PredictionsError, match="a holds 4 photos and b 5, and no column names them"):
            paired_rows(a, b)

    def test_other_truths_are_refused(self) -> None:
        truth = even_points(6)
        other = truth.copy()
        other[[2, 4]] += 0.01
        named = {"idx": list("abcdef")}
        with pytest.raises(PredictionsError, match=r"the true places of 2 of 6 photos differ .* first is idx c: \("):
            paired_rows(Predictions("a", truth, truth, named), Predictions("b", other, truth, named))
        with pytest.raises(PredictionsError, match=r"6 of 6 photos .* row 0: .* if the order differs, name the photos"):
            paired_rows(Predictions("a", truth, truth), Predictions("b", truth[::-1].copy(), truth))

    def test_truths_that_were_rounded_are_the_same(self, rng: np.random.Generator) -> None:
        a = run("a", like_a_run(rng, 40))
        b = Predictions("b", a.truth.round(3), a.predicted, a.ids)
        found = compare(a, b, resamples=1000)
        assert found.summary_a == found.summary_b, "both are measured from A's truths"
