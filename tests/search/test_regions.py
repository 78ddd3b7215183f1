"""Regions hold what they say, wherever on Earth and however sharp; heat adds up; all of it is valid GeoJSON."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import shapely
import torch

from open_geoclip.geo.shapes import Circle
from open_geoclip.geo.sphere import (
    EARTH_RADIUS_KM,
    coordinates_of,
    destination,
    even_points,
    haversine_km,
    unit_vectors,
)
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.mixture import Mixture
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.regions import REGION_LEVELS, describe_regions, heat_cells, hpd_regions

Mass = Callable[[np.ndarray], np.ndarray]


def bumps(*parts: tuple[float, float, float, float]) -> Mass:
    """Bells at places, as (lat, lon, km, share)."""

    def mass(places: np.ndarray) -> np.ndarray:
        total = np.zeros(len(places))
        for lat, lon, km, share in parts:
            bell = np.exp(-((haversine_km(places, np.array([[lat, lon]], np.float64)) / km) ** 2) / 2)
            total += share * bell / bell.sum()
        return total

    return mass


def made(mass: Mass, *, sigma_km: float = 0.0, places: np.ndarray | None = None) -> Posterior:
    gallery = Gallery.from_coordinates(EVEN if places is None else places)
    cells = GalleryCells.from_gallery(gallery)
    told = torch.from_numpy(mass(cells.coordinates.astype(np.float64))).float()[None]
    return Posterior(cells, told / told.sum(), Calibration(1.0, 0.0, sigma_km))


def photos() -> np.ndarray:
    """Places as uneven as photos are: around 300 towns of which a few have most."""
    generator = np.random.default_rng(0)
    towns = even_points(4000)[generator.choice(4000, 300, replace=False)]
    of = (300 * generator.random(12_000) ** 3).astype(int)
    return destination(towns[of], generator.uniform(0, 360, len(of)), np.abs(generator.normal(0, 30, len(of))))


EVEN = even_points(12_000)
HEAVY = np.exp(np.random.default_rng(1).normal(0, 3, 12_000))
CASES: dict[str, Callable[[], Posterior]] = {
    "one bell": lambda: made(bumps((41.9, 12.5, 300, 1)), sigma_km=14),
    "one place of all": lambda: made(lambda at: (np.arange(len(at)) == 7) * 1.0, sigma_km=2, places=photos()),
    "three, of all sizes": lambda: made(
        bumps((41.9, 12.5, 20, 0.5), (35, 139, 300, 0.3), (-33.9, 18.5, 5, 0.2)), sigma_km=3, places=photos()
    ),
    "sharp within broad": lambda: made(
        lambda at: bumps((48.8, 2.3, 700, 0.4))(at) + 0.6 * (np.arange(len(at)) == len(at) - 1),
        places=np.concatenate((EVEN, [[48.8, 2.3]])),
    ),
    "over the north pole": lambda: made(bumps((90, 0, 700, 1)), sigma_km=50),
    "beside the south pole": lambda: made(bumps((-84, 30, 900, 1)), sigma_km=50),
    "a ring around the north pole": lambda: made(
        lambda at: np.exp(-(((haversine_km(at, np.array([[88.0, 20.0]])) - 2500) / 300) ** 2) / 2)
    ),
    "over 180 degrees": lambda: made(bumps((-17, 179.9, 500, 1)), sigma_km=50),
    "photos, heavy tailed": lambda: made(lambda at: HEAVY[: len(at)], places=photos()),
    "half of the Earth": lambda: made(bumps((10, 170, 6000, 1))),
}


def held(region: dict[str, Any], posterior: Posterior) -> float:
    """The probability inside a region, blur and all, counted without any of the code that drew it."""
    generator = np.random.default_rng(3)
    mass = posterior.mass[0].double().numpy()
    rows = generator.choice(len(mass), 20_000, p=mass / mass.sum())
    north, east = generator.normal(0, posterior.sigma_km[rows], (2, len(rows)))
    places = posterior.cells.coordinates[rows].astype(np.float64)
    points = destination(places, np.degrees(np.arctan2(east, north)), np.hypot(east, north))
    shape = shapely.geometry.shape(region)
    shapely.prepare(shape)
    return float(shapely.intersects_xy(shape, points[:, 1], points[:, 0]).mean())


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Posterior, dict[str, Any]]:
    posterior = CASES[request.param]()
    return posterior, json.loads(json.dumps(describe_regions(posterior)))


def test_regions_hold_what_they_say(case: tuple[Posterior, dict[str, Any]]) -> None:
    posterior, told = case
    for name, share in zip(("50", "90"), REGION_LEVELS, strict=True):
        assert held(told["regions"][name], posterior) == pytest.approx(share, abs=0.025), name


def test_regions_are_valid_geojson_cut_at_180_degrees(case: tuple[Posterior, dict[str, Any]]) -> None:
    _, told = case
    half, most = (shapely.geometry.shape(told["regions"][name]) for name in ("50", "90"))
    for shape in (half, most):
        assert shape.geom_type == "MultiPolygon"
        assert shapely.is_valid(shape), shapely.is_valid_reason(shape)
        west, south, east, north = shape.bounds
        assert -180 <= west < east <= 180
        assert -90 <= south < north <= 90
        for part in shape.geoms:
            assert part.exterior.is_ccw
            assert not any(hole.is_ccw for hole in part.interiors)
    assert shapely.area(shapely.difference(half, most)) < 0.03 * half.area


def test_an_answer_stays_small(case: tuple[Posterior, dict[str, Any]]) -> None:
    _, told = case
    assert len(json.dumps(told)) < 60_000
    assert len(told["heat"]["cells"]) <= 1000


def test_heat_adds_up(case: tuple[Posterior, dict[str, Any]]) -> None:
    posterior, told = case
    cells = np.array(told["heat"]["cells"])
    assert cells[:, 2].sum() == pytest.approx(0.99, abs=0.011)
    assert (np.diff(cells[:, 2]) <= 0).all()
    # The densest places are in the densest cells: the mass within 3 cells of the best one is there.
    best, reach = cells[:1, :2], 3 * told["heat"]["cell_km"]
    near = haversine_km(posterior.cells.coordinates.astype(np.float64), best) <= reach
    mass = float(posterior.mass[0][torch.from_numpy(near)].sum())
    cell_mass = cells[haversine_km(cells[:, :2].copy(), best) <= reach, 2].sum()
    assert cell_mass == pytest.approx(mass, abs=0.12)


def square_km(shape: Any) -> float:
    """Area on the sphere of a geometry whose edges are short."""
    flat = shapely.transform(
        shapely.segmentize(shape, 0.5),
        lambda xy: np.stack((np.radians(xy[:, 0]), np.sin(np.radians(xy[:, 1]))), axis=1),
    )
    return float(flat.area * EARTH_RADIUS_KM**2)


@pytest.mark.parametrize("at", [(0.0, 0.0), (60.0, 179.99), (89.7, 10.0), (-90.0, 0.0)])
@pytest.mark.parametrize("sigma_km", [1.0, 100.0])
def test_the_region_of_a_gaussian_is_the_circle_that_it_is(at: tuple[float, float], sigma_km: float) -> None:
    """Of a Gaussian in the plane, a share s lies within sqrt(-2 log(1-s)) standard deviations."""
    cells = GalleryCells.from_gallery(Gallery.from_coordinates(np.array([at], np.float64)))
    cells = replace(cells, area_km2=np.array([1e-6]))
    posterior = Posterior(cells, torch.ones(1, 1), Calibration(1.0, 0.0, sigma_km))
    for share, region in zip(REGION_LEVELS, hpd_regions(Mixture.from_posterior(posterior)).values(), strict=True):
        shape = shapely.geometry.shape(region)
        assert square_km(shape) == pytest.approx(-2 * math.log(1 - share) * math.pi * sigma_km**2, rel=0.03)
        edge = np.concatenate([np.array(part.exterior.coords) for part in shape.geoms])[:, ::-1]
        off = haversine_km(edge.copy(), np.array([at]))
        inside = (np.abs(edge[:, 1]) < 179.999) & (np.abs(edge[:, 0]) < 89.999)  # not where it was cut
        radius = sigma_km * math.sqrt(-2 * math.log(1 - share))
        np.testing.assert_allclose(off[inside], radius, rtol=0.05, atol=0.05)


def test_levels_are_those_of_the_samples_of_an_exact_density() -> None:
    posterior = CASES["three, of all sizes"]()
    mixture = Mixture.from_posterior(posterior)
    rows = np.random.default_rng(2).choice(len(posterior.cells), 300, p=posterior.mass[0].double().numpy())
    places = posterior.cells.coordinates[rows].astype(np.float64)
    several = Posterior(posterior.cells, posterior.mass.expand(len(places), -1), posterior.calibration)
    exact = several.log_density(places)
    told = np.log(mixture.density(unit_vectors(places)))
    assert np.median(np.abs(told - exact)) < 0.2
    shares = mixture.hpd_level(unit_vectors(places))
    assert ((shares > 0) & (shares < 1)).all()
    levels = mixture.hpd_density((0.2, 0.5, 0.8))
    for share, level in zip((0.2, 0.5, 0.8), levels, strict=True):
        np.testing.assert_array_equal(shares < share, told > np.log(level))


def test_limits_are_kept_to() -> None:
    posterior = made(bumps((0, 0, 500, 1)), sigma_km=50)
    north = describe_regions(posterior, allowed=lambda places: places[:, 0] > 0)
    for region in north["regions"].values():
        assert shapely.geometry.shape(region).bounds[1] > -0.5
    assert all(lat > 0 for lat, _, _ in north["heat"]["cells"])
    everywhere, limited = (shapely.geometry.shape(d["regions"]["90"]) for d in (describe_regions(posterior), north))
    assert square_km(limited) == pytest.approx(square_km(everywhere) / 2, rel=0.1)


def test_a_region_may_be_all_that_there_is() -> None:
    """Even mass all over the Earth, where the level is in the ripples: still valid, still about as much."""
    posterior = made(lambda places: np.ones(len(places)))
    for share, region in zip(REGION_LEVELS, hpd_regions(Mixture.from_posterior(posterior)).values(), strict=True):
        shape = shapely.geometry.shape(region)
        assert shapely.is_valid(shape)
        assert square_km(shape) / (4 * math.pi * EARTH_RADIUS_KM**2) == pytest.approx(share, abs=0.12)


def test_few_gaussians_tell_of_many_places() -> None:
    for name, make in CASES.items():
        mixture = Mixture.from_posterior(make())
        assert len(mixture) <= 300, name
        assert mixture.mass.sum() == pytest.approx(1)
        assert mixture.density(mixture.samples).min() > 0
    assert heat_cells(mixture)["cell_km"] > 0


def test_samples_are_where_the_mass_is() -> None:
    mixture = Mixture.from_posterior(CASES["over 180 degrees"]())
    middle = coordinates_of(mixture.samples.mean(axis=0, keepdims=True))
    assert float(haversine_km(middle, np.array([[-17.0, 179.9]]))[0]) < 15


@pytest.mark.parametrize("places", [[(20.0, 30.0)], [(20.0, 30.0), (-10.0, -100.0)], [(90.0, 0.0), (-40.0, 175.0)]])
def test_regions_of_a_few_places_cover_much_of_the_earth(places: list[tuple[float, float]]) -> None:
    mixture = Mixture.from_posterior(made(lambda at: np.ones(len(at)), places=np.array(places)))
    assert mixture.sigma_km.min() > 4000  # the samples reach no farther than half of the Earth
    samples = coordinates_of(mixture.samples)
    for share, region in zip(REGION_LEVELS, hpd_regions(mixture).values(), strict=True):
        inside = shapely.intersects_xy(shapely.geometry.shape(region), samples[:, 1], samples[:, 0])
        assert inside.mean() == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("radius_km", [0.05, 3.0, 20.0])
def test_limits_may_be_smaller_than_the_smoothing(radius_km: float) -> None:
    limits = Circle(43.73, 7.42, radius_km)
    for places in (limits.points(64), np.concatenate((limits.points(1), even_points(5000)))):
        posterior = made(lambda at: limits.contains(at).astype(float), sigma_km=15.7, places=places)
        told = describe_regions(posterior, allowed=limits.contains)
        cells = np.array(told["heat"]["cells"])
        assert cells[:, 2].sum() == pytest.approx(1, abs=0.011)
        assert (haversine_km(cells[:, :2].copy(), places[:1]) < radius_km + told["heat"]["cell_km"]).all()
        most = shapely.geometry.shape(told["regions"]["90"])
        assert not most.is_empty
        corners = shapely.get_coordinates(most)[:, ::-1].copy()
        assert haversine_km(corners, np.array([[43.73, 7.42]])).max() < 1.5 * radius_km


def test_a_single_sample_within_limits_is_no_extent_of_a_map() -> None:
    wide = bumps((41.9, 12.5, 2000, 1))

    def mass(at: np.ndarray) -> np.ndarray:
        found = wide(at) / wide(at).sum()
        found[haversine_km(at, np.array([[-30.0, 140.0]])).argmin()] = 3e-4  # of 4,000 samples, one
        return found

    told = describe_regions(made(mass, sigma_km=14.0), allowed=lambda at: at[:, 0] > -80)
    assert not shapely.geometry.shape(told["regions"]["90"]).is_empty
