"""A map of several answers: thumbnails of the images, and their candidates on an Equal Earth map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from open_geoclip.errors import SettingsError
from open_geoclip.export.basemap import INK, MAP_RATIO, PALE, add_world, check_png, new_figure, place_labels, save_png
from open_geoclip.geo.projections import equal_earth
from open_geoclip.geo.sphere import check_coordinates, geodesic_km, great_circle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MAX_CARDS", "LocatedImage", "answers_figure", "draw_answers", "draw_candidates", "place_text"]

MAX_CARDS = 60
"""Images with a thumbnail and a number; further ones are dots on the map, and the figure says so."""

_DPI = 200
_MARGIN = 0.35  # around the figure, in inches like all lengths below
_GAP = 0.18  # between cards
_WHITE_EDGE: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.7}
_FOOT = 0.2  # from the lower edge to the centre of the small print

# Okabe and Ito's palette, which is safe for colour-blind readers, without yellow (too pale) and black (the text).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


@dataclass(frozen=True, eq=False)
class LocatedImage:
    """An image and its candidates.

    Attributes:
        image: for the thumbnail, if there is one.
        name: one line.
        candidates: (lat, lon) in degrees, k at least 1, the best first.
        probabilities: of the candidates.
        truth: (lat, lon) in degrees, if it is known.
        sure: False is shown with the answer; None if the model is not calibrated.

    Raises:
        CoordinateError: a candidate or the truth is not on Earth.
        SettingsError: there are no candidates, or their probabilities do not match them.
    """

    image: Image.Image | None
    name: str
    candidates: Float[np.ndarray, "k 2"]
    probabilities: Float[np.ndarray, " k"]
    truth: tuple[float, float] | None = None
    sure: bool | None = None

    def __post_init__(self) -> None:
        check_coordinates(self.candidates)
        if self.truth is not None:
            check_coordinates([self.truth])
        if len(self.candidates) == 0 or self.probabilities.shape != (len(self.candidates),):
            shapes = f"candidates {self.candidates.shape} and probabilities {self.probabilities.shape}"
            raise SettingsError(f"{self.name}: a located image needs k candidates (k, 2) and (k,), not {shapes}")
        if not ((self.probabilities >= 0) & (self.probabilities < 1 + 1e-5)).all():  # a softmax in float32 may round up
            raise SettingsError(f"{self.name}: probabilities must be within 0 and 1")

    @property
    def best(self) -> Float[np.ndarray, "2"]:
        """The first candidate."""
        best: np.ndarray = self.candidates[0]
        return best

    @property
    def off_km(self) -> float | None:
        """Kilometres from the first candidate to the truth, on the ellipsoid."""
        return None if self.truth is None else float(geodesic_km(self.best, np.array(self.truth, float)))


def draw_answers(path: Path, places: Sequence[LocatedImage], *, note: str = "") -> None:
    """Draw images and their candidates on a world map, as a PNG file.

    Args:
        path: the file, ``*.png``.
        places: the images, in the order of their numbers.
        note: a line of small print, such as the names of model and gallery.

    Raises:
        SettingsError: there are no images, or the name does not end in .png.
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    check_png(path)
    save_png(answers_figure(places, note=note), path)


def answers_figure(places: Sequence[LocatedImage], *, note: str = "") -> "Figure":
    """Return the map of :func:`draw_answers` as a Matplotlib figure; arguments and errors are the same."""
    if not places:
        raise SettingsError("there is nothing to draw: no image was located")
    cards = places[:MAX_CARDS]
    layout = _layout(len(cards), any(place.image is not None for place in cards))
    figure = new_figure(layout.width, layout.height, _DPI)
    for number, place in enumerate(cards):
        _draw_card(figure, layout, number, place)
    _draw_map(figure, layout, places)
    rest = len(places) - len(cards)
    more = f"{rest:,} more images are dots without a number" if rest else ""
    print_line = "   ·   ".join(part for part in (more, _printable(note)) if part)
    x, y, _, _ = _box(layout, layout.width - _MARGIN, layout.height - _FOOT, 0, 0)
    figure.text(x, y, print_line, fontsize=7, color=PALE, ha="right", va="center", parse_math=False)
    return figure


# --- where things go ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Sizes in inches; the origin is the upper left corner of the figure."""

    width: float
    height: float
    map_left: float
    map_top: float
    map_width: float
    columns: int
    cell_width: float
    cell_height: float
    thumbnail: float  # side of the square that an image is fitted into, 0 for none
    caption_right: bool  # the caption is to the right of the thumbnail, else below it
    single: bool = False  # one image, with room below

    @property
    def map_height(self) -> float:
        return self.map_width * MAP_RATIO


