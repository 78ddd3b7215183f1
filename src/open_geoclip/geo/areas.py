"""Limits the user knows: a photo was taken in France, not in a city, within 50 km of here.

An :class:`Area` is a union of shapes without another union of shapes. Shapes are written as people say them:

=====================  ==========================================================================
``France``, ``FR``     a country, by its name or ISO code
``35,-10,60,30``       a box: latitude and longitude of its south-western corner, then of its
                       north-eastern one; a western edge beyond the eastern one crosses 180 degrees
``48.86,2.29,50km``    a circle: its centre and its radius in km or m
``area.geojson``       polygons of a file, where GeoJSON itself writes longitude first
=====================  ==========================================================================

What each is exactly: :mod:`open_geoclip.geo.shapes`.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float64

from open_geoclip.errors import AreaError, SettingsError
from open_geoclip.geo.shapes import EARTH, Box, Circle, Polygon, Shape

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

__all__ = ["Allowed", "Area", "Box", "Circle", "Polygon", "Shape", "land_points", "parse_shape"]

CountryOutline = Callable[[str], "BaseGeometry"]
"""Gives the outline of a country, longitude first, or raises with suggestions."""

Allowed = Callable[[Float64[np.ndarray, "n 2"]], Bool[np.ndarray, " n"]]
"""Which of some (lat, lon) in degrees an answer may be, such as :meth:`Area.contains`."""

IsLand = Callable[[Float[np.ndarray, "n 2"]], Bool[np.ndarray, " n"]]

_FILE_SUFFIXES = (".geojson", ".json")
_HOW = (
    "write a country (France), a box south,west,north,east (35,-10,60,30), a circle lat,lon,radius (48.86,2.29,50km) "
    "or a GeoJSON file (area.geojson)"
)


@dataclass(frozen=True)
class Area:
    """Where a photo may have been taken: the union of ``within`` without the union of ``without``.

    Attributes:
        within: shapes; none means the whole Earth.
        without: shapes that are left out.
    """

    within: tuple[Shape, ...] = ()
    without: tuple[Shape, ...] = ()

    @classmethod
    def parse(
        cls,
        within: str | Iterable[str] = (),
        without: str | Iterable[str] = (),
        *,
        country: CountryOutline | None = None,
    ) -> "Area":
        """An area as people type it; see the top of this module.

        Args:
            within: one or several texts; several are united.
            without: one or several texts that are left out.
            country: gives the outline of a country; those of this package when not given.

        Raises:
            AreaError: a text cannot be understood, a country is not known, or a file cannot be used.
        """

        def shapes(texts: str | Iterable[str]) -> tuple[Shape, ...]:
            return tuple(parse_shape(text, country) for text in ([texts] if isinstance(texts, str) else texts))

        return cls(shapes(within), shapes(without))

    @property
    def limited(self) -> bool:
        """Whether there is any limit at all."""
        return bool(self.within or self.without)

    @property
    def name(self) -> str:
        """The limits in one line, for an answer to carry."""
        inside = " or ".join(shape.name for shape in self.within) or "the Earth"
        return inside + "".join(f", not {shape.name}" for shape in self.without)

    def contains(self, coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Which places are allowed.

        Args:
            coordinates: (lat, lon) in degrees.
        """
        inside = np.full(len(coordinates), not self.within)
        for shape in self.within:
            inside |= shape.contains(coordinates)
        for shape in self.without:
            inside &= ~shape.contains(coordinates)
        return inside

    @property
    def area_km2(self) -> float:
        """An upper bound of how large it is: overlaps are counted twice, what is left out is counted."""
        return sum(shape.area_km2 for shape in self.within or (EARTH,))

    def even_points(self, n: int) -> Float64[np.ndarray, "m 2"]:
        """About n places inside, evenly spread: each stands for the same area, to a factor near 1.

        Raises:
            AreaError: nothing is left of the area.
        """
        shapes, total = self.within or (EARTH,), self.area_km2
        for finer in (1, 16, 256):  # what overlaps or is left out may be most of it
            found: list[Float64[np.ndarray, "m 2"]] = []
            for number, shape in enumerate(shapes):
                spots = shape.points(math.ceil(finer * n * shape.area_km2 / total))
                for other in (*shapes[:number], *self.without):
                    spots = spots[~other.contains(spots)]
                found.append(spots)
            places = np.concatenate(found)
            if len(places) >= n / 2:
                return places[:: max(1, len(places) // n)]
        if len(places) == 0:
            raise AreaError(f"nothing is left of the area: {self.name}")
        return places


def land_points(area: Area, is_land: IsLand | None = None) -> Float64[np.ndarray, "m 2"]:
    """Even places on land in an area in which a gallery has none: a kilometre apart, or a few thousand of them.

    Args:
        area: what they are in.
        is_land: which places are land; what lies in a country or within 5 km of one when not given.

    Raises:
        AreaError: the area lies wholly in the sea, or nothing is left of it.
    """
    if is_land is None:
        from open_geoclip.geo.geocode import Places

        names = Places()

        def is_land(places: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
            return np.asarray(names.countries(places) != "", bool)

    least = int(np.clip(area.area_km2, 64, 4096))
    for n in (least, 16 * least):  # islands are small
        points = area.even_points(n)
        land = points[is_land(points)]
        if len(land):
            return land
    turned = points[:, ::-1][np.abs(points[:, 1]) <= 90].copy()
    hint = ""
    if len(turned) == len(points) and is_land(turned).mean() > 0.5:
        hint = "; with latitude and longitude swapped it would be on land: are they in the right order?"
    raise AreaError(f"{area.name} lies wholly in the sea, where no photo of the gallery was taken{hint}")


def parse_shape(text: str, country: CountryOutline | None = None) -> Shape:
    """One shape as people type it; see the top of this module.

    Args:
        text: a country, a box, a circle or a GeoJSON file.
        country: gives the outline of a country; those of this package when not given.

    Raises:
        AreaError: the text cannot be understood, the country is not known, or the file cannot be used.
    """
    text = text.strip()
    if text.lower().endswith(_FILE_SUFFIXES):
        return Polygon.from_file(text)
    if "," in text and any(re.match(r"[-+.]?\d|nan|[-+]?inf", part.strip()) for part in text.split(",")):
        return _numbers(text)
    if not text:
        raise AreaError(f"an empty area: {_HOW}")
    return _country(text, country)


def _numbers(text: str) -> Shape:
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


def _country(name: str, outline: CountryOutline | None) -> Polygon:
    if outline is None:
        from open_geoclip.geo.geocode import Places

        outline = Places().polygon
    try:
        return Polygon(name, outline(name))
    except SettingsError as error:
        raise AreaError(f"{error}; or {_HOW}") from error
