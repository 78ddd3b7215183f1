"""Distances to smoothed cells, against the points themselves."""

import numpy as np
import torch

from open_geoclip.geo.sphere import EARTH_RADIUS_KM, coordinates_of, haversine_km, tangent_offset, unit_vectors
from open_geoclip.search.decode import chord_km
from open_geoclip.search.smoothing import gaussian_quadrature, smoothed_chords, weighted_quantile

PLACES = np.array([[48.85, 2.35], [-17.0, 179.99], [89.999, 30.0], [90.0, 0.0], [0.0, 0.0]])


def test_distances_are_those_of_the_quadrature_points_to_a_metre() -> None:
    points = torch.from_numpy(unit_vectors(PLACES)).float().double()  # rounded, as cells are: not quite of length 1
    sigma_km = torch.tensor([0.5, 3.0, 15.0, 200.0, 0.1], dtype=torch.float64)
    for answer in (*PLACES, np.array([48.86, 2.35])):
        answers = torch.from_numpy(unit_vectors(answer[None]))
        square, mass = smoothed_chords(answers, torch.full((1, 5), 0.2), points[None], sigma_km[None])
        offset = torch.from_numpy(gaussian_quadrature()) * (sigma_km / EARTH_RADIUS_KM)[:, None, None]
        unit = torch.nn.functional.normalize(points, dim=1)[:, None]
        spots = coordinates_of(tangent_offset(unit, offset[..., 0], offset[..., 1]).flatten(0, 1))
        expected = haversine_km(spots, torch.from_numpy(answer[None]))
        torch.testing.assert_close(chord_km(square[0].sqrt()), expected, rtol=1e-6, atol=1e-3)
        assert float(mass.sum()) == np.float32(0.2) * 5


def test_a_weighted_quantile_is_the_value_that_reaches_the_level() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert weighted_quantile(values, weights, 0.6).tolist() == [2.0, 3.0]
    assert weighted_quantile(values, weights, 0.5).tolist() == [1.0, 3.0]
