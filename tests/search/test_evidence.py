"""Evidence of look-alikes: the combination as a function, and in the answers of a locator."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_geoclip.errors import DataError, SettingsError
from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.evidence import EvidenceSettings, PhotoEvidence, combine, look_alikes, neighbour_ratio
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.photo_records import IndexRecords, Neighbours
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells

ROME, PARIS = (41.9, 12.5), (48.86, 2.35)


@pytest.fixture
def posterior() -> Posterior:
    """Return the posterior of an image over an even gallery of Europe that prefers Paris a little to Rome."""
    grid = np.stack(np.meshgrid(np.arange(36.0, 60), np.arange(-5.0, 25), indexing="ij"), axis=-1).reshape(-1, 2)
    cells = GalleryCells.from_gallery(Gallery.from_coordinates(grid))
    logits = torch.zeros(1, len(cells))
    logits[0, cells.nearest(np.array([PARIS, ROME]))] = torch.tensor([6.0, 5.5])
    return Posterior.from_logits(logits, cells)


def neighbours(similarity: float, *places: tuple[float, float]) -> Neighbours:
    n = len(places)
    found = np.array(places, np.float64).reshape(n, 2)
    return Neighbours([f"p{i}" for i in range(n)], np.full(n, similarity), found, np.arange(n))


def test_similar_neighbours_decide_and_others_do_not(posterior: Posterior) -> None:
    settings = EvidenceSettings(location_weight=1.0)
    places = posterior.decode("mass", 75.0)
    assert abs(places[0] - PARIS).max() < 1
    beside = (ROME[0] + 0.2, ROME[1])
    near = combine(posterior, neighbours(0.6, beside), settings, Calibration())
    assert abs(near.decode("mass", 75.0)[0] - ROME).max() < 1
    assert len(near.cells) == len(posterior.cells) + 1
    far = combine(posterior, neighbours(-0.5, ROME), settings, Calibration())
    rows = posterior.cells.nearest(np.array([PARIS, beside, ROME]))
    torch.testing.assert_close(far.mass[:, rows[:1]], posterior.mass[:, rows[:1]])
    # The place of the neighbour and its cell share what the cell had.
    torch.testing.assert_close(far.mass[:, [rows[2], -1]].sum(), posterior.mass[0, rows[2]])
    assert combine(posterior, neighbours(0.9), settings, Calibration()).mass is posterior.mass


@pytest.mark.parametrize("kernel_km", [30.0, 88.0, 900.0])
def test_mass_is_the_formula_at_every_cell(posterior: Posterior, kernel_km: float) -> None:
    """The reference computes the kernel at all cells, in float64; two neighbours share a cell, one is far away."""
    near = neighbours(0.3, ROME, (ROME[0] + 0.1, ROME[1]), PARIS, (-40.0, 170.0))
    settings = EvidenceSettings(1.0, 0.27, temperature=0.05, min_similarity=0.13, kernel_km=kernel_km)
    found = combine(posterior, near, settings, Calibration())
    own, cells = posterior.cells, found.cells
    origins = np.concatenate([np.arange(len(own)), own.nearest(near.coordinates)])
    share = 1 / np.bincount(origins)[origins]
    prior = np.exp(own.log_prior.double().numpy())[origins] * share / np.exp(own.log_prior.double().numpy()).sum()
    area = own.area_km2[origins] * share
    np.testing.assert_allclose(cells.area_km2, area)
    chord = np.linalg.norm(unit_vectors(cells.coordinates)[:, None] - unit_vectors(near.coordinates), axis=2)
    kernel = np.exp(-((6371.0088 * chord / kernel_km) ** 2) / 2) / (2 * math.pi * kernel_km**2)
    density = (kernel * np.exp((near.similarity - settings.min_similarity) / settings.temperature)).sum(axis=1)
    a, b = settings.location_weight, settings.neighbour_weight
    mass = (
        (posterior.mass[0].double().numpy()[origins] * share) ** a
        * prior ** (1 - a)
        * (1 + density * area / prior) ** b
    )
    np.testing.assert_allclose(found.mass[0], mass / mass.sum(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("chord", [0.01, 0.05, 0.8, 2.0])
def test_cells_within_a_chord_of_any_place(posterior: Posterior, chord: float) -> None:
    places = np.array([ROME, PARIS, (-40.0, 170.0)])
    chords = chord * np.array([1.0, 0.5, 0.1])
    apart = np.linalg.norm(posterior.cells.points.double().numpy()[:, None] - unit_vectors(places), axis=2)
    expected = np.flatnonzero((apart <= chords).any(axis=1))
    assert posterior.cells.within(places, chords).tolist() == expected.tolist()


def test_neighbours_of_an_image_out_of_distribution_do_not_count(posterior: Posterior) -> None:
    near = [neighbours(0.9, ROME)]
    for known in (None, True, False):
        is_in = None if known is None else torch.tensor([known])
        (found,) = PhotoEvidence([]).posteriors([replace(posterior, is_in_distribution=is_in)], near)
        assert (found.mass is not posterior.mass and len(found.cells) > len(posterior.cells)) == (known is not False)


def test_ratio_is_one_plus_a_density_in_units_of_the_prior() -> None:
    settings = EvidenceSettings(temperature=0.5, min_similarity=0.1, kernel_km=100.0)
    prior = torch.tensor([1e-6, 1e-3])
    square = torch.tensor([[0.0, 1e-4], [2e-4, 1e-4]])
    found = neighbour_ratio(square, torch.tensor([0.3, 0.1]), prior.log(), settings)
    sigma = 100 / 6371.0088
    kernel = torch.exp(-square / (2 * sigma**2)) / (2 * math.pi * 100**2)
    expected = torch.log(1 + (kernel @ torch.tensor([math.exp(0.4), 1.0])) / prior)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"kernel_km": float("nan")}, {"neighbour_weight": -1}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="evidence"):
        EvidenceSettings(**wrong)


def test_look_alikes_say_how_far_they_are() -> None:
    first, second = look_alikes(neighbours(0.5, ROME, PARIS), ROME)
    assert (first.id, first.distance_km, first.thumbnail) == ("p0", 0.0, None)
    assert 1100 < second.distance_km < 1110


def test_fits_are_stored_with_the_index(tmp_path: Path, rng: np.random.Generator) -> None:
    from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings

    features, places = torch.from_numpy(rng.normal(size=(40, 12))).float(), rng.uniform(-50, 50, (40, 2))
    index = PhotoIndex.create(tmp_path / "index", IndexRecords.from_features(features, places))
    encoder = ImageEncoder(None, None, ImageSettings(widths=(12, 8, 4)))
    plain = PhotoEvidence.from_indexes([index], (), encoder, "w", "g")
    assert (plain.settings, plain.calibration) == (EvidenceSettings(), None)
    calibration = Calibration(fitted_on="views", n_images=500, sigma_km=20)
    fit = {"settings": vars(EvidenceSettings(kernel_km=50)), "calibration": calibration.to_dict()}
    index.save_fit("w", "g", fit)
    fitted = PhotoEvidence.from_indexes([index], (), encoder, "w", "g")
    assert (fitted.settings.kernel_km, fitted.calibration) == (50, calibration)
    assert PhotoEvidence.from_indexes([index], (), encoder, "w", "other").calibration is None
    smaller = index.remove(range(10))
    assert PhotoEvidence.from_indexes([smaller], (), encoder, "w", "g").calibration is None
    others = [plain, fitted, PhotoEvidence([index], ["group"]), PhotoEvidence([smaller])]
    assert len({evidence.fingerprint for evidence in others}) == 4
    assert PhotoEvidence([PhotoIndex.open(index.folder)]).fingerprint == others[-1].fingerprint
    next(index.folder.glob("evidence-*")).write_text('{"photos": 30, "settings": {"kernel_km": -1}, "calibration": {}}')
    with pytest.raises(DataError, match="its fit is damaged"):
        PhotoEvidence.from_indexes([PhotoIndex.open(index.folder)], (), encoder, "w", "g")
    wide = ImageEncoder(None, None, ImageSettings(widths=(13, 8, 4)))
    with pytest.raises(SettingsError, match="made with the backbone custom"):
        PhotoEvidence.from_indexes([index], (), wide, "w", "g")


def test_the_neighbours_alone_may_decide(posterior: Posterior) -> None:
    """Cells whose mass float32 rounds to 0 had 0 times infinity nats."""
    mass = posterior.mass.clone()
    mass[0, 100:] = 0
    alone = EvidenceSettings(location_weight=0.0, neighbour_weight=1.0)
    found = combine(Posterior(posterior.cells, mass, Calibration()), neighbours(0.6, ROME), alone, Calibration())
    assert float(found.mass.sum()) == pytest.approx(1)
    assert abs(found.decode("mass", 75.0)[0] - ROME).max() < 1
