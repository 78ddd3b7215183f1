"""LocationFeatures: what goes in, what comes out, and how it behaves among other people's estimators."""

import json
import pickle
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_geoclip.errors import CoordinateError, SettingsError, WeightsError
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.weights.save import save_release

pytest.importorskip("sklearn", reason="scikit-learn is not installed (the extra `features`)")

from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

from open_geoclip.features import LocationFeatures

WIDTH = 6
PARIS, SYDNEY, QUITO = [48.8584, 2.2945], [-33.8568, 151.2153], [-0.22, -78.51]


def save_model(folder: Path, seed: int = 0) -> str:
    """Save a small location encoder with random weights and return its name."""
    location = LocationSettings(
        sigmas=(1.0, 4.0, 16.0), features=8, width=12, depth=2, output=WIDTH, projection="equal_earth"
    )
    generator = torch.Generator().manual_seed(seed)
    shapes = LocationEncoder(location).state_dict()
    tensors = {f"location_encoder.{n}": torch.randn(t.shape, generator=generator) / 3 for n, t in shapes.items()}
    config: dict[str, Any] = {
        "location_encoder": asdict(location),
        "image_encoder": None,
        "preprocessing": None,
        "card": {},
    }
    return f"dir:{save_release(folder, tensors, config, dtype='float32')}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("weights") / "small")


def some_places(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], axis=1)


# --- the numbers ----------------------------------------------------------------------------------


def test_embeddings_are_the_encoders(model: str) -> None:
    places = some_places(5000)  # more than a chunk
    expected = LocationEncoder.from_pretrained(model).encode(torch.from_numpy(places)).numpy()
    vectors = LocationFeatures(model).fit(places[:3]).transform(places)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    raw = LocationFeatures(model, normalize=False).fit_transform(places)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), expected, atol=1e-6)
    assert not np.allclose(raw, expected)


def test_released_weights(released: Path) -> None:
    vector = LocationFeatures(normalize=False).fit_transform([PARIS])[0]
    assert vector.shape == (512,)
    np.testing.assert_allclose(vector[:5], [-0.01321, 0.00858, -0.00471, 0.00516, -0.00834], atol=6e-6)


def test_levels_singly_summed_and_side_by_side(model: str) -> None:
    places = some_places(50)
    raw = [LocationFeatures(model, levels=i, normalize=False).fit_transform(places) for i in range(3)]
    both = LocationFeatures(model, levels=[0, 2], normalize=False).fit_transform(places)
    np.testing.assert_allclose(both, raw[0] + raw[2], atol=1e-6)
    np.testing.assert_allclose(LocationFeatures(model, normalize=False).fit_transform(places), sum(raw), atol=1e-6)
    unit = [LocationFeatures(model, levels=i).fit_transform(places) for i in range(3)]
    beside = LocationFeatures(model, levels=[2, 0], combine="concat").fit_transform(places)
    np.testing.assert_allclose(beside, np.hstack([unit[2], unit[0]]), atol=1e-6)


