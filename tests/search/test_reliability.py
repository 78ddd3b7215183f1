"""Reliability of the released weights by the place of the answer."""

import inspect
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from open_geoclip import Answer, AnswerSettings, Area, Calibration, CoordinateError, Gallery, Locator, Reliability
from open_geoclip.cli._answers import _table
from open_geoclip.errors import DataError, SettingsError, WeightsError
from open_geoclip.export.formats import render
from open_geoclip.export.tables import rows
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.search.query import Query
from open_geoclip.search.reliability import PhotoKind
from open_geoclip.weights.load import load_model, load_release

PLACES = np.array([(48.8584, 2.2945), (-33.8568, 151.2153), (-16.5, 179.99), (6.5, 3.4), (-90.0, 0.0)])

_WITHIN = [
    [0.4018, 0.8361, 0.8472, 0.9047, 0.9505],
    [0.3223, 0.8384, 0.8498, 0.8819, 0.9312],
    [0.0154, 0.0751, 0.1976, 0.2872, 0.5338],
    [0.0157, 0.0616, 0.1488, 0.2838, 0.5934],
    [0.0071, 0.1046, 0.1605, 0.178, 0.3544],
]
_WITHIN_ANY = [[0.3523, 0.6159, 0.6899, 0.8112, 0.9026]]
_RADII = [[2.1, 673.2], [3.0, 1165.7], [2119.7, 12810.8], [1738.3, 11999.1], [3997.0, 14502.2]]


@pytest.fixture(scope="module")
def reliability(released: Path) -> Reliability:
    return Reliability.from_pretrained()


def test_golden_values(reliability: Reliability) -> None:
    """Shares and radii of the coefficients that are shipped; the counts are of the released gallery."""
    counts = np.expm1(reliability.log_counts(PLACES[:2])).round().astype(int)
    assert counts.tolist() == [[111, 981, 1441, 2186, 28750], [98, 352, 567, 830, 1765]]
    np.testing.assert_allclose(reliability.within_km(PLACES), _WITHIN, atol=5e-5)
    np.testing.assert_allclose(reliability.within_km(PLACES[:1], photos="any"), _WITHIN_ANY, atol=5e-5)
    np.testing.assert_allclose(reliability.radius_km(PLACES), _RADII, atol=0.06)


def test_counts_are_those_of_all_distances(reliability: Reliability) -> None:
    gallery = reliability.gallery
    km = haversine_km(PLACES[:, None], gallery.coordinates[None].astype(np.float64))
    expected = [[gallery.weights[row <= radius].sum() for radius in reliability.radii_km] for row in km]
    np.testing.assert_allclose(np.expm1(reliability.log_counts(PLACES)), expected, atol=1e-6)


@pytest.mark.parametrize("photos", get_args(PhotoKind))
def test_shares_increase_with_distance_up_to_what_was_measured(reliability: Reliability, photos: PhotoKind) -> None:
    places = np.concatenate([even_points(2000), reliability.gallery.coordinates[::200].astype(np.float64)])
    within = reliability.within_km(places, photos=photos)
    assert within.shape == (len(places), 5)
    assert np.all(within > 0)
    assert np.all(np.diff(within, axis=1) > 0)
    assert np.all(within <= reliability.highest[photos])
    assert np.all(within <= reliability.within_km(places))
    radii = reliability.radius_km(places, (0.1, 0.5, 0.9, 0.99), photos=photos)
    assert np.all(np.diff(radii, axis=1) >= 0)
    assert np.all((radii >= 1) & (radii <= 20_016))


def test_radii_are_where_shares_reach_the_level(reliability: Reliability) -> None:
    within = reliability.within_km(PLACES)
    for n, place in enumerate(PLACES):
        for k, km in enumerate((1, 25, 200, 750, 2500)):
            radius = reliability.radius_km(place[None], [within[n, k]])
            assert radius.item() == pytest.approx(km)
    assert reliability.radius_km(PLACES[:1], [1e-6]).item() == 1  # nearer than that nothing was measured


def test_longitudes_wrap(reliability: Reliability) -> None:
    one, other = np.array([[-16.5, 180.0]]), np.array([[-16.5, -180.0]])
    np.testing.assert_allclose(reliability.within_km(one), reliability.within_km(other), rtol=1e-12)
    one, other = np.array([[0.0, 190.0]]), np.array([[0.0, -170.0]])
    np.testing.assert_array_equal(reliability.within_km(one), reliability.within_km(other))
    assert reliability.within_km(np.empty((0, 2))).shape == (0, 5)
    assert reliability.radius_km(np.empty((0, 2)), (0.5,)).shape == (0, 1)
    assert reliability.describe(np.empty((0, 2))) == []


def test_wrong_input_is_refused(reliability: Reliability) -> None:
    for wrong in ([[91.0, 0.0]], [[0.0, np.nan]], [[0.0, 700.0]]):
        with pytest.raises(CoordinateError):
            reliability.within_km(np.array(wrong))
    for levels in ((0.0,), (0.5, 1.0), (-1.0,), (float("nan"),)):
        with pytest.raises(SettingsError, match="levels: above 0 and below 1"):
            reliability.radius_km(PLACES, levels)
    with pytest.raises(SettingsError, match="photos: one of recognisable, any, not 'all'"):
        inspect.unwrap(Reliability.within_km)(reliability, PLACES, photos="all")  # types are checked in tests alone
    with pytest.raises(WeightsError, match="not of 'earth'"):
        Reliability.from_pretrained("earth")


