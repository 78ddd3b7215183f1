"""``geoclip similar``: places with similar location embeddings."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from open_geoclip.cli._options import Map, Model, parse_coordinate
from open_geoclip.cli._output import PointOutput
from open_geoclip.errors import SettingsError

__all__ = ["similar"]

_SPACING_KM = 150.0  # of the places to choose from when no gallery is named


def similar(
    place: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    to: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    model: Model = "geoclip",
    beside: str = "earth",
    gallery: Path | None = None,
    top_k: int = 8,
    apart_km: float = 500.0,
    map_: Map = None,
    map_width: int = 240,
    output: PointOutput = PointOutput(),
) -> None:
    """Find the places whose location embeddings are most similar to that of a place, or between those of two.

    Args:
        place: LAT,LON in degrees.
        to: A second place: find places between the two embeddings.
        beside: Second model to compare with on the map, or none; earth has no seam at the antimeridian.
        gallery: Places to choose from: CSV, GeoJSON or Parquet; default: an even grid on land.
        top_k: Number of places.
        apart_km: Least distance from the place and between results; 0 for the nearest.
        map_width: Pixels of the map that are computed; the time grows with its square.
    """
    chosen = output.format
    here = parse_coordinate(place)
    there = None if to is None else parse_coordinate(to, "--to")
    if map_ is not None:
        from open_geoclip.export.basemap import check_png

        check_png(map_)
    import numpy as np

    from open_geoclip.data.earth_views import even_land
    from open_geoclip.features.similar import between, seams, similar_places, similarity_map
    from open_geoclip.model.location_encoder import LocationEncoder
    from open_geoclip.search.gallery import Gallery

    candidates = (
        even_land(_SPACING_KM) if gallery is None else Gallery.from_file(gallery).coordinates.astype(np.float64)
    )
    names = [model] if map_ is None or beside in ("none", model) else [model, beside]
    answers: list[dict[str, Any]] = []
    maps: list[Any] = []
    for name in names:
        encoder = LocationEncoder.from_pretrained(name)
        if there is None:
            found = similar_places(encoder, here, candidates, top_k=top_k, apart_km=apart_km)
        else:
            found = between(encoder, here, there, candidates, top_k=top_k, apart_km=apart_km)
        seam = seams(encoder, here[0])
        answers.append({"model": name, "places": [asdict(one) for one in found], "seams": asdict(seam)})
        if map_ is not None:
            maps.append((name, similarity_map(encoder, here, map_width), found, seam))
    if map_ is not None:
        _draw(map_, here, maps)
    rows = [{"model": one["model"], "rank": n, **at} for one in answers for n, at in enumerate(one["places"], 1)]
    if not rows and chosen not in ("table", "json"):
        raise SettingsError("no place was found: a smaller --apart-km leaves more")
    content = {"lat": here[0], "lon": here[1], "to": there, "answers": answers}
    output.write(content, table="\n".join(map(_table, answers)), rows=rows)


def _draw(path: Path, here: tuple[float, float], maps: list[Any]) -> None:
    import numpy as np

    from open_geoclip.export.heatmaps import SimilarityMap, draw_similarity

    drawn = []
    for name, cosines, found, seam in maps:
        ends = f"cosine of 180 E and 180 W {seam.antimeridian:.2f}, of the north pole with itself {seam.north_pole:.2f}"
        places = np.array([(one.lat, one.lon) for one in found], np.float64).reshape(-1, 2)
        drawn.append(SimilarityMap(f"{name}: like {here[0]:g}, {here[1]:g}; {ends}", cosines, places))
    draw_similarity(path, here, drawn)


def _table(answer: dict[str, Any]) -> str:
    rows = [f"{answer['model']:<14}  cosine  distance"]
    rows += [
        f"{one['lat']:7.2f}{one['lon']:8.2f} {one['cosine']:7.3f} {one['distance_km']:7.0f} km"
        for one in answer["places"]
    ]
    seam = answer["seams"]
    rows.append(f"one place, written in two ways: at 180 degrees {seam['antimeridian']:.3f}, ")
    rows[-1] += f"north pole {seam['north_pole']:.3f}, south pole {seam['south_pole']:.3f} (1: no seam)"
    return "\n".join(rows) + "\n"
