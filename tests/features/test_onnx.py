"""The location tower as ONNX: the same numbers as torch gives, without torch."""

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra `onnx`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra `onnx`)")

import onnx
import onnxruntime

from open_geoclip.errors import MissingWeightsError, OpenGeoCLIPError, SettingsError
from open_geoclip.features import LocationFeatures, export_onnx
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.weights.load import load_release
from open_geoclip.weights.save import save_model

EDGES = np.array(
    [[0, 180], [0, -180], [90, 0], [-90, 12], [0, 0], [10, 200], [10, -200], [10, 539.5], [-10, -540], [45, 360]], float
)


def save_small(folder: Path, **shape: Any) -> str:
    """Save a small location encoder with random weights and return its name."""
    fourier = {} if "encoding" in shape else {"sigmas": (1.0, 256.0), "features": 16}
    location = LocationSettings(**{**fourier, "width": 24, "depth": 2, "output": 8, **shape})
    torch.manual_seed(0)
    return f"dir:{save_model(folder, GeoCLIP(None, LocationEncoder(location)), card={}, dtype='float32')}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small model, and its file."""
    folder = tmp_path_factory.mktemp("small")
    name = save_small(folder / "model")
    return name, export_onnx(name, folder / "tower.onnx")


def run(path: Path, coordinates: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"coordinates": coordinates})[0])


def some_places(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], axis=1)


@pytest.mark.parametrize(
    "shape",
    [
        {"depth": 1},
        {"projection": "sphere", "depth": 3},
        {"projection": "degrees"},
        {"encoding": "harmonics", "network": "siren", "degree": 6},
        {"encoding": "sphere2vec", "scales": 4},
    ],
)
def test_equals_torch_everywhere_on_earth(tmp_path: Path, shape: dict[str, Any]) -> None:
    name = save_small(tmp_path / "small", **shape)
    path = export_onnx(name, tmp_path / "tower.onnx")
    places = np.vstack([some_places(500), EDGES])
    exact = LocationEncoder.from_pretrained(name).double()
    with torch.no_grad():
        expected = exact(torch.from_numpy(places)).numpy()
    # Frequencies of sigma 256 turn a phase by a thousand radians: float32 phases would miss this by far.
    # A SIREN multiplies what float32 rounds by 30.
    np.testing.assert_allclose(run(path, places), expected, rtol=0, atol=3e-5 if "network" in shape else 5e-6)


@pytest.mark.parametrize(("combine", "levels", "dtype"), [("concat", None, "float64"), ("sum", 1, "float32")])
def test_levels_length_and_dtype_as_location_features_takes_them(
    tmp_path: Path, combine: Literal["sum", "concat"], levels: int | None, dtype: Literal["float32", "float64"]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (the extra `features`)")
    name, places = save_small(tmp_path / "small"), some_places(50).astype(dtype)
    path = export_onnx(name, tmp_path / "tower.onnx", levels=levels, combine=combine, normalize=True, input_dtype=dtype)
    expected = LocationFeatures(name, levels=levels, combine=combine).fit_transform(places)
    np.testing.assert_allclose(run(path, places), expected, atol=2e-6)


def test_released_weights(tmp_path: Path, released: Path) -> None:
    path = export_onnx("geoclip", tmp_path / "tower.onnx")
    places = np.vstack([some_places(500), EDGES])
    exact = LocationEncoder.from_pretrained("geoclip").double()
    with torch.no_grad():
        expected = exact(torch.from_numpy(places)).numpy()
    vectors = run(path, places).astype(np.float64)
    assert np.abs(vectors - expected).max() < 2e-7
    cosine = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 1 - 1e-11
    assert path.stat().st_size < 38_000_000


def test_any_number_of_rows(small: tuple[str, Path]) -> None:
    path, places = small[1], some_places(7)
    whole = run(path, places)
    assert whole.dtype == np.float32
    assert run(path, places[:0]).shape == (0, 8)
    np.testing.assert_allclose(np.vstack([run(path, row[None]) for row in places]), whole, atol=1e-6)


def test_what_is_no_place_gives_nan(small: tuple[str, Path]) -> None:
    wrong = [[90.1, 0], [-91, 0], [0, 540.1], [0, -541], [np.nan, 0], [0, np.nan], [np.inf, 0], [0, -np.inf]]
    vectors = run(small[1], np.array([*wrong, [1.0, 2.0]]))
    assert np.isnan(vectors[:-1]).all()
    assert np.isfinite(vectors[-1]).all()


def test_metadata_says_what_it_is(small: tuple[str, Path]) -> None:
    name, path = small
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta()
    about, release = meta.custom_metadata_map, load_release(name)
    assert (about["model"], about["fingerprint"]) == (name, release.fingerprint)
    assert json.loads(about["settings"]) == json.loads(json.dumps(asdict(release.location)))
    assert [json.loads(about[key]) for key in ("levels", "combine", "normalized")] == [[0, 1], "sum", False]
    assert meta.producer_name == "open-geoclip"
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("coordinates", "tensor(double)", ["n", 2])]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [("vectors", "tensor(float)", ["n", 8])]


def test_runs_without_torch(small: tuple[str, Path]) -> None:
    name, path = small
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import json, numpy as np, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])\n"
        "print(json.dumps(session.run(None, {'coordinates': np.array([[48.8584, 2.2945]])})[0].tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = LocationEncoder.from_pretrained(name).encode(torch.tensor([[48.8584, 2.2945]]).double(), normalize=False)
    np.testing.assert_allclose(json.loads(done.stdout), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_graph_is_small_and_self_contained(small: tuple[str, Path]) -> None:
    model = onnx.load(small[1])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.graph.node) < 120
    # Numbers before the networks are float64, and none is a rounded float32.
    scalars = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if list(one.dims) in ([], [1])]
    doubles = [float(scalar.reshape(())) for scalar in scalars if scalar.dtype == np.float64]
    assert {math.pi / 180, math.sqrt(3) / 2, 1.340264, -0.243318} <= {round(x, 15) if x < 0 else x for x in doubles}


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OpenGeoCLIPError, match="cannot be written"):
        export_onnx(save_small(tmp_path / "small", projection="sphere"), tmp_path / "no folder" / "tower.onnx")
    with pytest.raises(MissingWeightsError):
        export_onnx(f"dir:{tmp_path / 'none'}", tmp_path / "tower.onnx")
    with pytest.raises(SettingsError, match="levels: one or more of 0 to 1"):
        export_onnx(f"dir:{tmp_path / 'small'}", tmp_path / "tower.onnx", levels=2)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