@pytest.mark.parametrize(("combine", "normalize"), [("sum", True), ("concat", False)])
def test_principal_components_are_those_of_scikit_learn(model: str, combine: Any, normalize: bool) -> None:
    train, test = some_places(5000, seed=1), some_places(40, seed=2)
    whole = LocationFeatures(model, combine=combine, normalize=normalize).fit(train)
    reference = PCA(n_components=4, svd_solver="full").fit(whole.transform(train).astype(np.float64))
    ours = LocationFeatures(model, combine=combine, normalize=normalize, n_components=4).fit(train)
    np.testing.assert_allclose(ours.explained_variance_ratio_, reference.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(ours.transform(test), reference.transform(whole.transform(test)), atol=2e-4)
    assert ours.transform(test).dtype == np.float32


def test_components_by_share_of_the_variance(model: str) -> None:
    places = some_places(300)
    all_of_them = LocationFeatures(model, n_components=WIDTH).fit(places).explained_variance_ratio_
    assert all_of_them.sum() == pytest.approx(1)
    share = float(all_of_them[:2].sum()) + 1e-6  # a little more than two can explain
    assert LocationFeatures(model, n_components=share).fit_transform(places).shape == (300, 3)


def test_no_rows_give_no_rows(model: str) -> None:
    assert LocationFeatures(model).fit([PARIS]).transform(np.empty((0, 2))).shape == (0, WIDTH)


# --- what may go in -------------------------------------------------------------------------------


def test_lists_integers_and_float32(model: str) -> None:
    fitted = LocationFeatures(model).fit([PARIS])
    expected = fitted.transform(np.array([[10.0, 20.0], [-30.0, 40.0]]))
    for same in ([[10, 20], [-30, 40]], [(10.0, 20.0), (-30.0, 40.0)], np.array([[10, 20], [-30, 40]], np.float32)):
        np.testing.assert_array_equal(fitted.transform(same), expected)
    read_only = np.array([[20.0, 10.0], [40.0, -30.0]])[:, ::-1]
    read_only.flags.writeable = False
    np.testing.assert_array_equal(fitted.transform(read_only), expected)
    # Longitudes counted from 0 to 360 are the same places.
    np.testing.assert_array_equal(fitted.transform([[10, 380], [-30, -320]]), expected)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_by_the_names_of_their_columns(model: str, library: str) -> None:
    frames = pytest.importorskip(library)
    expected = LocationFeatures(model).fit_transform([PARIS, SYDNEY])
    lat, lon = [PARIS[0], SYDNEY[0]], [PARIS[1], SYDNEY[1]]
    turned = frames.DataFrame({"Longitude": lon, "name": ["Paris", "Sydney"], "Latitude": lat})
    np.testing.assert_array_equal(LocationFeatures(model).fit_transform(turned), expected)
    other = frames.DataFrame({"x": lon, "y": lat, "lat": [0, 0], "lon": [0, 0]})
    np.testing.assert_array_equal(LocationFeatures(model, columns=("y", "x")).fit_transform(other), expected)
    with pytest.raises(CoordinateError, match="no columns lat and lon, only x, y"):
        LocationFeatures(model).fit(frames.DataFrame({"x": lon, "y": lat}))
    with pytest.raises(CoordinateError, match="no column 'north'; its columns are x, y"):
        LocationFeatures(model, columns=("north", "x")).fit(frames.DataFrame({"x": lon, "y": lat}))
    gap = frames.DataFrame({"lat": [None, SYDNEY[0]], "lon": lon})
    kept = LocationFeatures(model, missing="nan").fit_transform(gap)
    assert np.isnan(kept[0]).all()
    np.testing.assert_array_equal(kept[1], expected[1])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_come_out_if_asked_for(model: str, library: str) -> None:
    frames = pytest.importorskip(library)
    table = frames.DataFrame({"lat": [1.0, 2.0], "lon": [3.0, 4.0]})
    step = LocationFeatures(model, levels=1).set_output(transform=library)
    out = step.fit_transform(table)
    assert isinstance(out, frames.DataFrame)
    assert list(out.columns) == [f"location_level1_{i}" for i in range(WIDTH)]
    if library == "pandas":
        table.index = ["b", "a"]
        assert list(step.transform(table).index) == ["b", "a"]


def test_geo_series_and_frames(model: str) -> None:
    geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed")
    from shapely import LineString, Point

    points = geopandas.GeoSeries([Point(2.2945, 48.8584), Point(151.2153, -33.8568)], crs=4326)
    expected = LocationFeatures(model).fit_transform([PARIS, SYDNEY])
    np.testing.assert_array_equal(LocationFeatures(model).fit_transform(points), expected)
    frame = geopandas.GeoDataFrame({"lat": [0, 0], "lon": [0, 0]}, geometry=points)
    np.testing.assert_array_equal(LocationFeatures(model).fit_transform(frame), expected)
    np.testing.assert_allclose(LocationFeatures(model).fit_transform(frame.to_crs(3857)), expected, atol=1e-5)
    fitted = LocationFeatures(model).fit(frame[["lat", "lon"]])
    np.testing.assert_array_equal(fitted.transform(points), expected)
    gap = geopandas.GeoSeries([Point(2.2945, 48.8584), None, Point()], crs=4326)
    assert np.isnan(LocationFeatures(model, missing="nan").fit_transform(gap)).any(axis=1).tolist() == [
        False,
        True,
        True,
    ]
    with pytest.raises(CoordinateError, match=r"2 rows have no coordinate; the first is row 1"):
        LocationFeatures(model).fit(gap)
    with pytest.raises(CoordinateError, match=r"set_crs\(4326\)"):
        LocationFeatures(model).fit(geopandas.GeoSeries([Point(2, 48)]))
    with pytest.raises(CoordinateError, match="holds LineString"):
        LocationFeatures(model).fit(geopandas.GeoSeries([LineString([(0, 0), (1, 1)])], crs=4326))


# --- what may not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([[0, 0], [91, 0]], r"the first is row 1: \(91, 0\): a latitude is within -90 and 90"),
        ([[151.2, -33.9]], r"it looks like \(lon, lat\)"),
        ([[0, 541]], "longitude"),
        ([[0, np.inf]], "finite"),
        ([PARIS, [np.nan, 0], [0, np.nan]], "2 rows have no coordinate; the first is row 1"),
        ([[1, 2, 3]], r"two features, lat and lon; these have 3 feature\(s\)"),
        (np.ones((2, 2), np.float16), "float16"),
        ([["48,9", "2"]], "could not convert"),
        (np.empty((0, 2)), "0 sample"),
    ],
)
def test_what_is_no_place_is_refused(model: str, places: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LocationFeatures(model).fit(places)


def test_the_row_that_is_named_is_that_of_the_table(model: str) -> None:
    places = some_places(10_000)
    places[7] = np.nan
    places[9000] = [95, 0]
    with pytest.raises(CoordinateError, match="the first is row 9000"):
        LocationFeatures(model, missing="zero").fit([PARIS]).transform(places)


def test_rows_without_a_place(model: str) -> None:
    rows = np.array([PARIS, [np.nan, 10.0], SYDNEY, [np.nan, np.nan]])
    full = LocationFeatures(model).fit_transform([PARIS, SYDNEY])
    for missing in ("nan", "zero"):
        vectors = LocationFeatures(model, missing=missing).fit_transform(rows)
        np.testing.assert_allclose(vectors[[0, 2]], full, atol=1e-6)  # other sizes round otherwise
        assert (np.isnan(vectors[[1, 3]]) if missing == "nan" else vectors[[1, 3]] == 0).all()
        train = np.vstack([some_places(50), [[np.nan, 0]]])
        reduced = LocationFeatures(model, missing=missing, n_components=2).fit(train)
        without = LocationFeatures(model, n_components=2).fit(train[:-1])
        np.testing.assert_array_equal(reduced.components_, without.components_)
        vectors = reduced.transform(rows)
        np.testing.assert_allclose(vectors[[0, 2]], without.transform(rows[[0, 2]]), atol=1e-6)
        assert (np.isnan(vectors[[1, 3]]) if missing == "nan" else vectors[[1, 3]] == 0).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": 3}, "levels: one or more of 0 to 2"),
        ({"levels": []}, "levels"),
        ({"levels": [1, 1]}, "levels"),
        ({"combine": "mean"}, "combine"),
        ({"missing": "drop"}, "missing"),
        ({"n_components": 0}, "n_components: a whole number from 1 to 2"),
        ({"n_components": 3}, "there are 2 places"),
        ({"n_components": 1.5}, "n_components"),
    ],
)
def test_settings_out_of_range(model: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        LocationFeatures(model).set_params(**settings).fit([PARIS, SYDNEY])


# --- among other estimators -----------------------------------------------------------------------


def test_names_of_what_comes_out(model: str) -> None:
    def names(**settings: Any) -> list[str]:
        return list(LocationFeatures(model, **settings).fit(some_places(9)).get_feature_names_out())

    assert names() == [f"location_{i}" for i in range(WIDTH)]
    assert names(levels=[2, 0], combine="concat") == [f"location_level{j}_{i}" for j in (2, 0) for i in range(WIDTH)]
    assert names(levels=[2, 0], combine="concat", n_components=2) == ["location_pc0", "location_pc1"]


def test_in_a_pipeline_a_grid_and_a_column_transformer(model: str) -> None:
    pandas = pytest.importorskip("pandas")
    places = some_places(400)
    north = places[:, 0] > 0
    search = GridSearchCV(
        make_pipeline(LocationFeatures(model), LogisticRegression(C=100)),
        {"locationfeatures__levels": [0, None], "locationfeatures__combine": ["sum", "concat"]},
        cv=2,
    ).fit(places, north)
    assert search.best_score_ > 0.9
    houses = pandas.DataFrame({"lat": places[:, 0], "lon": places[:, 1], "rooms": np.arange(400.0)})
    columns = ColumnTransformer(
        [("place", LocationFeatures(model, n_components=2), ["lat", "lon"])], remainder="passthrough"
    )
    assert make_pipeline(columns, Ridge()).fit(houses, houses["rooms"]).score(houses, houses["rooms"]) > 0.99
    assert list(columns.fit(houses).get_feature_names_out()) == [
        "place__location_pc0",
        "place__location_pc1",
        "remainder__rooms",
    ]


def test_clones_and_pickles(tmp_path: Path) -> None:
    model = save_model(tmp_path / "small")
    fitted = LocationFeatures(model, levels=[0, 1], n_components=3).fit(some_places(30))
    assert clone(fitted).get_params() == fitted.get_params()
    carried = pickle.dumps(fitted)
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert len(carried) < size / 2, "the weights are not in it"
    np.testing.assert_array_equal(pickle.loads(carried).transform([PARIS]), fitted.transform([PARIS]))
    save_model(tmp_path / "small", seed=1)
    with pytest.raises(WeightsError, match="not the weights that the transformer was fitted with"):
        pickle.loads(carried).transform([PARIS])
    assert fitted.transform([QUITO]).shape == (1, 3), "what is in memory goes on"


class AnyNumbers(LocationFeatures):
    """Takes any table of numbers, as scikit-learn's checks hand them in, and folds it into places."""

    def _coordinates(self, X: Any, *, reset: bool) -> np.ndarray:  # noqa: N803
        rows = validate_data(self, X=X, reset=reset, dtype=np.float64)
        two = rows[:, :2] if rows.shape[1] > 1 else np.repeat(rows, 2, axis=1)
        return np.ascontiguousarray(np.tanh(two / 100) * [90, 180])


# These hand in numbers that are no places, or tables of other than two columns, and expect them to be taken.
NO_PLACES = {
    "check_dict_unchanged",
    "check_dont_overwrite_parameters",
    "check_dtype_object",
    "check_estimators_dtypes",
    "check_estimators_nan_inf",
    "check_estimators_pickle",
    "check_f_contiguous_array_estimator",
    "check_fit2d_1sample",
    "check_fit2d_predict1d",
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_fit_score_takes_y",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_n_features_in",
    "check_n_features_in_after_fitting",
    "check_pipeline_consistency",
    "check_positive_only_tag_during_fit",
    "check_readonly_memmap_input",
    "check_transformer_data_not_an_array",
    "check_transformer_general",
    "check_transformer_preserve_dtypes",
}

# Makes an estimator with settings of wrong types, which nothing but the type checker of these tests minds.
ODD_TYPES = {"check_do_not_raise_errors_in_init_or_set_params"}


@pytest.mark.parametrize("settings", [{}, {"n_components": 1, "combine": "concat"}])
def test_scikit_learns_own_checks(model: str, settings: dict[str, Any]) -> None:
    with warnings.catch_warnings(action="ignore"):  # the checks warn of what they skip
        folded = check_estimator(AnyNumbers(model, **settings), on_fail=None, on_skip=None)
        plain = check_estimator(LocationFeatures(model, **settings), on_fail=None, on_skip=None)
    assert sum(check["status"] == "passed" for check in folded) >= 40
    assert {check["check_name"] for check in folded if check["status"] == "failed"} <= ODD_TYPES
    failed = [check for check in plain if check["status"] == "failed" and check["check_name"] not in ODD_TYPES]
    assert {check["check_name"] for check in failed} <= NO_PLACES
    for check in failed:  # for no other reason than that these are no places
        causes = f"{check['exception']} {check['exception'].__cause__}"
        assert re.search("not a place on Earth|two features, lat and lon|check for NaN", causes), causes


def test_the_caller_needs_no_torch_until_it_fits() -> None:
    code = (
        "import sys; from open_geoclip.features import LocationFeatures; LocationFeatures('geoclip', levels=0); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_missing_scikit_learn_is_told() -> None:
    code = "import sys; sys.modules['sklearn'] = None; from open_geoclip.features import LocationFeatures"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in done.stderr
    assert "open-geoclip[features]" in done.stderr


def test_the_page_works(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("onnx", "onnxruntime", "pandas", "pyarrow"):
        pytest.importorskip(needed)
    from open_geoclip.cli import app

    page = (Path(__file__).parents[2] / "docs" / "location-embeddings.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    names["cities"].to_csv("places.csv")
    names["cities"].to_parquet("places.parquet")
    point = {"type": "Point", "coordinates": [2.35, 48.86]}
    features = [{"type": "Feature", "properties": {}, "geometry": point}] * 6
    Path("places.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    commands = re.findall(r"^\$ geoclip (.*)$", page, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        app(shlex.split(command), result_action="return_value")
    assert np.load("embeddings.npy").shape == np.load("embeddings.npz")["vectors"].shape == (6, 512)
