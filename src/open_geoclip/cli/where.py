"""``geoclip where``: names of coordinates."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from open_geoclip.cli._options import parse_coordinate
from open_geoclip.cli._output import PointOutput

if TYPE_CHECKING:
    from open_geoclip.geo.geocode import Place

__all__ = ["where"]


def where(
    coordinates: Annotated[list[str], Parameter(allow_leading_hyphen=True)],
    /,
    *,
    output: PointOutput = PointOutput(),
) -> None:
    """Name the country and the nearest city of each coordinate, offline.

    Args:
        coordinates: LAT,LON in degrees, such as 48.8584,2.2945.
    """
    import numpy as np

    from open_geoclip.geo.geocode import describe

    asked = np.array([parse_coordinate(text) for text in coordinates], np.float64)
    records = [_record(place) for place in describe(asked)]
    lines = (f"{r['lat']:>10.5f} {r['lon']:>11.5f}  {r['country'] or '--'}  {r['text']}\n" for r in records)
    output.write(records, table="".join(lines), rows=records)


def _record(place: "Place") -> dict[str, Any]:
    return {
        "lat": place.lat,
        "lon": place.lon,
        "country": place.country,
        "country_name": place.country_name,
        "city": place.city.name,
        "city_country": place.city.country,
        "city_km": round(place.city.distance_km, 3),
        "text": place.text,
    }
