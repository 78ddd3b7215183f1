"""Tables of predictions: what is read, and what is refused with the row's name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_geoclip.errors import PredictionsError
from open_geoclip.evaluation.predictions import Predictions, read_predictions

Write = Callable[[str], Path]

HEAD = "idx,true_lat,true_lon,pred_lat,pred_lon\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a CSV file."""

    def _write(text: str) -> Path:
        path = tmp_path / "run.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


class TestRead:
    def test_a_table(self, write: Write) -> None:
        run = read_predictions(write(HEAD + "7,48.5,2.25,-10,20\n9,0,-180,1e1,179.5\n"))
        assert run.name == "run.csv"
        assert run.truth.tolist() == [[48.5, 2.25], [0, -180]]
        assert run.predicted.tolist() == [[-10, 20], [10, 179.5]]
        assert run.ids == {"idx": ["7", "9"]}
        assert run.groups is None
        assert len(run) == 2

    def test_order_capitals_spaces_blank_lines_and_other_columns_do_not_matter(self, write: Write) -> None:
        text = '\ufeffPRED_LON, True_Lat ,note,true_lon,Pred_Lat,img_id,Author\r\n4,1,"a, b",2,3, x.jpg ,NA\r\n\r\n'
        run = read_predictions(write(text), group="author")
        assert (run.truth.tolist(), run.predicted.tolist()) == ([[1, 2]], [[3, 4]])
        assert run.ids == {"IMG_ID": ["x.jpg"]}
        assert run.groups == ["NA"], "a name like any other"

    def test_ids_are_all_kept(self, write: Write) -> None:
        run = read_predictions(write("id,image,true_lat,true_lon,pred_lat,pred_lon\n1,a.jpg,1,2,3,4\n"))
        assert run.ids == {"id": ["1"], "image": ["a.jpg"]}

    def test_longitudes_beyond_180_are_wrapped(self, write: Write) -> None:
        assert read_predictions(write(HEAD + "1,0,350,0,0\n")).truth.tolist() == [[0, -10]]

    @given(
        st.lists(
            st.tuples(*[st.floats(-90, 90), st.floats(-180, 180)] * 2),
            min_size=1,
            max_size=9,
        )
    )
    @settings(max_examples=30)
    def test_csv_and_parquet_keep_every_bit(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float, float, float]]
    ) -> None:
        import pyarrow
        from pyarrow import parquet

        folder = tmp_path_factory.mktemp("runs")
        lines = [",".join(map(repr, (i, *row))) for i, row in enumerate(rows)]
        (folder / "a.csv").write_text(HEAD + "\n".join(lines))
        columns = {"idx": list(range(len(rows))), "who": [f"w{i % 2}" for i in range(len(rows))]}
        names = HEAD.strip().split(",")[1:]
        parquet.write_table(
            pyarrow.table(columns | {name: [row[i] for row in rows] for i, name in enumerate(names)}),
            folder / "a.parquet",
        )
        a, b = read_predictions(folder / "a.csv"), read_predictions(folder / "a.parquet", group="who")
        for run in (a, b):
            assert np.array_equal(np.concatenate([run.truth, run.predicted], axis=1), np.array(rows))
        assert a.ids == b.ids
        assert b.groups == columns["who"]


