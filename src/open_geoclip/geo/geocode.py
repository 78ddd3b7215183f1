"""Names for coordinates, offline: country, continent, nearest city."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from open_geoclip.errors import SettingsError
from open_geoclip.geo.cities import Cities, City
from open_geoclip.geo.countries import SHORE_KM, Countries
from open_geoclip.geo.sphere import tangent_frame, unit_vectors

__all__ = ["SHORE_KM", "City", "Place", "Places"]

_NEAR_KM = 3.0  # nearer to a city's middle than this is in it
_WINDS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")


@dataclass(frozen=True)
class Place:
    """What a coordinate is called.

    Attributes:
        lat: degrees north.
        lon: degrees east.
        country: code, ISO 3166-1 alpha-2 or one of :data:`~open_geoclip.geo.countries.CODES`; '' at sea.
        country_name: '' at sea.
        city: the nearest city with more than 15,000 people.
        text: for people, such as "12 km south-west of Lyon, France".
    """

    lat: float
    lon: float
    country: str
    country_name: str
    city: City
    text: str


@lru_cache(maxsize=1)
def _countries() -> Countries:
    return Countries()


@lru_cache(maxsize=1)
def _cities() -> Cities:
    return Cities()


class Places:
    """Names of places. Data is read when it is first needed, once for a process.

    Raises:
        MissingExtraError: at the first question, when the extra ``places`` is not installed.
    """

    def countries(self, coordinates: Float[np.ndarray, "n 2"]) -> np.ndarray:
        """The country of each coordinate: its code, ISO 3166-1 alpha-2; '' on the open sea.

        Up to :data:`SHORE_KM` off a shore counts to its country. Areas that ISO does not list have codes from its
        range for users; see :data:`~open_geoclip.geo.countries.CODES`.

        Args:
            coordinates: (lat, lon) in degrees.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        return _countries().codes(coordinates)

    def continents(self, coordinates: Float[np.ndarray, "n 2"]) -> np.ndarray:
        """The continent of each coordinate's country, '' on the open sea.

        All of Russia counts to Europe, all of Turkey to Asia.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        codes, of = self.countries(coordinates), {**_countries().continents, "": ""}
        return np.array([of[code] for code in codes.tolist()], dtype="<U13")

    def country_name(self, code: str) -> str:
        """The name of a code of :meth:`countries`; '' for ''.

        Raises:
            KeyError: there is no such code.
        """
        return _countries().names[code] if code else ""

    @property
    def country_names(self) -> dict[str, str]:
        """The name of each code of :meth:`countries`."""
        return _countries().names

    def country_code(self, text: str) -> str:
        """The code of a country, asked for by name or code.

        Raises:
            SettingsError: there is no such country; the message has names that are like it.
        """
        return _countries().code_of(text)

    def polygon(self, country: str) -> Any:
        """A country's outline: a shapely geometry in (lon, lat) degrees, cut at 180 degrees.

        Args:
            country: a name, or a code of two or three letters; case and accents do not matter.

        Raises:
            SettingsError: there is no such country, and the message has names that are like it; or it is so small that
                the source does not draw it.
        """
        outline = _countries().polygon(country)
        if outline.is_empty:
            raise SettingsError(
                f"{country} is too small to have an outline here: name a circle instead, LAT,LON,RADIUS such as "
                "41.9029,12.4534,1km"
            )
        return outline

    def nearest_cities(self, coordinates: Float[np.ndarray, "n 2"]) -> list[City]:
        """The nearest city with more than 15,000 people to each coordinate.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        return _cities().nearest(coordinates)

    def describe(self, lat: float, lon: float) -> Place:
        """What one coordinate is called.

        Raises:
            CoordinateError: it is not on Earth.
        """
        return self.describe_all(np.array([[lat, lon]], np.float64))[0]

    def describe_all(self, coordinates: Float[np.ndarray, "n 2"]) -> list[Place]:
        """What each coordinate is called.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        codes, cities = self.countries(coordinates).tolist(), self.nearest_cities(coordinates)
        winds = _winds(np.array([(c.lat, c.lon) for c in cities]).reshape(-1, 2), np.asarray(coordinates, np.float64))
        places = []
        for (lat, lon), code, city, wind in zip(np.asarray(coordinates).tolist(), codes, cities, winds, strict=True):
            name = self.country_name(code)
            where = city.name
            if code != city.country:
                where = f"{city.name} ({_countries().names.get(city.country, city.country)})"
            if city.distance_km >= _NEAR_KM:
                where = f"{city.distance_km:,.0f} km {wind} of {where}"
            places.append(Place(lat, lon, code, name, city, f"{where}, {name or 'at sea'}"))
        return places


def _winds(start: Float[np.ndarray, "n 2"], end: Float[np.ndarray, "n 2"]) -> list[str]:
    """Which way ``end`` lies from ``start``, along the great circle, in words."""
    east, north, _ = np.einsum("nij,nj->in", tangent_frame(unit_vectors(start)), unit_vectors(end))
    angle = np.rad2deg(np.arctan2(east, north))
    return [_WINDS[i] for i in (np.round(angle / 45).astype(int) % 8).tolist()]
