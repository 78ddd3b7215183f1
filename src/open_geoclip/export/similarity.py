"""Maps of how like a place the rest of the Earth is, one below the other: a model beside a seamless one, say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.export.world import MAP_RATIO, shorelines
from open_geoclip.files import atomic_file
from open_geoclip.geo.projections import equal_earth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SimilarityMap", "draw_coasts", "draw_similarity"]


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """A map to draw.

    Attributes:
        title: above it.
        cosines: in Equal Earth, north up, NaN beside the map.
        places: (lat, lon) of what was found, in the order of their numbers.
    """

    title: str
    cosines: Float[np.ndarray, "h w"]
    places: Float[np.ndarray, "k 2"]


def draw_similarity(path: Path, place: tuple[float, float], maps: Sequence[SimilarityMap]) -> None:
    """Write maps to one PNG file, each with its own scale of colours.

    Raises:
        SettingsError: no map, or a name that does not end in .png.
        MissingExtraError: the extra ``earth`` is not installed.
        OSError: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise SettingsError(f"the map is a PNG file: give it a name ending in .png, not {path.name}")
    if not maps:
        raise SettingsError("there is no map to draw")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Drawing a map", "earth") from error
    figure = Figure(figsize=(10, 5.1 * len(maps)), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, one in zip(np.ravel(figure.subplots(len(maps), 1)), maps, strict=True):
        # Most of the Earth is alike; the upper end is where the differences are.
        low, high = np.nanpercentile(one.cosines, [2, 99.8])
        picture = axes.imshow(
            one.cosines, extent=(-1, 1, -MAP_RATIO, MAP_RATIO), cmap="viridis", vmin=low, vmax=high, zorder=1
        )
        draw_coasts(axes)
        for number, (x, y) in enumerate(equal_earth(one.places), start=1):
            axes.plot(x, y, "o", markersize=9, color="white", markeredgecolor="black", markeredgewidth=0.6, zorder=4)
            axes.text(x, y, str(number), fontsize=6, ha="center", va="center_baseline", zorder=5)
        axes.plot(*equal_earth(np.array(place, np.float64)), "*", markersize=14, color="#D55E00", mec="white", zorder=6)
        axes.set_title(one.title, fontsize=9)
        axes.set_axis_off()
        figure.colorbar(picture, ax=axes, shrink=0.6, label="cosine")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "open-geoclip"})


def draw_coasts(axes: "Axes", colour: str = "black") -> None:
    """Thin coasts on a map in Equal Earth, to know where one is."""
    for line in shorelines()[0]:
        axes.plot(*equal_earth(line).T, color=colour, linewidth=0.3, zorder=3)
