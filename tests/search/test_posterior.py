"""The posterior: mass, radii, merging, decisions, density, priors; held against sums that can be done by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, destination, even_points, haversine_km
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.decode import DecodeMethod
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells, Prior

FITTED = Calibration(1.0, 0.0, 10.0, "a test", 1)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    """The whole Earth, evenly, about 160 km apart."""
    return Gallery.from_coordinates(even_points(20_000))


@pytest.fixture(scope="module")
def cells(gallery: Gallery) -> GalleryCells:
    return GalleryCells.from_gallery(gallery)


def peaked(cells: GalleryCells, *peaks: tuple[float, float, float], calibration: Calibration = FITTED) -> Posterior:
    """A posterior of one image with Gaussian peaks of (lat, lon, share), 200 km wide."""
    places = cells.coordinates.astype(np.float64)
    mass = np.full(len(cells), 1e-12)
    for lat, lon, share in peaks:
        bump = np.exp(-((haversine_km(places, np.array([[lat, lon]])) / 200) ** 2) / 2)
        mass += share * bump / bump.sum()
    return Posterior.from_log_mass(torch.from_numpy(np.log(mass))[None], cells, calibration)


def test_cells_of_an_even_gallery_are_its_share_of_the_earth(cells: GalleryCells) -> None:
    share = 4 * math.pi * EARTH_RADIUS_KM**2 / len(cells)
    assert np.median(cells.area_km2) == pytest.approx(share, rel=0.1)
    assert np.percentile(cells.area_km2, [2, 98]) == pytest.approx([share, share], rel=0.25)


def test_mass_is_softmax_with_temperature_prior_and_background(gallery: Gallery, cells: GalleryCells) -> None:
    logits = torch.randn(3, len(gallery), generator=torch.Generator().manual_seed(0)) * 5
    assert float(cells.log_prior.exp().sum()) == pytest.approx(1, abs=1e-4)
    posterior = Posterior.from_logits(logits, cells, Calibration(0.5, 0.2, 0.0, "a test", 1))
    expected = 0.8 * torch.softmax(logits.double() * 2, dim=1) + 0.2 / len(gallery)
    torch.testing.assert_close(posterior.mass.double(), expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(posterior.mass.sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)


def test_a_prior_that_rules_places_out_leaves_them_without_mass(gallery: Gallery, cells: GalleryCells) -> None:
    south = torch.from_numpy(gallery.coordinates[:, 0] < 0)
    north = replace(cells, log_prior=cells.log_prior.masked_fill(south, -torch.inf))
    logits = torch.where(south, 50.0, 0.0)[None]
    posterior = Posterior.from_logits(logits, north, Calibration(1.0, 0.1, 0.0, "a test", 1))
    assert float(posterior.mass[0, south].sum()) == 0
    found = posterior.candidates(3, merge_km=500)
    assert (found.coordinates[..., 0] > -2).all()
    with pytest.raises(SettingsError, match="rules out every place"):
        Posterior.from_logits(logits, replace(cells, log_prior=torch.full((len(gallery),), -torch.inf)))


def test_radii_and_shares_of_a_gaussian(cells: GalleryCells) -> None:
    posterior = peaked(cells, (20.0, 30.0, 1.0))
    profile = posterior.profile(np.array([[20.0, 30.0]]))
    # Peak, cell and width add up; of a Gaussian in two dimensions 1 - exp(-r²/2s²) lies within r.
    sigma = math.sqrt(200**2 + 10**2 + float(np.median(cells.area_km2)) / 12)
    assert profile.radius_km((0.5, 0.9))[0] == pytest.approx([sigma * 1.1774, sigma * 2.1460], rel=0.05)
    radii = (100, 200, 400, 750)
    expected = [1 - math.exp(-(r**2) / (2 * sigma**2)) for r in radii]
    assert profile.within(radii)[0] == pytest.approx(expected, abs=0.02)
    assert profile.within((1, 20_100))[0] == pytest.approx([0, 1], abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(lat=st.floats(-90, 90), lon=st.floats(-180, 180))
def test_within_and_radius_are_inverse_anywhere(cells: GalleryCells, lat: float, lon: float) -> None:
    profile = peaked(cells, (lat, lon, 0.7), (-lat, lon, 0.3)).profile(np.array([[lat, lon]]))
    radii = profile.radius_km((0.2, 0.5, 0.65))[0]
    assert (np.diff(radii) >= 0).all()
    assert profile.within(tuple(radii))[0] == pytest.approx([0.2, 0.5, 0.65], abs=1e-6)


def test_a_place_alone_is_blurred_over_its_cell(cells: GalleryCells) -> None:
    logits = torch.zeros(1, len(cells))
    logits[0, 9000] = 100
    posterior = Posterior.from_logits(logits, cells, Calibration(fitted_on="a test"))
    place = cells.coordinates[9000:9001].astype(np.float64)
    blur = posterior.sigma_km[9000]
    assert blur == pytest.approx(math.sqrt(cells.area_km2[9000] / 12))
    assert posterior.profile(place).radius_km((0.5, 0.9))[0] == pytest.approx([1.177 * blur, 2.146 * blur], rel=0.1)
    assert (
        posterior.profile(place).within((1.0,))[0, 0] < 0.01
    )  # a cell 160 km wide does not hold it within a kilometre


def test_candidates_are_apart_and_their_masses_add_up(cells: GalleryCells) -> None:
    posterior = peaked(cells, (50.0, 10.0, 0.6), (-30.0, 140.0, 0.3), (0.0, -179.9, 0.1))
    found = posterior.candidates(3, merge_km=900)
    for place, peak in zip(found.coordinates[0], ((50, 10), (-30, 140), (0, -179.9)), strict=True):
        assert haversine_km(place, np.array(peak, np.float64)) < 40
    assert found.mass[0] == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)
    assert found.radius_km[0] == pytest.approx([200 * 2.146] * 3, rel=0.15)


def test_candidates_without_merging_are_the_best_places(cells: GalleryCells) -> None:
    logits = torch.randn(2, len(cells), generator=torch.Generator().manual_seed(1))
    posterior = Posterior.from_logits(logits, cells)
    found = posterior.candidates(10, merge_km=0, method="max")
    best = logits.topk(10, dim=1)
    np.testing.assert_array_equal(found.coordinates, cells.coordinates[best.indices.numpy()].astype(np.float64))
    torch.testing.assert_close(torch.from_numpy(found.mass).float(), torch.softmax(logits, 1).gather(1, best.indices))


def test_candidates_are_places_that_the_image_speaks_for(cells: GalleryCells) -> None:
    """The background, which is everywhere, is no candidate, however little else is left."""
    logits = torch.zeros(1, len(cells))
    first, second = cells.nearest(np.array([[48.0, 2.0], [-33.0, 18.0]]))
    logits[0, first], logits[0, second] = 40.0, 25.0  # 3e-7 of the mass, and the background 0.1
    posterior = Posterior.from_logits(logits, cells, Calibration(1.0, 0.1, 10.0, "a test", 1))
    found = posterior.candidates(5)
    np.testing.assert_allclose(found.coordinates[0, :2], cells.coordinates[[first, second]], atol=1e-3)
    assert np.isnan(found.coordinates[0, 2:]).all()
    assert found.mass[0, 2:].tolist() == [0, 0, 0]
    assert found.mass[0, 1] == pytest.approx(0.1 / len(cells) + 0.9 * math.exp(-15), rel=1e-3)


def test_each_decision_is_best_for_its_aim(cells: GalleryCells) -> None:
    # Two peaks near one another and a larger one alone, opposite.
    posterior = peaked(cells, (0.0, 0.0, 0.3), (0.0, 14.0, 0.3), (0.0, 120.0, 0.4))
    places, mass = cells.coordinates.astype(np.float64), posterior.mass[0].double().numpy()

    def within(answer: np.ndarray, km: float) -> float:
        return float(mass[haversine_km(places, answer[None]) <= km].sum())

    def expected_km(answer: np.ndarray) -> float:
        return float(mass @ haversine_km(places, answer[None]))

    def points(answer: np.ndarray) -> float:
        return float(mass @ np.exp(-haversine_km(places, answer[None]) / 1492.7))

    answers = {
        "near": posterior.decode("mass", 300)[0],
        "far": posterior.decode("mass", 2500)[0],
        "distance": posterior.decode("distance")[0],
        "geoscore": posterior.decode("geoscore")[0],
    }
    assert max(answers, key=lambda name: within(answers[name], 300)) == "near"
    assert within(answers["far"], 2500) == pytest.approx(0.6, abs=0.01)
    assert min(answers, key=lambda name: expected_km(answers[name])) == "distance"
    assert points(answers["geoscore"]) >= max(map(points, answers.values())) - 1e-6


def test_decisions_lie_between_places(cells: GalleryCells) -> None:
    truth = np.array([[33.3, -77.7]])
    posterior = peaked(cells, (33.3, -77.7, 1.0))
    ways: tuple[DecodeMethod, ...] = ("mass", "distance", "geoscore", "max")
    off = {how: haversine_km(posterior.decode(how, 200.0), truth)[0] for how in ways}
    assert max(off["mass"], off["distance"], off["geoscore"]) < 10 < off["max"]


def test_density_sums_to_one(cells: GalleryCells) -> None:
    posterior = peaked(cells, (60.0, 179.0, 1.0))
    centre, total, step = torch.tensor([60.0, 179.0], dtype=torch.float64), 0.0, 40.0
    for ring in range(1, 26):  # rings of 40 km around the peak
        around = destination(centre, torch.arange(0, 360, 12.0), torch.tensor((ring - 0.5) * step)).numpy()
        many = Posterior(cells, posterior.mass.expand(len(around), -1), posterior.calibration)
        area = math.pi * step**2 * (ring**2 - (ring - 1) ** 2)
        total += float(np.exp(many.log_density(around)).mean()) * area
    assert total == pytest.approx(1, abs=0.02)
    nowhere = peaked(cells, (60.0, 179.0, 1.0)).log_density(np.array([[-60.0, 0.0]]))
    assert np.isfinite(nowhere).all()


def test_regions_hold_what_they_say(cells: GalleryCells) -> None:
    """Truths drawn from the posterior itself lie in its regions and circles as often as these claim."""
    posterior = peaked(cells, (10.0, 10.0, 0.7), (12.0, 60.0, 0.3))
    rng = np.random.default_rng(0)
    n = 1500
    rows = rng.choice(len(cells), n, p=posterior.mass[0].double().numpy() / float(posterior.mass.double().sum()))
    bearing, km = rng.uniform(0, 360, n), posterior.sigma_km[rows] * np.sqrt(-2 * np.log(rng.uniform(size=n)))
    truth = destination(cells.coordinates[rows].astype(np.float64), bearing, km)
    many = Posterior(cells, posterior.mass.expand(n, -1), posterior.calibration)
    level = many.hpd_level(truth)
    best = posterior.decode("mass", 200)
    circle = posterior.profile(best).radius_km((0.5, 0.9))[0]
    off = haversine_km(truth, best)
    for share, radius in zip((0.5, 0.9), circle, strict=True):
        assert np.mean(level <= share) == pytest.approx(share, abs=0.04)
        assert np.mean(off <= radius) == pytest.approx(share, abs=0.04)


def test_shares_and_sure(cells: GalleryCells) -> None:
    posterior = peaked(cells, (50.0, 10.0, 0.75), (-30.0, 140.0, 0.25))
    labels = np.where(cells.coordinates[:, 0] > 0, "NN", "SS")
    assert posterior.label_probabilities(labels)[0] == pytest.approx({"NN": 0.75, "SS": 0.25}, abs=1e-4)
    assert list(posterior.label_probabilities(np.full(len(cells), ""))[0]) == []
    best = np.array([[50.0, 10.0]])
    assert posterior.is_sure(posterior.profile(best)) == [False]
    narrow = Gallery.from_coordinates(np.array([[50.0, 10.0], [50.1, 10.1], [-30.0, 140.0]]))
    mass = torch.tensor([[0.5, 0.4, 0.1]]).log()
    for calibration, answer in ((FITTED, True), (Calibration(), None)):
        three = replace(GalleryCells.from_gallery(narrow), area_km2=np.full(3, 100.0))
        sure = Posterior.from_log_mass(mass, three, calibration)
        assert sure.is_sure(sure.profile(best)) == [answer]


def test_priors(tmp_path: Path) -> None:
    """Thirty places crowd in one spot and one is alone: a gallery's prior counts them, an even one their cells."""
    crowd = np.stack((np.linspace(0, 0.08, 30), np.linspace(0, 0.08, 30) ** 2), axis=1)
    alone = even_points(3000, 10, 60)
    gallery = Gallery.from_coordinates(np.concatenate((crowd, alone)))

    def prior(of: Prior) -> torch.Tensor:
        return GalleryCells.from_gallery(gallery, of).log_prior.exp().double()

    by_gallery, even = prior("gallery"), prior("even")
    assert float(by_gallery[:30].sum()) == pytest.approx(30 / 3030, rel=1e-4)
    assert float(even[:30].sum()) < 1e-3
    (tmp_path / "own.csv").write_text("lat,lon,weight\n0.04,0.0,3\n30,100,1\n")
    own = prior(tmp_path / "own.csv")
    assert float(own[:30].sum()) == pytest.approx(0.75 * 0.95, abs=0.01)
    north = prior(lambda places: (places[:, 0] > 30).astype(np.float64))
    assert bool((north[torch.from_numpy(gallery.coordinates[:, 0] < 30)] == 0).all())
    for bad in ("evn", "population.txt"):
        with pytest.raises((SettingsError, ValueError), match=r"prior|file name"):
            prior(bad)
    with pytest.raises(SettingsError, match="density"):
        prior(lambda places: -places[:, 0])


def test_population_prior_prefers_cities(gallery: Gallery, cells: GalleryCells) -> None:
    prior = GalleryCells.from_gallery(gallery, "population").log_prior.exp()
    tokyo, desert = cells.nearest(np.array([[35.7, 139.7], [23.0, 10.0]]))
    assert float(prior[tokyo]) > 100 * float(prior[desert]) > 0


def test_wrong_settings(cells: GalleryCells) -> None:
    posterior = peaked(cells, (0.0, 0.0, 1.0))
    for wrong in ({"top_k": 0}, {"merge_km": -1.0}, {"merge_km": math.nan}, {"radius_km": math.inf}):
        with pytest.raises(SettingsError):
            posterior.candidates(**wrong)
    for numbers in ((0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 0.0, -1.0), (math.nan, 0.0, 0.0)):
        with pytest.raises(SettingsError):
            Calibration(*numbers)
    with pytest.raises(WeightsError, match="calibration of the weights"):
        Calibration.from_dict({"temprature": 1})
    assert Calibration.from_dict(FITTED.to_dict()) == FITTED
    assert Calibration.from_dict(None).fitted_on is None
