"""Maps that keep areas, against the released projection, their definitions and themselves."""

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float

from open_geoclip.geo.projections import (
    EqualAreaGrid,
    azimuthal_equal_area,
    azimuthal_equal_area_inverse,
    cut_antimeridian,
    equal_earth,
    equal_earth_inverse,
)
from open_geoclip.geo.sphere import (
    EARTH_RADIUS_KM,
    destination,
    even_points,
    haversine_km,
    tangent_frame,
    unit_vectors,
)

Place = Float[np.ndarray, "2"]
places = st.tuples(st.floats(-90, 90), st.floats(-180, 180)).map(np.array)


def world(n: int = 20_000) -> Float[np.ndarray, "m 2"]:
    """Even points and the places where things go wrong."""
    edges = [[lat, lon] for lat in (-90, -89.99, 0, 45, 89.99, 90) for lon in (-180, -90, 0, 90, 179.99, 180)]
    return np.concatenate((even_points(n), np.array(edges, dtype=np.float64)))


class TestEqualEarth:
    def test_equals_the_released_projection_to_the_last_bit(self, released_module: Callable[[str], ModuleType]) -> None:
        theirs = released_module("location_encoder").equal_earth_projection
        coordinates = torch.from_numpy(world(100_003)).float()
        assert torch.equal(equal_earth(coordinates), theirs(coordinates))
        # In float64 the released code keeps a square root of 3 that is rounded to float32.
        double = torch.from_numpy(world(1000))
        torch.testing.assert_close(equal_earth(double), theirs(double), atol=3e-8, rtol=0)

    def test_ends_of_the_map(self) -> None:
        # x ends at 1.0 and y at 0.4867 (facts of the released model), the pole's line at 0.59 of the equator.
        x, y = equal_earth(np.array([[0.0, 180.0], [90.0, 180.0], [-90.0, -180.0]])).T
        np.testing.assert_allclose(x, [1.0, 0.5926, -0.5926], atol=2e-4)
        np.testing.assert_allclose(y, [0.0, 0.4867, -0.4867], atol=5e-5)

    def test_areas_are_equal(self) -> None:
        """Jacobian determinant over cos(lat) is one constant, which the paper's title promises."""
        step = 1e-4
        at = even_points(200, -85, 85) * np.array([1, 0.99])
        north, east = np.array([step, 0]), np.array([0, step])
        by_lat = (equal_earth(at + north) - equal_earth(at - north)) / (2 * step)
        by_lon = (equal_earth(at + east) - equal_earth(at - east)) / (2 * step)
        area = (by_lon[:, 0] * by_lat[:, 1] - by_lon[:, 1] * by_lat[:, 0]) / np.cos(np.radians(at[:, 0]))
        np.testing.assert_allclose(area, area[0], rtol=1e-6)

    def test_inverse_finds_every_place_again(self) -> None:
        coordinates = world()
        again = equal_earth_inverse(equal_earth(coordinates))
        away = np.abs(again - coordinates)
        inner = np.abs(coordinates[:, 0]) <= 89.99
        assert away[inner].max() < 1e-9
        assert away.max() < 1e-6

    @given(places)
    def test_inverse_round_trip(self, place: Place) -> None:
        tensor = torch.from_numpy(place)
        torch.testing.assert_close(equal_earth_inverse(equal_earth(tensor)), tensor, atol=1e-6, rtol=0)

    def test_inverse_in_float32(self) -> None:
        coordinates = even_points(5000, -85, 85).astype(np.float32)
        again = equal_earth_inverse(equal_earth(coordinates))
        assert again.dtype == np.float32
        assert haversine_km(again, coordinates).max() < 0.02
        poles = np.array([[90.0, 30.0], [-90.0, -180.0]], dtype=np.float32)
        np.testing.assert_allclose(equal_earth_inverse(equal_earth(poles)), poles, atol=0.05)

    def test_points_beside_the_map(self) -> None:
        beside, above = equal_earth_inverse(np.array([[0.9, 0.45], [0.0, 0.6]]))
        assert beside[1] > 180
        assert above.tolist() == [90.0, 0.0]

    def test_gradients(self) -> None:
        at = torch.tensor([[48.8, 2.3], [-33.8, 151.2], [0.0, -180.0]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(equal_earth, (at,))
        assert torch.autograd.gradcheck(
            lambda xy: equal_earth_inverse(xy), (equal_earth(at).detach().requires_grad_(),)
        )


class TestAzimuthalEqualArea:
    @pytest.mark.parametrize("centre", [(0.0, 0.0), (48.85, 2.35), (-60.0, 179.9), (90.0, 0.0)])
    def test_there_and_back(self, centre: tuple[float, float]) -> None:
        frame = tangent_frame(unit_vectors(np.array(centre)))
        points = unit_vectors(even_points(1000))
        km = azimuthal_equal_area(points, frame)
        assert np.hypot(*km.T).max() <= 2 * EARTH_RADIUS_KM
        np.testing.assert_allclose(azimuthal_equal_area_inverse(km, frame), points, atol=1e-9)

    def test_each_point_may_have_a_frame_of_its_own(self) -> None:
        points = unit_vectors(even_points(6))
        frames = tangent_frame(unit_vectors(even_points(6)[::-1].copy()))
        km = np.concatenate([azimuthal_equal_area(one[None], frame) for one, frame in zip(points, frames, strict=True)])
        np.testing.assert_allclose(azimuthal_equal_area_inverse(km, frames), points, atol=1e-9)

    def test_circles_around_the_centre_keep_their_area_and_direction(self) -> None:
        centre = np.array([48.85, 2.35])
        there = destination(centre, np.arange(0.0, 360, 90), 3000.0)
        km = azimuthal_equal_area(unit_vectors(there), tangent_frame(unit_vectors(centre)))
        radius = 2 * EARTH_RADIUS_KM * math.sin(3000 / EARTH_RADIUS_KM / 2)  # of a disc with the area of the cap
        np.testing.assert_allclose(km, radius * np.array([[0, 1], [1, 0], [0, -1], [-1, 0]]), atol=1e-6)

    def test_beyond_the_outline_there_is_nothing(self) -> None:
        assert np.isnan(azimuthal_equal_area_inverse(np.array([[13_000.0, 0]]), np.eye(3))).any()


class TestEqualAreaGrid:
    @pytest.mark.parametrize("cell_km", [50.0, 700.0, 5000.0, 50_000.0])
    def test_cells_have_one_area_and_cover_the_earth(self, cell_km: float) -> None:
        grid = EqualAreaGrid.from_cell_km(cell_km)
        counts = np.bincount(grid.cells(even_points(400_000)), minlength=len(grid))
        if cell_km > 500:
            assert counts.min() > 0
            assert counts.std() / counts.mean() < 0.05
        corners = np.array([[90.0, 0.0], [-90.0, 180.0], [0.0, 180.0], [0.0, -180.0]])
        numbers = grid.cells(corners)
        assert numbers.min() >= 0
        assert numbers.max() < len(grid)
        assert numbers[2] == numbers[3]  # one meridian

    def test_centres_lie_in_their_cells(self) -> None:
        grid = EqualAreaGrid.from_cell_km(300.0)
        every = np.arange(len(grid))
        assert (grid.cells(grid.centres(every)) == every).all()
        assert grid.cell_km == pytest.approx(300, rel=0.02)


class TestCutAntimeridian:
    def test_a_ring_over_the_antimeridian_has_two_parts(self) -> None:
        cut = cut_antimeridian(np.array([[170.0, 0], [-170, 0], [-170, 10], [170, 10], [170, 0]]))
        assert cut.equals(shapely.union_all([shapely.box(170, 0, 180, 10), shapely.box(-180, 0, -170, 10)]))

    def test_a_ring_elsewhere_stays_as_it_is(self) -> None:
        box = shapely.box(10, 20, 30, 40)
        assert cut_antimeridian(shapely.get_coordinates(box)).equals(box)

    @pytest.mark.parametrize("lat", [60.0, -60.0])
    def test_a_ring_around_a_pole_encloses_it(self, lat: float) -> None:
        lon = np.append(np.arange(-180.0, 180, 10), -180)
        cut = cut_antimeridian(np.stack((lon, np.full(len(lon), lat)), axis=1))
        assert cut.bounds == (-180, min(lat, math.copysign(90, lat)), 180, max(lat, math.copysign(90, lat)))
        assert cut.area == pytest.approx(360 * 30)
