"""The locator within limits, with several images, between the places of its gallery."""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_geoclip import AnswerSettings, Gallery, ImageError, Locator
from open_geoclip.cli._trips import hours_of
from open_geoclip.data.earth import Earth
from open_geoclip.errors import AreaError, SettingsError
from open_geoclip.geo.areas import Area
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.metadata.read import read_metadata
from open_geoclip.search.calibration import Calibration


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Views of three places."""
    places = np.array([[41.9, 12.5], [30.0, 31.2], [-23.7, 133.9]])
    return list(Earth("bluemarble").render(places, np.full(3, 900.0), np.zeros(3), size=224))


def test_answers_stay_within_and_probabilities_are_shares_of_what_is_inside(
    locator: Locator, pictures: list[np.ndarray]
) -> None:
    area = Area.parse(["-35,110,-10,155", "20,-10,35,40"], "-30,120,-20,130")
    inside = locator.within(area)
    assert 0 < len(inside.gallery) < len(locator.gallery)
    plain = AnswerSettings("max", merge_km=0)  # the gallery's own places, each alone
    inside = Locator(inside.model, inside.search_space, answers=plain)
    every = Locator(locator.model, locator.search_space, answers=plain)
    answers = inside.locate(pictures, top_k=1000)
    free = every.locate(pictures, top_k=1000)
    for answer, other in zip(answers, free, strict=True):
        places = {(c.lat, c.lon): c.probability for c in answer.candidates}
        assert len(places) == len(inside.gallery)
        assert area.contains(np.array(list(places))).all()
        assert sum(places.values()) == pytest.approx(1, abs=1e-3)  # vectors on disk are float16
        shares = {(c.lat, c.lon): c.probability for c in other.candidates if (c.lat, c.lon) in places}
        total = sum(shares.values())
        for place, share in shares.items():
            assert places[place] == pytest.approx(share / total, rel=5e-3, abs=1e-6)
        assert "within -35,110,-10,155 or 20,-10,35,40, not -30,120,-20,130" in answer.gallery
        assert f"{len(places)} of 1,000 places" in answer.gallery
    assert locator.within(Area()) is locator


def test_an_area_without_a_place_of_the_gallery_is_filled_from_itself(
    locator: Locator, pictures: list[np.ndarray]
) -> None:
    area = Area.parse("46.9,8.3,40km")
    assert not area.contains(locator.gallery.coordinates).any()
    inside = locator.within(area)
    assert len(inside.gallery) > 1000
    assert inside.search_space.index.path is not None
    assert inside.search_space.index.path.exists()
    for answer in inside.locate(pictures, top_k=5):
        assert 1 <= len(answer.candidates) <= 5
        assert answer.sure is None
        assert area.contains(np.array([(c.lat, c.lon) for c in answer.candidates])).all()
        assert "even places in the area" in answer.gallery
    with pytest.raises(AreaError, match="wholly in the sea"):
        locator.within(Area.parse("-30,-20,100km"))


def test_uncertainty_is_no_wider_than_a_small_area(locator: Locator, pictures: list[np.ndarray]) -> None:
    smoothed = Locator(locator.model, locator.search_space, calibration=Calibration(0.3, 0.01, 14.0, "a test", 100))
    [answer] = smoothed.within(Area.parse("41.9,12.5,2km"), keep=False).locate(pictures[:1], top_k=1)
    assert answer.sure is None
    assert answer.credible_radius_km is not None
    assert answer.credible_radius_km["90"] < answer.candidates[0].radius_km + 1e-6 < 5
    assert all(share <= 1 for share in (answer.countries or {}).values())
    wide = smoothed.within(Area.parse("20,-10,35,40"))
    assert wide.calibration == replace(smoothed.calibration, fitted_on=None)


def test_refined_answers_score_higher_differ_and_stay_inside(locator: Locator, pictures: list[np.ndarray]) -> None:
    area = Area.parse("-35,110,-10,155")
    plain = locator.within(area)
    fine = Locator(plain.model, plain.search_space, calibration=plain.calibration, refine=True)
    for coarse, between in zip(plain.locate(pictures, 3), fine.locate(pictures, 3), strict=True):
        assert between.candidates[0].score >= coarse.candidates[0].score
        places = np.array([(c.lat, c.lon) for c in between.candidates])
        assert area.contains(places).all()
        apart = haversine_km(places[:, None], places[None])
        assert len(places) == 1 or apart[~np.eye(len(places), dtype=bool)].min() > 300
        assert sum(c.probability for c in between.candidates) <= 1 + 1e-3
        assert between.gallery.endswith("refined")


@pytest.mark.parametrize("refine", [False, True])
def test_a_gallery_in_which_every_place_stands_twice_answers_the_same(
    refine: bool, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    once = even_points(400)
    twice = np.random.default_rng(1).permutation(np.concatenate([once, once]))
    answers, posteriors = [], []
    for places in (once, twice):
        gallery = Gallery.from_coordinates(places)
        found = Locator.from_pretrained("earth", gallery=gallery, cache=tmp_path, refine=refine)
        posterior = found.posterior(found.encode(pictures))
        order = np.lexsort(posterior.cells.coordinates.T)
        posteriors.append((posterior.cells.coordinates[order], posterior.mass.numpy()[:, order]))
        answers.append(found.locate(pictures, 3))
    np.testing.assert_array_equal(posteriors[0][0], posteriors[1][0])
    np.testing.assert_allclose(posteriors[0][1], posteriors[1][1], atol=1e-6)
    # Of two places with next to the same cosine, rounding chooses the first, and what is looked around.
    near = 0.02 if refine else 5e-3
    for one, other in zip(*answers, strict=True):
        assert one.credible_radius_km == pytest.approx(other.credible_radius_km, rel=near)
        assert one.within_km == pytest.approx(other.within_km, abs=near)
        here, there = one.candidates[0], other.candidates[0]
        assert haversine_km(np.array([here.lat, here.lon]), np.array([there.lat, there.lon])) < 1000 * near
        assert here.probability == pytest.approx(there.probability, abs=near)


def test_copies_of_an_image_tell_no_more_than_the_image(locator: Locator, pictures: list[np.ndarray]) -> None:
    alone = locator.locate(pictures[:1])[0]
    copies = locator.locate_together(pictures[:1] * 3)
    assert copies.image == "array #0, array #1, array #2"
    for one, other in zip(alone.candidates, copies.candidates, strict=True):
        assert (one.lat, one.lon) == pytest.approx((other.lat, other.lon), abs=1e-3)
        assert one.probability == pytest.approx(other.probability, rel=1e-3)
    assert locator.locate_together(pictures).candidates != alone.candidates
    with pytest.raises(SettingsError, match="at least one"):
        locator.locate_together([])
    with pytest.raises(ImageError):
        locator.locate_together([b"no picture"])


def test_a_trip_keeps_to_the_speed_limit(locator: Locator, pictures: list[np.ndarray]) -> None:
    far = locator.locate_trip(pictures, [0, 1000, 2000])
    for answer, alone in zip(far, locator.locate(pictures), strict=True):
        here, there = answer.candidates[0], alone.candidates[0]
        assert haversine_km(np.array([here.lat, here.lon]), np.array([there.lat, there.lon])) < 5  # no background here
    still = locator.locate_trip(pictures, [0, 0.5, 0.1], speed_kmh=50)
    best = np.array([(answer.candidates[0].lat, answer.candidates[0].lon) for answer in still])
    slack = float(np.median(locator.search_space.cells.spacing_km))
    assert haversine_km(best[[0, 2]], best[[2, 1]]).max() < 2 * (slack + 25)
    assert all(answer.error is None for answer in still)
    with pytest.raises(SettingsError, match="a time for each"):
        locator.locate_trip(pictures, [0, 1])


def photo(path: Path, taken: str, zone: str = "") -> Path:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = taken
    if zone:
        exif.get_ifd(0x8769)[0x9011] = zone
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


def test_times_of_photos(tmp_path: Path) -> None:
    assert read_metadata(photo(tmp_path / "a.jpg", "2026:05:01 14:03:00")).taken == datetime(2026, 5, 1, 14, 3)
    zoned = read_metadata(photo(tmp_path / "b.jpg", "2026:05:01 14:03:00", "+02:00")).taken
    assert zoned == datetime(2026, 5, 1, 14, 3, tzinfo=timezone(timedelta(hours=2)))
    assert read_metadata(photo(tmp_path / "c.jpg", "    :  :     :  :  ")).taken is None
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    assert read_metadata(content.getvalue()).taken is None
    assert read_metadata(np.zeros((4, 4, 3), np.uint8)).taken is None


def test_hours_of_a_trip_come_from_exif_or_a_table(tmp_path: Path) -> None:
    files = [
        photo(tmp_path / "a.jpg", "2026:05:01 14:00:00"),
        photo(tmp_path / "b.jpg", "2026:05:01 17:30:00", "+02:00"),
    ]
    hours = hours_of(files, None)
    assert hours[1] - hours[0] == pytest.approx(3.5)  # one has no zone: what the clocks showed
    table = tmp_path / "times.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image", "time"], ["a.jpg", "2026-05-01T10:00Z"], ["b.jpg", "2026-05-01T13:00+02:00"]]
        )
    hours = hours_of(files, table)
    assert hours[1] - hours[0] == pytest.approx(1)
    assert hours[0] == datetime(2026, 5, 1, 10, tzinfo=UTC).timestamp() / 3600
    Image.new("RGB", (8, 8)).save(tmp_path / "c.jpg")
    with pytest.raises(SettingsError, match=r"c\.jpg without a time in EXIF: give --times"):
        hours_of([*files, tmp_path / "c.jpg"], None)
    with pytest.raises(SettingsError, match="without a row in"):
        hours_of([tmp_path / "c.jpg"], table)
    table.write_text("SourceFile;DateTimeOriginal\na.jpg;2026:05:01 10:00:00\nb.jpg;2026:05:01 12:30:00\n")
    hours = hours_of(files, table)
    assert hours[1] - hours[0] == pytest.approx(2.5)
    table.write_text("image,time\na.jpg,noon\n")
    with pytest.raises(SettingsError, match="line 2: 'noon' is not a time"):
        hours_of(files, table)
    table.write_text("name,when\n")
    with pytest.raises(SettingsError, match="no column image or time; its columns are name, when"):
        hours_of(files, table)
    with pytest.raises(SettingsError, match="there is no such file"):
        hours_of(files, tmp_path / "none.csv")


def test_a_locator_with_another_decoding_shares_the_search_space_and_changes_nothing(
    locator: Locator, pictures: list[np.ndarray]
) -> None:
    before = locator.locate(pictures[0])
    other = locator.with_decode("max")
    assert other.search_space is locator.search_space
    assert other.locate(pictures[0])[0].candidates[0] != before[0].candidates[0]
    assert locator.locate(pictures[0]) == before
    refining = Locator(locator.model, locator.search_space, refine=True)
    with pytest.raises(SettingsError, match="decode max"):
        refining.with_decode("max")
