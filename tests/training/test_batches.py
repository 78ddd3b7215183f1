"""The order in which features are given to the training loop."""

import numpy as np
import pytest
import torch

from open_geoclip.errors import CoordinateError, DataError
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.training.batches import BatchRequest, FeatureSet, batch_order, neighborhoods

PLACES = torch.from_numpy(even_points(3000))
DATA = FeatureSet(torch.arange(3000.0)[:, None].half(), PLACES, neighborhood=50)


def rows(data: FeatureSet, request: BatchRequest) -> torch.Tensor:
    """Which images each batch holds, (batches, size)."""
    number = {tuple(place): row for row, place in enumerate(PLACES.tolist())}
    return torch.tensor([[number[tuple(p)] for p in batch.coordinates.tolist()] for batch in data.batches(request)])


def test_neighborhoods_are_small_and_hold_each_image_once() -> None:
    groups = neighborhoods(PLACES, 50, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(groups).tolist()) == list(range(3000))
    assert all(25 <= len(group) <= 50 for group in groups)
    # Compact groups would be 3,300 km wide, these are longer; groups drawn by chance are as wide as the Earth.
    widths = [haversine_km(PLACES[g][:, None], PLACES[g][None]).max().item() for g in groups]
    assert torch.tensor(widths).median() < 6000


@pytest.mark.parametrize("size", [400, 401])
def test_half_of_each_batch_are_neighbours(size: int) -> None:
    request = BatchRequest(epoch=1, seed=0, size=size)
    found = rows(DATA, request)
    assert found.shape == (3000 // size, size)
    assert len(found.flatten().unique()) == found.numel(), "each picture once in an epoch"
    for batch in found:
        near, rest = PLACES[batch[: size // 2]], PLACES[batch[size // 2 :]]
        gap = [haversine_km(p[:, None], p[None]).fill_diagonal_(torch.inf).amin(dim=1).median() for p in (near, rest)]
        assert gap[0] < 410, "the next place of all 3,000 is about 390 km away"
        assert gap[1] > 1.3 * gap[0]
    assert not torch.equal(found, rows(DATA, BatchRequest(epoch=2, seed=0, size=size)))


def test_it_is_taken_up_in_the_middle_and_shared_out() -> None:
    data = DATA
    whole = rows(data, BatchRequest(epoch=0, seed=3, size=400))
    assert torch.equal(rows(data, BatchRequest(epoch=0, seed=3, size=400, position=4)), whole[4:])
    halves = [rows(data, BatchRequest(epoch=0, seed=3, size=400, rank=rank, world=2)) for rank in range(2)]
    assert torch.equal(torch.cat(halves, dim=1), whole)


def test_numpy_arrays_and_mistakes_in_them() -> None:
    features, places = np.zeros((3, 4), np.float32), np.array([[48.9, 2.3], [10.0, 139.0], [0.0, -179.0]])
    data = FeatureSet(features, places)
    assert data.coordinates.dtype == torch.float64
    assert len(data.first(2)) == 2
    with pytest.raises(CoordinateError, match=r"row 0.*looks like \(lon, lat\)"):
        FeatureSet(features, places[1:2, ::-1].repeat(3, axis=0))
    with pytest.raises(DataError, match="3 features and 2 coordinates"):
        FeatureSet(features, places[:2])
    with pytest.raises(DataError, match="must be"):
        FeatureSet(features.astype(int), places)
    features[1, 2] = np.nan
    with pytest.raises(DataError, match="row 1 of the features holds NaN"):
        FeatureSet(features, places)


def test_an_order_holds_every_image_also_behind_the_last_whole_batch() -> None:
    order = batch_order(PLACES[:1000], 300, 40, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(1000))