def test_it_is_that_of_the_released_weights_and_gallery_alone(reliability: Reliability) -> None:
    fingerprint = load_release("geoclip").fingerprint
    assert Reliability.find(fingerprint, reliability.gallery) is not None
    assert Reliability.find(fingerprint, Gallery.from_coordinates(PLACES)) is None
    assert Reliability.find("0" * 64, reliability.gallery) is None


def test_in_words(reliability: Reliability) -> None:
    paris, _, _, lagos, pole = reliability.describe(PLACES)
    assert paris.text == (
        "answers here were right within 25 km for 6 in 10 photos of any kind and 8 in 10 of recognisable places, "
        "within 200 km for 7 in 10 and 8 in 10"
    )
    assert "25 km for fewer than 1 in 100 photos of any kind and 1 in 16 of recognisable places" in lagos.text
    for described in (paris, lagos, pole):
        assert list(described.within_km) == ["1", "25", "200", "750", "2500"]
        assert list(described.radius_km) == ["50", "90"]
        for low, high in (*described.within_km.values(), *described.radius_km.values()):
            assert 0 <= low <= high
        assert "2,997" in described.measured_on


@pytest.fixture(scope="module")
def locator(released: Path, reliability: Reliability, tmp_path_factory: pytest.TempPathFactory) -> Locator:
    """The released heads with a part of the gallery, without an image backbone."""
    part = Gallery.from_coordinates(reliability.gallery.coordinates[::500])
    cache = tmp_path_factory.mktemp("cache")
    return Locator(load_model("geoclip", towers=()), part, cache=cache, reliability=reliability)


def test_answers_to_single_images_have_it(locator: Locator, reliability: Reliability) -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(2, 512, generator=torch.Generator().manual_seed(0)))
    answers = locator.locate_embeddings(embeddings, 2)
    for answer in answers:
        best = answer.candidates[0]
        [expected] = reliability.describe(np.array([(best.lat, best.lon)]))
        assert answer.reliability == expected
        record = json.loads(json.dumps(answer.to_dict() | {"image": "a.jpg"}))
        assert Answer.from_dict(record).to_dict() == record
        assert Answer.from_dict(record).reliability == expected


def test_it_is_absent_where_nothing_was_measured(locator: Locator, reliability: Reliability) -> None:
    embedding = torch.nn.functional.normalize(torch.ones(1, 512))

    def answer(locator: Locator) -> Answer:
        return locator.locate_embeddings(embedding, 1)[0]

    def other(**options: Any) -> Locator:
        return Locator(locator.model, locator.search_space, reliability=reliability, **options)

    assert answer(other()).reliability is not None
    assert answer(locator.with_decode("max")).reliability is not None
    assert "reliability" not in answer(locator.with_decode("mass")).to_dict()
    assert answer(locator.within(Area.parse(["-60,-180,0,180"]))).reliability is None
    assert answer(other(answers=AnswerSettings("max", prior="even"))).reliability is None
    assert answer(Locator(locator.model, locator.search_space)).reliability is None
    calibrated = Calibration(temperature=2.0, fitted_on="photos of mine", n_images=500)
    assert answer(other(calibration=calibrated)).reliability is None  # the user's own knows the photo
    assert answer(other(calibration=calibrated, answers=AnswerSettings("max"))).reliability is None
    query = locator.query_encoded(Query.from_texts(["x"], embedding).encoded)
    for texts in (Query.from_texts(["x"], embedding), query.with_text("x", embedding[0], 0.5)):
        [(located, _)] = locator.answer([texts])
        assert located.reliability is None
    [(together, _)] = locator.answer([Query.from_place(query.encoded, locator.calibration)])
    assert together.reliability is None


@pytest.fixture(scope="module")
def record(locator: Locator) -> dict[str, object]:
    [answer] = locator.locate_embeddings(torch.nn.functional.normalize(torch.ones(1, 512)), 2)
    return answer.to_dict() | {"image": "a.jpg"}


def test_exports_have_it(record: dict[str, object]) -> None:
    reliability = record["reliability"]
    assert isinstance(reliability, dict)
    for name in ("json", "csv", "geojson", "kml"):
        assert reliability["text"] in render([record], name).decode(), name
    for row in rows([record], {"caution": "", "created": ""}):
        low, high = reliability["within_km"]["25"]
        assert row["reliability_within_25_km_any"] == low
        assert row["reliability_within_25_km_recognisable"] == high
        assert row["reliability"] == reliability["text"]
    [failed] = rows([{"image": "a.jpg", "error": "x"}], {"caution": "", "created": ""})
    assert failed["reliability"] is None
    assert failed["reliability_within_200_km_any"] is None


def test_what_anybody_wrote_is_checked(record: dict[str, object]) -> None:
    reliability = record["reliability"]
    assert isinstance(reliability, dict)
    for wrong in (reliability | {"within_km": {"25": [0.1, 1.5]}}, reliability | {"more": 1}, {"text": "x"}):
        with pytest.raises(DataError, match="reliability"):
            Answer.from_dict(record | {"reliability": wrong})


def test_the_table_has_it(locator: Locator) -> None:
    [answer] = locator.locate_embeddings(torch.nn.functional.normalize(torch.ones(1, 512)), 1)
    assert answer.reliability is not None
    assert f"      {answer.reliability.text}\n" in _table([answer])
