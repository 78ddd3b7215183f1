"""The classification baseline: cells that hold few enough photos, and a classifier that learns them."""

import numpy as np
import pytest
import torch

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import even_points, haversine_km, unit_vectors
from open_geoclip.training.batches import FeatureSet
from research.cells import CellSettings, Partition, train_cells


@pytest.fixture(scope="module")
def places() -> torch.Tensor:
    """Half of them crowded into one region, as photos are."""
    spread = even_points(1000)
    crowd = np.stack([np.linspace(40, 50, 1000), np.linspace(0, 10, 1000) ** 1.3 % 10], axis=1)
    return torch.from_numpy(np.concatenate([spread, crowd]))


def test_no_cell_holds_too_many_and_crowded_places_have_smaller_ones(places: torch.Tensor) -> None:
    partition = Partition.of(places, 20)
    counts = torch.bincount(partition.labels)
    assert counts.min() >= 1
    assert counts.max() <= 20
    reach = torch.zeros(len(counts), dtype=torch.float64)
    km = haversine_km(places, partition.centroids[partition.labels])
    reach.scatter_reduce_(0, partition.labels, km, "amax")
    assert reach[partition.labels[1000:]].median() < reach[partition.labels[:1000]].median() / 3


def test_fine_cells_lie_within_coarse_ones(places: torch.Tensor) -> None:
    fine, coarse = Partition.of(places, 10), Partition.of(places, 100)
    for cell in range(len(fine.centroids)):
        assert len(coarse.labels[fine.labels == cell].unique()) == 1


def test_a_place_many_times_over_is_one_cell() -> None:
    partition = Partition.of(torch.tensor([[48.0, 2.0]] * 50 + [[-30.0, 140.0]], dtype=torch.float64), 10)
    assert len(partition.centroids) == 2
    torch.testing.assert_close(partition.centroids[partition.labels[0]], torch.tensor([48.0, 2.0], dtype=torch.float64))


def test_learns_what_can_be_learned(places: torch.Tensor) -> None:
    """Features that are the place itself: the answer is as near as cells allow."""
    features = torch.cat([unit_vectors(places), torch.sin(8 * unit_vectors(places))], dim=1).half()
    data = FeatureSet(features, places)
    heard: list[dict[str, float]] = []
    model = train_cells(data, CellSettings(most=(200, 50), hidden=64, epochs=30, batch_size=128), heard.append)
    km = haversine_km(model.places(features), places)
    ceiling = haversine_km(Partition.of(places, 50).centroids[Partition.of(places, 50).labels], places)
    assert km.median() < 2.5 * ceiling.median()
    assert heard[-1]["loss"] < heard[0]["loss"] / 2
    again = train_cells(data, CellSettings(most=(200, 50), hidden=64, epochs=30, batch_size=128))
    torch.testing.assert_close(again.places(features), model.places(features), rtol=0, atol=0)


@pytest.mark.parametrize("most", [(), (0,), (10, 100), (50, 50)])
def test_partitions_run_from_coarse_to_fine(most: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="most"):
        CellSettings(most=most)
