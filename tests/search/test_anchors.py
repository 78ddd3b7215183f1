"""Photos between known places: the interpolated place, the speed limit, what pictures add, and limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from open_geoclip import Locator
from open_geoclip.data.clocks import Anchors
from open_geoclip.data.tracks import Fix
from open_geoclip.errors import SettingsError
from open_geoclip.geo.areas import Area
from open_geoclip.geo.sphere import haversine_km
from open_geoclip.search.anchors import anchored_posteriors
from open_geoclip.search.answer import Answer
from open_geoclip.search.posterior import Posterior

Bracket = tuple[Fix | None, Fix | None]


def fixes(minutes: float, start: tuple[float, float], end: tuple[float, float], accuracy_m: float = 10) -> Bracket:
    """Return fixes that long before and after the time 0."""
    return Fix(-60 * minutes, *start, accuracy_m, "walk.gpx"), Fix(60 * minutes, *end, accuracy_m, "walk.gpx")


def between(
    locator: Locator, *brackets: Bracket, times_s: tuple[float, ...] = (0.0,), **options: float
) -> list[Posterior]:
    """Return posteriors where pictures say nothing: no score is high enough."""
    calibration = replace(locator.calibration, min_score=2.0, fitted_on="views")
    embeddings = torch.nn.functional.normalize(torch.ones(len(times_s), 512), dim=1)
    posterior, _, is_possible = anchored_posteriors(
        locator.search_space,
        embeddings,
        locator.model.scale,
        calibration,
        Anchors(times_s, brackets),
        options.get("speed_kmh", 900.0),
    )
    assert is_possible
    return [posterior(n) for n in range(len(times_s))]


def radius_km(posterior: Posterior, share: float) -> float:
    return float(posterior.profile(posterior.decode("distance")).radius_km((share,))[0, 0])


@pytest.mark.parametrize(
    ("minutes", "north_km", "most_km"), [(1 / 60, 0.003, 0.06), (5, 1, 3.5), (30, 60, 200), (600, 1500, 9000)]
)
def test_a_photo_without_evidence_is_where_the_fixes_say(
    minutes: float, north_km: float, most_km: float, locator: Locator
) -> None:
    north = north_km / 111.195
    [posterior] = between(locator, fixes(minutes, (41.9, 12.5), (41.9 + north, 12.5)))
    assert haversine_km(posterior.decode("distance")[0], np.array([41.9 + north / 2, 12.5])) < 0.2 * north_km + 0.01
    assert radius_km(posterior, 0.9) < most_km
    assert float(posterior.mass.sum()) == pytest.approx(1)


def test_nobody_is_faster_than_the_limit(locator: Locator) -> None:
    rome = (41.9, 12.5)
    [posterior] = between(locator, fixes(30, rome, rome), speed_kmh=5.0)
    assert haversine_km(posterior.cells.coordinates.astype(np.float64), np.array(rome)).max() < 2.6
    # Two photos a minute apart are of one place, though either may be anywhere in the prism.
    pair = between(locator, *[fixes(300, rome, rome)] * 2, times_s=(0.0, 60.0), speed_kmh=30.0)
    assert haversine_km(pair[0].decode("distance"), pair[1].decode("distance"))[0] < 1
    # Fixes that are farther apart than the limit allows say how fast it was.
    [flight] = between(locator, fixes(6, rome, (45.9, 12.5)), speed_kmh=100.0)
    assert haversine_km(flight.decode("distance")[0], np.array([43.9, 12.5])) < 40


def test_before_the_first_fix_and_over_180_degrees(locator: Locator) -> None:
    [after_hours] = between(locator, (None, Fix(7200.0, 41.9, 12.5, 10)))
    assert 10 < radius_km(after_hours, 0.5) < 50
    [years] = between(locator, (Fix(-1e8, 41.9, 12.5, 10), None))
    assert len(years.cells) >= len(locator.gallery)
    assert radius_km(years, 0.9) > 5000
    [pacific] = between(locator, fixes(60, (0.0, 179.0), (0.0, -179.0)))
    assert abs(abs(pacific.decode("distance")[0, 1]) - 180) < 0.1
    [moment] = between(locator, (Fix(0.0, 41.9, 12.5, 3000),) * 2)
    assert 3 < radius_km(moment, 0.68) < 4.5


def test_answers_name_their_anchors_and_stay_within_limits(locator: Locator) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    bracket = fixes(60, (41.9, 12.5), (42.4, 12.5))
    [answer] = locator.locate_trip([image], Anchors((0.0,), (bracket,)))
    assert answer.time == "1970-01-01T00:00:00+00:00"
    assert [(one.time, one.source) for one in answer.anchors] == [
        ("1969-12-31T23:00:00+00:00", "walk.gpx"),
        ("1970-01-01T01:00:00+00:00", "walk.gpx"),
    ]
    assert answer.sure is None  # an airliner may have been anywhere
    [near] = locator.locate_trip([image], Anchors((0.0,), (bracket,)), speed_kmh=150)
    assert near.sure is True
    assert near.candidates[0].probability <= 1
    assert Answer.from_dict(answer.to_dict()) == answer
    assert "anchors" not in locator.locate([image])[0].to_dict()
    limited = locator.within(Area.parse(["42.2,12.51,42.3,13"]))
    [answer] = limited.locate_trip([image], Anchors((0.0,), (bracket,)), 3)
    assert all(42.2 <= one.lat <= 42.3 and one.lon >= 12.51 for one in answer.candidates)
    with pytest.raises(SettingsError, match="speed: a number of 0 or more"):
        locator.locate_trip([image], Anchors((0.0,), (bracket,)), speed_kmh=-1)
    # Limits so small that places all over a wide prism miss them, and others that nobody gets to.
    wide = fixes(240, (41.9, 12.5), (41.9, 12.5))
    paris = locator.within(Area.parse(["48.86,2.29,5km"]), keep=False)
    [answer] = paris.locate_trip([image], Anchors((0.0,), (wide,)))
    assert all(paris.search_space.area.contains(np.array([[one.lat, one.lon]])) for one in answer.candidates)
    [answer] = paris.locate_trip([image], Anchors((0.0,), (bracket,)), speed_kmh=100)
    assert answer.error == "no trip of these images keeps to 100 km/h within 48.86,2.29,5km"
    [at_sea] = locator.locate_trip([image], Anchors((0.0,), (fixes(5, (-40.0, -140.0), (-40.0, -140.0)),)), 1)
    assert at_sea.countries == {}  # the nearest place of the gallery is in French Polynesia


def test_photos_that_one_place_alone_is_left_for(locator: Locator) -> None:
    wide = fixes(240, (41.9, 12.5), (41.9, 12.5))
    place = locator.gallery.coordinates[locator.search_space.cells.nearest(np.array([[48.86, 2.29]]))]
    lat, lon = place[0].tolist()
    one = locator.within(Area.parse([f"{lat},{lon},10km"]), keep=False)
    assert len(one.search_space.cells) == 1
    calibration = replace(locator.calibration, min_score=-1.0)  # the pictures say something
    embeddings = torch.nn.functional.normalize(torch.ones(2, 512), dim=1)
    anchors = Anchors((0.0, 3600.0), (wide, wide))
    found, _, _ = anchored_posteriors(one.search_space, embeddings, one.model.scale, calibration, anchors, 900.0)
    for n in range(2):
        assert haversine_km(found(n).decode("mass", 50.0), place.astype(np.float64))[0] < 10
