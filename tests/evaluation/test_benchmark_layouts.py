"""Tables of labels and their photos: each published layout, and everything that is wrong with real copies of them."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.errors import BenchmarkError
from open_geoclip.evaluation.benchmarks import BENCHMARKS, describe_counts, read_labelled
from open_geoclip.evaluation.labelled import places_fingerprint
from open_geoclip.evaluation.predictions import read_predictions

FLICKR = ("IMG_ID", "AUTHOR", "LAT", "LON", "S3_Label")
ROWS: list[tuple[Any, ...]] = [
    ("1_ab_1_7@N00.jpg", "7@N00", 32.3, -64.8, 2),
    ("2_cd_1_7@N00.jpg", "7@N00", 29.9, 122.4, 2),
    ("3_ef_1_9@N01.jpg", "9@N01", 46.5, 30.8, 0),
    ("4_gh_1_9@N01.jpg", "", -33.9, 151.2, 0),
]


def write(path: Path, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def flickr(folder: Path, name: str, rows: list[tuple[Any, ...]] = ROWS, below: str = "images") -> Path:
    write(folder / name, FLICKR, rows)
    for image in {row[0] for row in rows}:
        photo(folder / below / str(image))
    return folder


class TestLayouts:
    @pytest.mark.parametrize("name", ["im2gps", "im2gps3k", "yfcc4k", "yfcc26k"])
    @pytest.mark.parametrize("below", ["images", ".", f"{'im2gps3ktest'}/deeper"])
    def test_flickr_tables(self, tmp_path: Path, name: str, below: str) -> None:
        flickr(tmp_path, BENCHMARKS[name].tables[0], below=below)
        found = read_labelled(tmp_path, benchmark=name)
        assert found.name == BENCHMARKS[name].title
        assert list(found.ids) == [row[0] for row in ROWS]
        assert found.truth.tolist() == [[row[2], row[3]] for row in ROWS]
        assert found.groups == ["7@N00", "7@N00", "9@N01", ROWS[3][0]]  # nobody's photo belongs to itself
        assert found.group_column == "AUTHOR"
        assert found.table_sha256 == hashlib.sha256(found.table.read_bytes()).hexdigest()
        assert any(f"{BENCHMARKS[name].title} has {BENCHMARKS[name].labelled:,}" in note for note in found.notes)

    def test_authors_of_im2gps_are_the_flickr_users(self, tmp_path: Path) -> None:
        rows = [(ROWS[0][0], "d9b87d0c35_36_96388182@N00", 43.5, -96.7, 2), (ROWS[1][0], "96388182@N00", 1, 2, 3)]
        found = read_labelled(flickr(tmp_path, "im2gps_places365.csv", rows), benchmark="im2gps")
        assert found.groups == ["96388182@N00", "96388182@N00"]

    def test_folders_in_names(self, tmp_path: Path) -> None:
        rows = [("34/8d/9055806529.jpg", "a", 1, 2, 3), ("5e/70/1.jpg", "b", 3, 4, 5)]
        write(tmp_path / "yfcc25600_places365.csv", FLICKR, rows)
        photo(tmp_path / "34" / "8d" / "9055806529.jpg")
        photo(tmp_path / "flat" / "1.jpg")
        assert len(read_labelled(tmp_path, benchmark="yfcc26k")) == 2

    def test_gws15k(self, tmp_path: Path) -> None:
        write(tmp_path / "gws15k.csv", ("path", "lat", "lon"), [("gsv_0.jpg", 31.9, 102.2), ("gsv_2.jpg", 31.9, 102.2)])
        photo(tmp_path / "photos" / "gsv_0.jpg")
        photo(tmp_path / "photos" / "gsv_2.jpg")
        found = read_labelled(tmp_path, benchmark="gws15k")
        assert len(found) == 2
        assert any("the photos never" in note for note in found.notes)

    def test_osv5m(self, tmp_path: Path) -> None:
        head = ("id", "latitude", "longitude", "country", "sequence", "cell", "creator_id")
        rows = [(3859149887465501, -43.8, -176.6, "NZ", "s", "(0, 8)", 11), (12, 1.5, 2.5, "GH", "t", "(1, 1)", 12)]
        write(tmp_path / "test.csv", head, rows)
        photo(tmp_path / "images" / "test" / "00" / "3859149887465501.jpg")
        photo(tmp_path / "images" / "test" / "04" / "12.jpg")
        photo(tmp_path / "images" / "train" / "00" / "12.jpg")
        found = read_labelled(tmp_path, benchmark="osv5m")
        assert list(found.images) == ["images/test/00/3859149887465501.jpg", "images/test/04/12.jpg"]
        assert (found.groups, found.group_column) == (["11", "12"], "creator_id")
        assert read_labelled(tmp_path, benchmark="osv5m", group="sequence").groups == ["s", "t"]

    def test_any_table_and_folder(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        import pyarrow
        from pyarrow import parquet

        table = {"image": ["b", "a"], "lat": [1.0, 2.0], "lng": [3.0, 4.0]}
        parquet.write_table(pyarrow.table(table), tmp_path / "places.parquet")
        photo(tmp_path / "a.png")
        photo(tmp_path / "b.jpg")
        found = read_labelled(tmp_path)
        assert (list(found.images), found.groups) == (["b.jpg", "a.png"], None)

    def test_the_first_copy_of_im2gps3k_has_the_names_exchanged(self, tmp_path: Path) -> None:
        head = ("IMG_ID", "AUTHOR", "LON", "LAT", "S3_Label")
        flickr(tmp_path, "im2gps3k_places365.csv")
        write(tmp_path / "im2gps3k_places365.csv", head, ROWS)
        found = read_labelled(tmp_path, benchmark="im2gps3k")
        assert found.truth.tolist() == [[row[2], row[3]] for row in ROWS]
        assert "LAT holds longitudes" in found.notes[0]
        with pytest.raises(BenchmarkError, match="LAT holds longitudes and LON latitudes, as 2 of 4 rows show"):
            read_labelled(tmp_path)

    def test_the_known_labels_of_im2gps3k(self, shared: Path) -> None:
        path = shared / "reference" / "geoclip_predictions_im2gps3k.csv"
        if not path.is_file():
            pytest.skip(f"there is no {path.name} beside the checkout")
        truth = read_predictions(path).truth
        record = BENCHMARKS["im2gps3k"]
        assert len(truth) == record.labelled
        assert places_fingerprint(truth[::-1]) == record.places_sha256
        assert places_fingerprint(np.round(truth, 6)) == record.places_sha256  # as decimals of the table are read
        truth[5, 0] += 1e-5
        assert places_fingerprint(truth) != record.places_sha256


class TestFaults:
    def test_all_that_is_wrong_is_counted(self, tmp_path: Path) -> None:
        rows = [
            *ROWS,
            ("nan.jpg", "a", "nan", "nan", 0),
            ("empty.jpg", "a", "", 3, 0),
            ("mars.jpg", "a", 10, 999, 0),
            ("", "a", 1, 2, 0),
            ROWS[0],
            ("two.jpg", "a", 1, 2, 0),
            ("two.jpg", "a", 1, 3, 0),
            ("gone.jpg", "a", 5, 6, 0),
            ("3_ef_1_9@N01", "a", 7, 8, 0),  # the photo of the third row, without its suffix
        ]
        write(tmp_path / "labels.csv", FLICKR, rows)
        for row in ROWS:
            photo(tmp_path / row[0])
        photo(tmp_path / "stranger.jpg")
        found = read_labelled(tmp_path)
        assert list(found.ids) == [row[0] for row in ROWS]
        assert dict(found.counts) == {
            "rows": 13,
            "rows_without_place": 3,
            "rows_without_name": 1,
            "rows_repeated": 1,
            "rows_contradicting": 2,
            "photos_missing": 1,
            "photos_shared": 1,
            "photos_unlabelled": 1,
            "photos": 4,
        }
        assert found.missing == ["gone.jpg"]
        assert len(describe_counts(found.counts)) == 7

    def test_what_cannot_be_used_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="no benchmark is called 'im2gps4k'; known are im2gps,"):
            read_labelled(tmp_path, benchmark="im2gps4k")
        with pytest.raises(BenchmarkError, match="there is no such folder; --data is the folder"):
            read_labelled(tmp_path / "nowhere")
        with pytest.raises(BenchmarkError, match=r"no CSV, Parquet or GeoJSON file\): say which it is with --table"):
            read_labelled(tmp_path)
        write(tmp_path / "a.csv", ("id", "lat"), [("x", 1)])
        with pytest.raises(BenchmarkError, match="no column LON; its columns are id, lat"):
            read_labelled(tmp_path)
        with pytest.raises(BenchmarkError, match=r"im2gps3k_places365.csv is not there \(it holds a.csv\)"):
            read_labelled(tmp_path, benchmark="im2gps3k")
        write(tmp_path / "a.csv", FLICKR, ROWS)
        with pytest.raises(BenchmarkError, match="holds no images"):
            read_labelled(tmp_path)
        photo(tmp_path / "other.jpg")
        with pytest.raises(BenchmarkError, match=r"of the 4 photos in a.csv, none is there. The first is 1_ab"):
            read_labelled(tmp_path)
        with pytest.raises(BenchmarkError, match="no column author2"):
            read_labelled(tmp_path, group="author2")
        write(tmp_path / "a.csv", FLICKR, [("other.jpg", "a", "NaN", "NaN", 1)])
        with pytest.raises(BenchmarkError, match="none of its 1 rows has a place on Earth in LAT and LON"):
            read_labelled(tmp_path)
        write(tmp_path / "a.csv", FLICKR, [])
        with pytest.raises(BenchmarkError, match="it holds no labels"):
            read_labelled(tmp_path)

    def test_a_name_that_may_be_either_of_two_photos(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", FLICKR, [("x.jpg", "a", 1, 2, 3)])
        photo(tmp_path / "train" / "x.jpg")
        photo(tmp_path / "test" / "x.jpg")
        with pytest.raises(BenchmarkError, match=r"x.jpg of a.csv may be test/x.jpg or train/x.jpg"):
            read_labelled(tmp_path)
