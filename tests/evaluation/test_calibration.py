"""Fitting a calibration: what was drawn with known numbers gives these numbers back."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from open_geoclip.errors import SettingsError
from open_geoclip.evaluation.calibration import _sure_probability, fit_calibration
from open_geoclip.evaluation.reliability import reliability
from open_geoclip.geo.sphere import destination, even_points, haversine_km
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search.calibration import IN_DISTRIBUTION_SHARE, SURE_PROBABILITY, Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells

SCALE, TRUE = 20.0, Calibration(0.5, 0.1, 60.0, "drawn", 500, reference_logit=8.0, temperature_slope=0.2)


def test_a_fit_finds_the_numbers_that_truths_were_drawn_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = LocationEncoder(LocationSettings((2.0,), 32, 64, 1, 32, "sphere")).eval()
    gallery = Gallery.from_coordinates(even_points(3000))
    index, cells = GalleryIndex.build(encoder, gallery, folder=tmp_path), GalleryCells.from_gallery(gallery)
    vectors = F.normalize(torch.randn(TRUE.n_images, 32), dim=1)
    posterior = Posterior.from_logits(index.logits(vectors, SCALE), cells, TRUE)
    rows = torch.multinomial(posterior.mass, 1)[:, 0].numpy()
    rng = np.random.default_rng(0)
    km = posterior.sigma_km[rows] * np.sqrt(-2 * np.log(rng.uniform(size=len(rows))))
    truth = destination(gallery.coordinates[rows].astype(np.float64), rng.uniform(0, 360, len(rows)), km)
    found = fit_calibration(index, vectors, truth, SCALE, name="drawn")
    at_reference = found.temperature_of(torch.tensor([TRUE.reference_logit]))
    assert float(at_reference) == pytest.approx(TRUE.temperature, rel=0.2)
    assert found.temperature_slope == pytest.approx(TRUE.temperature_slope, rel=0.3)
    assert found.background == pytest.approx(TRUE.background, abs=0.1)
    assert (found.fitted_on, found.n_images) == ("drawn", len(rows))

    def nats(calibration: Calibration) -> float:
        logits = index.logits(vectors, SCALE)
        told = Posterior.from_logits(logits, cells, calibration)
        return -float(told.log_density(truth).mean())

    assert nats(found) <= nats(TRUE) + 0.01
    assert nats(found) < nats(Calibration()) - 0.01
    told = Posterior.from_logits(index.logits(vectors[:400], SCALE), cells, found)
    positions = zip(*told.hpd_position(truth[:400]), strict=True)
    p_values = [found.p_value(*position, sure=False) for position in positions]
    assert np.mean(np.array(p_values, np.float64) <= 0.1) == pytest.approx(0.1, abs=0.05)
    best = index.logits(vectors, SCALE).max(dim=1).values / SCALE
    assert float((best >= found.min_score).double().mean()) == pytest.approx(IN_DISTRIBUTION_SHARE, abs=0.01)
    with pytest.raises(SettingsError, match="at least 100 images"):
        fit_calibration(index, vectors[:5], truth[:5], SCALE, name="few")


def test_levels_hold_on_each_of_several_sources(tmp_path: Path) -> None:
    """Of two sources, one with errors three times as large, both are held."""
    torch.manual_seed(0)
    encoder = LocationEncoder(LocationSettings((2.0,), 32, 64, 1, 32, "sphere")).eval()
    gallery = Gallery.from_coordinates(even_points(2000))
    index, cells = GalleryIndex.build(encoder, gallery, folder=tmp_path), GalleryCells.from_gallery(gallery)
    known, n = Calibration(0.05, 0.0, 60.0, "drawn", 600), 600
    vectors = F.normalize(torch.randn(n, 32), dim=1)
    posterior = Posterior.from_logits(index.logits(vectors, SCALE), cells, known)
    answers, rng = posterior.decode("mass", 200.0), np.random.default_rng(0)
    sources = np.arange(n) % 2
    km = np.where(sources == 1, 300.0, 100.0) * np.sqrt(-2 * np.log(rng.uniform(size=n)))
    truth = destination(answers, rng.uniform(0, 360, n), km)

    def held(calibration: Calibration) -> list[float]:
        posterior = Posterior.from_logits(index.logits(vectors, SCALE), cells, calibration, scale=SCALE)
        at = posterior.decode("mass", 200.0)
        inside = haversine_km(truth, at) <= posterior.profile(at).radius_km((0.9,))[:, 0]
        return [float(inside[sources == source].mean()) for source in (0, 1)]

    pooled = fit_calibration(index, vectors, truth, SCALE, name="both", parameters=known)
    each = fit_calibration(index, vectors, truth, SCALE, name="both", parameters=known, sources=sources)
    assert held(pooled)[1] < 0.87
    assert held(each)[1] == pytest.approx(0.9, abs=0.03)
    assert held(each)[0] > 0.97
    assert all(high >= low for high, low in zip(each.hpd_levels, pooled.hpd_levels, strict=True))


def test_sure_answers_are_right_on_each_source() -> None:
    within, sources = np.tile(np.linspace(0.8, 1.0, 1001), 2), np.repeat([0, 1], 1001)
    right = (sources == 0) | (within >= 0.9)
    assert _sure_probability(within, right, np.zeros_like(sources)) == SURE_PROBABILITY
    found = _sure_probability(within, right, sources)
    assert 0.89 <= found <= 0.9
    assert right[(sources == 1) & (within >= found)].mean() >= 0.99
    assert _sure_probability(within, sources == 0, sources) == 1.0


def test_all_logits_are_those_of_the_search(tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = LocationEncoder(LocationSettings((2.0,), 32, 64, 1, 32, "sphere")).eval()
    index = GalleryIndex.build(encoder, Gallery.from_coordinates(even_points(9000)), folder=tmp_path)
    queries = F.normalize(torch.randn(3, 32), dim=1)
    logits, found = index.logits(queries, 30.0, exact=5), index.search(queries, 30.0, 5)
    assert torch.equal(logits.topk(5, dim=1).indices, found.rows)
    torch.testing.assert_close(logits.topk(5, dim=1).values, found.logits)
    torch.testing.assert_close(torch.logsumexp(logits, dim=1), found.log_normalizer, rtol=1e-4, atol=1e-4)


def test_reliability() -> None:
    claimed = np.repeat([0.2, 0.8], 100)
    right = np.concatenate([np.arange(100) < 20, np.arange(100) < 60])
    found = reliability(claimed, right, bins=2)
    assert found["ece"] == pytest.approx(0.1)
    assert [row["right"] for row in found["bins"]] == pytest.approx([0.2, 0.6])
