"""Answers for GIS: a GeoDataFrame, and a GeoPackage with styles for QGIS.

GeoPackage is SQLite, written by GDAL. QGIS reads the styles in the table ``layer_styles``; other programs ignore them.
"""

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.errors import MissingExtraError
from open_geoclip.export.tables import CAUTION, COLUMNS, add_geometry, arrow_table, rows
from open_geoclip.search.answer import Answer

if TYPE_CHECKING:
    import geopandas

__all__ = ["region_rows", "to_geodataframe", "to_geopackage"]

_REGIONS = {"image": "string", "text": "string", "percent": "float64", "model": "string", "caution": "string"}
_ERRORS = {"image": "string", "error": "string"}
_REDS = ("254,229,217", "252,174,145", "251,106,74", "222,45,38", "165,15,21")  # ColorBrewer, for classes of a fifth


def to_geodataframe(answers: Iterable[Answer]) -> "geopandas.GeoDataFrame":
    """Return answers as a GeoDataFrame (EPSG:4326), one row per candidate and one per image that could not be read.

    Args:
        answers: with ``detail``, the columns ``region_50`` and ``region_90`` hold the regions as geometries.

    Raises:
        MissingExtraError: the extra ``gis`` is not installed.
    """
    try:
        import geopandas
        import shapely
    except ImportError as error:
        raise MissingExtraError("A GeoDataFrame", "gis") from error
    made: list[dict[str, Any]] = []
    for answer in answers:
        regions = {
            f"region_{share}": shapely.from_geojson(json.dumps(shape))
            for share, shape in (answer.regions or {}).items()
        }
        made += [row | regions for row in rows([answer.to_dict()], {"caution": CAUTION, "created": ""})]
    names = dict.fromkeys(name for row in made for name in row if name != "created") or dict.fromkeys(COLUMNS)
    columns = {name: [row.get(name) for row in made] for name in names}
    points = [None if row["lat"] is None else shapely.Point(row["lon"], row["lat"]) for row in made]
    frame = geopandas.GeoDataFrame(columns, geometry=points, crs="EPSG:4326")
    for name in frame.columns:
        if name.startswith("region_"):
            frame[name] = geopandas.GeoSeries(frame[name], crs="EPSG:4326")
    return frame


def to_geopackage(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """Write the layers ``regions``, ``exif``, ``candidates`` and ``errors``, those that have content.

    Raises:
        MissingExtraError: the extra ``gis`` is not installed.
    """
    try:
        import pyogrio
        import shapely
    except ImportError as error:
        raise MissingExtraError("GeoPackage", "gis") from error
    answers = [row for row in rows(records, about) if row["error"] is None]
    measured = [row for row in answers if row["rank"] == 1 and row["exif_lat"] is not None]
    exif = [{**row, "lat": row["exif_lat"], "lon": row["exif_lon"]} for row in measured]
    errors = [record for record in records if "error" in record]
    regions = list(region_rows(records, about))
    layers: list[tuple[str, str | None, Any]] = []
    if regions:
        shapes = shapely.to_wkb(shapely.from_geojson([json.dumps(row["geometry"]) for row in regions]))
        table = arrow_table(regions, _REGIONS).append_column("geometry", [shapes.tolist()])
        layers.append(("regions", "MultiPolygon", table))
    for name, points in (("exif", exif), ("candidates", answers)):
        if points:
            layers.append((name, "Point", add_geometry(arrow_table(points, COLUMNS)).drop_columns("bbox")))
    if errors or not layers:
        layers.append(("errors", None, arrow_table(errors, _ERRORS)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.gpkg"
        for name, kind, table in layers:
            options: dict[str, Any] = {"append": True} if path.exists() else {"dataset_options": {"VERSION": "1.3"}}
            if kind is not None:
                options |= {"geometry_name": "geometry", "geometry_type": kind, "crs": "EPSG:4326"}
            pyogrio.write_arrow(table, path, driver="GPKG", layer=name, **options)
        with closing(sqlite3.connect(path)) as database, database:
            _write_styles(database, {name for name, _, _ in layers})
        return path.read_bytes()


def region_rows(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield one row per region, the widest first, so that it is drawn at the bottom."""
    for record in records:
        common = {name: record.get(name) for name in ("image", "text", "model")} | {"caution": about["caution"]}
        for share, region in sorted((record.get("regions") or {}).items(), key=lambda item: -float(item[0])):
            if region["coordinates"]:
                yield {**common, "percent": float(share), "geometry": region}


def _write_styles(database: sqlite3.Connection, layers: set[str]) -> None:
    database.execute(
        "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), "
        "f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), "
        "styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
        "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
    )
    database.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', "
        "'layer_styles')"
    )
    for name, renderer in _RENDERERS.items():
        if name in layers:
            style = f'<!DOCTYPE qgis><qgis styleCategories="Symbology" version="3.22">{renderer}</qgis>'
            database.execute(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, "
                "styleName, styleQML, useAsDefault) VALUES ('', '', ?, 'geom', 'open-geoclip', ?, 1)",
                (name, style),
            )


def _symbol(number: int, kind: str, layer: str, /, **properties: str) -> str:
    options = "".join(f'<Option name="{key}" value="{value}" type="QString"/>' for key, value in properties.items())
    inside = f'<layer class="{layer}" enabled="1" locked="0" pass="0"><Option type="Map">{options}</Option></layer>'
    return f'<symbol name="{number}" type="{kind}" alpha="1" clip_to_extent="1">{inside}</symbol>'


def _single(symbol: str) -> str:
    return f'<renderer-v2 type="singleSymbol"><symbols>{symbol}</symbols></renderer-v2>'


def _by_probability() -> str:
    steps = range(len(_REDS))
    ranges = "".join(
        f'<range lower="{n / 5}" upper="{(n + 1) / 5}" label="{20 * n} to {20 * n + 20} %" symbol="{n}" render="true"/>'
        for n in steps
    )
    symbols = "".join(
        _symbol(n, "marker", "SimpleMarker", name="circle", color=f"{_REDS[n]},255", size=f"{2 + n / 2}") for n in steps
    )
    kind = 'type="graduatedSymbol" attr="probability" graduatedMethod="GraduatedColor"'
    return f"<renderer-v2 {kind}><ranges>{ranges}</ranges><symbols>{symbols}</symbols></renderer-v2>"


_RENDERERS = {
    "candidates": _by_probability(),
    "exif": _single(_symbol(0, "marker", "SimpleMarker", name="cross_fill", color="31,120,180,255", size="3.5")),
    "regions": _single(_symbol(0, "fill", "SimpleFill", color="222,45,38,40", outline_color="165,15,21,160")),
}
