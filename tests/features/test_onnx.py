"""The location tower as ONNX: the same numbers as torch gives, without torch."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra `onnx`)")

import onnx
import onnxruntime

from open_geoclip.errors import MissingWeightsError, OpenGeoCLIPError
from open_geoclip.features import export_onnx
from open_geoclip.features.onnx import location_tower
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings, Projection
from open_geoclip.weights.load import load_release
from open_geoclip.weights.save import save_release

EDGES = np.array(
    [[0, 180], [0, -180], [90, 0], [-90, 12], [0, 0], [10, 200], [10, -200], [10, 539.5], [-10, -540], [45, 360]], float
)


def save_model(folder: Path, projection: Projection, sigmas: tuple[float, ...] = (1.0, 256.0), depth: int = 2) -> str:
    location = LocationSettings(sigmas=sigmas, features=16, width=24, depth=depth, output=8, projection=projection)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for key, tensor in LocationEncoder(location).state_dict().items():
        name = f"location_encoder.{key}"
        tensors[name] = torch.randn(tensor.shape, generator=generator) / 4
        if name.endswith("capsule.0.b"):
            tensors[name] *= 4 * sigmas[int(name.split("LocEnc")[1][0])]
    config: dict[str, Any] = {
        "location_encoder": asdict(location),
        "image_encoder": None,
        "preprocessing": None,
        "card": {},
    }
    return f"dir:{save_release(folder, tensors, config, dtype='float32')}"


def run(path: Path, coordinates: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"coordinates": coordinates})[0])


def some_places(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], axis=1)


@pytest.mark.parametrize("projection", ["equal_earth", "sphere", "degrees"])
@pytest.mark.parametrize("depth", [1, 3])
def test_equals_torch_everywhere_on_earth(tmp_path: Path, projection: Projection, depth: int) -> None:
    name = save_model(tmp_path / "small", projection, depth=depth)
    path = export_onnx(name, tmp_path / "tower.onnx")
    places = np.vstack([some_places(500), EDGES])
    exact = LocationEncoder.from_pretrained(name).double()
    with torch.no_grad():
        expected = exact(torch.from_numpy(places)).numpy()
    # Frequencies of sigma 256 turn a phase by a thousand radians: float32 phases would miss this by far.
    np.testing.assert_allclose(run(path, places), expected, rtol=0, atol=5e-6)


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


def test_any_number_of_rows_and_one_level(tmp_path: Path) -> None:
    path = export_onnx(save_model(tmp_path / "small", "equal_earth", sigmas=(4.0,)), tmp_path / "tower.onnx")
    places = some_places(7)
    whole = run(path, places)
    assert whole.dtype == np.float32
    assert run(path, places[:0]).shape == (0, 8)
    np.testing.assert_allclose(np.vstack([run(path, row[None]) for row in places]), whole, atol=1e-6)


def test_normalized(tmp_path: Path) -> None:
    name = save_model(tmp_path / "small", "sphere")
    raw = run(export_onnx(name, tmp_path / "raw.onnx"), EDGES)
    unit = run(export_onnx(name, tmp_path / "unit.onnx", normalize=True), EDGES)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)


def test_what_is_no_place_gives_nan(tmp_path: Path) -> None:
    path = export_onnx(save_model(tmp_path / "small", "equal_earth"), tmp_path / "tower.onnx")
    wrong = [[90.1, 0], [-91, 0], [0, 540.1], [0, -541], [np.nan, 0], [0, np.nan], [np.inf, 0], [0, -np.inf]]
    vectors = run(path, np.array([*wrong, [1.0, 2.0]]))
    assert np.isnan(vectors[:-1]).all()
    assert np.isfinite(vectors[-1]).all()


def test_metadata_says_what_it_is(tmp_path: Path) -> None:
    name = save_model(tmp_path / "small", "sphere")
    session = onnxruntime.InferenceSession(
        export_onnx(name, tmp_path / "tower.onnx"), providers=["CPUExecutionProvider"]
    )
    meta = session.get_modelmeta()
    about, release = meta.custom_metadata_map, load_release(name)
    assert (about["model"], about["fingerprint"]) == (name, release.fingerprint)
    assert json.loads(about["settings"]) == json.loads(json.dumps(asdict(release.location)))
    assert json.loads(about["normalized"]) is False
    assert meta.producer_name == "open-geoclip"
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("coordinates", "tensor(double)", ["n", 2])]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [("vectors", "tensor(float)", ["n", 8])]


def test_runs_without_torch(tmp_path: Path) -> None:
    name = save_model(tmp_path / "small", "equal_earth")
    path = export_onnx(name, tmp_path / "tower.onnx")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import json, numpy as np, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])\n"
        "print(json.dumps(session.run(None, {'coordinates': np.array([[48.8584, 2.2945]])})[0].tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = LocationEncoder.from_pretrained(name).encode(torch.tensor([[48.8584, 2.2945]]).double(), normalize=False)
    np.testing.assert_allclose(json.loads(done.stdout), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_graph_is_small_and_self_contained(tmp_path: Path) -> None:
    model = location_tower(load_release(save_model(tmp_path / "small", "equal_earth")))
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.graph.node) < 100
    # Phases are float64 until less than a turn is left of them.
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    assert types["location_encoder.LocEnc1.capsule.0.b"] == onnx.TensorProto.DOUBLE


def test_errors_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OpenGeoCLIPError, match="cannot be written"):
        export_onnx(save_model(tmp_path / "small", "sphere"), tmp_path / "no folder" / "tower.onnx")
    with pytest.raises(MissingWeightsError):
        export_onnx(f"dir:{tmp_path / 'none'}", tmp_path / "tower.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
