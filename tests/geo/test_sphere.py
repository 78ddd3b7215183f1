"""Geometry on the sphere, against known distances and itself."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from jaxtyping import Float
from pyproj import Geod
from torch import Tensor

from open_geoclip.errors import CoordinateError
from open_geoclip.geo.projections import equal_earth
from open_geoclip.geo.sphere import (
    EARTH_RADIUS_KM,
    MAX_LONGITUDE_DEG,
    check_coordinates,
    coordinates_of,
    destination,
    even_points,
    geodesic_km,
    haversine_km,
    offset,
    tangent_frame,
    tangent_offset,
    unit_vectors,
)

HALF_TURN_KM = math.pi * EARTH_RADIUS_KM

Place = Float[np.ndarray, "2"]
# The poles, the seam and the places beside them are drawn often: hypothesis likes the ends of its ranges.
latitudes = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, -89.9999, 0.0, 89.9999, 90.0]))
longitudes = st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, -179.9999, 0.0, 179.9999, 180.0]))
places = st.tuples(latitudes, longitudes).map(np.array)


def world(n: int = 20_000) -> Float[np.ndarray, "m 2"]:
    """Even points and the places where things go wrong."""
    edges = [[lat, lon] for lat in (-90, -89.99, 0, 45, 89.99, 90) for lon in (-180, -90, 0, 90, 179.99, 180)]
    return np.concatenate((even_points(n), np.array(edges, dtype=np.float64)))


class TestCheckCoordinates:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_tensors_in_range_come_back_themselves(self, dtype: torch.dtype) -> None:
        given_ones = torch.tensor([[90.0, 180.0], [-90.0, -180.0], [0.1, -0.0]], dtype=dtype)
        assert check_coordinates(given_ones) is given_ones

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_arrays_in_range_come_back_themselves(self, dtype: type) -> None:
        given_ones: np.ndarray = np.array([[90.0, 180.0], [-90.0, -180.0], [0.1, -0.0]], dtype=dtype)
        given_ones.flags.writeable = False  # as a memory-mapped gallery is
        assert check_coordinates(given_ones) is given_ones

    def test_lists_and_integers_become_float64(self) -> None:
        checked = check_coordinates([[48, 2], [-33, 151]])
        assert isinstance(checked, np.ndarray)
        assert checked.dtype == np.float64
        assert checked.tolist() == [[48.0, 2.0], [-33.0, 151.0]]
        assert check_coordinates(np.array([[48, 2]], dtype=np.int8)).dtype == np.float64
        assert check_coordinates(torch.tensor([[48, 2]])).dtype == torch.float64

    def test_no_rows_are_fine(self) -> None:
        assert check_coordinates(np.zeros((0, 2))).shape == (0, 2)
        assert check_coordinates(torch.zeros(0, 2)).shape == (0, 2)

    def test_reversed_and_big_endian_arrays_are_read_right(self) -> None:
        rows = np.array([[1.0, 190.0], [2.0, 20.0]])
        assert check_coordinates(rows[::-1]).tolist() == [[2.0, 20.0], [1.0, -170.0]]
        assert check_coordinates(rows.astype(">f8")).tolist() == [[1.0, -170.0], [2.0, 20.0]]

    @pytest.mark.parametrize(
        ("longitude", "wrapped"),
        [
            (190, -170),
            (-190, 170),
            (270, -90),
            (359.5, -0.5),
            (360, 0),
            (540, -180),
            (-540, -180),
            (539.5, 179.5),
        ],
    )
    @pytest.mark.parametrize("kind", [np.float32, np.float64, torch.float32, torch.float64])
    def test_longitudes_beyond_180_are_wrapped_and_the_others_kept(
        self, kind: Any, longitude: float, wrapped: float
    ) -> None:
        rows = [[10.0, longitude], [20.0, 180.0], [30.0, 0.1]]
        tensor = isinstance(kind, torch.dtype)
        before: Any = torch.tensor(rows, dtype=kind) if tensor else np.array(rows, dtype=kind)
        after = check_coordinates(before)
        assert after.dtype == kind
        assert after[0].tolist() == [10.0, wrapped]
        assert (after[1:] == before[1:]).all()
        assert before[0].tolist() == [10.0, longitude], "the caller's own array must not change"

    @given(st.floats(-MAX_LONGITUDE_DEG, MAX_LONGITUDE_DEG, width=32), st.sampled_from([np.float32, np.float64]))
    def test_wrapping_stays_in_range_and_in_place(self, longitude: float, dtype: type) -> None:
        (_, wrapped), *_ = check_coordinates(np.array([[0.0, longitude]], dtype=dtype)).tolist()
        assert -180 <= wrapped <= 180
        assert math.isclose(math.remainder(wrapped - longitude, 360), 0, abs_tol=1e-12)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("edge", [180.0, -180.0, 540.0, -540.0, 0.0])
    def test_wrapping_beside_the_edges(self, dtype: type, edge: float) -> None:
        """The next numbers up and down, which rounding may throw to the wrong side."""
        beside: list[np.ndarray] = [np.full((1,), edge, dtype)]
        for _ in range(50):
            beside = [np.nextafter(beside[0], dtype(-1e9)), *beside, np.nextafter(beside[-1], dtype(1e9))]
        longitudes = np.concatenate(beside)
        longitudes = longitudes[np.abs(longitudes) <= MAX_LONGITUDE_DEG]
        wrapped = check_coordinates(np.stack((0 * longitudes, longitudes), axis=1))[:, 1]
        assert (np.abs(wrapped) <= 180).all()
        assert (np.abs(np.remainder(wrapped.astype(np.float64) - longitudes + 180, 360) - 180) < 1e-9).all()

    def test_gradient_passes_through_a_wrapped_longitude(self) -> None:
        rows = torch.tensor([[10.0, 190.0], [20.0, 30.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(check_coordinates(rows).sum(), rows)
        assert gradient.tolist() == [[1.0, 1.0], [1.0, 1.0]]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([48.8, 2.3], r"shape \(n, 2\), not \(2,\): write one place as \[\[lat, lon\]\]"),
            ([[48.8, 2.3, 35.0]], r"not \(1, 3\): one \(lat, lon\) a row"),
            ([], r"not \(0,\)"),
            ([[48.8, 2.3], [1.0]], r"pairs of \(lat, lon\)"),
            ([["48.8", "2.3"]], "must be float32 or float64, not <U4"),
            ([[True, False]], "not bool"),
            ([[1j, 2j]], "not complex128"),
            (
                [[0.0, 0.0], [1.0, math.nan]],
                r"1 row is not a place.*row 1: \(1, nan\): both numbers must be finite",
            ),
            ([[math.inf, 0.0], [1.0, -math.inf]], r"2 rows are not a place.*row 0: \(inf, 0\).*finite"),
            ([[0.0, 0.0], [91.5, 120.0]], r"row 1: \(91.5, 120\): a latitude is within -90 and 90 degrees$"),
            (
                [[151.2, -33.8]],
                r"\(151.2, -33.8\).*looks like \(lon, lat\), but the order here is \(lat, lon\)",
            ),
            (
                [[0.0, 1e10], [0.0, 541.0]],
                r"2 rows.*row 0: \(0, 1e\+10\): a longitude is within ±180.*±540 at most",
            ),
            ([[0.0, 999.0]], "±540 at most"),
        ],
    )
    def test_what_is_no_place_is_refused(self, rows: list[Any], message: str) -> None:
        with pytest.raises(CoordinateError, match=message):
            check_coordinates(rows)

    def test_tensors_are_refused_alike(self) -> None:
        with pytest.raises(CoordinateError, match=r"row 1: \(-90.5, 0\)"):
            check_coordinates(torch.tensor([[0.0, 0.0], [-90.5, 0.0]]))
        with pytest.raises(CoordinateError, match=r"not \(2,\): write one place"):
            check_coordinates(torch.tensor([48.8, 2.3]))
        with pytest.raises(CoordinateError, match="not bool"):
            check_coordinates(torch.tensor([[True, False]]))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_sixteen_bits_are_refused_with_the_reason(self, dtype: torch.dtype) -> None:
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(CoordinateError, match=f"not {name}: 16 bits move a place by kilometres"):
            check_coordinates(torch.zeros(1, 2, dtype=dtype))

    def test_numpy_half_is_refused_everywhere(self) -> None:
        half = np.zeros((1, 2), dtype=np.float16)
        for function in (check_coordinates, equal_earth, unit_vectors):
            with pytest.raises(CoordinateError, match="not float16: 16 bits move"):
                function(half)


class TestDistances:
    # The first two are the worked examples of GeographicLib, the others were computed with pyproj 3.7.
    @pytest.mark.parametrize(
        ("a", "b", "km"),
        [
            ((40.6, -73.8), (51.6, -0.5), 5551.759400),  # New York JFK to London Heathrow
            ((-41.32, 174.81), (40.96, -5.50), 19959.679267),  # Wellington to Salamanca, nearly antipodes
            ((0.0, 179.5), (0.0, -179.5), 111.319491),
            ((90.0, 0.0), (-90.0, 0.0), 20003.931459),
        ],
    )
    def test_geodesic_golden(self, a: tuple[float, float], b: tuple[float, float], km: float) -> None:
        assert geodesic_km(np.array(a), np.array(b)) == pytest.approx(km, abs=1e-6)

    def test_haversine_golden(self) -> None:
        paris, new_york = np.array([48.8566, 2.3522]), np.array([40.7128, -74.0060])
        assert haversine_km(paris, new_york) == pytest.approx(5837.2, abs=0.1)
        quarter = haversine_km(np.array([0.0, 0.0]), np.array([[0.0, 90.0], [90.0, 17.0], [0.0, -90.0]]))
        np.testing.assert_allclose(quarter, HALF_TURN_KM / 2, rtol=1e-15)

    @given(places, places)
    def test_haversine_is_within_0_56_percent_of_the_geodesic(self, a: Place, b: Place) -> None:
        """The worst is a short way north from the equator, where the ellipsoid is bent most: 0.5614 %."""
        exact = float(geodesic_km(a, b))
        assert float(haversine_km(a, b)) == pytest.approx(exact, rel=0.005615, abs=1e-9)

    @given(places, places)
    def test_haversine_is_symmetric_and_zero_at_home(self, a: Place, b: Place) -> None:
        assert haversine_km(a, b) == pytest.approx(haversine_km(b, a), rel=1e-14)
        assert haversine_km(a, a) == 0

    @given(places, places, places)
    def test_triangle_inequality(self, a: Place, b: Place, c: Place) -> None:
        assert haversine_km(a, c) <= haversine_km(a, b) + haversine_km(b, c) + 1e-9

    @given(places, places)
    def test_haversine_is_the_angle_of_unit_vectors(self, a: Place, b: Place) -> None:
        u, v = unit_vectors(a), unit_vectors(b)
        angle = 2 * math.atan2(float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v)))
        assert float(haversine_km(a, b)) == pytest.approx(angle * EARTH_RADIUS_KM, abs=1e-8)

    @pytest.mark.parametrize("metres", [1e-3, 1.0, 1e3])
    def test_tiny_distances_and_their_antipodes(self, metres: float) -> None:
        degrees = metres / 1000 / EARTH_RADIUS_KM * 180 / math.pi
        here, near = np.array([0.0, 0.0]), np.array([degrees, 0.0])
        assert float(haversine_km(here, near)) * 1000 == pytest.approx(metres, rel=1e-12)
        almost = float(haversine_km(here, np.array([-degrees, 180.0])))
        assert (HALF_TURN_KM - almost) * 1000 == pytest.approx(metres, abs=1e-8)

    def test_distance_across_the_seam_keeps_its_precision_in_float32(self) -> None:
        a, b = np.array([[0.0, 179.99998]], np.float32), np.array([[0.0, -179.99998]], np.float32)
        exact = haversine_km(a.astype(np.float64), b.astype(np.float64))
        np.testing.assert_allclose(haversine_km(a, b), exact, rtol=1e-6)

    def test_leading_axes_broadcast(self) -> None:
        a, b = world(10), even_points(7)
        table = haversine_km(a[:, None], b[None])
        assert table.shape == (len(a), 7)
        assert table[3, 5] == haversine_km(a[3], b[5])
        exact = geodesic_km(a[:, None], b[None])
        assert exact.shape == (len(a), 7)
        assert exact[3, 5] == pytest.approx(float(geodesic_km(a[3], b[5])), rel=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_torch_and_numpy_agree_and_keep_the_dtype(self, dtype: torch.dtype) -> None:
        a = torch.from_numpy(world(500)).to(dtype)
        b = a.flip(0)
        kilometres = haversine_km(a, b)
        assert kilometres.dtype == dtype
        assert (haversine_km(a.numpy(), b.numpy()) == kilometres.numpy()).all()

    def test_gradient_is_right_and_finite_everywhere(self) -> None:
        a = torch.tensor([[10.0, 20.0], [-60.0, 179.0]], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([[12.0, 18.0], [-59.0, -178.0]], dtype=torch.float64)
        assert torch.autograd.gradcheck(haversine_km, (a, b))

        hard = torch.tensor([[0.0, 0.0], [48.8, 2.3], [90.0, 0.0], [0.0, 180.0]], requires_grad=True)
        opposite = torch.stack((-hard[:, 0], hard[:, 1] - 180), dim=-1).detach()
        (gradient,) = torch.autograd.grad(haversine_km(hard, opposite).sum(), hard)
        assert gradient.isfinite().all()
        (gradient,) = torch.autograd.grad(haversine_km(hard, hard.detach().clone()).sum(), hard)
        assert not gradient.any()


class TestUnitVectors:
    def test_axes(self) -> None:
        vectors = unit_vectors(np.array([[0.0, 0.0], [0.0, 90.0], [90.0, 77.0], [-90.0, -5.0]]))
        np.testing.assert_allclose(vectors, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]], atol=1e-15)

    @given(places, st.floats(1e-6, 1e6))
    def test_there_and_back_whatever_the_length(self, place: Place, length: float) -> None:
        vector = unit_vectors(place)
        assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-15)
        again = coordinates_of(vector * length)
        assert -180 <= again[1] < 180
        assert float(haversine_km(place, again)) < 1e-8

    def test_poles_and_seam(self) -> None:
        north, south, seam = coordinates_of(np.array([[0.0, 0, 2], [0.0, 0, -3], [-1.0, 0, 0]])).tolist()
        assert north[0] == 90
        assert south[0] == -90
        assert seam == [0, -180]

    def test_float32_is_good_to_three_metres(self) -> None:
        coordinates = torch.from_numpy(world()).float()
        again = coordinates_of(unit_vectors(coordinates))
        assert again.dtype == torch.float32
        assert haversine_km(coordinates.double(), again.double()).max() < 0.003

    @pytest.mark.parametrize("nowhere", [[0.0, 0.0, 0.0], [math.nan, 0.0, 1.0], [math.inf, 0.0, 0.0]])
    def test_a_vector_that_points_nowhere_is_refused(self, nowhere: list[float]) -> None:
        with pytest.raises(CoordinateError, match="1 of the vectors are zero or not finite"):
            coordinates_of(np.array([[1.0, 0.0, 0.0], nowhere]))

    def test_gradient(self) -> None:
        at = torch.tensor([[48.8, 2.3], [-33.8, 151.2]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(unit_vectors, (at,))
        assert torch.autograd.gradcheck(coordinates_of, (unit_vectors(at).detach().requires_grad_(),))


class TestMoving:
    @given(places, st.floats(-1e7, 1e7), st.floats(-1e7, 1e7))
    def test_distance_moved_is_the_distance_asked_for(self, place: Place, north: float, east: float) -> None:
        metres = math.hypot(north, east)
        assume(1 <= metres <= 2e7)
        moved = offset(place, north, east)
        assert abs(moved[0]) <= 90
        assert -180 <= moved[1] < 180
        assert float(haversine_km(place, moved)) * 1000 == pytest.approx(metres, rel=1e-6)

    def test_direction_of_small_steps(self) -> None:
        place = np.array([60.0, 10.0])
        metre = 180 / math.pi / EARTH_RADIUS_KM / 1000
        np.testing.assert_allclose(offset(place, 1.0, 0.0) - place, [metre, 0], atol=1e-10)
        np.testing.assert_allclose(offset(place, 0.0, 1.0) - place, [0, 2 * metre], atol=1e-10)
        np.testing.assert_allclose(offset(place, -1.0, -1.0) - place, [-metre, -2 * metre], atol=1e-10)

    @pytest.mark.parametrize(
        ("start", "bearing", "share_of_a_turn", "end"),
        [
            ((0, 0), 90, 1 / 4, (0, 90)),
            ((0, 0), 90, 1 / 2, (0, -180)),
            ((0, 0), -90, 1 / 4, (0, -90)),
            ((0, 170), 90, 1 / 18, (0, -170)),
            ((0, -170), 270, 1 / 18, (0, 170)),
            ((80, 20), 0, 1 / 18, (80, -160)),  # over the pole and down the other side
            ((90, 20), 180, 1 / 36, (80, 20)),  # from the pole down the given meridian
            ((90, 20), 0, 1 / 36, (80, -160)),
            ((90, 20), 90, 1 / 36, (80, 110)),
            ((-90, 20), 0, 1 / 36, (-80, 20)),
            ((-90, 20), 90, 1 / 36, (-80, 110)),
            ((10, 20), 33, 1, (10, 20)),
            ((0, 0), 90, -1 / 4, (0, -90)),
        ],
    )
    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_destinations(
        self, start: tuple[int, int], bearing: float, share_of_a_turn: float, end: tuple[int, int], kind: type
    ) -> None:
        arrived = destination(np.array(start, dtype=kind), bearing, share_of_a_turn * 2 * HALF_TURN_KM)
        assert arrived.dtype == kind
        away = float(haversine_km(arrived.astype(np.float64), np.array(end, dtype=np.float64)))
        assert away < (1e-8 if kind is np.float64 else 0.005)

    @given(places)
    def test_standing_still(self, place: Place) -> None:
        assert float(haversine_km(offset(place, 0.0, 0.0), place)) < 1e-8

    @pytest.mark.parametrize("pole", [90.0, -90.0])
    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_standing_still_at_a_pole_keeps_the_meridian(self, kind: type, pole: float) -> None:
        """In float32 the cosine of 90 degrees is below zero."""
        assert offset(np.array([pole, 20.0], dtype=kind), 0.0, 0.0).tolist() == [pole, 20.0]

    @given(places, st.floats(0, 360), st.floats(0, 9000))
    def test_there_and_back(self, place: Place, bearing: float, distance: float) -> None:
        """The way back has its own bearing; going on around the Earth has not."""
        there = destination(place, bearing, distance)
        on = destination(place, bearing, distance - 2 * HALF_TURN_KM)
        assert float(haversine_km(there, on)) < 1e-7

    @pytest.mark.parametrize("metres", [1.0, 150.0, 1e3, 1e5, 1e6])
    def test_float32_is_good_to_two_metres(self, metres: float, rng: np.random.Generator) -> None:
        start = world().astype(np.float32)
        bearing = rng.uniform(0, 2 * np.pi, len(start))
        north, east = metres * np.cos(bearing), metres * np.sin(bearing)
        exact = offset(start.astype(np.float64), north, east)
        moved = offset(start, north.astype(np.float32), east.astype(np.float32))
        assert moved.dtype == np.float32
        assert haversine_km(exact, moved.astype(np.float64)).max() * 1000 < 2

    def test_torch_equals_numpy_and_broadcasts(self) -> None:
        start = torch.from_numpy(world(50))
        north, east = torch.linspace(-5e5, 5e5, len(start)).double(), 200.0
        moved = offset(start, north, east)
        assert isinstance(moved, Tensor)
        assert (moved.numpy() == offset(start.numpy(), north.numpy(), east)).all()
        for array in (north_m := north.numpy()), (still := start.numpy().copy()):
            array.flags.writeable = False
        assert (moved.numpy() == offset(still, north_m, east)).all()
        ring = destination(np.array([48.8, 2.3]), np.linspace(0, 350, 36), 100.0)
        assert ring.shape == (36, 2)
        np.testing.assert_allclose(haversine_km(ring, np.array([48.8, 2.3])), 100, rtol=1e-12)


class TestEvenPoints:
    def test_every_point_stands_for_the_same_area(self) -> None:
        points = even_points(10_000)
        assert points.dtype == np.float64
        check_coordinates(points)
        # A cap of 30 degrees holds (1 - cos 30) / 2 of the Earth, wherever it lies.
        centres = world(50)
        inside = (haversine_km(points[None], centres[:, None]) < HALF_TURN_KM / 6).mean(axis=1)
        np.testing.assert_allclose(inside, (1 - math.cos(math.pi / 6)) / 2, rtol=0.02)

    def test_neighbours_keep_their_distance(self) -> None:
        points = even_points(500)
        table = haversine_km(points[:, None], points[None])
        np.fill_diagonal(table, np.inf)
        nearest = table.min(axis=1)
        side = math.sqrt(4 * math.pi / 500) * EARTH_RADIUS_KM
        assert nearest.min() > 0.6 * side
        assert nearest.max() < 1.1 * side

    def test_a_band(self) -> None:
        points = even_points(1000, -60, 75)
        assert -60 < points[:, 0].min() < -59.5
        assert 74 < points[:, 0].max() < 75
        south, north = math.sin(math.radians(-60)), math.sin(math.radians(75))
        assert (points[:, 0] < 0).mean() == pytest.approx(-south / (north - south), abs=1e-3)

    @pytest.mark.parametrize(("west", "east"), [(170.0, 200.0), (-190.0, -170.0), (0.0, 360.0), (500.0, 540.0)])
    def test_a_box_whose_longitudes_are_wrapped(self, west: float, east: float) -> None:
        points = even_points(500, 10, 20, west, east)
        assert points[:, 1].min() >= -180
        assert points[:, 1].max() < 180
        assert (((points[:, 1] - west) % 360) <= east - west).all()
        assert np.ptp((points[:, 1] - west) % 360) > 0.98 * (east - west)

    def test_one_point_is_in_the_middle(self) -> None:
        assert even_points(1).tolist() == [[0.0, -180.0]]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0,), "at least 1 point, not 0"),
            ((5, 10.0, 10.0), "lat_min < lat_max"),
            ((5, -91.0, 10.0), "-91.0 to 10.0"),
            ((5, 0.0, math.nan), "0.0 to nan"),
            ((5, 0.0, 1.0, 5.0, 5.0), "longitudes 5.0 to 5.0"),
            ((5, 0.0, 1.0, 0.0, 361.0), "longitudes 0.0 to 361.0"),
        ],
    )
    def test_what_cannot_be_spread_is_refused(self, arguments: tuple[Any, ...], message: str) -> None:
        with pytest.raises(CoordinateError, match=message):
            even_points(*arguments)


class TestGeodesics:
    def test_poles_and_the_antimeridian(self) -> None:
        a = np.array([[90.0, 0], [-90, 5], [90, 0], [0, 179.9], [10, 180]])
        b = np.array([[-90.0, 0], [-90, 50], [90, 170], [0, -179.9], [10, -180]])
        expected = Geod(ellps="WGS84").inv(a[:, 1], a[:, 0], b[:, 1], b[:, 0])[2] / 1000
        np.testing.assert_allclose(geodesic_km(a, b), expected, rtol=0, atol=1.1e-7)

    def test_no_pairs_float32_and_reversed_arrays(self) -> None:
        assert geodesic_km(np.empty((0, 2)), np.empty((0, 2))).shape == (0,)
        a = even_points(5).astype(np.float32)[::-1]
        assert geodesic_km(a, a[:1]).shape == (5,)
        assert geodesic_km(a, a[:1]).dtype == np.float64


class TestTangentPlane:
    def test_east_and_north_are_those_of_the_map(self) -> None:
        east, north, up = np.moveaxis(tangent_frame(unit_vectors(np.array([[0.0, 0.0], [45, 90]]))), 1, 0)
        np.testing.assert_allclose(east, [[0, 1, 0], [-1, 0, 0]], atol=1e-15)
        np.testing.assert_allclose(north[0], [0, 0, 1], atol=1e-15)
        np.testing.assert_allclose(up, unit_vectors(np.array([[0.0, 0.0], [45, 90]])), atol=1e-15)

    def test_frames_are_orthonormal_everywhere_also_exactly_at_a_pole(self) -> None:
        points = np.concatenate([unit_vectors(world(100)), [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]])
        frames = tangent_frame(points)
        np.testing.assert_allclose(
            frames @ frames.transpose(0, 2, 1), np.broadcast_to(np.eye(3), frames.shape), atol=1e-14
        )
        assert tangent_frame(points[-2:])[:, 0].tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]

    def test_small_offsets_are_those_in_metres(self) -> None:
        places = even_points(50, -80, 80)
        moved = tangent_offset(unit_vectors(places), np.full(50, 1e-4), np.full(50, -2e-4))
        metres = EARTH_RADIUS_KM * 1e3
        expected = offset(places, -2e-4 * metres, 1e-4 * metres)
        assert haversine_km(coordinates_of(moved), expected).max() < 1e-4

    def test_torch_equals_numpy_and_broadcasts(self) -> None:
        points = unit_vectors(even_points(3))
        east = np.array([0.0, 0.1, -0.2, 0.3])
        found = tangent_offset(points[:, None], east, 0 * east)
        assert found.shape == (3, 4, 3)
        tensor = tangent_offset(torch.from_numpy(points)[:, None], torch.from_numpy(east), torch.zeros(4).double())
        assert torch.equal(tensor, torch.from_numpy(found))
