"""``geoclip embed`` of files: formats in and out, order, missing and wrong rows, going on, memory."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from open_geoclip.cli.embed import embed
from open_geoclip.data.geojson import JsonReader
from open_geoclip.errors import CoordinateError, DataError, ModelNameError, OpenGeoCLIPError, SettingsError
from open_geoclip.features.encoding import CHUNK
from open_geoclip.features.writers import write_vectors
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.weights.save import save_model

WIDTH = 16
HERE = [48.8584, 2.2945]


def save_small(folder: Path, width: int = WIDTH) -> str:
    """Save a small location encoder with random weights and return its name."""
    location = LocationSettings(sigmas=(1.0, 16.0), features=4, width=8, depth=1, output=width, projection="sphere")
    torch.manual_seed(0)
    return f"dir:{save_model(folder, GeoCLIP(None, LocationEncoder(location)), card={}, dtype='float32')}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small(tmp_path_factory.mktemp("weights") / "small")


def some_places(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.uniform(-90, 90, n), rng.uniform(-180, 180, n)], axis=1)


def write_csv(path: Path, places: np.ndarray, header: str = "id,lat,lon") -> Path:
    path.write_text(f"{header}\n" + "".join(f"{i},{lat!r},{lon!r}\n" for i, (lat, lon) in enumerate(places.tolist())))
    return path


def write_geojson(path: Path, places: np.ndarray, **members: Any) -> Path:
    features = [
        {
            "type": "Feature",
            "properties": {"features": ['a "name"', i]},
            "geometry": None if np.isnan(lat) else {"type": "Point", "coordinates": [lon, lat, 3.0]},
        }
        for i, (lat, lon) in enumerate(places.tolist())
    ]
    path.write_text(json.dumps({**members, "type": "FeatureCollection", "features": features}))
    return path


def write_parquet(path: Path, places: np.ndarray) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lat, lon = (pyarrow.array(column, from_pandas=True) for column in places.T)
    parquet.write_table(pyarrow.table({"Longitude": lon, "name": ["a"] * len(places), "Latitude": lat}), path)
    return path


def expected(model: str, places: np.ndarray) -> np.ndarray:
    encoder = LocationEncoder.from_pretrained(model)
    return encoder.encode(torch.from_numpy(places), normalize=False).numpy()


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet", "geojson"])
def test_every_kind_of_file_in_order(kind: str, model: str, tmp_path: Path) -> None:
    places = some_places(2 * CHUNK + 100)
    path = {"csv": write_csv, "parquet": write_parquet, "geojson": write_geojson}[kind](tmp_path / f"in.{kind}", places)
    sources: dict[str, Any] = {"csv_" if kind == "csv" else kind: path}
    embed(**sources, output=tmp_path / "out.npy", model=model)
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected(model, places))
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "out.npy"], "nothing is left behind"


def test_every_kind_of_output(model: str, tmp_path: Path) -> None:
    places = some_places(CHUNK + 10)
    places[3] = np.nan
    source = write_csv(tmp_path / "in.csv", places)
    for ending in ("npy", "npz", "csv", "parquet"):
        embed(csv_=source, output=tmp_path / f"out.{ending}", model=model, missing="nan")
    vectors = np.load(tmp_path / "out.npy")
    with np.load(tmp_path / "out.npz") as archive:
        np.testing.assert_array_equal(archive["vectors"], vectors)
        np.testing.assert_array_equal(archive["coordinates"], places)
        assert str(archive["model"]) == model
        assert len(str(archive["fingerprint"])) == 64
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0].split(",")[:4] == ["lat", "lon", "v0", "v1"]
    table = np.array([line.split(",") for line in lines[1:]], np.float64)
    np.testing.assert_array_equal(table[:, :2], places)
    np.testing.assert_array_equal(table[:, 2:].astype(np.float32), vectors)


def test_parquet_is_read_by_polars_and_pandas(model: str, tmp_path: Path) -> None:
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    places = some_places(10)
    places[3] = np.nan
    embed(csv_=write_csv(tmp_path / "in.csv", places), output=tmp_path / "o.parquet", model=model, missing="zero")
    table = polars.read_parquet(tmp_path / "o.parquet")
    assert table.schema == {"lat": polars.Float64, "lon": polars.Float64, "vector": polars.Array(polars.Float32, WIDTH)}
    assert table["lat"].is_null().to_list() == [i == 3 for i in range(10)]
    np.testing.assert_array_equal(np.delete(table["vector"].to_numpy(), 3, 0), expected(model, np.delete(places, 3, 0)))
    assert not table["vector"][3].to_numpy().any()
    assert len(pandas.read_parquet(tmp_path / "o.parquet")["vector"][0]) == WIDTH


def test_coordinates_of_the_command_line_into_a_file(model: str, tmp_path: Path) -> None:
    embed(["48.8584,2.2945", "-33.8568,151.2153"], output=tmp_path / "out.npy", model=model)
    vectors = expected(model, np.array([HERE, [-33.8568, 151.2153]]))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors)


def test_standard_output_is_as_it_was(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    vector = [float(number) for number in expected(model, np.array([HERE]))[0]]
    embed(["48.8584,2.2945"], model=model)
    assert capsys.readouterr().out == json.dumps([{"lat": 48.8584, "lon": 2.2945, "vector": vector}]) + "\n"
    embed(["48.8584,2.2945"], model=model, format_="csv")
    assert capsys.readouterr().out.splitlines()[1] == ",".join(map(str, [*HERE, *vector]))


@pytest.mark.parametrize("columns", ["id,LATITUDE,Long", "\ufeffid,lat , LON"])
def test_names_of_columns(model: str, tmp_path: Path, columns: str) -> None:
    source = write_csv(tmp_path / "in.csv", np.array([HERE]), columns)
    embed(csv_=source, output=tmp_path / "out.npy", model=model)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected(model, np.array([HERE])))


def test_columns_that_are_named(model: str, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", np.array([HERE]), "lat,north,east")
    embed(csv_=source, lat="north", lon="east", output=tmp_path / "out.npy", model=model)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected(model, np.array([HERE])))
    with pytest.raises(DataError, match=r"no column lon; its columns are lat, north, east; .*--lat and --lon"):
        embed(csv_=source, output=tmp_path / "out.npy", model=model)
    with pytest.raises(DataError, match="no column south; its columns are lat, north, east"):
        embed(csv_=source, lat="south", lon="east", output=tmp_path / "out.npy", model=model)


# --- missing and wrong ----------------------------------------------------------------------------


def test_rows_without_a_coordinate(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.csv"
    source.write_text("lat,lon\n1,2\n,3\nNA,NA\n\n4,nan\n5,6\n")
    with pytest.raises(CoordinateError, match=r"in.csv: 3 rows have no coordinate; the first is row 1; .*nan or zero"):
        embed(csv_=source, output=tmp_path / "out.npy", model=model)
    full = expected(model, np.array([[1.0, 2.0], [5.0, 6.0]]))
    embed(csv_=source, output=tmp_path / "out.npy", model=model, missing="nan")
    vectors = np.load(tmp_path / "out.npy")
    assert np.isnan(vectors).any(axis=1).tolist() == [False, True, True, True, False]
    np.testing.assert_allclose(vectors[[0, 4]], full, atol=1e-6)
    assert "3 of 5 rows have no coordinate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lat,lon\n1,2\n1,x\n", "line 3: lon is 'x', not a number in degrees"),
        ('lat,name,lon\n1,"two\nlines",2\n1,a,"2°"\n', "line 4: lon is '2°', not a number"),
        ("lat,lon\n1,2\n1\n", "line 3: 1 cell, where the header has 2"),
        ("lat,lon\n1,2\n120,30\n", r"row 1: \(120, 30\): .*looks like \(lon, lat\).*the header does not count"),
        ("lat,lon\n1,2\n1,inf\n", "row 1.*finite"),
        ("lat,lon\n", "there is no row"),
        ("", "it is empty"),
    ],
)
def test_wrong_csv(text: str, said: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises((CoordinateError, DataError), match=said):
        embed(csv_=tmp_path / "in.csv", output=tmp_path / "out.npy", model=model)
    assert not (tmp_path / "out.npy").exists()


POINT = '{"type":"Feature","properties":null,"geometry":{"type":"Point","coordinates":[2,1]}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"type":"FeatureCollection","features":[' + POINT, "its end"),
        ('{"type":"FeatureCollection","features":[' + POINT + POINT + "]}", "where ',]' should"),
        ('{"type":"FeatureCollection","features":[]} {}', "after its end"),
        ('{"type":"FeatureCollection","features":[]}', "there is no row"),
        ("[1, 2]", "not GeoJSON"),
        ("", "not GeoJSON"),
        ('{"type":"FeatureCollection","features":[' + POINT + ",7]}", "feature 1: it is no feature"),
        (POINT.replace("Point", "LineString"), "must be a point, this is a LineString"),
        (POINT.replace("[2,1]", '["2",1]'), r"\['2', 1\] is not a position"),
        (POINT.replace("[2,1]", "[1,91]"), r"\(91, 1\).*GeoJSON itself writes \[lon, lat\]"),
        ('{"type":"Polygon","coordinates":[]}', "not Polygon"),
        (
            '{"crs":{"type":"name","properties":{"name":"urn:ogc:def:crs:EPSG::3857"}},"type":"FeatureCollection",'
            '"features":[' + POINT + "]}",
            "EPSG::3857; write it in longitude and latitude",
        ),
    ],
)
def test_wrong_geojson(text: str, said: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "in.geojson").write_text(text)
    with pytest.raises((CoordinateError, DataError), match=said):
        embed(geojson=tmp_path / "in.geojson", output=tmp_path / "out.npy", model=model)


@pytest.mark.parametrize("text", [POINT, '{"type":"Point","coordinates":[2,1]}'])
def test_a_single_feature(text: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(text)
    embed(geojson=tmp_path / "in.json", output=tmp_path / "out.npy", model=model)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected(model, np.array([[1.0, 2.0]])))


def test_geojson_of_geopandas(model: str, tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed")
    places = some_places(30).round(6)
    points = geopandas.GeoSeries.from_xy(places[:, 1], places[:, 0], crs=4326)
    points.to_file(tmp_path / "in.geojson", driver="GeoJSON")
    embed(geojson=tmp_path / "in.geojson", output=tmp_path / "out.npy", model=model)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected(model, places), atol=1e-5)


def test_wrong_files(model: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "out.npy"
    with pytest.raises(OpenGeoCLIPError, match=r"none.csv: there is no such file"):
        embed(csv_=tmp_path / "none.csv", output=out, model=model)
    (tmp_path / "binary").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(OpenGeoCLIPError, match="binary: it is a zip archive or an Excel workbook"):
        embed(csv_=tmp_path / "binary", output=out, model=model)
    with pytest.raises(OpenGeoCLIPError, match="cannot be read as Parquet"):
        embed(parquet=tmp_path / "binary", output=out, model=model)
    with pytest.raises(OpenGeoCLIPError, match="cannot be written"):
        embed(["1,2"], output=tmp_path / "no folder" / "out.npz", model=model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give either coordinates"),
        ({"coordinates": ["1,2"], "csv_": Path("a.csv")}, "give either coordinates"),
        ({"csv_": Path("a.csv"), "geojson": Path("b.json")}, "give either coordinates"),
        ({"csv_": Path("a.csv")}, "name one with --output"),
        ({"csv_": Path("a.csv"), "output": Path("a.txt")}, r"a.txt: a name that ends in .npy"),
        ({"csv_": Path("a.csv"), "output": Path("a.npy"), "lat": "y"}, "both or neither"),
        ({"geojson": Path("a"), "output": Path("a.npy"), "lat": "y", "lon": "x"}, "CSV or Parquet"),
        ({"coordinates": ["1,2"], "output": Path("a.npy"), "format_": "csv"}, "ask for two things"),
    ],
)
def test_wrong_use(arguments: dict[str, Any], said: str) -> None:
    places = arguments.pop("coordinates", None)
    with pytest.raises(SettingsError, match=said):
        embed(places, **arguments)


def test_mistakes_in_a_file_are_told_before_weights_are_looked_for(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", np.array([HERE, [99.0, 0.0]]))
    with pytest.raises(CoordinateError, match="row 1"):
        embed(csv_=source, output=tmp_path / "out.npy", model="no such name")
    with pytest.raises(ModelNameError):
        embed(["1,2"], output=tmp_path / "out.npy", model="no such name")


# --- long work ------------------------------------------------------------------------------------


def test_an_interrupted_npy_goes_on_where_it_ended(tmp_path: Path) -> None:
    places = some_places(100)
    whole = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    asked: list[int] = []

    def vectors(start: int, stop_at: int) -> Iterator[np.ndarray]:
        asked.append(start)
        for at in range(start, 100, 10):
            if at == stop_at:
                raise KeyboardInterrupt
            yield whole[at : at + 10]

    out = tmp_path / "out.npy"
    with pytest.raises(KeyboardInterrupt):
        write_vectors(out, places, 5, lambda start: vectors(start, 40), {"model": "m"})
    [part] = tmp_path.iterdir()
    with part.open("r+b") as file:  # as if the last row had been cut short
        file.truncate(part.stat().st_size - 7)
    # Other weights do not go on with these vectors.
    write_vectors(tmp_path / "out.npy", places, 5, lambda start: vectors(start, -1), {"model": "other"})
    out.unlink()
    write_vectors(out, places, 5, lambda start: vectors(start, -1), {"model": "m"})
    assert asked == [0, 0, 39]
    np.testing.assert_array_equal(np.load(out), whole)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet"])
def test_other_files_leave_nothing_behind_when_interrupted(ending: str, tmp_path: Path) -> None:
    def vectors(start: int) -> Iterator[np.ndarray]:
        yield np.zeros((10, 3), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_vectors(tmp_path / f"out.{ending}", some_places(20), 3, vectors, {})
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    model = save_small(tmp_path / "small", width=512)
    for rows in (2 * CHUNK, 40_000):
        write_geojson(tmp_path / f"{rows}.geojson", some_places(rows))
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from open_geoclip.cli.embed import embed\n"
        f"for rows in ({2 * CHUNK}, 40_000):\n"
        f"    embed(geojson=Path(f'{{rows}}.geojson'), output=Path('out.npy'), model={model!r})\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=None
    )
    small, large = map(int, done.stdout.split())
    scale = 1024 if sys.platform == "linux" else 1024**2
    # The vectors are 82 MB, the features as Python objects would be 40 MB and more.
    assert (large - small) / scale < 25, f"{small} {large}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@example(content={"a": [1.5, -2e-05, 1e300]}, block=1, indent=None, ascii_=True)
@given(
    content=st.dictionaries(st.text(), st.lists(json_values, max_size=5), max_size=4),
    block=st.integers(1, 9),
    indent=st.sampled_from([None, 0, 2]),
    ascii_=st.booleans(),
)
def test_json_read_in_pieces(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], block: int, indent: int | None, ascii_: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_), encoding="utf-8")
    with closing(JsonReader(path, block)) as text:
        assert {key: list(text.elements()) for key in text.members()} == content
        assert text.peek() == ""
