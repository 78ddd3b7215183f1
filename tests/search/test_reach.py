"""Mass within reach, held against every pair of places."""

import numpy as np
import pytest
import torch

from open_geoclip.geo.sphere import even_points, haversine_km, unit_vectors
from open_geoclip.search.reach import PlaceBlocks


@pytest.mark.parametrize("travel_km", [0.0, 0.2, 40.0, 900.0, 5400.0, 9000.0, 16_000.0, 19_950.0, 20_010.0, 30_000.0])
@pytest.mark.parametrize("radius_km", [(0.0, 0.0), (0.05, 40.0), (5.0, 3000.0)])
def test_blocks_find_the_pairs_within_reach(travel_km: float, radius_km: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    city = rng.normal((48.85, 2.35), 0.01, (150, 2))
    places = np.concatenate([even_points(500), city, -even_points(37), [[90, 0], [-90, 0], [0, 180], [0, -180]]])
    ends = np.concatenate([city[:70], even_points(131), [[48.85, 2.35]]])
    radii = [rng.uniform(*radius_km, len(part)) for part in (places, ends)]
    mass = rng.exponential(size=len(places)) ** 4
    mass[rng.choice(len(mass), 300, replace=False)] = 0
    mass[-40:-4] = 0
    reach = travel_km + radii[0] + radii[1][:, None]
    expected = np.where(haversine_km(ends[:, None], places[None]) <= reach + 1e-9, mass, 0).sum(axis=1)
    start, end = (
        PlaceBlocks.build(torch.from_numpy(unit_vectors(part)), torch.from_numpy(radius))
        for part, radius in zip((places, ends), radii, strict=True)
    )
    found = start.mass_within(torch.from_numpy(mass), end, travel_km)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 33])
def test_few_places(n: int) -> None:
    blocks = PlaceBlocks.build(torch.from_numpy(unit_vectors(even_points(n))), torch.zeros(n, dtype=torch.float64))
    assert blocks.mass_within(torch.arange(n).double(), blocks, 0.0).tolist() == list(range(n))
