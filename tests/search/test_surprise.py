"""How surprising a place is: p-values keep what they promise, also where a posterior does not."""

import numpy as np
import pytest

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.surprise import EXCEEDED, levels_of, p_value


@pytest.mark.parametrize("power", [1.0, 0.2, 4.0])
def test_true_places_are_rejected_as_often_as_said(power: float, rng: np.random.Generator) -> None:
    """However badly a posterior is calibrated: levels are drawn far from uniform here."""

    def drawn(n: int) -> np.ndarray:
        return 1 - rng.uniform(size=n) ** power

    unsure, sure = levels_of(drawn(3000), np.arange(3000) % 4 > 0)
    assert (len(unsure), len(sure)) == (len(EXCEEDED) - 1, len(EXCEEDED))
    told = np.array([p_value(level, sure) for level in drawn(20_000)])
    for share in (0.5, 0.2, 0.05, 0.01):
        assert np.mean(told <= share) == pytest.approx(share, rel=0.35)
    assert told.min() == EXCEEDED[-1], "not less than so many pictures can tell"


def test_what_is_further_out_is_more_surprising(rng: np.random.Generator) -> None:
    _, sure = levels_of(rng.uniform(size=500), np.ones(500, bool))
    told = [p_value(level, sure) for level in np.linspace(0, 1, 200)]
    assert told[0] == 1.0
    assert told == sorted(told, reverse=True)  # type: ignore[type-var]


def test_few_pictures_tell_little() -> None:
    unsure, sure = levels_of(np.array([0.2, 0.9, 0.5]), np.array([False, True, True]))
    assert p_value(1.0, sure) == 0.5  # 2 pictures: nothing below a third can be told, and 0.5 is the next share
    assert p_value(1.0, unsure) == 0.5
    assert levels_of(np.array([0.5]), np.array([True]))[0] == ()
    assert p_value(1.0, ()) is None


def test_a_calibration_keeps_it() -> None:
    calibration = Calibration(0.5, fitted_on="x", surprise=((), (0.1, 0.6)), least_score=0.25)
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    for wrong in ((0.5,), ((0.6, 0.1), ()), ((0.1,) * 99, ()), ((-0.1,), ())):
        with pytest.raises((SettingsError, TypeError)):
            Calibration(surprise=wrong)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="surprise"):
        Calibration.from_dict({"surprise": [[0.6, 0.1], []]})
