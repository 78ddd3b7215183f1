"""``geoclip explain``: what in a photo speaks for a place."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from open_geoclip.cli._options import ImageModelOptions, parse_coordinate
from open_geoclip.cli._output import PictureOutput
from open_geoclip.errors import SettingsError

if TYPE_CHECKING:
    from open_geoclip.search.explanation import Explanation

__all__ = ["explain"]

_SIGNED = Parameter(allow_leading_hyphen=True)


def explain(
    photo: Path,
    /,
    *,
    place: Annotated[str | None, _SIGNED] = None,
    versus: Annotated[str | None, _SIGNED] = None,
    within: Annotated[list[str] | None, _SIGNED] = None,
    not_within: Annotated[list[str] | None, _SIGNED] = None,
    grid: int = 7,
    options: ImageModelOptions = ImageModelOptions(),
    output: PictureOutput = PictureOutput(),
) -> None:
    """Show what in a photo speaks for a place: a map of the photo, and how far the answer moves without each part.

    The map shows what the model uses, not whether the model is right. -o why.png draws it over the photo.

    Args:
        place: LAT,LON in degrees; default: the first candidate.
        versus: Show what speaks for the place against this one, LAT,LON.
        within: The area that contains the place, as for geoclip locate.
        not_within: Where the photo was not taken, written like --within.
        grid: Parts per side that are covered, one at a time; 0: none, which is faster.
    """
    from open_geoclip.geo.areas import Area

    given = {"--place": place, "--versus": versus}
    places = [None if text is None else parse_coordinate(text, option) for option, text in given.items()]
    area = Area.parse(within or (), not_within or ())
    if output.format == "png" and output.path is None:
        raise SettingsError("a picture is for a file: -o why.png")
    locator = options.load(area)
    found = locator.explain(photo, *places, grid=grid)
    if output.format == "png":
        from open_geoclip.export.explanations import draw_explanation
        from open_geoclip.images import load_image

        assert output.path is not None
        if found.warning is not None:
            print(f"geoclip: {found.warning}", file=sys.stderr)
        draw_explanation(output.path, found, load_image(photo, max_pixels=locator.encoding.max_pixels))
        return
    output.write(found.to_dict(), table=_table(found) if output.format == "table" else "")


def _table(found: "Explanation") -> str:
    chance = f"{100 * found.probability:.1f} % within 200 km"
    lines = [] if found.warning is None else [found.warning]
    lines += [found.image, f"  for      {_place(found.place, found.place_name)}; {chance}; cosine {found.score:.3f}"]
    if found.versus is not None:
        lines.append(f"  against  {_place(found.versus, found.versus_name)}; cosine {found.versus_score:.3f}")
    lines.append(f"  {found.method}: what raises {'it' if found.versus is None else 'the difference'}, of 100")
    lines += ["    " + " ".join(f"{100 * value:3.0f}" for value in row) for row in found.map]
    if found.regions:
        side = round(len(found.regions) ** 0.5)
        lines.append("  km that the answer moves where a part is covered")
        for start in range(0, len(found.regions), side):
            lines.append("    " + " ".join(f"{one.moved_km:6,.0f}" for one in found.regions[start : start + side]))
        lines.append(f"  points of the {chance.partition(' %')[0]} % that it loses")
        for start in range(0, len(found.regions), side):
            row = found.regions[start : start + side]
            lines.append("    " + " ".join(f"{100 * one.probability_lost:6.1f}" for one in row))
    lines.append(f"estimates by {found.model}; {found.gallery}; open-geoclip {found.version}")
    return "".join(f"{line}\n" for line in lines)


def _place(place: tuple[float, float], name: str | None) -> str:
    return f"{place[0]:.5f}, {place[1]:.5f}" + (f", {name}" if name else "")
