"""Answers as files, read back by readers that are not ours: GDAL, shapely, polars, the zip and csv of Python."""

import base64
import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import polars
import pyogrio
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from open_geoclip.errors import DataError, OpenGeoCLIPError, SettingsError
from open_geoclip.export import formats
from open_geoclip.export.formats import CAUTION, FORMATS, About, check_records, render

ABOUT = About("2026-01-02T03:04:05+00:00")
MADE = {"model": "earth 4b2f", "gallery": "gallery.csv, 3 places, sha256 91", "version": "0.1.0"}
# Two parts, cut at 180 degrees, exterior counterclockwise; one with a hole.
FIJI = {
    "type": "MultiPolygon",
    "coordinates": [
        [[[178.0, -19.0], [180.0, -19.0], [180.0, -16.0], [178.0, -16.0], [178.0, -19.0]]],
        [
            [[-180.0, -19.0], [-178.0, -19.0], [-178.0, -16.0], [-180.0, -16.0], [-180.0, -19.0]],
            [[-179.5, -18.0], [-179.5, -17.0], [-178.5, -17.0], [-178.5, -18.0], [-179.5, -18.0]],
        ],
    ],
}


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def candidate(
    lat: float, lon: float, probability: float, km: float, country: str | None, place: str | None
) -> dict[str, Any]:
    told = {"score": 0.5, "probability": probability, "radius_km": km, "country": country, "place": place}
    return {"lat": lat, "lon": lon, **told}


def record(image: str = "fiji.jpg", **more: Any) -> dict[str, Any]:
    return {
        "image": image,
        **MADE,
        "candidates": [
            candidate(-17.7, 178.1, 0.7, 40.0, "FJ", "Suva, Fiji"),
            candidate(10.0, -61.0, 0.05, 80.5, None, None),
        ],
        "credible_radius_km": {"50": 30.0, "90": 90.0},
        "within_km": {"1": 0.0, "25": 0.2, "200": 0.9, "750": 0.95, "2500": 1.0},
        "countries": {"FJ": 0.7},
        "sure": True,
        "regions": {"50": FIJI, "90": FIJI},
        **more,
    }


PHOTO = record(
    thumbnail="data:image/jpeg;base64," + base64.b64encode(jpeg()).decode(), exif={"lat": -18.0, "lon": 178.5}
)
BROKEN = {"image": "broken.jpg", "error": "not a picture"}
TEXT = {**{k: v for k, v in record().items() if k not in ("image", "regions")}, "text": "an island", "sure": None}


def test_geojson_is_read_by_gdal(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(render([PHOTO, BROKEN, TEXT], "geojson", about=ABOUT))
    table = pyogrio.read_dataframe(path)
    points = table[table.kind == "candidate"]
    assert [(round(p.y, 4), round(p.x, 4)) for p in points.geometry] == 2 * [(10.0, -61.0), (-17.7, 178.1)]
    assert points["rank"].tolist() == [2, 1, 2, 1]
    assert points.place.tolist()[1] == "Suva, Fiji"
    regions = table[table.kind == "credible region"]
    assert regions["percent"].tolist() == [90, 50]
    assert shapely.is_valid(regions.geometry).all()
    assert regions.geometry.iloc[0].area == pytest.approx(11.0)  # 6 + 6 less a hole of 1 square degree
    content = json.loads(path.read_bytes())
    assert content["errors"] == [BROKEN]
    assert content["about"]["caution"] == CAUTION
    assert "crs" not in content  # RFC 7946, section 4


def test_kml_is_read_by_gdal(tmp_path: Path) -> None:
    path = tmp_path / "a.kml"
    path.write_bytes(render([PHOTO, TEXT], "kml", about=ABOUT))
    assert [layer for layer, _ in pyogrio.list_layers(path)] == ["fiji.jpg", "an island"]
    table = pyogrio.read_dataframe(path, layer="fiji.jpg")
    assert table.Name.tolist()[0] == "1. Suva, Fiji"
    first = table.geometry.iloc[0]
    assert (first.y, first.x) == (-17.7, 178.1)
    region = table[table.Name.str.contains("50 %")].geometry.iloc[0]
    assert region.area == pytest.approx(11.0)
    assert CAUTION in table.description.iloc[0]


def test_kmz_has_the_image_beside_the_document() -> None:
    archive = zipfile.ZipFile(io.BytesIO(render([BROKEN, PHOTO], "kmz", about=ABOUT)))
    assert archive.testzip() is None
    [picture] = re.findall(r'img src="([^"]+)"', archive.read("doc.kml").decode().replace("&quot;", '"'))
    assert archive.read(picture) == jpeg()
    assert b"broken.jpg" in archive.read("doc.kml")


@pytest.mark.parametrize("name", ['<b>&"\u0000\u001f.jpg', "é\ud800.jpg", "]]>", "=cmd|' /C calc'!A0"])
def test_names_of_any_kind(name: str, tmp_path: Path) -> None:
    for kind in ("kml", "csv", "geojson", "parquet", "json"):
        if kind in ("geojson", "json") and "\ud800" in name:
            continue
        path = tmp_path / f"a.{kind}"
        path.write_bytes(render([record(name)], kind, about=ABOUT))
        if kind in ("kml", "geojson"):
            assert len(pyogrio.read_dataframe(path)) >= 2
    first = next(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(encoding="utf-8"), newline="")))
    assert not first["image"].startswith("=")
    assert float(first["lat"]) == -17.7


