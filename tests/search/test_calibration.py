"""A calibration: shares of the mass to chances and back, the background of strange images, regions that widen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.geo.sphere import coordinates_of, destination, even_points, haversine_km, unit_vectors
from open_geoclip.search.calibration import (
    CALIBRATED_LEVELS,
    MAX_LOG_TEMPERATURE,
    P_VALUES,
    REGION_LEVEL,
    Calibration,
    conformal_scores,
    nonconformity,
)
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.mixture import Mixture
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells

BENT = tuple(
    float(level) for level in np.array(CALIBRATED_LEVELS) ** 0.5
)  # half of the truths lie within 71 % of the mass
DOUBTING = Calibration(1.0, 0.01, 10.0, "a test", 1, hpd_levels=BENT, background_slope=1.0, reference_logit=30.0)

CENTER = np.array([[10.0, 179.0]])


@pytest.fixture(scope="module")
def cells() -> GalleryCells:
    return GalleryCells.from_gallery(Gallery.from_coordinates(even_points(3000)))


def peaked(cells: GalleryCells, calibration: Calibration) -> Posterior:
    off = haversine_km(cells.coordinates.astype(np.float64), CENTER)
    return Posterior.from_log_mass(torch.from_numpy(-((off / 600) ** 2) / 2)[None], cells, calibration)


@given(share=st.floats(0, 1), background=st.floats(0, 0.999))
def test_nominal_and_calibrated_levels_are_inverse_and_keep_the_ends(share: float, background: float) -> None:
    levels, own = np.array([[share, 0.0, 1.0]]), np.array([background])
    nominal = DOUBTING.nominal_level(levels, own, hpd=True)
    assert DOUBTING.calibrated_level(nominal, own, hpd=True) == pytest.approx(levels, abs=1e-9)
    assert nominal[0, 1:].tolist() == [0.0, 1.0]
    assert nominal[0, 0] >= share - 1e-12  # BENT widens
    np.testing.assert_array_equal(DOUBTING.nominal_level(levels, own), levels)


def test_the_background_grows_as_an_image_looks_less_like_any_place() -> None:
    logits = torch.tensor([40.0, 30.0, 25.0, -1000.0])
    found = DOUBTING.background_of(logits)
    assert found[:3].tolist() == pytest.approx([1 / (1 + 99 * math.exp(10 - k)) for k in (0, 10, 15)], rel=1e-4)
    assert float(found[3]) < 1  # something is always left to the picture
    assert Calibration(1.0, 0.2).background_of(logits).tolist() == pytest.approx([0.2] * 4)
    assert Calibration().background_of(logits).tolist() == [0.0] * 4


def test_a_strange_image_is_less_sure_of_the_same_place(cells: GalleryCells) -> None:
    logits = torch.zeros(2, len(cells))
    logits[0, 5], logits[1, 5] = 31.0, 26.0
    both = Posterior.from_logits(logits, cells, DOUBTING)
    assert float(both.mass[0, 5]) > 0.99
    assert float(both.mass[1, 5]) == pytest.approx(1 - 1 / (1 + 99 * math.exp(-4)), abs=0.01)
    torch.testing.assert_close(both.mass.sum(dim=1), torch.ones(2))
    one = both[1]
    np.testing.assert_array_equal(one.mass.numpy(), both.mass[1:].numpy())
    np.testing.assert_array_equal(one.nominal_hpd_levels(), both.nominal_hpd_levels()[1:])


def test_a_place_is_inside_a_region_exactly_when_its_level_says_so(cells: GalleryCells) -> None:
    posterior = peaked(cells, replace(DOUBTING, background=0.0))
    mixture = Mixture.from_posterior(posterior)
    for lat in np.linspace(10, 35, 12):
        place = np.array([[lat, -179.0]])
        level = float(posterior.hpd_level(place)[0])
        for share in (0.3, 0.5, 0.9):
            [edge] = mixture.hpd_density(posterior.nominal_hpd_levels((share,))[0].tolist())
            if abs(level - share) > 0.01:  # on the edge itself either may be
                assert (level <= share) == bool(mixture.density(unit_vectors(place))[0] >= edge)
        assert (level <= REGION_LEVEL) == (float(posterior.hpd_position(place).outside_km[0]) == 0)


@pytest.mark.parametrize("bent", [(), BENT])
def test_a_place_outside_the_region_has_a_distance_to_its_edge(cells: GalleryCells, bent: tuple[float, ...]) -> None:
    """Of one Gaussian the region of a share is a circle; its cells are 400 km apart."""
    posterior = peaked(cells, replace(DOUBTING, background=0.0, hpd_levels=bent))
    share = float(posterior.nominal_hpd_levels((REGION_LEVEL,))[0, 0])
    sigma_km = math.hypot(600, posterior.sigma_km[0])  # of the image, and of the cells
    radius = sigma_km * math.sqrt(-2 * math.log(1 - share))
    for km in (1.5 * radius, 3 * radius, 12_000.0):
        place = destination(CENTER, 70.0, km)
        assert float(posterior.hpd_position(place).outside_km[0]) == pytest.approx(km - radius, rel=0.05, abs=100)


def test_larger_regions_come_nearer_until_they_contain_a_place(cells: GalleryCells) -> None:
    posterior = peaked(cells, replace(DOUBTING, background=0.0))
    place = destination(CENTER, 70.0, 1500.0)
    [approach] = posterior.approaches(place)
    assert len(approach.levels) > 3
    assert (np.diff(approach.levels) > 0).all()
    assert (np.diff(approach.km) < 0).all()
    mixture, [point] = Mixture.from_posterior(posterior), unit_vectors(place)
    assert approach.levels[-1] == mixture.hpd_level(point[None])[0]
    for level in (0.2, 0.5, 0.8):
        inside = mixture.samples[mixture.density(mixture.samples) > mixture.hpd_density((level,))[0]]
        nearest = haversine_km(coordinates_of(inside), place).min()
        assert approach.outside_km(level) == pytest.approx(nearest, abs=1e-3)
    assert approach.outside_km(0.0) == approach.km[0]
    assert approach.outside_km(1.0) == 0


def test_where_there_is_no_mass_distance_tells_places_apart(cells: GalleryCells) -> None:
    """A level is nearly the same 4,000 and 12,000 km off; the p-value is not."""
    posterior = peaked(cells, replace(DOUBTING, conformal_scores=(tuple(np.linspace(1, 16, len(P_VALUES))),) * 2))
    near, far = (posterior.hpd_position(destination(CENTER, 70.0, km)) for km in (4000, 12_000))
    assert far.level == pytest.approx(near.level, abs=0.001)
    p_values = [posterior.calibration.p_value(*np.ravel(at).tolist(), sure=True) or 0 for at in (near, far)]
    assert p_values[1] < 0.75 * p_values[0]


def test_levels_of_regions_widen_them_as_they_say(cells: GalleryCells) -> None:
    bent, plain = (peaked(cells, replace(DOUBTING, background=0.0, hpd_levels=part)) for part in (BENT, ()))
    place = np.array([[14.0, 178.0]])
    assert bent.hpd_level(place) == pytest.approx(plain.hpd_level(place) ** 2, abs=0.02)
    assert bent.nominal_hpd_levels((0.5,)) == pytest.approx(np.array([[math.sqrt(0.5)]]), abs=1e-6)


def test_an_image_that_resembles_its_best_place_less_is_trusted_less() -> None:
    sloped = Calibration(0.5, reference_logit=30.0, temperature_slope=0.1)
    temperature = sloped.temperature_of(torch.tensor([40.0, 30.0, 20.0, -1000.0]))
    assert temperature.tolist() == pytest.approx([0.5 * math.exp(power) for power in (-1, 0, 1, MAX_LOG_TEMPERATURE)])
    assert Calibration(0.5).temperature_of(torch.tensor([40.0, 20.0])).tolist() == [0.5, 0.5]


def test_a_release_keeps_it_and_what_is_wrong_is_refused() -> None:
    assert Calibration.from_dict(DOUBTING.to_dict()) == DOUBTING
    old = {"temperature": 0.4, "background": 0.01, "width_km": 14.0, "fitted_on": "views", "pictures": 9}
    read = Calibration.from_dict(old)
    assert (read.hpd_levels, read.sigma_km, read.n_images, read.temperature) == ((), 14.0, 9, 0.4)
    for wrong in (
        {"background_slope": -1.0},
        {"background_slope": math.nan},
        {"temperature_slope": -0.1},
        {"sure_probability": 0.0},
        {"reference_logit": math.inf},
        {"hpd_levels": (0.0, 1.0)},
    ):
        with pytest.raises(SettingsError):
            replace(DOUBTING, **wrong)
    with pytest.raises(WeightsError, match="calibration of the weights"):
        Calibration.from_dict({"hpd_levels": [0.5]})


def test_the_keys_of_older_releases_are_read() -> None:
    curve = tuple(np.linspace(0, 1, len(CALIBRATED_LEVELS)).tolist())
    old = {
        "temperature": 0.4,
        "background": 0.01,
        "width_km": 14.0,
        "fitted_on": "views",
        "pictures": 9,
        "levels": curve,
        "region_levels": curve,
        "between_levels": curve,
        "between_region_levels": curve,
        "doubt": 0.4,
        "usual": 36.0,
        "surprise": [[0.1], [0.2]],
        "least_score": 0.6,
    }
    read = Calibration.from_dict(old)
    expected = Calibration(0.4, 0.01, 14.0, "views", 9, curve, curve, curve, curve, 0.4, 36.0, (), 0.6)
    assert read == expected
    assert Calibration.from_dict(read.to_dict()) == expected


def p_value(hpd_level: float, scores: tuple[float, ...], outside_km: float = 0.0) -> float | None:
    return Calibration(conformal_scores=(scores, scores)).p_value(hpd_level, outside_km, sure=True)


@pytest.mark.parametrize("power", [1.0, 0.2, 4.0])
def test_true_places_are_rejected_as_often_as_p_values_say(power: float, rng: np.random.Generator) -> None:
    """However badly a posterior is calibrated: levels are drawn far from uniform here, and one in ten lies outside."""

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        outside = rng.exponential(100, n) * (rng.uniform(size=n) < 0.1)
        return 1 - rng.uniform(size=n) ** power, outside

    unsure, sure = conformal_scores(nonconformity(*draw(12_000)), np.arange(12_000) % 16 > 0)
    assert (len(unsure), len(sure)) == (len(P_VALUES) - 1, len(P_VALUES))
    levels, outside = draw(8_000)
    found = np.array([p_value(level, sure, km) for level, km in zip(levels, outside, strict=True)])
    for share in (0.5, 0.2, 0.05, 0.01):
        assert np.mean(found <= share) == pytest.approx(share, rel=0.35)
    assert found.min() == P_VALUES[-1], "not less than so many images can show"


def test_of_several_sources_the_highest_p_value_counts(rng: np.random.Generator) -> None:
    scores, sources = rng.exponential(size=4000), np.arange(4000) % 2
    scores[sources == 1] *= 3  # truths that lie farther out
    kinds = np.ones(4000, bool)
    _, both = conformal_scores(scores, kinds, sources)
    _, farther = conformal_scores(scores[sources == 1], kinds[sources == 1])
    assert both == farther


def test_p_values_fall_as_a_place_lies_further_out(rng: np.random.Generator) -> None:
    _, sure = conformal_scores(rng.exponential(size=500), np.ones(500, bool))
    found = [p_value(level, sure) or 0.0 for level in np.linspace(0, 1, 200)]
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)
    found = [p_value(0.5, sure, km) or 0.0 for km in (0, 1, 25, 100, 1000)]
    assert found == sorted(set(found), reverse=True)


def test_few_images_show_little() -> None:
    unsure, sure = conformal_scores(np.array([0.2, 2.0, 0.7]), np.array([False, True, True]))
    assert p_value(1.0, sure) == 0.5  # of 2 images: nothing below a third can be shown, and 0.5 is the next value
    assert p_value(1.0, unsure) == 0.5
    assert conformal_scores(np.array([0.5]), np.array([True]))[0] == ()
    assert Calibration().p_value(1.0, 0.0, sure=True) is None


def test_conformal_scores_are_stored_and_checked() -> None:
    calibration = Calibration(0.5, fitted_on="x", conformal_scores=((), (0.1, 6.0)), min_score=0.25)
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    for wrong in ((0.5,), ((0.6, 0.1), ()), ((0.1,) * 99, ()), ((-0.1,), ()), ((float("inf"),), ())):
        with pytest.raises((SettingsError, TypeError)):
            Calibration(conformal_scores=wrong)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="conformal_scores"):
        Calibration.from_dict({"conformal_scores": [[0.6, 0.1], []]})


def test_p_values_of_earlier_versions_which_were_of_levels_alone_are_not_known() -> None:
    for former in ("surprise", "conformal_levels"):
        read = Calibration.from_dict({"fitted_on": "x", former: [[0.1], [0.2]]})
        assert (read.fitted_on, read.conformal_scores) == ("x", ())