class TestRefuse:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"run\.csv: it is empty"),
            (HEAD, "it holds no predictions, only the names of columns"),
            (HEAD + "\n\n", "it holds no predictions"),
            ("lat,lon\n1,2\n", "no column true_lat or true_lon or pred_lat or pred_lon; its columns are lat, lon"),
            ("true_lat,true_lon,pred_lat\n1,2,3\n", "no column pred_lon; its columns are true_lat, true_lon, pred_lat"),
            ("true_lat,true_lon,pred_lat,pred_lon,Pred_Lon ,pred_lon\n1,2,3,4,5,6\n", "columns named pred_lon"),
            (HEAD + "4,1,2,3,4\n5,1,2,nan,4\n6,1,2,,4\n", "2 of 3 rows have no predicted place"),
            (
                HEAD + "4,1,2,3,4\n5,1,2,nan,4\n6,1,2,,4\n",
                r"the first is line 3 \(idx 5\), where pred_lat is empty, pred_lon is 4: give every",
            ),
            (HEAD + "6,1,2,3,\n", r"1 of 1 rows has .* pred_lat is 3, pred_lon is empty: give every photo"),
            (HEAD + "6,1,2,inf,3\n", "no predicted place.*pred_lat is inf"),
            (HEAD + "6,1,2,48°N,3\n", "line 2: pred_lat is '48°N', not a number in degrees"),
            (HEAD + "6,,2,3,4\n", "1 of 1 rows has no true place.*leave photos out whose place is not known"),
            (HEAD + "1,1,2,3,4\n2,2.3,48.9,139.7,35.6\n", r"pred_lat and pred_lon: 1 row .*it looks like \(lon, lat\)"),
            (HEAD + "1,1,2,3,4\n2,2.3,48.9,139.7,35.6\n", r"That row is line 3 \(idx 2\)"),
            (HEAD + "1,1,2,3,4\n2,92,1,0,0\n3,139,1,0,0\n", r"2 rows are .* That row is line 3 \(idx 2\)"),
            (HEAD + "1,1,999,3,4\n", "true_lat and true_lon: 1 row is not a place on Earth"),
            (HEAD + "5,1,2,3,4\n6,1,2,3,4\n5,1,2,3,4\n", "1 of the photos in column idx .* 5, at line 2 and line 4"),
            (HEAD + ",1,2,3,4\n5,1,2,3,4\n", "1 of 2 rows has no idx; the first is line 2"),
            (
                "image,true_lat,true_lon,pred_lat,pred_lon\nRome, Italy,1,2,3,4\n",
                "6 cells, where the header has 5: a cell",
            ),
            (HEAD + "1,1,2\n", "line 2: 3 cells, where the header has 5"),
            (
                HEAD + '1,1,2,3,"4\n',
                "line 2: the row .* cannot be read .*: is a quotation mark not",
            ),
        ],
    )
    def test_faults_of_a_table(self, write: Write, text: str, message: str) -> None:
        with pytest.raises(PredictionsError, match=message):
            read_predictions(write(text))

    def test_groups_that_are_not_there(self, write: Write) -> None:
        path = write("author,true_lat,true_lon,pred_lat,pred_lon\nx,1,2,3,4\n,1,2,3,4\n")
        with pytest.raises(PredictionsError, match="no column trip; its columns are author"):
            read_predictions(path, group="trip")
        with pytest.raises(PredictionsError, match="1 of 2 rows has no author; the first is line 3"):
            read_predictions(path, group="author")

    @pytest.mark.parametrize("turned", ["true", "predicted"])
    def test_exchanged_columns_are_seen_where_all_numbers_could_be_latitudes(
        self, write: Write, rng: np.random.Generator, turned: str
    ) -> None:
        truth = rng.uniform((40, 0), (55, 20), (30, 2))  # in Europe
        predicted = truth + rng.normal(0, 1, (30, 2))

        def table(a: np.ndarray, b: np.ndarray) -> str:
            cells = np.concatenate([a, b], axis=1).tolist()
            return HEAD + "".join(f"{i},{','.join(map(str, row))}\n" for i, row in enumerate(cells))

        assert len(read_predictions(write(table(truth, predicted)))) == 30
        pair = (truth[:, ::-1], predicted) if turned == "true" else (truth, predicted[:, ::-1])
        with pytest.raises(PredictionsError, match=r"seem to be exchanged.*median error is \d,\d+ km"):
            read_predictions(write(table(*pair)))

    def test_a_run_that_is_merely_bad_is_read(self, write: Write, rng: np.random.Generator) -> None:
        rows = rng.uniform((-60, -90, -60, -90), (60, 90, 60, 90), (200, 4)).tolist()
        text = HEAD + "".join(f"{i},{','.join(map(str, row))}\n" for i, row in enumerate(rows))
        assert len(read_predictions(write(text))) == 200

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(PredictionsError, match="there is no such file"):
            read_predictions(tmp_path / "none.csv")
        with pytest.raises(PredictionsError, match=r"a file name that ends in \.csv"):
            read_predictions(tmp_path / "run.xlsx")
        folder = tmp_path / "folder.csv"
        folder.mkdir()
        with pytest.raises(PredictionsError, match="it is a folder, not a table"):
            read_predictions(folder)
        (tmp_path / "wide.csv").write_bytes((HEAD + "1,1,2,3,4").encode("utf-16")[:-1])
        with pytest.raises(PredictionsError, match=r"it cannot be read: .*utf-16.* truncated data"):
            read_predictions(tmp_path / "wide.csv")
        (tmp_path / "no.parquet").write_text("not Parquet")
        with pytest.raises(PredictionsError, match="it cannot be read as Parquet"):
            read_predictions(tmp_path / "no.parquet")

    def test_parquet_rows_are_named_too(self, tmp_path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        columns = {"true_lat": [1.0, 2.0], "true_lon": [1, 2], "pred_lat": [1.0, None], "pred_lon": ["1", "2"]}
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        with pytest.raises(PredictionsError, match=r"the first is row 1, where pred_lat is empty, pred_lon is 2"):
            read_predictions(tmp_path / "a.parquet")

    def test_nan_is_no_group(self, tmp_path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        places = {name: [1.0, 2.0] for name in HEAD.strip().split(",")[1:]}
        parquet.write_table(pyarrow.table({"trip": [3.0, float("nan")]} | places), tmp_path / "a.parquet")
        with pytest.raises(PredictionsError, match="1 of 2 rows has no trip; the first is row 1"):
            read_predictions(tmp_path / "a.parquet", group="trip")

    def test_parts_that_do_not_fit(self) -> None:
        one, two = np.zeros((1, 2)), np.zeros((2, 2))
        with pytest.raises(PredictionsError, match="x: idx has 1 rows, but there are 2 truths"):
            Predictions("x", two, two, {"idx": ["1"]})
        with pytest.raises(PredictionsError, match="x: groups has 2 rows, but there are 1 truths"):
            Predictions("x", one, one, groups=["a", "b"])
        with pytest.raises(PredictionsError, match="x: 1 of idx name a photo again"):
            Predictions("x", two, two, {"idx": ["1", "1"]})