def _layout(n: int, with_images: bool) -> _Layout:
    """Return the layout for n cards: one to three are to the left of the map, more above it."""
    legend = 0.45
    if n <= 3 and with_images:
        panel, map_width = 3.3, 9.6
        map_height = map_width * MAP_RATIO
        cell = (map_height + 0.1) / n
        return _Layout(
            width=3 * _MARGIN + panel + map_width,
            height=2 * _MARGIN + map_height + legend,
            map_left=2 * _MARGIN + panel,
            map_top=_MARGIN,
            map_width=map_width,
            columns=1,
            cell_width=panel,
            cell_height=cell,
            thumbnail=panel if n == 1 else min(cell - 0.2, 1.6),
            caption_right=n > 1,
            single=n == 1,
        )
    inner = 12.0
    most = 6 if n <= 12 else 8 if n <= 32 else 10
    columns = math.ceil(n / math.ceil(n / most))
    cell_width = (inner + _GAP) / columns
    thumbnail = min(cell_width - _GAP, 2.4) if with_images else 0.0
    cell_height = thumbnail + 0.78
    map_top = _MARGIN + math.ceil(n / columns) * cell_height + 0.1
    return _Layout(
        width=inner + 2 * _MARGIN,
        height=map_top + inner * MAP_RATIO + legend + _MARGIN,
        map_left=_MARGIN,
        map_top=map_top,
        map_width=inner,
        columns=columns,
        cell_width=cell_width,
        cell_height=cell_height,
        thumbnail=thumbnail,
        caption_right=False,
    )


# --- cards ----------------------------------------------------------------------------------------


def _draw_card(figure: "Figure", layout: _Layout, number: int, place: LocatedImage) -> None:
    """Draw thumbnail, number, name, best candidate, and its distance from the truth or its probability."""
    row, column = divmod(number, layout.columns)
    left = _MARGIN + column * layout.cell_width
    top = _MARGIN + row * layout.cell_height
    text_left, text_top = left, top + layout.thumbnail + 0.1
    if layout.caption_right:
        text_left, text_top = left + layout.thumbnail + 0.15, top
    if place.image is not None:
        height = _draw_thumbnail(figure, layout, left, top, place.image)
        if layout.single:
            text_top = top + height + 0.1

    disc = 0.18
    narrow = layout.cell_width < 2
    size = 7.5 if narrow else 8.5
    style: dict[str, Any] = {"va": "center_baseline", "parse_math": False}
    x, y, _, _ = _box(layout, text_left, text_top + 0.1, 0, 0)
    _draw_disc(figure, x + disc / 2 / layout.width, y, number, 72 * disc)
    room = left + layout.cell_width - _GAP - text_left - disc - 0.08
    name = _fitted(figure, _printable(place.name), room, size)
    figure.text(x + (disc + 0.08) / layout.width, y, name, fontsize=size, fontweight="bold", color=INK, **style)

    lines = [place_text(place.best)]
    if place.off_km is not None:
        off = _distance_text(place.off_km)
        lines.append(f"not sure, {off} off" if place.sure is False else f"{off} from the truth")
    else:
        share = _percent(place.probabilities[0])
        lines.append(f"not sure, {share}" if place.sure is False else f"probability {share}")
    if layout.single and len(place.candidates) > 1:
        lines += ["", "or, with a probability of"]
        further = zip(place.probabilities[1:5], place.candidates[1:5], strict=True)
        lines += [f"{_percent(probability)}   {place_text(other)}" for probability, other in further]
    for line, text in enumerate(lines):
        drop = (0.22 + 0.165 * line) / layout.height
        figure.text(x, y - drop, text, fontsize=size - 0.5, color=PALE, **style)


def _draw_thumbnail(figure: "Figure", layout: _Layout, left: float, top: float, image: Image.Image) -> float:
    """Fit an image into the square of the thumbnail; return its height."""
    from matplotlib.image import BboxImage
    from matplotlib.transforms import Bbox, TransformedBbox

    side = round(layout.thumbnail * _DPI)
    fitted = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    width, height = fitted.width / _DPI, fitted.height / _DPI
    box = Bbox.from_bounds(*_box(layout, left, top, width, height))
    artist = BboxImage(TransformedBbox(box, figure.transSubfigure), origin="upper", gid="thumbnail")
    artist.set_data(np.asarray(fitted))
    figure.add_artist(artist)
    return height


# --- the map --------------------------------------------------------------------------------------


def _draw_map(figure: "Figure", layout: _Layout, places: Sequence[LocatedImage]) -> None:
    """Draw the Earth, all candidates, the truths, and great circles from them to the answers."""
    axes = add_world(figure, _box(layout, layout.map_left, layout.map_top, layout.map_width, layout.map_height))
    for number, place in reversed(list(enumerate(places))):  # the first image on top
        colour = _colour(number)
        draw_candidates(axes, place.candidates, place.probabilities, colour)
        if place.truth is not None:
            truth = np.array(place.truth, dtype=np.float64)
            axes.plot(*equal_earth(great_circle(place.best, truth)).T, color=colour, linewidth=1.1, zorder=6)
            x, y = equal_earth(truth[None]).T
            axes.scatter(x, y, 70, colour, marker="*", **_WHITE_EDGE, zorder=7, gid="truth")

    numbered = places[:MAX_CARDS]
    unit = 72 * layout.map_width / 2  # points
    size = 11.0 if len(numbered) <= 24 else 9.0
    best = equal_earth(np.stack([place.best for place in numbered])) * unit
    truths = [place.truth for place in numbered if place.truth is not None]
    keep_free = np.concatenate((best, equal_earth(np.array(truths, dtype=np.float64).reshape(-1, 2)) * unit))
    for number, (point, disc) in enumerate(zip(best, place_labels(best, keep_free, size / 2), strict=True)):
        axes.plot(*(np.stack((point, disc)) / unit).T, color=INK, linewidth=0.5, zorder=7.5, clip_on=False)
        _draw_disc(axes, disc[0] / unit, disc[1] / unit, number, size)
    _draw_legend(figure, layout, places)


