"""``geoclip where``: what a coordinate is called."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._shared import parse_coordinate, write_output

if TYPE_CHECKING:
    from open_geoclip.places import Place

__all__ = ["where"]


def where(
    coordinates: list[str],
    /,
    *,
    format_: Annotated[Literal["table", "json", "csv"], Parameter(name="--format")] = "table",
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> None:
    """Name the country and the nearest city of each coordinate, offline.

    Args:
        coordinates: LAT,LON in degrees, such as 48.8584,2.2945.
        format_: A table to read, JSON or CSV.
        output: A file to write instead of stdout.
    """
    import numpy as np

    from open_geoclip.places import Places

    asked = np.array([parse_coordinate(text) for text in coordinates], np.float64)
    records = [_record(place) for place in Places().describe_all(asked)]
    if format_ == "json":
        text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    elif format_ == "csv":
        file = io.StringIO()
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        text = file.getvalue()
    else:
        text = "".join(f"{r['lat']:>10.5f} {r['lon']:>11.5f}  {r['country'] or '--'}  {r['text']}\n" for r in records)
    write_output(text, output)


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
