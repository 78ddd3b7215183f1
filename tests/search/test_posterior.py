"""The posterior: mass, radii, merging, decisions, density, priors; held against sums that can be done by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, destination, even_points, haversine_km
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.decode import Decode
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import Ground, log_prior

FITTED = Calibration(1.0, 0.0, 10.0, "a test", 1)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    """The whole Earth, evenly, about 160 km apart."""
    return Gallery.from_coordinates(even_points(20_000))


@pytest.fixture(scope="module")
def ground(gallery: Gallery) -> Ground:
    return Ground.of(gallery)


def peaked(ground: Ground, *peaks: tuple[float, float, float], calibration: Calibration = FITTED) -> Posterior:
    """A posterior of one picture with Gaussian peaks of (lat, lon, share), 200 km wide."""
    places = ground.coordinates.astype(np.float64)
    mass = np.full(len(ground), 1e-12)
    for lat, lon, share in peaks:
        bump = np.exp(-((haversine_km(places, np.array([[lat, lon]])) / 200) ** 2) / 2)
        mass += share * bump / bump.sum()
    return Posterior.from_log_mass(torch.from_numpy(np.log(mass))[None], ground, calibration)


def test_cells_of_an_even_gallery_are_its_share_of_the_earth(ground: Ground) -> None:
    share = 4 * math.pi * EARTH_RADIUS_KM**2 / len(ground)
    assert np.median(ground.cell_km2) == pytest.approx(share, rel=0.1)
    assert np.percentile(ground.cell_km2, [2, 98]) == pytest.approx([share, share], rel=0.25)


def test_mass_is_softmax_with_temperature_prior_and_background(gallery: Gallery, ground: Ground) -> None:
    logits = torch.randn(3, len(gallery), generator=torch.Generator().manual_seed(0)) * 5
    prior = log_prior(gallery, ground)
    assert float(prior.exp().sum()) == pytest.approx(1, abs=1e-4)
    posterior = Posterior.from_logits(logits, prior, ground, Calibration(0.5, 0.2, 0.0, "a test", 1))
    expected = 0.8 * torch.softmax(logits.double() * 2, dim=1) + 0.2 / len(gallery)
    torch.testing.assert_close(posterior.mass.double(), expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(posterior.mass.sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)


def test_a_prior_that_rules_places_out_leaves_them_without_mass(gallery: Gallery, ground: Ground) -> None:
    south = torch.from_numpy(gallery.coordinates[:, 0] < 0)
    prior = log_prior(gallery, ground).masked_fill(south, -torch.inf)
    logits = torch.where(south, 50.0, 0.0)[None]
    posterior = Posterior.from_logits(logits, prior, ground, Calibration(1.0, 0.1, 0.0, "a test", 1))
    assert float(posterior.mass[0, south].sum()) == 0
    found = posterior.candidates(3, merge_km=500)
    assert (found.coordinates[..., 0] > -2).all()
    with pytest.raises(SettingsError, match="rules out every place"):
        Posterior.from_logits(logits, torch.full((len(gallery),), -torch.inf), ground)


def test_radii_and_shares_of_a_gaussian(ground: Ground) -> None:
    posterior = peaked(ground, (20.0, 30.0, 1.0))
    profile = posterior.profile(np.array([[20.0, 30.0]]))
    # Peak, cell and width add up; of a Gaussian in two dimensions 1 - exp(-r²/2s²) lies within r.
    sigma = math.sqrt(200**2 + 10**2 + float(np.median(ground.cell_km2)) / 12)
    assert profile.radius_km((0.5, 0.9))[0] == pytest.approx([sigma * 1.1774, sigma * 2.1460], rel=0.05)
    radii = (100, 200, 400, 750)
    expected = [1 - math.exp(-(r**2) / (2 * sigma**2)) for r in radii]
    assert profile.within(radii)[0] == pytest.approx(expected, abs=0.02)
    assert profile.within((1, 20_100))[0] == pytest.approx([0, 1], abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(lat=st.floats(-90, 90), lon=st.floats(-180, 180))
def test_within_and_radius_are_inverse_anywhere(ground: Ground, lat: float, lon: float) -> None:
    profile = peaked(ground, (lat, lon, 0.7), (-lat, lon, 0.3)).profile(np.array([[lat, lon]]))
    radii = profile.radius_km((0.2, 0.5, 0.65))[0]
    assert (np.diff(radii) >= 0).all()
    assert profile.within(tuple(radii))[0] == pytest.approx([0.2, 0.5, 0.65], abs=1e-6)


def test_a_place_alone_is_blurred_over_its_cell(ground: Ground) -> None:
    logits = torch.zeros(1, len(ground))
    logits[0, 9000] = 100
    posterior = Posterior.from_logits(logits, torch.zeros(len(ground)), ground, Calibration(fitted_on="a test"))
    place = ground.coordinates[9000:9001].astype(np.float64)
    blur = posterior.blur_km[9000]
    assert blur == pytest.approx(math.sqrt(ground.cell_km2[9000] / 12))
    assert posterior.credible_radius_km(place, (0.5, 0.9))[0] == pytest.approx([1.177 * blur, 2.146 * blur], rel=0.1)
    assert posterior.mass_within(place, (1.0,))[0, 0] < 0.01  # a cell 160 km wide does not hold it within a kilometre


def test_candidates_are_apart_and_their_masses_add_up(ground: Ground) -> None:
    posterior = peaked(ground, (50.0, 10.0, 0.6), (-30.0, 140.0, 0.3), (0.0, -179.9, 0.1))
    found = posterior.candidates(3, merge_km=900)
    for place, peak in zip(found.coordinates[0], ((50, 10), (-30, 140), (0, -179.9)), strict=True):
        assert haversine_km(place, np.array(peak, np.float64)) < 40
    assert found.mass[0] == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)
    assert found.radius_km[0] == pytest.approx([200 * 2.146] * 3, rel=0.15)


def test_candidates_without_merging_are_the_best_places(ground: Ground) -> None:
    logits = torch.randn(2, len(ground), generator=torch.Generator().manual_seed(1))
    posterior = Posterior.from_logits(logits, torch.zeros(len(ground)), ground)
    found = posterior.candidates(10, merge_km=0, how="max")
    best = logits.topk(10, dim=1)
    np.testing.assert_array_equal(found.coordinates, ground.coordinates[best.indices.numpy()].astype(np.float64))
    torch.testing.assert_close(torch.from_numpy(found.mass).float(), torch.softmax(logits, 1).gather(1, best.indices))


def test_each_decision_is_best_for_its_aim(ground: Ground) -> None:
    # Two peaks near one another and a larger one alone, opposite.
    posterior = peaked(ground, (0.0, 0.0, 0.3), (0.0, 14.0, 0.3), (0.0, 120.0, 0.4))
    places, mass = ground.coordinates.astype(np.float64), posterior.mass[0].double().numpy()

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


def test_decisions_lie_between_places(ground: Ground) -> None:
    truth = np.array([[33.3, -77.7]])
    posterior = peaked(ground, (33.3, -77.7, 1.0))
    ways: tuple[Decode, ...] = ("mass", "distance", "geoscore", "max")
    off = {how: haversine_km(posterior.decode(how, 200.0), truth)[0] for how in ways}
    assert max(off["mass"], off["distance"], off["geoscore"]) < 10 < off["max"]


def test_density_sums_to_one(ground: Ground) -> None:
    posterior = peaked(ground, (60.0, 179.0, 1.0))
    centre, total, step = torch.tensor([60.0, 179.0], dtype=torch.float64), 0.0, 40.0
    for ring in range(1, 26):  # rings of 40 km around the peak
        around = destination(centre, torch.arange(0, 360, 12.0), torch.tensor((ring - 0.5) * step)).numpy()
        many = Posterior(ground, posterior.mass.expand(len(around), -1), posterior.calibration)
        area = math.pi * step**2 * (ring**2 - (ring - 1) ** 2)
        total += float(np.exp(many.log_density(around)).mean()) * area
    assert total == pytest.approx(1, abs=0.02)
    nowhere = peaked(ground, (60.0, 179.0, 1.0)).log_density(np.array([[-60.0, 0.0]]))
    assert np.isfinite(nowhere).all()


def test_regions_hold_what_they_say(ground: Ground) -> None:
    """Truths drawn from the posterior itself lie in its regions and circles as often as these claim."""
    posterior = peaked(ground, (10.0, 10.0, 0.7), (12.0, 60.0, 0.3))
    rng = np.random.default_rng(0)
    n = 1500
    rows = rng.choice(len(ground), n, p=posterior.mass[0].double().numpy() / float(posterior.mass.double().sum()))
    bearing, km = rng.uniform(0, 360, n), posterior.blur_km[rows] * np.sqrt(-2 * np.log(rng.uniform(size=n)))
    truth = destination(ground.coordinates[rows].astype(np.float64), bearing, km)
    many = Posterior(ground, posterior.mass.expand(n, -1), posterior.calibration)
    level = many.region_level(truth)
    best = posterior.decode("mass", 200)
    circle = posterior.credible_radius_km(best)[0]
    off = haversine_km(truth, best)
    for share, radius in zip((0.5, 0.9), circle, strict=True):
        assert np.mean(level <= share) == pytest.approx(share, abs=0.04)
        assert np.mean(off <= radius) == pytest.approx(share, abs=0.04)


def test_shares_and_sure(ground: Ground) -> None:
    posterior = peaked(ground, (50.0, 10.0, 0.75), (-30.0, 140.0, 0.25))
    labels = np.where(ground.coordinates[:, 0] > 0, "NN", "SS")
    assert posterior.shares(labels)[0] == pytest.approx({"NN": 0.75, "SS": 0.25}, abs=1e-4)
    assert list(posterior.shares(np.full(len(ground), ""))[0]) == []
    best = np.array([[50.0, 10.0]])
    assert posterior.sure(posterior.profile(best)) == [False]
    narrow = Gallery.from_coordinates(np.array([[50.0, 10.0], [50.1, 10.1], [-30.0, 140.0]]))
    mass = torch.tensor([[0.5, 0.4, 0.1]]).log()
    for calibration, answer in ((FITTED, True), (Calibration(), None)):
        three = Ground(narrow.coordinates, Ground.of(narrow).points, np.full(3, 100.0))
        sure = Posterior.from_log_mass(mass, three, calibration)
        assert sure.sure(sure.profile(best)) == [answer]


def test_priors(tmp_path: Path) -> None:
    """Thirty places crowd in one spot and one is alone: a gallery's prior counts them, an even one their ground."""
    crowd = np.stack((np.linspace(0, 0.08, 30), np.linspace(0, 0.08, 30) ** 2), axis=1)
    alone = even_points(3000, 10, 60)
    gallery = Gallery.from_coordinates(np.concatenate((crowd, alone)))
    ground = Ground.of(gallery)
    by_gallery, even = (log_prior(gallery, ground, prior).exp().double() for prior in ("gallery", "even"))
    assert float(by_gallery[:30].sum()) == pytest.approx(30 / 3030, rel=1e-4)
    assert float(even[:30].sum()) < 1e-3
    (tmp_path / "own.csv").write_text("lat,lon,weight\n0.04,0.0,3\n30,100,1\n")
    own = log_prior(gallery, ground, tmp_path / "own.csv").exp().double()
    assert float(own[:30].sum()) == pytest.approx(0.75 * 0.95, abs=0.01)
    north = log_prior(gallery, ground, lambda places: (places[:, 0] > 30).astype(np.float64))
    assert bool((north[torch.from_numpy(gallery.coordinates[:, 0] < 30)] == -torch.inf).all())
    for bad in ("evn", "population.txt"):
        with pytest.raises((SettingsError, ValueError), match=r"prior|file name"):
            log_prior(gallery, ground, bad)
    with pytest.raises(SettingsError, match="density"):
        log_prior(gallery, ground, lambda places: -places[:, 0])


def test_population_prior_prefers_cities(gallery: Gallery, ground: Ground) -> None:
    prior = log_prior(gallery, ground, "population").exp()
    tokyo, desert = ground.nearest(np.array([[35.7, 139.7], [23.0, 10.0]]))
    assert float(prior[tokyo]) > 100 * float(prior[desert]) > 0


def test_wrong_settings(ground: Ground) -> None:
    posterior = peaked(ground, (0.0, 0.0, 1.0))
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
