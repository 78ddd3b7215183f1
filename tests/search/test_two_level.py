"""Search in two levels: the posterior of one level, but for groups that were not opened."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from open_geoclip.errors import SettingsError
from open_geoclip.evaluation.calibrate import calibrate
from open_geoclip.evaluation.evidence import fit_index
from open_geoclip.evaluation.labelled import Labelled
from open_geoclip.geo.areas import Area
from open_geoclip.geo.sphere import even_points
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search import two_level
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.encode import EncodedBatch
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.locator import Locator
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.photo_records import IndexRecords
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.query import Query
from open_geoclip.search.search_space import SearchSpace

SETTINGS = LocationSettings(sigmas=(0.5, 1.0), features=32, width=32, depth=1, output=24, projection="sphere")
CALIBRATION = Calibration(temperature=0.2, background=0.01)
SCALE = 30.0


@pytest.fixture(scope="module")
def encoder() -> LocationEncoder:
    torch.manual_seed(0)
    return LocationEncoder(SETTINGS).eval()


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    """Even places and a dense cluster, in random order, with weights."""
    rng = np.random.default_rng(0)
    places = np.concatenate([even_points(1000), rng.normal((48.0, 7.0), (0.5, 0.7), (500, 2))])
    return Gallery.from_coordinates(rng.permutation(places), rng.integers(1, 4, 1500).astype(np.float64), name="test")


@pytest.fixture(scope="module")
def queries(encoder: LocationEncoder, gallery: Gallery) -> torch.Tensor:
    torch.manual_seed(1)
    embeddings = encoder.encode(torch.from_numpy(gallery.coordinates[:20]))
    return F.normalize(embeddings + 0.02 * torch.randn(20, 24), dim=1)


@pytest.fixture(autouse=True)
def _every_gallery_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_level, "MAX_INDEX_BYTES", 0)
    monkeypatch.setattr(two_level, "_LEAF", 16)


@pytest.fixture
def _open_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_level, "_OPENED", 10**6)
    monkeypatch.setattr(two_level, "_MAX_OPENED", 10**9)


def one_level(encoder: LocationEncoder, gallery: Gallery, folder: Path, prior: Any = "gallery") -> SearchSpace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_level, "MAX_INDEX_BYTES", 2**30)
        return SearchSpace.build(encoder, gallery, prior, folder)


def check_equal(found: Posterior, expected: Posterior) -> None:
    """Check that two posteriors have the same cells with the same mass, in any order."""
    a, b = (np.lexsort(one.cells.coordinates.T) for one in (found, expected))
    assert np.array_equal(found.cells.coordinates[a], expected.cells.coordinates[b])
    np.testing.assert_allclose(found.cells.area_km2[a], expected.cells.area_km2[b], rtol=1e-6)
    # One level rounds embeddings to 11 bits.
    torch.testing.assert_close(found.mass[:, a], expected.mass[:, b], rtol=0.2, atol=1e-5)


@pytest.mark.usefixtures("_open_all")
@pytest.mark.parametrize("prior", ["gallery", "even", "population"])
def test_opened_groups_are_places(
    tmp_path: Path, encoder: LocationEncoder, gallery: Gallery, queries: torch.Tensor, prior: str
) -> None:
    found = SearchSpace.build(encoder, gallery, prior, tmp_path).posterior(queries, SCALE, CALIBRATION)
    check_equal(found, one_level(encoder, gallery, tmp_path, prior).posterior(queries, SCALE, CALIBRATION))


def test_closed_groups_count(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoder: LocationEncoder,
    gallery: Gallery,
    queries: torch.Tensor,
) -> None:
    monkeypatch.setattr(two_level, "_OPENED", 200)
    space = SearchSpace.build(encoder, gallery, "gallery", tmp_path)
    assert space.groups is not None
    assert 1000 <= len(space.groups) <= 1100  # places of the lattice are alone
    assert space.gallery is gallery
    assert np.array_equal(np.sort(space.groups.order), np.arange(len(gallery)))
    assert f"1,500 places in {len(space.groups):,} groups" in space.name
    expected = one_level(encoder, gallery, tmp_path).posterior(queries, SCALE, CALIBRATION)
    posteriors = space.posteriors(queries, SCALE, CALIBRATION)
    best = np.concatenate([one.decode("max") for one in posteriors])
    mass = expected.mass.numpy()[np.arange(20), expected.cells.nearest(best)]
    ratio = mass / expected.mass.numpy().max(axis=1)
    assert (ratio > 0.9).all()
    for posterior in posteriors:
        assert posterior.cells.counts is not None
        assert float(posterior.cells.counts.sum()) == len(gallery)
        assert float(posterior.cells.log_prior.exp().sum()) == pytest.approx(1, abs=1e-5)
        assert posterior.cells.area_km2.sum() == pytest.approx(space.cells.area_km2.sum(), rel=1e-5)
    near = [one.profile(place[None]).within((1000.0,))[0, 0] for one, place in zip(posteriors, best, strict=True)]
    np.testing.assert_allclose(near, expected.profile(best).within((1000.0,))[:, 0], atol=0.05)


def test_groups_are_cached(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoder: LocationEncoder,
    gallery: Gallery,
    queries: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = SearchSpace.build(encoder, gallery, "gallery", tmp_path)
    expected = first.posterior(queries[:1], SCALE, CALIBRATION).mass
    with monkeypatch.context() as patch:
        patch.setattr(two_level, "_group", None)
        second = SearchSpace.build(encoder, gallery, "gallery", tmp_path)
    assert second.groups is not None
    assert isinstance(second.groups.order, np.memmap)
    assert torch.equal(second.posterior(queries[:1], SCALE, CALIBRATION).mass, expected)
    [file] = tmp_path.glob("*.order.npy")
    file.write_bytes(file.read_bytes()[:1000])
    third = SearchSpace.build(encoder, gallery, "gallery", tmp_path)
    assert "damaged" in caplog.text
    assert torch.equal(third.posterior(queries[:1], SCALE, CALIBRATION).mass, expected)


@pytest.mark.parametrize("lon_deg", [[2.0], np.linspace(-180, 180, 100)])
def test_equal_places_make_groups(tmp_path: Path, lon_deg: list[float]) -> None:
    """A tree cannot divide one place, or those of a pole."""
    gallery = Gallery.from_coordinates(np.array([(90.0, lon) for lon in lon_deg]))
    groups = two_level.PlaceGroups.build(gallery, folder=tmp_path)
    assert np.array_equal(np.sort(groups.order), np.arange(len(gallery)))
    assert (np.diff(groups.starts) > 0).all()
    assert groups.starts[-1] == len(gallery) == groups.coarse_gallery.weights.sum()


@pytest.mark.usefixtures("_open_all")
def test_areas(tmp_path: Path, encoder: LocationEncoder, gallery: Gallery, queries: torch.Tensor) -> None:
    area = Area.parse(within=["0,-30,60,40"])
    space = SearchSpace.build(encoder, gallery, "gallery", tmp_path)
    inside, expected = space.within(area), one_level(encoder, gallery, tmp_path).within(area)
    assert inside.gallery.fingerprint == expected.gallery.fingerprint
    assert area.contains(inside.cells.coordinates).all()
    check_equal(*(one.posterior(queries, SCALE, CALIBRATION) for one in (inside, expected)))
    lattice = space.within(Area.parse(within=["46.0,12.0,1km"]))
    assert lattice.groups is None
    assert lattice.gallery.name == "even places in the area"


def test_answers(tmp_path: Path, encoder: LocationEncoder, gallery: Gallery, queries: torch.Tensor) -> None:
    model = GeoCLIP(None, encoder)
    plain = Locator(model, gallery, cache=tmp_path, calibration=CALIBRATION)
    answers = plain.locate_embeddings(queries[:3], 3)
    [alone] = plain.locate_embeddings(queries[2:3], 3)
    assert answers[2].candidates == alone.candidates  # what is opened for one does not change another
    assert any(answer.countries for answer in answers)
    refined = Locator(model, gallery, cache=tmp_path, calibration=CALIBRATION, refine=True)
    assert len(refined.locate_embeddings(queries[:2], 3)) == 2
    batch = EncodedBatch.from_embeddings(queries[:3])
    for locator in (plain, refined):
        trip = Query.from_trip(batch, CALIBRATION, locator.search_space, model.scale, np.arange(3.0), 20_000.0)
        found = [answer for answer, _ in locator.answer([trip])]
        assert len(found) == 3
        assert all(answer.candidates for answer in found)


def test_nothing_is_fitted_on_cells_that_differ_from_query_to_query(tmp_path: Path, gallery: Gallery) -> None:
    """The evidence of a photo index was, on the cells of the first query."""
    locator = Locator.from_pretrained("earth", gallery=gallery, cache=tmp_path, engine="torch")
    index = PhotoIndex.create(tmp_path / "index", IndexRecords.from_features(torch.eye(2), gallery.coordinates[:2]))
    places = gallery.coordinates[:300].astype(np.float64)
    names = [f"{row}.jpg" for row in range(300)]
    known = ("photos", None, np.arange(300), names, names, names, places, None, None, Path("photos.csv"))
    labelled = Labelled(*known, table_sha256="", places_sha256="", counts={}, missing=(), notes=())
    with pytest.raises(SettingsError, match="in two levels, cannot be calibrated"):
        fit_index(locator, index, labelled)
    with pytest.raises(SettingsError, match="in two levels, cannot be calibrated"):
        calibrate(locator, labelled, tmp_path)