def test_tables_have_a_row_a_candidate_and_keep_errors() -> None:
    text = render([PHOTO, BROKEN, TEXT], "csv", about=ABOUT).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["image"], row["rank"], row["error"]) for row in rows] == [
        ("fiji.jpg", "1", ""),
        ("fiji.jpg", "2", ""),
        ("broken.jpg", "", "not a picture"),
        ("", "1", ""),
        ("", "2", ""),
    ]
    table = polars.read_parquet(io.BytesIO(render([PHOTO, BROKEN, TEXT], "parquet", about=ABOUT)))
    assert table["lat"].to_list() == [-17.7, 10.0, None, -17.7, 10.0]
    assert table["sure"].to_list() == [True, True, None, None, None]
    assert table["exif_lon"].to_list()[0] == 178.5
    assert table["created"][0] == ABOUT.created
    assert polars.read_parquet(io.BytesIO(render([], "parquet", about=ABOUT))).columns == table.columns


def test_every_format_says_what_made_it_and_that_it_is_an_estimate() -> None:
    for name in FORMATS:
        if name in ("html", "json"):
            continue
        body = render([PHOTO], name, about=ABOUT)
        if name == "kmz":
            body = zipfile.ZipFile(io.BytesIO(body)).read("doc.kml")
        if name == "parquet":
            body = str(polars.read_parquet(io.BytesIO(body)).to_dicts()).encode()
        for word in (MADE["model"], MADE["gallery"], MADE["version"], CAUTION, ABOUT.created):
            assert word.encode() in body, (name, word)


def test_decisions_and_notes_are_kept_by_every_format() -> None:
    reviewed = [record(decision="rejected", note="=the roofs"), {**BROKEN, "note": "blurred", "decision": None}]
    check_records(reviewed)
    files = {name: render(reviewed, name, about=ABOUT) for name in ("json", "csv", "geojson", "kml", "parquet")}
    assert [one.get("note") for one in json.loads(files["json"])] == ["=the roofs", "blurred"]
    rows = list(csv.DictReader(io.StringIO(files["csv"].decode())))
    assert [(row["decision"], row["note"]) for row in rows] == 2 * [("rejected", "'=the roofs")] + [("", "blurred")]
    features = json.loads(files["geojson"])["features"]
    assert {(one["properties"]["decision"], one["properties"]["note"]) for one in features} == {
        ("rejected", "=the roofs")
    }
    assert b"Rejected. =the roofs. Sure" in files["kml"]
    assert b"blurred. It could not be read" in files["kml"]
    assert polars.read_parquet(io.BytesIO(files["parquet"]))["decision"].to_list() == ["rejected", "rejected", None]
    with pytest.raises(DataError, match="decision: one of accepted, rejected"):
        check_records([record(decision="maybe")])


def test_json_is_the_plain_list_of_answers() -> None:
    found = json.loads(render([PHOTO, BROKEN], "json"))
    assert found == [{key: value for key, value in PHOTO.items() if key != "thumbnail"}, BROKEN]


@given(st.text())
def test_nothing_breaks_out_of_the_reports_data(name: str) -> None:
    told = formats._embedded({"name": f"</script><!--{name}\u2028"})
    assert not {"<", ">", "&"} & set(told)
    assert told.isascii()
    assert json.loads(told)["name"] == f"</script><!--{name}\u2028"


def test_a_report_holds_its_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "export" / "page"
    monkeypatch.setattr(formats, "files", lambda _: tmp_path)
    with pytest.raises(OpenGeoCLIPError, match="make web"):
        render([PHOTO], "html")
    folder.mkdir(parents=True)
    page = '<script type="application/json" id="records">__RECORDS__</script>'
    (folder / "report.html").write_text(page, encoding="utf-8")
    found = render([PHOTO, BROKEN], "html", about=ABOUT).decode()
    assert json.loads(found.partition(">")[2].rpartition("</")[0]) == {
        "records": [PHOTO, BROKEN],
        "about": {"created": ABOUT.created, "software": ABOUT.software, "caution": CAUTION},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thumbnail": "data:image/svg+xml;base64,PHN2Zz4="}, "record 1: thumbnail: a JPEG"),
        ({"thumbnail": "data:image/jpeg;base64,????"}, "record 1: thumbnail: its base64"),
        ({"thumbnail": "data:image/jpeg;base64,PHN2Zz4="}, "record 1: thumbnail: it is no JPEG"),
        ({"exif": {"lat": 91, "lon": 0}}, "record 1: exif: lat is from -90 to 90"),
        ({"exif": {"lat": float("nan"), "lon": 0}}, "record 1: exif.lat must be a finite number"),
        ({"exif": "here"}, "record 1: exif must be an object"),
        ({"verdict": "true"}, "record 1: verdict: one of consistent"),
        ({"reason": 1}, "record 1: reason must be a text"),
        (
            {"comparison": {"p_value": "0"}},
            "record 1: comparison: the key hpd_level, outside_km, within_km, distance_km",
        ),
        ({"remarks": [{"check": "sea"}]}, r"record 1: remarks\[0\]: the key text is missing"),
        ({"surprise": 1}, "record 1: answer: unknown key surprise"),
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_records([PHOTO, record(**change)])


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SettingsError, match="format: one of json"):
        render([], "doc")


@pytest.mark.parametrize(("is_in", "told"), [(False, "Not sure: unlike the images"), (True, "Not sure; 50 % within")])
def test_kml_says_why_it_is_not_sure(is_in: bool, told: str) -> None:
    doubted = record(sure=False, in_distribution=is_in)
    assert told in render([doubted], "kml", about=ABOUT).decode()
