"""``geoclip where``: what a coordinate is called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._output import choose, rows_as
from open_geoclip.cli._shared import parse_coordinate, write_output

if TYPE_CHECKING:
    from open_geoclip.geo.geocode import Place

__all__ = ["where"]


def where(
    coordinates: list[str],
    /,
    *,
    format_: Annotated[Literal["table", "json", "csv", "geojson", "parquet"] | None, Parameter(name="--format")] = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> None:
    """Name the country and the nearest city of each coordinate, offline.

    Args:
        coordinates: LAT,LON in degrees, such as 48.8584,2.2945.
        format_: A table to read, JSON, CSV, GeoJSON or Parquet. When not given, what the name of --output ends in, else
            a table.
        output: A file to write instead of stdout.
    """
    chosen = choose(format_, output, ("table", "json", "csv", "geojson", "parquet"))
    import numpy as np

    from open_geoclip.geo.geocode import describe

    asked = np.array([parse_coordinate(text) for text in coordinates], np.float64)
    records = [_record(place) for place in describe(asked)]
    if chosen != "table":
        write_output(rows_as(chosen, records), output)
        return
    lines = (f"{r['lat']:>10.5f} {r['lon']:>11.5f}  {r['country'] or '--'}  {r['text']}\n" for r in records)
    write_output("".join(lines), output)


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
