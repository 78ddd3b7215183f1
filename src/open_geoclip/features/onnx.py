"""The location tower as one ONNX file, which runs without torch.

::

    from open_geoclip.features import export_onnx

    export_onnx("geoclip", "tower.onnx")

The file takes ``coordinates``, (n, 2) float64 degrees (lat, lon), and gives ``vectors``, (n, k) float32. Inside,
coordinates are projected and turned into phases in float64; only the fraction of a turn that is left goes on in
float32, so that cosines and sines are right to the last bit that the network can use. A row that is not a place on
Earth gives a row of NaN, since a graph cannot raise an error.

The graph is written down by hand: it is short, and what computes the phases must not be left to a tracer.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from open_geoclip._version import __version__
from open_geoclip.errors import MissingExtraError, OpenGeoCLIPError, SettingsError
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import MAX_LONGITUDE_DEG
from open_geoclip.weights.load import load_release

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("The ONNX export", "onnx") from error

if TYPE_CHECKING:
    from open_geoclip.weights.release import Release

__all__ = ["export_onnx", "location_tower"]

_OPSET, _IR_VERSION = 17, 8  # what onnxruntime reads since 1.12, of 2022


def export_onnx(model: str, path: str | Path, *, normalize: bool = False) -> Path:
    """Write a model's location tower as ONNX.

    Args:
        model: ``geoclip``, ``earth``, ``hub:org/repo@revision`` or ``dir:/folder``.
        path: the file to write.
        normalize: vectors of length 1 instead of as the network gives them.

    Returns:
        The file.

    Raises:
        ModelNameError: the name does not follow the grammar.
        WeightsError: the weights are missing, damaged or of another layout.
        OpenGeoCLIPError: the file cannot be written.
    """
    path = Path(path)
    content = location_tower(load_release(model), normalize=normalize).SerializeToString()
    try:
        atomic_write(path, content)
    except OSError as error:
        raise OpenGeoCLIPError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def location_tower(release: "Release", *, normalize: bool = False) -> onnx.ModelProto:
    """The ONNX graph of a release's location tower, with its metadata, checked.

    Metadata: ``model``, ``version`` and ``fingerprint`` of the weights, ``settings`` of the encoder as JSON,
    ``normalized``.

    Raises:
        SettingsError: the encoder is not one of random Fourier features and ReLU.
    """
    settings = asdict(release.location)
    if settings.get("encoding", "fourier") != "fourier" or settings.get("network", "relu") != "relu":
        kind = f"{settings.get('encoding', 'fourier')} and {settings.get('network', 'relu')}"
        raise SettingsError(f"{release.name}: the ONNX export is for Fourier features and ReLU, not {kind}")
    graph = _Graph()
    places, valid = _checked(graph)
    laid_out = {"equal_earth": _equal_earth, "sphere": _unit_vector, "degrees": _degrees}
    position = laid_out[settings["projection"]](graph, places)
    levels = [
        _level(graph, release, position, f"location_encoder.LocEnc{i}", settings["depth"])
        for i in range(len(settings["sigmas"]))
    ]
    vectors = graph.add("Sum", *levels) if len(levels) > 1 else levels[0]
    if normalize:
        length = graph.add("ReduceL2", vectors, axes=[1], keepdims=1)
        vectors = graph.add("Div", vectors, graph.add("Max", length, graph.constant(np.float32(1e-12))))
    graph.add("Where", valid, vectors, graph.constant(np.float32(np.nan)), output="vectors")
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "location_tower",
            [helper.make_tensor_value_info("coordinates", TensorProto.DOUBLE, ["n", 2])],
            [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", settings["output"]])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="open-geoclip",
        producer_version=__version__,
        doc_string="coordinates: (lat, lon) in degrees, WGS84. A row that is no place on Earth gives NaN.",
    )
    about = {
        "model": release.name,
        "version": release.version,
        "fingerprint": release.fingerprint,
        "settings": json.dumps(settings),
        "normalized": json.dumps(normalize),
    }
    helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and weights as they are added; names of what comes out are counted."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: np.ndarray | np.generic, name: str | None = None) -> str:
        """Add an array and return its name."""
        name = name or f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def number(self, value: float) -> str:
        """Add a float64 number."""
        return self.constant(np.float64(value))

    def column(self, index: Literal[0, 1], table: str) -> str:
        """One column of a table, as (n, 1)."""
        return self.add("Gather", table, self.constant(np.array([index], np.int64)), axis=1)

    def cosine(self, angle: str) -> str:
        """A cosine in float64, for which onnxruntime has only the sine."""
        return self.add("Sin", self.add("Add", angle, self.number(math.pi / 2)))


def _checked(graph: _Graph) -> tuple[tuple[str, str], str]:
    """Latitude and longitude in radians, wrapped as `check_coordinates` does, and which rows are on Earth."""
    lat, lon = graph.column(0, "coordinates"), graph.column(1, "coordinates")
    beyond = graph.add("Abs", lon)
    # NaN is not less than or equal to anything.
    valid = graph.add(
        "And",
        graph.add("LessOrEqual", graph.add("Abs", lat), graph.number(90)),
        graph.add("LessOrEqual", beyond, graph.number(MAX_LONGITUDE_DEG)),
    )
    turns = graph.add("Round", graph.add("Div", lon, graph.number(360)))
    turned = graph.add("Sub", lon, graph.add("Mul", turns, graph.number(360)))
    eastmost = graph.add("GreaterOrEqual", turned, graph.number(180))
    wrapped = graph.add("Where", eastmost, graph.add("Sub", turned, graph.number(360)), turned)
    lon = graph.add("Where", graph.add("LessOrEqual", beyond, graph.number(180)), lon, wrapped)
    degree = graph.number(math.pi / 180)
    return (graph.add("Mul", lat, degree), graph.add("Mul", lon, degree)), valid


def _equal_earth(graph: _Graph, places: tuple[str, str]) -> str:
    """The projection of `sphere.equal_earth`: Šavrič, Patterson and Jenny 2018, equations 4 to 7."""
    lat, lon = places
    sine = graph.add("Mul", graph.add("Sin", lat), graph.number(math.sqrt(3) / 2))
    # There is no arcsine in float64; one Newton step from float32 squares its error of 1e-7.
    rough = graph.add("Cast", sine, to=TensorProto.FLOAT)
    rough = graph.add("Cast", graph.add("Asin", rough), to=TensorProto.DOUBLE)
    miss = graph.add("Sub", graph.add("Sin", rough), sine)
    theta = graph.add("Sub", rough, graph.add("Div", miss, graph.cosine(rough)))
    a1, a2, a3, a4 = 1.340264, -0.081106, 0.000893, 0.003796
    scale = 66.50336 / 180  # the released model's units
    square = graph.add("Mul", theta, theta)
    slope = _polynomial(graph, square, [a1, 3 * a2, 0, 7 * a3, 9 * a4])
    height = graph.add("Mul", theta, _polynomial(graph, square, [a1, a2, 0, a3, a4]))
    across = graph.add("Div", graph.add("Mul", lon, graph.cosine(theta)), slope)
    x = graph.add("Mul", across, graph.number(2 * math.sqrt(3) / 3 * scale))
    y = graph.add("Mul", height, graph.number(scale))
    return graph.add("Concat", x, y, axis=1)


def _polynomial(graph: _Graph, x: str, coefficients: list[float]) -> str:
    """Horner's scheme; the constant comes first."""
    total = graph.number(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = graph.add("Add", graph.add("Mul", total, x), graph.number(coefficient))
    return total


def _unit_vector(graph: _Graph, places: tuple[str, str]) -> str:
    """The point on the unit sphere, as `sphere.unit_vectors` gives it."""
    lat, lon = places
    out = graph.cosine(lat)
    x, y = graph.add("Mul", out, graph.cosine(lon)), graph.add("Mul", out, graph.add("Sin", lon))
    return graph.add("Concat", x, y, graph.add("Sin", lat), axis=1)


def _degrees(graph: _Graph, places: tuple[str, str]) -> str:
    """Longitude and latitude, scaled to -1..1."""
    lat, lon = places
    x = graph.add("Mul", lon, graph.number(1 / math.pi))
    return graph.add("Concat", x, graph.add("Mul", lat, graph.number(2 / math.pi)), axis=1)


def _level(graph: _Graph, release: "Release", position: str, name: str, depth: int) -> str:
    """One resolution: [cos 2πBv, sin 2πBv] and its network, (n, k) float32."""

    def weight(part: str) -> str:
        return graph.constant(release.tensors[f"{name}.{part}"].numpy(), f"{name}.{part}")

    frequencies = release.tensors[f"{name}.capsule.0.b"].numpy().astype(np.float64)
    turns = graph.add("MatMul", position, graph.constant(frequencies.T, f"{name}.capsule.0.b"))
    fraction = graph.add("Sub", turns, graph.add("Round", turns))
    phase = graph.add("Cast", graph.add("Mul", fraction, graph.number(2 * math.pi)), to=TensorProto.FLOAT)
    x = graph.add("Concat", graph.add("Cos", phase), graph.add("Sin", phase), axis=1)
    for layer in [f"capsule.{2 * i + 1}" for i in range(depth)]:
        x = graph.add("Relu", graph.add("Gemm", x, weight(f"{layer}.weight"), weight(f"{layer}.bias"), transB=1))
    return graph.add("Gemm", x, weight("head.0.weight"), weight("head.0.bias"), transB=1)
