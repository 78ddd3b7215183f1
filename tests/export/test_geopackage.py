"""GeoPackages and GeoDataFrames, read back by GDAL, SQLite and an XML parser."""

import io
import sqlite3
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import pyogrio
import pytest
import shapely

from open_geoclip.export import to_geodataframe
from open_geoclip.export.formats import CAUTION, About, render
from open_geoclip.search.answer import Answer

SQUARE = [[[10.0, 40.0], [12.0, 40.0], [12.0, 42.0], [10.0, 42.0], [10.0, 40.0]]]
REGIONS = {share: {"type": "MultiPolygon", "coordinates": [SQUARE]} for share in ("50", "90")}


def record(**more: Any) -> dict[str, Any]:
    places = ((41.9, 12.5, 0.7), (-33.9, 18.6, 0.2))
    candidates = [
        {"lat": lat, "lon": lon, "score": 0.5, "probability": p, "radius_km": 9.0, "country": None, "place": None}
        for lat, lon, p in places
    ]
    return {"image": "é.jpg", "model": "m", "gallery": "g", "version": "v", "candidates": candidates, **more}


def test_layers_of_a_geopackage(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    error = {"image": "b.jpg", "error": "is empty"}
    path.write_bytes(render([record(regions=REGIONS, exif={"lat": 1.0, "lon": 2.0}), record(), error], "gpkg"))
    layers = {name: pyogrio.read_dataframe(path, layer=name) for name in ("candidates", "regions", "exif", "errors")}
    candidates = layers["candidates"]
    assert candidates.crs.to_epsg() == 4326
    assert [(point.y, point.x) for point in candidates.geometry[:2]] == [(41.9, 12.5), (-33.9, 18.6)]
    assert (candidates["rank"].tolist(), set(candidates["caution"])) == ([1, 2, 1, 2], {CAUTION})
    assert layers["regions"]["percent"].tolist() == [90, 50]
    assert layers["regions"].geometry[0].equals(shapely.MultiPolygon([shapely.Polygon(SQUARE[0])]))
    assert shapely.equals(layers["exif"].geometry[0], shapely.Point(2, 1))
    assert layers["errors"].to_dict("records") == [error]


def test_styles_are_those_that_qgis_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    path.write_bytes(render([record(regions=REGIONS)], "gpkg"))
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT f_table_name, styleQML FROM layer_styles WHERE useAsDefault").fetchall()
    styles = {name: ET.fromstring(style.removeprefix("<!DOCTYPE qgis>")) for name, style in found}
    assert set(styles) == {"candidates", "regions"}
    renderer = styles["candidates"].find("renderer-v2")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("attr")) == ("graduatedSymbol", "probability")
    ranges, symbols = renderer.findall("ranges/range"), renderer.findall("symbols/symbol")
    assert [(r.get("lower"), r.get("upper")) for r in ranges][::4] == [("0.0", "0.2"), ("0.8", "1.0")]
    assert {r.get("symbol") for r in ranges} == {s.get("name") for s in symbols}


@pytest.mark.parametrize("records", [[], [{"image": "b.jpg", "error": "is empty"}]])
def test_a_geopackage_without_candidates_is_valid(records: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    path.write_bytes(render(records, "gpkg"))
    assert len(pyogrio.read_dataframe(path, layer="errors")) == len(records)


def test_parquet_is_geoparquet() -> None:
    content = render([record(), {"image": "b.jpg", "error": "is empty"}], "parquet", about=About("now"))
    found = geopandas.read_parquet(io.BytesIO(content))
    assert found.geometry.iloc[2] is None
    assert [(point.y, point.x) for point in found.geometry[:2]] == [(41.9, 12.5), (-33.9, 18.6)]
    inside = geopandas.read_parquet(io.BytesIO(content), bbox=(0.0, 0.0, 20.0, 90.0))
    assert inside["lat"].tolist() == [41.9]


def test_geodataframe() -> None:
    answers = [Answer.from_dict(record(regions=REGIONS)), Answer(image="b.jpg", error="is empty")]
    found = to_geodataframe(answers)
    assert found.crs.to_epsg() == 4326
    assert found["probability"].tolist()[:2] == [0.7, 0.2]
    assert found.geometry.iloc[1] == shapely.Point(18.6, -33.9)
    assert found.geometry.iloc[2] is None
    assert found["error"].isna().tolist() == [True, True, False]
    assert found["region_90"].iloc[0].area == 4
    assert list(to_geodataframe([]).columns)[:3] == ["image", "text", "rank"]
