"""Several images together: weights of evidence, and trips held against every trip there is."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.encode import EncodedBatch
from open_geoclip.search.query import Query
from open_geoclip.search.trips import TripPosterior, evidence_weights, trip_posterior, trip_weights


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def pool_embeddings(vectors: torch.Tensor) -> torch.Tensor:
    return Query.from_place(EncodedBatch.from_embeddings(vectors), Calibration()).encoded.embeddings[0].double()


def test_copies_count_as_one_and_strangers_in_full() -> None:
    a, b, c = torch.eye(3)
    assert evidence_weights(torch.stack([a, b, c])).tolist() == [1, 1, 1]
    torch.testing.assert_close(
        evidence_weights(torch.stack([a, a, 2 * a, b])), torch.tensor([1 / 3] * 3 + [1.0]).double()
    )
    assert evidence_weights(torch.stack([a, -a])).tolist() == [1, 1]
    near = unit(torch.stack([a, a + 0.1 * b]))
    weights = evidence_weights(near)
    assert ((weights > 0.5) & (weights < 0.52)).all()
    assert evidence_weights(near, 0).tolist() == [0.5, 0.5]
    with pytest.raises(SettingsError, match="power"):
        evidence_weights(near, -1)


def test_a_burst_counts_as_one_image_and_images_hours_apart_in_full() -> None:
    a, b = torch.eye(2)
    burst = trip_weights(torch.stack([a, a, a, b]), np.array([0.0, 0.01, 0.02, 9.0]), 900.0)
    torch.testing.assert_close(burst, torch.tensor([1 / 3] * 3 + [1.0]).double())


@given(st.integers(1, 5), st.integers(0, 100))
def test_a_copy_of_the_whole_set_changes_nothing(n: int, seed: int) -> None:
    vectors = unit(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)))
    torch.testing.assert_close(pool_embeddings(vectors.repeat(2, 1)), pool_embeddings(vectors))
    torch.testing.assert_close(pool_embeddings(vectors[:1]), vectors[0].double())


def test_together_the_best_logit_is_compared_with_that_of_a_single_image() -> None:
    single = Calibration(background_slope=0.4, temperature_slope=0.1, reference_logit=30.0)
    embeddings = torch.eye(3)
    query = Query.from_place(EncodedBatch(["a", "b", "c"], [None] * 3, [None] * 3, embeddings), single)
    best = torch.tensor([20.0, 30.0, 35.0])
    together = best * evidence_weights(embeddings).sum().float()
    torch.testing.assert_close(query.calibration.temperature_of(together), single.temperature_of(best))
    torch.testing.assert_close(query.calibration.background_of(together), single.background_of(best))


def test_together_is_the_weighted_product_of_evidence() -> None:
    vectors, places = unit(torch.randn(4, 16)), unit(torch.randn(50, 16)).double()
    alone = torch.log_softmax(20 * vectors.double() @ places.T, dim=1)
    product = (evidence_weights(vectors)[:, None] * alone).sum(dim=0)
    torch.testing.assert_close(
        torch.log_softmax(20 * places @ pool_embeddings(vectors), 0), torch.log_softmax(product, 0)
    )


def trip_of(
    log_mass: torch.Tensor, places: np.ndarray, times_h: np.ndarray, **limits: float
) -> tuple[torch.Tensor, TripPosterior]:
    trip = trip_posterior(log_mass.__getitem__, places, times_h, **limits)
    return trip.part(slice(None), torch.arange(len(places)))[1], trip


def every_trip(log_mass: np.ndarray, places: np.ndarray, reach_km: np.ndarray) -> tuple[np.ndarray, float]:
    """Marginals and evidence by going through all trips."""
    n, m = log_mass.shape
    apart = haversine_km(places[:, None], places[None])
    total = np.zeros((n, m))
    for trip in itertools.product(range(m), repeat=n):
        if all(apart[a, b] <= reach for (a, b), reach in zip(itertools.pairwise(trip), reach_km, strict=True)):
            weight = math.exp(sum(log_mass[i, x] for i, x in enumerate(trip)))
            for i, x in enumerate(trip):
                total[i, x] += weight
    return total / total[0].sum(), math.log(total[0].sum())


@pytest.mark.parametrize("seed", range(4))
def test_a_trip_is_the_sum_over_all_trips(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = even_points(9)
    log_mass = torch.log_softmax(3 * torch.from_numpy(rng.normal(size=(4, 9))), dim=1)
    times = np.array([5.0, 0.0, 9.0, 2.0])
    found, trip = trip_of(log_mass, places, times, speed_kmh=1500, slack_km=200)
    order = np.argsort(times)
    expected, evidence = every_trip(log_mass.numpy()[order], places, np.diff(times[order]) * 1500 + 200)
    np.testing.assert_allclose(found.exp().numpy()[order], expected, atol=1e-9)
    assert trip.log_evidence == pytest.approx(evidence)


def test_places_left_out_are_bounded() -> None:
    places = np.concatenate([even_points(300), [[48.85, 2.35], [-33.9, 151.2]]])
    alone = torch.full((2, 302), -14.0, dtype=torch.float64)
    alone[0, 300], alone[1, 301] = 4.0, 4.0  # Paris, and an hour later Sydney
    found, trip = trip_of(alone, places, np.array([0.0, 1.0]), speed_kmh=900, slack_km=100)
    alone = torch.log_softmax(alone, dim=1)
    reach = np.array([1000.0])
    expected, evidence = every_trip(alone.numpy(), places, reach)
    assert evidence < -10
    assert 0 <= trip.log_evidence - evidence <= 1.01 * trip.truncation_error
    np.testing.assert_allclose(found.exp().numpy(), expected, atol=2e-3)
    assert trip.truncation_error <= 1e-3
    found, free = trip_of(alone, places, np.array([0.0, 48.0]), speed_kmh=900)
    np.testing.assert_allclose(found.exp(), alone.exp(), atol=1e-6)
    assert free.log_evidence == pytest.approx(0, abs=1e-3)


def test_images_of_one_moment_are_of_one_place_across_180_degrees_and_at_the_pole() -> None:
    places = np.array([[0.0, 179.9], [0.0, -179.9], [0.0, 170.0], [89.9, 0.0], [89.9, 180.0]])
    mass = torch.log(torch.tensor([[0.4, 0.1, 0.1, 0.2, 0.2], [0.05, 0.45, 0.2, 0.1, 0.2]], dtype=torch.float64))
    still = trip_of(mass, places, np.array([3.0, 3.0]), speed_kmh=1000)[0].exp()
    product = (mass[0] + mass[1]).softmax(0)
    torch.testing.assert_close(still, product.expand(2, -1))
    walk = trip_of(mass, places, np.array([3.0, 3.1]), speed_kmh=400)[0].exp()
    assert walk[0, 0] > still[0, 0]  # 22 km over the 180th meridian
    assert walk[0, 2] < 0.1


def test_what_a_trip_cannot_be_made_of() -> None:
    mass, places = torch.zeros(2, 3), even_points(3)
    with pytest.raises(SettingsError, match="speed"):
        trip_of(mass, places, np.array([0.0, 1.0]), speed_kmh=-1)
    with pytest.raises(SettingsError, match="time"):
        trip_of(mass, places, np.array([0.0, np.nan]), speed_kmh=1)


def test_trips_over_a_large_gallery_leave_out_what_does_not_matter() -> None:
    places = even_points(50_000)
    centres = np.array([[48.85, 2.35], [50.85, 4.35], [52.4, 4.9]])
    alone = torch.from_numpy(-haversine_km(centres[:, None], places[None]) / 60)
    found, trip = trip_of(alone, places, np.array([0.0, 2.0, 4.0]), speed_kmh=120, slack_km=50)
    assert trip.truncation_error < 1e-3
    best = places[found.argmax(dim=1).numpy()]
    assert haversine_km(best, centres).max() < 150
    assert max(map(len, trip.rows)) < 5_000


def test_omitted_places_change_no_probability_by_more_than_the_bound() -> None:
    """Images of places far apart, that a trip must leave, with a background: against a chain over all places."""
    rng, n = np.random.default_rng(3), 9
    places = even_points(1500)
    centres = np.array(
        [[48.85, 2.35], [50.85, 4.35], [35.7, 139.7], [48, 8], [45, 9], [41, 12], [-33, 18], [38, 15], [37, 22]]
    )
    near = torch.from_numpy(np.exp(-((haversine_km(centres[:, None], places[None]) / 200) ** 2)))
    mass = 0.99 * near / near.sum(dim=1, keepdim=True) + 0.01 / len(places)
    times = np.cumsum(rng.exponential(2.0, n))
    found, trip = trip_of(mass.log(), places, times, speed_kmh=900, slack_km=200)
    apart, travel = torch.from_numpy(haversine_km(places[:, None], places[None])), np.diff(times) * 900 + 200
    forward, backward = [mass[0]], [torch.ones(len(places)).double()]
    for i in range(n - 1):
        forward.append(mass[i + 1] * ((apart <= travel[i]).double() @ forward[-1]))
    for i in reversed(range(n - 1)):
        backward.append((apart <= travel[i]).double() @ (mass[i + 1] * backward[-1]))
    exact = torch.stack(forward) * torch.stack(backward[::-1])
    evidence = exact[0].sum()
    assert 0 < trip.truncation_error <= 1e-3
    assert max(map(len, trip.rows)) < 1000
    assert float((found.exp() - exact / evidence).abs().max()) < trip.truncation_error
    assert 0 <= trip.log_evidence - float(evidence.log()) <= 1.01 * trip.truncation_error
