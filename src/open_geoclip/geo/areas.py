"""Areas that a photo is known to be in or not in, and how they are written.

An :class:`Area` is the union of some shapes without the union of others. A shape is written as one of:

=====================  ==========================================================================
``France``, ``FR``     a country, by a usual name or ISO code
``35,-10,60,30``       a box: latitude and longitude of its south-western corner, then of its
                       north-eastern one; a western edge beyond the eastern one crosses 180 degrees
``48.86,2.29,50km``    a circle: its centre and its radius in km or m
``area.geojson``       polygons of a file, where GeoJSON itself writes longitude first
=====================  ==========================================================================

The shapes themselves are in :mod:`open_geoclip.geo.shapes`.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from open_geoclip.errors import AreaError, SettingsError
from open_geoclip.geo.countries import country_codes, country_outline
from open_geoclip.geo.shapes import EARTH, Box, Circle, Polygon, Shape

__all__ = ["Allowed", "Area", "Box", "Circle", "Polygon", "Shape", "land_points", "parse_shape"]

Allowed = Callable[[Float64[np.ndarray, "n 2"]], Bool[np.ndarray, " n"]]
"""Returns which (lat, lon) in degrees an answer may have, such as :meth:`Area.contains`."""

_FILE_SUFFIXES = (".geojson", ".json")
_HOW = (
    "write a country (France), a box south,west,north,east (35,-10,60,30), a circle lat,lon,radius (48.86,2.29,50km) "
    "or a GeoJSON file (area.geojson)"
)

_MAX_POINTS = 2**20  # that are tried to find points in what is left of an area


@dataclass(frozen=True)
class Area:
    """Where a photo may have been taken: the union of ``within`` without the union of ``without``.

    Attributes:
        within: shapes; empty is the whole Earth.
        without: shapes to exclude.
    """

    within: tuple[Shape, ...] = ()
    without: tuple[Shape, ...] = ()

    @classmethod
    def parse(cls, within: str | Iterable[str] = (), without: str | Iterable[str] = ()) -> "Area":
        """Parse one or several texts each as shapes; see the top of this module.

        Raises:
            AreaError: a text is not a shape, a country is unknown, or a file cannot be used.
            MissingExtraError: countries and files need the extra ``places``.
        """
        given = ([texts] if isinstance(texts, str) else texts for texts in (within, without))
        return cls(*(tuple(map(parse_shape, texts)) for texts in given))

    @property
    def is_limited(self) -> bool:
        """Whether it is less than the whole Earth."""
        return bool(self.within or self.without)

    @property
    def name(self) -> str:
        """The area in one line, for answers."""
        inside = " or ".join(shape.name for shape in self.within) or "the Earth"
        return inside + "".join(f", not {shape.name}" for shape in self.without)

    def contains(self, coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Return which (lat, lon) in degrees lie in the area."""
        inside = np.full(len(coordinates), not self.within)
        for shape in self.within:
            inside |= shape.contains(coordinates)
        for shape in self.without:
            inside &= ~shape.contains(coordinates)
        return inside

    @property
    def area_km2(self) -> float:
        """An upper bound: overlaps count twice, and ``without`` is not subtracted."""
        return sum(shape.area_km2 for shape in self.within or (EARTH,))

    def even_points(self, n: int) -> Float64[np.ndarray, "m 2"]:
        """Return about n points inside that represent about equal areas.

        Raises:
            AreaError: the area is empty.
        """
        shapes, total = self.within or (EARTH,), self.area_km2
        for finer in (1, 16, 256):  # overlaps and exclusions may be most of it
            parts: list[Float64[np.ndarray, "m 2"]] = []
            for number, shape in enumerate(shapes):
                points = shape.points(math.ceil(min(finer * n, _MAX_POINTS) * shape.area_km2 / total))
                for other in (*shapes[:number], *self.without):
                    points = points[~other.contains(points)]
                parts.append(points)
            found = np.concatenate(parts)
            if len(found) >= n / 2:
                return found[:: max(1, len(found) // n)]
        if len(found) == 0:
            raise AreaError(f"nothing is left of the area: {self.name}")
        return found


def land_points(area: Area) -> Float64[np.ndarray, "m 2"]:
    """Return even points on land in an area that holds no place of a gallery: 1 km apart, or a few thousand.

    Raises:
        AreaError: the area is empty or lies wholly in the sea.
    """
    fewest = int(np.clip(area.area_km2, 64, 4096))
    for n in (fewest, 16 * fewest):  # islands are small
        points = area.even_points(n)
        land = points[country_codes(points) != ""]
        if len(land):
            return land
    turned = points[:, ::-1][np.abs(points[:, 1]) <= 90].copy()
    hint = ""
    if len(turned) == len(points) and (country_codes(turned) != "").mean() > 0.5:
        hint = "; with latitude and longitude swapped it would be on land: are they in the right order?"
    raise AreaError(f"{area.name} lies wholly in the sea, where no photo of the gallery was taken{hint}")


def parse_shape(text: str) -> Shape:
    """Parse one shape; see the top of this module.

    Raises:
        AreaError: the text is not a shape, the country is unknown, or the file cannot be used.
        MissingExtraError: countries and files need the extra ``places``.
    """
    text = text.strip()
    if text.lower().endswith(_FILE_SUFFIXES):
        return Polygon.from_file(text)
    if "," in text and any(re.match(r"[-+.]?\d|nan|[-+]?inf", part.strip()) for part in text.split(",")):
        return _parse_numbers(text)
    if not text:
        raise AreaError(f"an empty area: {_HOW}")
    try:
        return Polygon(text, country_outline(text))
    except SettingsError as error:
        raise AreaError(f"{error}; or {_HOW}") from error


def _parse_numbers(text: str) -> Shape:
    *numbers, last = (part.strip() for part in text.split(","))
    match = re.fullmatch(r"(.*?)\s*(km|m)?", last.lower())
    assert match is not None
    try:
        values = [*map(float, numbers), float(match[1])]
    except ValueError as error:
        raise AreaError(f"{text!r} is not an area: {_HOW}") from error
    if not all(map(math.isfinite, values)):
        raise AreaError(f"{text!r} is not an area: all numbers must be finite")
    if len(values) == 4 and match[2] is None:
        return Box(*values)
    if len(values) == 3 and match[2] is not None:
        return Circle(values[0], values[1], values[2] / (1 if match[2] == "km" else 1000))
    if len(values) == 3:
        raise AreaError(f"{text!r}: a radius needs its unit, such as {text}km; or {_HOW}")
    raise AreaError(f"{text!r} is not an area: {_HOW}")
