"""Tables of photos as people have them."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from open_geoclip.data.photo_tables import ParquetPhotos, TablePhotos
from open_geoclip.data.photos import Photo, SkippedRecord
from open_geoclip.data.sources import open_source
from open_geoclip.errors import DataError

Make = Callable[..., Path]


def first(path: Path) -> Photo:
    photo = next(iter(open_source(path)))
    assert isinstance(photo, Photo)
    return photo


def test_a_row_is_a_photo(make_table: Make) -> None:
    path = make_table(4)
    photos = list(open_source(path))
    assert [(p.key, p.lat, p.lon, p.group) for p in photos[:2]] == [
        ("000.jpg", -5.5, -60.25, "author 0"),
        ("001.jpg", -4.5, -50.25, "author 1"),
    ]
    assert photos[0].image == path.parent / "000.jpg"


@pytest.mark.parametrize(
    "text",
    [
        "IMG_FILE,LAT,LON\na.jpg,1.5,2.5\n",
        "latitude;Longitude;Filename\n1.5;2.5;a.jpg\n",
        "lat;lng;path\n1,5;2,5;a.jpg\n",
        "id\tlat\tlon\na.jpg\t1.5\t2.5\n",
        "image|LATITUDE|LONGITUDE|extra\na.jpg|1.5|2.5|x\n",
        "\ufeffIMG_ID,LAT,LON\r\n\r\na.jpg, 1.5 ,2.5\r\n",
        'file,GPS-Lat,gps lon,note\na.jpg,1.5,2.5,"two\nlines, and a comma"\n',
    ],
)
def test_the_columns_and_separators_that_people_have(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    assert (first(tmp_path / "t.csv").lat, first(tmp_path / "t.csv").lon) == (1.5, 2.5)
    assert first(tmp_path / "t.csv").image == tmp_path / "a.jpg"


def test_an_id_and_a_file_and_a_number_without_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,file,lat,lon,author\n17,sub/a.jpg,1,2,\n")
    photo = first(tmp_path / "t.csv")
    assert (photo.key, photo.image, photo.group) == ("17", tmp_path / "sub" / "a.jpg", None)
    (tmp_path / "n.csv").write_text("id,latitude,longitude\n4711,1,2\n")
    (tmp_path / "4711.png").touch()
    assert first(tmp_path / "n.csv").image == tmp_path / "4711.png"


def test_parquet_says_what_csv_says(tmp_path: Path, make_table: Make) -> None:
    pandas = pytest.importorskip("pandas")
    path = make_table(5)
    pandas.read_csv(path).to_parquet(tmp_path / "t.parquet")
    assert list(open_source(tmp_path / "t.parquet")) == list(open_source(path))
    pandas.DataFrame({"id": [1, 2], "lat": [None, 3.0], "lon": [1.0, 2.0]}).to_parquet(tmp_path / "n.parquet")
    absent, there = open_source(tmp_path / "n.parquet").entries()
    assert isinstance(absent, SkippedRecord)
    assert (there.key, there) == ("2", Photo("2", tmp_path / "2", 3.0, 2.0))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(DataError, match=r"bad\.parquet: it cannot be read as Parquet"):
        open_source(tmp_path / "bad.parquet")


def test_damaged_rows_are_named_and_the_others_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "file,lat,lon\na.jpg,1,2\nb.jpg,one,2\nc.jpg,1\nd.jpg,,\ne.jpg,120,2\n,3,4\nf.jpg,5,6\n"
    (tmp_path / "t.csv").write_text(text)
    source = open_source(tmp_path / "t.csv")
    with caplog.at_level(logging.WARNING):
        assert [photo.key for photo in source] == ["a.jpg", "f.jpg"]
    faults = [entry for entry in source.entries() if isinstance(entry, SkippedRecord)]
    assert [(fault.key, fault.kind) for fault in faults] == [
        ("b.jpg", "no coordinates"),
        ("c.jpg", "no coordinates"),
        ("d.jpg", "no coordinates"),
        ("e.jpg", "out of range"),
        ("row 5", "missing"),
    ]
    assert "line 3: lat is 'one', not a number in degrees" in faults[0].reason
    assert "line 4: 2 cells" in faults[1].reason
    assert len(caplog.records) == 5


def test_many_faults_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.csv").write_text("file,lat,lon\n" + "a.jpg,,\n" * 30 + "b.jpg,99,0\n")
    with caplog.at_level(logging.WARNING):
        assert list(open_source(tmp_path / "t.csv")) == []
    assert len(caplog.records) == 11
    assert "31 entries were left out (30 no coordinates, 1 out of range)" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"file,lat,lon\n", "holds no photo"),
        (b"file,place\n", "no column lat or lon; its columns are file, place; its first line must name the columns"),
        (b"a.jpg,48.8,2.3\n", "its columns are a.jpg, 48.8, 2.3; its first line must name"),
        (b"lat,lon\n1,2\n", "no column that names the image"),
        ("file,lat,lon\na.jpg,1,2\ncaf\xe9.jpg,1,2\n".encode("latin1"), "not UTF-8, line 3 holds the byte 0xe9"),
        (b"PK\x03\x04\x14\0", "an Excel workbook: save the sheet as CSV"),
        (b"file,lat,lon,lat\na.jpg,1,2,3\n", "2 columns named lat: rename all but one"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "t.csv")
    with pytest.raises(DataError, match="no such folder of images"):
        open_source(tmp_path / "t.csv", images=tmp_path / "none")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.geojson"])
def test_a_folder_is_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="it is a folder, not a table"):
        open_source(tmp_path / name)


def test_the_fingerprint_is_of_the_table(tmp_path: Path, make_table: Make) -> None:
    path = make_table(3)
    before = open_source(path).fingerprint
    assert open_source(path).fingerprint == before
    path.write_text(path.read_text().replace("-5.5", "-5.6"))
    assert open_source(path).fingerprint != before


def test_twenty_thousand_rows_take_little_memory(tmp_path: Path) -> None:
    rows = "".join(f"folder/{i:08d}.jpg,{i % 90},{i % 180},user {i % 500}\n" for i in range(20_000))
    (tmp_path / "t.csv").write_text("IMG_ID,LAT,LON,AUTHOR\n" + rows)
    source = open_source(tmp_path / "t.csv")
    assert isinstance(source, TablePhotos)
    assert source.table.keys is source.table.files
    assert len(source) == 20_000
    assert sorted(photo.key for photo in source.shuffled(1).shard(1, 2_000)) != sorted(
        photo.key for photo in source.shuffled(2).shard(1, 2_000)
    )
    assert str(source[19_999]) == str(
        Photo("folder/00019999.jpg", tmp_path / "folder/00019999.jpg", 19.0, 19.0, "user 499")
    )


@pytest.mark.parametrize("column", ["struct", "bytes"])
def test_parquet_with_the_images_inside(tmp_path: Path, jpeg: Callable[[int], bytes], column: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [jpeg(i) for i in range(6)]
    cells = [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)] if column == "struct" else images
    table = pyarrow.table(
        {"id": list("abcdef"), "image": cells, "lat": [float(i) for i in range(1, 7)], "lon": [2.0] * 6}
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    source = open_source(tmp_path / "t.parquet")
    assert isinstance(source, ParquetPhotos)
    assert [(photo.key, photo.lat, photo.image) for photo in source] == [
        (key, i + 1.0, images[i]) for i, key in enumerate("abcdef")
    ]
    shuffled = list(source.shuffled(1))
    assert sorted(photo.key for photo in shuffled) == list("abcdef")
    assert all(photo.image == images["abcdef".index(photo.key)] for photo in shuffled)


def test_an_image_missing_inside_parquet_is_named(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "b.jpg").write_bytes(jpeg(1))
    cells = [None, {"bytes": None, "path": "b.jpg"}, {"bytes": jpeg(0), "path": None}]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": pyarrow.array(cells, kind), "lat": [1.0, 2.0, None], "lon": [1.0, 2.0, 3.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    missing, beside, nowhere = open_source(tmp_path / "t.parquet").entries()
    assert (str(missing), str(nowhere)) == ("row 0: the table holds no image", "row 2: it has no coordinates")
    assert isinstance(beside, Photo)
    assert beside.image == tmp_path / "b.jpg"