def draw_candidates(
    axes: "Axes", candidates: Float[np.ndarray, "k 2"], probabilities: Float[np.ndarray, " k"], colour: str
) -> None:
    """Draw candidates, (lat, lon) in degrees, on a world map: the first one with an edge, others by probability."""
    x, y = equal_earth(candidates).T
    area = 4 + 22 * probabilities / max(float(probabilities.max()), 1e-12)
    axes.scatter(x[1:], y[1:], area[1:], colour, alpha=0.45, linewidths=0, zorder=5, gid="candidates")
    axes.scatter(x[:1], y[:1], 20, colour, **_WHITE_EDGE, zorder=8, gid="best")


def _draw_legend(figure: "Figure", layout: _Layout, places: Sequence[LocatedImage]) -> None:
    """Draw the legend of the markers that are on the map."""
    from matplotlib.lines import Line2D

    signs = [("best answer", "o", 6.0, 1.0)]
    if any(len(place.candidates) > 1 for place in places):
        signs.append(("further candidates, larger if more probable", "o", 4.0, 0.45))
    if any(place.truth is not None for place in places):
        signs += [("truth", "*", 9.0, 1.0), ("from truth to answer", "", 0.0, 1.0)]
    handles = []
    for label, marker, size, alpha in signs:
        line = 0 if marker else 1.1
        handles.append(Line2D([], [], label=label, marker=marker, markersize=size, alpha=alpha, linewidth=line))
        handles[-1].set(color=PALE, markeredgewidth=0)
    x, y, _, _ = _box(layout, layout.map_left, layout.height - _FOOT - 0.22, 0, 0)
    figure.legend(
        handles=handles, ncols=len(handles), loc="center left", bbox_to_anchor=(x, y), fontsize=7.5,
        labelcolor=PALE, frameon=False, borderpad=0, handletextpad=0.5, columnspacing=1.8,
    )  # fmt: skip


def _draw_disc(onto: "Figure | Axes", x: float, y: float, number: int, size: float) -> None:
    """Draw the number of an image on a disc of its colour; the size is in points."""
    from matplotlib.lines import Line2D

    colour = _colour(number)
    disc = Line2D([x], [y], marker="o", markersize=size, color=colour, zorder=9, clip_on=False, gid="number")
    disc.set(markeredgecolor="white", markeredgewidth=0.8)
    onto.add_artist(disc)
    style: dict[str, Any] = {"fontweight": "bold", "ha": "center", "va": "center_baseline", "zorder": 9}
    onto.text(x, y, str(number + 1), fontsize=0.6 * size, color=_on(colour), **style)


# --- text and colours ----------------------------------------------------------------------------


def _box(layout: _Layout, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Return a box in inches from the upper left corner as Matplotlib's (left, bottom, width, height)."""
    bottom = layout.height - top - height
    return (left / layout.width, bottom / layout.height, width / layout.width, height / layout.height)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _on(colour: str) -> str:
    """Return black or white, whichever has more contrast."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#FFFFFF"


def place_text(place: Float[np.ndarray, "2"]) -> str:
    """Return (lat, lon) in degrees as text with hemispheres."""
    lat, lon = place.tolist()
    return f"{abs(lat):.3f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.3f}° {'E' if lon >= 0 else 'W'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _distance_text(km: float) -> str:
    return f"{km * 1000:.0f} m" if km < 1 else f"{km:.1f} km" if km < 10 else f"{km:,.0f} km"


def _printable(text: str) -> str:
    """Return the text on one line, with a box for each character that the font cannot show."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return "".join(c if ord(c) in known else "\N{WHITE SQUARE}" for c in " ".join(text.split()))


def _fitted(figure: "Figure", text: str, room: float, size: float) -> str:
    """Return the text, its middle replaced by an ellipsis if it is wider than the room in bold."""
    from matplotlib.text import Text

    def width(text: str) -> float:
        probe = Text(0, 0, text, fontsize=size, fontweight="bold", figure=figure, parse_math=False)
        return float(probe.get_window_extent().width) / figure.dpi

    if width(text) <= room:
        return text
    keep = len(text) - 1
    while keep > 2 and width(_shortened(text, keep)) > room:
        keep -= 1
    return _shortened(text, keep)


def _shortened(text: str, keep: int) -> str:
    return f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
