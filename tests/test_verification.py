"""A place held against a posterior: the level is that of the calibrated posterior, and what cannot be told is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from open_geoclip.geo.sphere import destination, even_points, haversine_km
from open_geoclip.metadata.read import PhotoPlace
from open_geoclip.search.answer import Answer, Candidate
from open_geoclip.search.calibration import CALIBRATED_LEVELS, Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.verification import Comparison, compare

BENT = tuple(float(level) for level in np.array(CALIBRATED_LEVELS) ** 0.5)
SCORES = ((0.7, 2.3, 3.0), (0.1, 0.7, 2.3, 3.0, 3.5, 3.9, 4.6, 4.7, 5.0, 5.3, 6.9))
CALIBRATION = Calibration(
    1.0,
    0.01,
    10.0,
    "a test",
    1000,
    hpd_levels=BENT,
    background_slope=1.0,
    reference_logit=30.0,
    conformal_scores=SCORES,
    min_score=0.5,
)
HERE = np.array([[10.0, 20.0]])
ANSWER = Answer("a.jpg", "m", "g", "v", (Candidate(10.0, 20.0, 0.9, 0.9, 50.0),), sure=True)


@pytest.fixture(scope="module")
def cells() -> GalleryCells:
    return GalleryCells.from_gallery(Gallery.from_coordinates(even_points(3000)))


def looking(cells: GalleryCells, best_logit: float = 30.0, calibration: Calibration = CALIBRATION) -> Posterior:
    """An image that looks like one place, and less so the further off."""
    off = haversine_km(cells.coordinates.astype(np.float64), HERE)
    logits = torch.from_numpy(best_logit - (off / 300) ** 2 / 2).float()[None]
    return Posterior.from_logits(logits, cells, calibration)


def place(km: float = 0.0, accuracy_m: float | None = None) -> PhotoPlace:
    [[lat, lon]] = destination(HERE, 60.0, km).tolist()
    return PhotoPlace(lat, lon, "exif", accuracy_m)


def figures(posterior: Posterior, there: PhotoPlace) -> Comparison:
    found = compare(posterior, there, ANSWER).comparison
    assert found is not None
    return found


def test_further_off_is_more_surprising(cells: GalleryCells) -> None:
    found = [compare(looking(cells), place(km), ANSWER) for km in (0, 300, 900, 6000)]
    assert [one.verdict for one in found][::3] == ["consistent", "contradicts"]
    all_of_them = [one.comparison for one in found if one.comparison is not None]
    assert [one.p_value or 0 for one in all_of_them] == sorted((one.p_value or 0 for one in all_of_them), reverse=True)
    assert [round(one.distance_km) for one in all_of_them] == [0, 300, 900, 6000]
    assert all_of_them[0].within_km["750"] > 0.9 > 0.1 > all_of_them[3].within_km["750"]


def test_the_level_is_that_of_the_whole_posterior(cells: GalleryCells) -> None:
    """A strange image has a background of its own, without which a place would seem further out than it is."""
    for best in (30.0, 27.0):
        posterior = looking(cells, best)
        there = place(900)
        expected = float(posterior.hpd_level(np.array([[there.lat, there.lon]]))[0])
        assert figures(posterior, there).hpd_level == expected
    usual, strange = (figures(looking(cells, best), place(900)).p_value for best in (30.0, 25.0))
    assert usual is not None
    assert strange is not None
    assert strange > usual


def test_a_place_gets_what_its_own_accuracy_allows(cells: GalleryCells) -> None:
    sharp, coarse = (figures(looking(cells), place(900, accuracy_m=m)) for m in (5, 1_000_000))
    assert coarse.hpd_level < sharp.hpd_level
    assert coarse.distance_km == sharp.distance_km


def test_what_cannot_be_told(cells: GalleryCells) -> None:
    whole = looking(cells)
    for there, answer, calibration, why in (
        (PhotoPlace(0.0, 0.0, "exif"), ANSWER, CALIBRATION, "0, 0"),
        (replace(place(), no_fix=True), ANSWER, CALIBRATION, "without a fix"),
        (place(), replace(ANSWER, sure=None), CALIBRATION, "not calibrated"),
        (place(), ANSWER, replace(CALIBRATION, conformal_scores=()), "not calibrated"),
        (place(), replace(ANSWER, sure=False, in_distribution=False), CALIBRATION, "unlike the a test"),
        (place(), ANSWER, replace(CALIBRATION, conformal_scores=(SCORES[0], ())), "too few validation images"),
    ):
        found = compare(replace(whole, calibration=calibration), there, answer)
        assert found.comparison is not None
        assert (found.verdict, found.comparison.p_value) == ("cannot tell", None)
        assert why in str(found.reason)
        one = found.comparison
        assert np.isfinite([one.hpd_level, one.outside_km, one.distance_km, *one.within_km.values()]).all()


def test_a_gallery_that_does_not_reach_there() -> None:
    points = even_points(3000)
    north = GalleryCells.from_gallery(Gallery.from_coordinates(points[points[:, 0] > 0]))
    found = compare(looking(north), PhotoPlace(-60.0, 20.0, "exif"), ANSWER)
    assert found.verdict == "cannot tell"
    assert "the gallery has no place within" in str(found.reason)
