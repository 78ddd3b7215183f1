"""A calibration: shares of the mass to chances and back, the background of strange pictures, regions that widen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.geo.sphere import even_points, haversine_km, unit_vectors
from open_geoclip.search.calibration import NOMINAL, Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.mixture import Mixture
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import Ground

BENT = tuple(float(level) for level in np.array(NOMINAL) ** 0.5)  # half of the truths lie within 71 % of the mass
DOUBTING = Calibration(1.0, 0.01, 10.0, "a test", 1, region_levels=BENT, doubt=1.0, usual=30.0)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground.of(Gallery.from_coordinates(even_points(3000)))


def peaked(ground: Ground, calibration: Calibration) -> Posterior:
    off = haversine_km(ground.coordinates.astype(np.float64), np.array([[10.0, 179.0]]))
    return Posterior.from_log_mass(torch.from_numpy(-((off / 600) ** 2) / 2)[None], ground, calibration)


@given(share=st.floats(0, 1), background=st.floats(0, 0.999))
def test_told_and_seen_are_inverse_and_keep_the_ends(share: float, background: float) -> None:
    shares, own = np.array([[share, 0.0, 1.0]]), np.array([background])
    told = DOUBTING.told(shares, own, BENT)
    assert DOUBTING.seen(told, own, BENT) == pytest.approx(shares, abs=1e-9)
    assert told[0, 1:].tolist() == [0.0, 1.0]
    assert told[0, 0] >= share - 1e-12  # BENT widens
    np.testing.assert_array_equal(DOUBTING.told(shares, own, ()), shares)


def test_the_background_grows_as_a_picture_looks_less_like_any_place() -> None:
    logits = torch.tensor([40.0, 30.0, 25.0, -1000.0])
    found = DOUBTING.background_of(logits)
    assert found[:3].tolist() == pytest.approx([1 / (1 + 99 * math.exp(10 - k)) for k in (0, 10, 15)], rel=1e-4)
    assert float(found[3]) < 1  # something is always left to the picture
    assert Calibration(1.0, 0.2).background_of(logits).tolist() == pytest.approx([0.2] * 4)
    assert Calibration().background_of(logits).tolist() == [0.0] * 4


def test_a_strange_picture_is_less_sure_of_the_same_place(ground: Ground) -> None:
    logits = torch.zeros(2, len(ground))
    logits[0, 5], logits[1, 5] = 31.0, 26.0
    both = Posterior.from_logits(logits, torch.zeros(len(ground)), ground, DOUBTING)
    assert float(both.mass[0, 5]) > 0.99
    assert float(both.mass[1, 5]) == pytest.approx(1 - 1 / (1 + 99 * math.exp(-4)), abs=0.01)
    torch.testing.assert_close(both.mass.sum(dim=1), torch.ones(2))
    one = both[1]
    np.testing.assert_array_equal(one.mass.numpy(), both.mass[1:].numpy())
    np.testing.assert_array_equal(one.region_shares(), both.region_shares()[1:])


def test_a_place_is_inside_a_region_exactly_when_its_level_says_so(ground: Ground) -> None:
    posterior = peaked(ground, replace(DOUBTING, background=0.0))
    mixture = Mixture.of(posterior)
    for lat in np.linspace(10, 35, 12):
        place = np.array([[lat, -179.0]])
        level = float(posterior.region_level(place)[0])
        for share in (0.3, 0.5, 0.9):
            [edge] = mixture.levels(posterior.region_shares((share,))[0].tolist())
            if abs(level - share) > 0.01:  # on the edge itself either may be
                assert (level <= share) == bool(mixture.density(unit_vectors(place))[0] >= edge)


def test_levels_of_regions_widen_them_as_they_say(ground: Ground) -> None:
    bent, plain = (peaked(ground, replace(DOUBTING, background=0.0, region_levels=part)) for part in (BENT, ()))
    place = np.array([[14.0, 178.0]])
    assert bent.region_level(place) == pytest.approx(plain.region_level(place) ** 2, abs=0.02)
    assert bent.region_shares((0.5,)) == pytest.approx(np.array([[math.sqrt(0.5)]]), abs=1e-6)


def test_a_release_keeps_it_and_what_is_wrong_is_refused() -> None:
    assert Calibration.from_dict(DOUBTING.to_dict()) == DOUBTING
    old = {"temperature": 0.4, "background": 0.01, "width_km": 14.0, "fitted_on": "views", "pictures": 9}
    read = Calibration.from_dict(old)
    assert (read.region_levels, read.doubt, read.temperature) == ((), 0.0, 0.4)
    for wrong in ({"doubt": -1.0}, {"doubt": math.nan}, {"usual": math.inf}, {"region_levels": (0.0, 1.0)}):
        with pytest.raises(SettingsError):
            replace(DOUBTING, **wrong)
    with pytest.raises(WeightsError, match="calibration of the weights"):
        Calibration.from_dict({"region_levels": [0.5]})
