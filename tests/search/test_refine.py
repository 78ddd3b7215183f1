"""Refinement finds what lies between the places of a gallery, anywhere on the sphere."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.areas import Area, Circle
from open_geoclip.geo.sphere import destination, even_points, haversine_km, offset
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.refine import LocalSearch, RefineSettings, RingCache, encode_cosines, local_search
from open_geoclip.weights.load import load_model

SPACING_KM = 500.0


@pytest.fixture(scope="module")
def earth() -> LocationEncoder:
    return LocationEncoder.from_pretrained("earth")


@pytest.fixture(scope="module")
def gallery() -> Tensor:
    """2,000 places, even over the whole sphere: about 500 km apart."""
    return torch.from_numpy(even_points(2000))


def spacing_km(places: np.ndarray) -> np.ndarray:
    return GalleryCells.from_gallery(Gallery.from_coordinates(places)).spacing_km


def found(encoder: LocationEncoder, vectors: Tensor, gallery: Tensor, k: int = 16) -> LocalSearch:
    rows = (vectors @ encoder.encode(gallery.float()).T).topk(k, dim=1).indices
    return local_search(RingCache(encoder, gallery.numpy(), spacing_km(gallery.numpy())), vectors, rows)


PLACES = torch.tensor(
    [[47.3, 8.5], [89.97, 12.0], [-89.9, -100.0], [-16.9, 179.98], [-16.9, -179.97], [0.0, 0.0], [70.0, 180.0]],
    dtype=torch.float64,
)


def test_a_place_is_found_again_from_its_own_embedding_at_poles_and_over_180_degrees(
    earth: LocationEncoder, gallery: Tensor
) -> None:
    result = found(earth, earth.encode(PLACES.float()), gallery)
    assert haversine_km(result.coordinates, PLACES).max() < 3
    assert result.cosines.min() > 0.999
    assert (result.coordinates.abs() <= torch.tensor([90, 180])).all()


def test_a_local_search_goes_over_the_pole_and_over_180_degrees(earth: LocationEncoder) -> None:
    target = torch.tensor([[89.8, 10.0], [5.0, -179.9], [-89.8, 0.0]], dtype=torch.float64)
    start = torch.tensor([[89.8, -170.0], [5.0, 179.9], [-89.8, 180.0]], dtype=torch.float64)
    rings = RingCache(earth, start.numpy(), np.full(3, 60.0))
    result = local_search(rings, earth.encode(target.float()), torch.arange(3)[:, None])
    assert haversine_km(start, target).min() > 20
    assert haversine_km(result.coordinates, target).max() < 2


def test_what_refinement_promises(earth: LocationEncoder, gallery: Tensor) -> None:
    vectors = F.normalize(earth.encode(PLACES.float()) + 0.05 * torch.randn(len(PLACES), 512), dim=1)
    result = found(earth, vectors, gallery)
    starts = encode_cosines(earth, vectors, result.places[:, :16])
    torch.testing.assert_close(starts, result.place_cosines[:, :16])
    assert (result.cosines >= starts.max(dim=1).values).all()
    at_best = encode_cosines(earth, vectors, result.coordinates[:, None])[:, 0]
    torch.testing.assert_close(at_best, result.cosines, atol=1e-5, rtol=0)
    # Each start's weight is shared out, not lost or doubled, so that sums over places stay sums over areas.
    total = torch.zeros(len(PLACES), 16, dtype=torch.float64).scatter_add(1, result.place_starts, result.place_shares)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_images_do_not_disturb_one_another(earth: LocationEncoder, gallery: Tensor) -> None:
    vectors = earth.encode(PLACES[:3].float())
    together = found(earth, vectors, gallery)
    for row in range(3):
        alone = found(earth, vectors[row : row + 1], gallery)
        assert haversine_km(alone.coordinates[0], together.coordinates[row]) < 0.5


@pytest.mark.parametrize("max_rings", [0, 5, 2000])
def test_rings_that_are_kept_change_no_answer(earth: LocationEncoder, gallery: Tensor, max_rings: int) -> None:
    vectors = earth.encode(PLACES.float())
    rows = (vectors @ earth.encode(gallery.float()).T).topk(16, dim=1).indices
    rings = RingCache(earth, gallery.numpy(), spacing_km(gallery.numpy()), max_rings=max_rings)
    plain = found(earth, vectors, gallery)
    for _ in range(2):  # encoded, then kept
        again = local_search(rings, vectors, rows)
        torch.testing.assert_close(again.places, plain.places)
        torch.testing.assert_close(again.place_cosines, plain.place_cosines, atol=1e-5, rtol=0)


def test_threads_share_rings() -> None:
    """Each took the rows that another one was about to fill: some rings were those of other places, from then on."""
    settings = LocationSettings(sigmas=(0.5,), features=8, width=8, depth=1, output=8, projection="sphere")
    encoder, places = LocationEncoder(settings).eval(), even_points(400)
    alone, shared = (RingCache(encoder, places, np.full(400, 800.0)) for _ in range(2))
    vectors, parts = torch.eye(8)[:1], torch.arange(400).view(-1, 1, 2)
    expected = [alone.cosines(vectors, rows) for rows in parts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(shared.cosines, vectors), parts))
    found += [shared.cosines(vectors, rows) for rows in parts]
    for one, other in zip(found, expected * 2, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_answers_stay_inside_limits(earth: LocationEncoder, gallery: Tensor) -> None:
    centre = np.array([[47.3, 8.5]])
    area = Area((Circle(47.3, 8.5, 400),), (Circle(47.3, 8.5, 50),))
    rings = RingCache(earth, destination(centre, 90.0, 200.0), np.full(1, SPACING_KM))
    vectors = earth.encode(torch.from_numpy(centre).float())
    result = local_search(rings, vectors, torch.zeros(1, 1, dtype=torch.int64), allowed=area.contains)
    assert 50 < haversine_km(result.coordinates.numpy(), centre)[0] < 60
    assert area.contains(result.places[0][result.place_cosines[0].isfinite()].numpy()).all()
    assert float(result.place_shares.sum()) == pytest.approx(1)
    assert (result.place_shares[~result.place_cosines.isfinite()] == 0).all()


def test_the_released_tower_from_2000_places_of_its_gallery(rng: np.random.Generator) -> None:
    from open_geoclip.weights.load import load_release

    release = load_release("geoclip")
    assert release.gallery is not None
    encoder, places = load_model(release, towers=()).location_encoder, Gallery.from_file(release.gallery).coordinates
    rows = rng.permutation(len(places))
    coarse = torch.from_numpy(places[rows[:2000]].astype(np.float64))
    others = offset(torch.from_numpy(places[rows[2000:2060]].astype(np.float64)), 3000.0, -4000.0)
    truth = others[haversine_km(others[:, None], coarse[None]).min(dim=1).values > 20][:4]
    located = encoder.encode(truth.float())
    vectors = F.normalize(located + F.normalize(torch.randn_like(located), dim=1), dim=1)  # as much noise as place
    plain = coarse[(vectors @ encoder.encode(coarse.float()).T).argmax(dim=1)]
    refined = found(encoder, vectors, coarse, 32).coordinates
    assert haversine_km(plain, truth).min() > 20
    assert haversine_km(refined, truth).median() < 1


def test_spacing_is_the_distance_between_places() -> None:
    assert np.median(spacing_km(even_points(2000))) == pytest.approx(SPACING_KM, rel=0.15)
    street = offset(np.array([[48.86, 2.29]]), np.arange(10.0) * 50, 0.0)
    assert spacing_km(street).tolist() == [2.0] * 10  # the least that is searched around
    assert spacing_km(street[:2]).tolist() == [2000.0] * 2  # hardly a gallery: search far


@pytest.mark.parametrize("wrong", [{"beam": ()}, {"beam": (2, 0)}, {"reach": 1.5}, {"shrink": 1.0}, {"finish_km": 0.0}])
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        RefineSettings(**wrong)  # type: ignore[arg-type]
