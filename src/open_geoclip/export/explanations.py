"""Explanations as pictures: the map over the photo, and what covering each part does to the answer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from open_geoclip.export.basemap import INK, PALE, check_png, new_figure, save_png
from open_geoclip.search.explanation import WITHIN_KM, Box, Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_explanation"]

_COLOURS = "cividis"  # for all kinds of colour vision, and ordered in grey
_PIXELS = 900  # of the photo's longer side in the picture


def draw_explanation(path: Path, explanation: Explanation, image: Image.Image) -> None:
    """Draw the photo, the map over it, and the occlusion, as a PNG file.

    Parts that the model does not see are hatched.

    Args:
        path: the file, ``*.png``.
        explanation: of the photo.
        image: the upright photo.

    Raises:
        SettingsError: the name does not end in .png.
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    check_png(path)
    photo = ImageOps.contain(image.convert("RGB"), (_PIXELS, _PIXELS), Image.Resampling.LANCZOS)
    width, height = photo.size
    panels = 3 if explanation.regions else 2
    tall = 4.2 * min(max(height / width, 0.4), 1.6)
    figure = new_figure(4.4 * panels, tall + 1.5, 100)
    lines = [
        f"{Path(explanation.image).name}: what raises the score of {_place(explanation.place, explanation.place_name)}"
    ]
    if explanation.versus is not None:
        lines.append(f"against {_place(explanation.versus, explanation.versus_name)}")
    figure.suptitle("\n".join(lines), fontsize=10, color=INK, parse_math=False)
    note = f"By {explanation.model}. It shows what the model uses, not whether the model is right."
    if explanation.warning is not None:
        note = f"The image is unlike those that the model is for: this means nothing. By {explanation.model}."
    figure.text(0.99, 0.012, note, fontsize=7, color=PALE, ha="right", parse_math=False)
    grey = np.asarray(ImageOps.grayscale(photo))
    several = figure.subplots(1, panels, squeeze=False)[0]
    figure.subplots_adjust(0.015, 0.1, 0.985, 1 - 0.78 / (tall + 1.5), 0.06)
    titles = ("the photo", f"{explanation.method}: what raises the score", "each part covered")
    for axes, title in zip(several, titles[:panels], strict=True):
        axes.set_axis_off()
        axes.set_title(title, fontsize=8.5, color=INK)
        axes.set(xlim=(0, width), ylim=(height, 0))
        _hatch_outside(axes, explanation.crop, width, height)
    extent = (0, width, height, 0)
    several[0].imshow(np.asarray(photo), extent=extent)
    several[1].imshow(grey, extent=extent, cmap="gray", vmin=0, vmax=255)
    values = explanation.array(width, height)
    shades: dict[str, Any] = {"cmap": _COLOURS, "vmin": 0, "vmax": 1, "zorder": 2}
    over = several[1].imshow(values, extent=extent, alpha=0.35 + 0.5 * np.nan_to_num(values), **shades)
    bar: dict[str, Any] = {"orientation": "horizontal", "fraction": 0.05, "pad": 0.03, "aspect": 40}
    figure.colorbar(over, ax=several[1], ticks=[0, 1], **bar).ax.set_xticklabels(["least", "most"], fontsize=7)
    figure.colorbar(over, ax=several[0], **bar).ax.set_visible(False)  # the same size for all panels
    if explanation.regions:
        several[2].imshow(grey, extent=extent, cmap="gray", vmin=0, vmax=255)
        _draw_regions(several[2], explanation, width, height, bar)
    save_png(figure, path)


def _draw_regions(axes: "Axes", explanation: Explanation, width: int, height: int, bar: dict[str, Any]) -> None:
    """Draw each part in the colour of how far the answer moves; the number is what the probability loses."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    moved = np.maximum([region.moved_km for region in explanation.regions], 1.0)
    most = max(100.0, float(moved.max()))
    colours = ScalarMappable(LogNorm(1, most), _COLOURS)
    size = min(8.0, 40 / len(moved) ** 0.5)
    for region, km, colour in zip(explanation.regions, moved, colours.to_rgba(moved), strict=True):
        left, top, right, bottom = region.box
        corner, sides = (left * width, top * height), ((right - left) * width, (bottom - top) * height)
        axes.add_patch(Rectangle(corner, *sides, facecolor=colour, alpha=0.75, edgecolor="white", lw=0.4, zorder=2))
        if lost := round(100 * region.probability_lost):
            middle = (corner[0] + sides[0] / 2, corner[1] + sides[1] / 2)
            ink = "black" if km > most**0.55 else "white"
            axes.text(*middle, f"{-lost:+d}", fontsize=size, ha="center", va="center", color=ink, zorder=3)
    legend = axes.figure.colorbar(colours, ax=axes, format="{x:,.0f}", **bar)
    legend.ax.tick_params(labelsize=7)
    points = f"number: points of its {100 * explanation.probability:.0f} % within {WITHIN_KM} km"
    legend.set_label(f"km that the answer moves; {points}", fontsize=7)


def _hatch_outside(axes: "Axes", crop: Box, width: int, height: int) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = crop
    style: dict[str, Any] = {"facecolor": (0, 0, 0, 0.45), "edgecolor": "white", "hatch": "////", "lw": 0, "zorder": 3}
    for x, y, to_x, to_y in ((0, 0, left, 1), (right, 0, 1, 1), (left, 0, right, top), (left, bottom, right, 1)):
        if to_x - x > 1e-3 and to_y - y > 1e-3:
            axes.add_patch(Rectangle((x * width, y * height), (to_x - x) * width, (to_y - y) * height, **style))
            middle = ((x + to_x) / 2 * width, (y + to_y) / 2 * height)
            turn = 90 if to_y - y > to_x - x else 0
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            words: dict[str, Any] = {"ha": "center", "va": "center", "rotation": turn, "bbox": box, "zorder": 4}
            axes.text(*middle, "not looked at", fontsize=6.5, color=INK, **words)


def _place(place: tuple[float, float], name: str | None) -> str:
    return f"{place[0]:.3f}, {place[1]:.3f}" + (f" ({name})" if name else "")
