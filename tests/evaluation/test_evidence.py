"""Fitting how much look-alikes count: on images whose neighbours tell more, or nothing."""

import numpy as np
import pytest
import torch

from open_geoclip.evaluation import evidence
from open_geoclip.evaluation.evidence import calibrate_evidence, fit_evidence
from open_geoclip.evaluation.metrics import distances_km
from open_geoclip.search.calibration import CALIBRATED_LEVELS
from open_geoclip.search.evidence import EvidenceSettings, combine
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.photo_records import Neighbours
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells

N = 100


def test_the_fit_uses_neighbours_that_tell_something(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_MAX_EVALUATIONS", 40)
    grid = np.stack(np.meshgrid(np.arange(30.0, 62, 1.5), np.arange(-5.0, 25, 1.5), indexing="ij"), axis=-1)
    cells = GalleryCells.from_gallery(Gallery.from_coordinates(grid.reshape(-1, 2)))
    truth = rng.uniform((32, -3), (58, 22), (N, 2))
    logits = torch.zeros(N, len(cells))
    guess = cells.nearest(truth + rng.normal(0, 2, (N, 2)))  # 220 km off
    logits[torch.arange(N), torch.from_numpy(guess)] = 5.0
    whole = Posterior.from_logits(logits, cells)
    posteriors = [whole[row] for row in range(N)]
    similarity = np.tile(np.array([0.6, 0.5, -0.2]), (N, 1))
    near = truth[:, None] + rng.normal(0, 0.3, (N, 3, 2))
    near[:, 2] = rng.uniform((32, -3), (58, 22), (N, 2))  # less similar, and anywhere
    useful = [Neighbours(["a", "b", "c"], similarity[row], near[row], np.arange(3)) for row in range(N)]
    settings = fit_evidence(posteriors, useful, truth)
    assert settings.neighbour_weight > 0.2
    assert settings.kernel_km < 200
    assert settings.location_weight <= 1
    calibration = calibrate_evidence(posteriors[:8], useful[:8], truth[:8], settings, "images")
    assert calibration.fitted_on == "images"
    assert len(calibration.levels) == len(CALIBRATED_LEVELS)
    answers = [
        combine(one, few, settings, calibration).decode("mass", 75.0)[0]
        for one, few in zip(posteriors[:8], useful, strict=False)
    ]
    before, after = (
        distances_km(truth[:8], whole.decode("mass", 75.0)[:8]),
        distances_km(truth[:8], np.stack(answers)),
    )
    assert np.median(after) < 0.5 * np.median(before)


def test_levels_hold_on_the_source_whose_answers_are_worst(rng: np.random.Generator) -> None:
    grid = np.stack(np.meshgrid(np.arange(30.0, 62, 1.5), np.arange(-5.0, 25, 1.5), indexing="ij"), axis=-1)
    cells = GalleryCells.from_gallery(Gallery.from_coordinates(grid.reshape(-1, 2)))
    sources = np.arange(200) % 2
    truth = rng.uniform((36, 3), (54, 16), (200, 2))
    seen = truth + rng.normal(0, 1, (200, 2)) * np.where(sources == 1, 2.0, 0.2)[:, None]
    squared = ((torch.from_numpy(grid.reshape(-1, 2)) - torch.from_numpy(seen)[:, None]) ** 2).sum(dim=2)
    whole = Posterior.from_logits((-squared / 2).float(), cells)  # what it claims lies between both sources
    posteriors = [whole[row] for row in range(200)]
    none = Neighbours([], np.empty(0), np.empty((0, 2)), np.empty(0, np.int64))
    few = [none] * 200
    together, apart = (
        calibrate_evidence(posteriors, few, truth, EvidenceSettings(), "images", known) for known in (None, sources)
    )
    held = {}
    for name, calibration in (("together", together), ("apart", apart)):
        answers = [combine(one, none, EvidenceSettings(), calibration) for one in posteriors]
        radii = [one.profile(one.decode("mass", 200.0)).radius_km((0.9,))[0, 0] for one in answers]
        off_km = [
            distances_km(place[None], one.decode("mass", 200.0))[0] for place, one in zip(truth, answers, strict=True)
        ]
        right = np.array(off_km) <= np.array(radii)
        held[name] = [right[sources == number].mean() for number in (0, 1)]
    assert held["together"][1] < 0.85  # nine in ten of all, of these too few
    assert 0.87 <= held["apart"][1] <= 0.93
