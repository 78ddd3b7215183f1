"""The embedded model with its own gallery and calibration: sure of views of the Earth, and of nothing else."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from open_geoclip import Locator
from open_geoclip.data.earth_views import views
from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import even_points
from open_geoclip.search.calibration import P_VALUES, Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from research.out_of_distribution import out_of_distribution_images


@pytest.mark.slow
def test_the_embedded_model_is_sure_of_its_own_views_alone(earth: Locator) -> None:
    [batch] = views("test", 96)
    told = earth.locate(list(batch.images), 1)
    assert np.mean([answer.sure for answer in told]) >= 0.8
    strange = out_of_distribution_images()
    for kind in ("uniform grey", "noise", "drawn pattern"):
        assert [answer.sure for answer in earth.locate(strange[kind], 1)] == [False] * len(strange[kind])


def test_out_of_distribution_images_are_the_same_each_time_and_differ() -> None:
    pictures, again = out_of_distribution_images(), out_of_distribution_images()
    assert list(pictures) == list(again)
    seen = [picture.tobytes() for part in pictures.values() for picture in part]
    assert seen == [picture.tobytes() for part in again.values() for picture in part]
    assert len(set(seen)) == len(seen) > 30
    assert {picture.mode for part in pictures.values() for picture in part} == {"RGB"}


def test_who_looks_unlike_the_calibrations_images_is_never_sure() -> None:
    cells = GalleryCells.from_gallery(Gallery.from_coordinates(even_points(500)))
    cells = replace(cells, area_km2=np.full(500, 100.0))  # places of a hundred square kilometres
    calibration = Calibration(1.0, fitted_on="a test", n_images=1, min_score=0.5)
    logits = torch.zeros(2, 500)
    logits[0, 7], logits[1, 7] = 25.0, 19.0  # cosines 0.625 and 0.475
    places = cells.coordinates[[7, 7]].astype(np.float64)
    both = Posterior.from_logits(logits, cells, calibration, scale=40.0)
    assert (both.profile(places).within((200.0,)) > 0.99).all()
    assert both.is_sure(both.profile(places)) == [True, False]
    assert both[1].is_sure(both[1].profile(places[:1])) == [False]
    unknown = Posterior.from_logits(logits, cells, calibration)
    assert unknown.is_sure(unknown.profile(places)) == [True, True]  # without the scale nobody can tell


def test_features_far_from_those_of_training_images_leave_nothing_but_the_prior() -> None:
    cells = GalleryCells.from_gallery(Gallery.from_coordinates(even_points(500)))
    distances = tuple(0.1 * step for step in range(len(P_VALUES)))
    calibration = Calibration(1.0, 0.01, fitted_on="a test", n_images=1, background_slope=0.1, distances=distances)
    logits = torch.zeros(3, 500)
    logits[:, 7] = 25.0
    given = torch.tensor([-1.0, distances[P_VALUES.index(0.01)], 9.0])
    p = calibration.distance_p_value(given)
    assert p.tolist()[:2] == pytest.approx([1, 0.01])
    assert 0 < p[2] < 1e-9
    for wrong in ((*distances, 9.0), (*distances[:5], math.nan), distances[:5], distances[::-1]):
        with pytest.raises(SettingsError, match="6 to 16 numbers that increase"):
            replace(calibration, distances=wrong)
    posterior = Posterior.from_logits(logits, cells, calibration, scale=40.0, distances=given)
    assert posterior.is_in_distribution is not None
    assert posterior.is_in_distribution.tolist() == [True, True, False]
    assert posterior.mass[:, 7].tolist() == pytest.approx([0.99, 0.99, 0.003], abs=0.01)
    assert posterior.is_sure(posterior.profile(cells.coordinates[[7, 7, 7]].astype(np.float64)))[2] is False
    limited = Posterior.from_logits(logits, cells, replace(calibration, fitted_on=None), scale=40.0, distances=given)
    assert limited.is_in_distribution is not None
    assert limited.is_in_distribution.tolist() == [True, True, False]  # the gallery makes no difference
