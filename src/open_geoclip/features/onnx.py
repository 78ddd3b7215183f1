"""The location encoder as one ONNX file, which runs without torch.

::

    from open_geoclip.features import export_onnx

    export_onnx("geoclip", "tower.onnx")

The file takes ``coordinates``, (n, 2) degrees (lat, lon), and returns ``vectors``, (n, k) float32. Projection and
phases are float64, as in :class:`~open_geoclip.features.LocationFeatures`. A graph cannot raise an error: a row that is
not on Earth gives a row of NaN.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from open_geoclip._version import __version__
from open_geoclip.errors import MissingExtraError, OpenGeoCLIPError
from open_geoclip.features.encoding import Combine, combine_levels, select_levels
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import MAX_LONGITUDE_DEG
from open_geoclip.model.location_encoder import Level
from open_geoclip.weights.load import load_model, load_release

try:
    from onnxscript import DOUBLE, FLOAT, ir
    from onnxscript import opset18 as op
except ImportError as error:
    raise MissingExtraError("The ONNX export", "onnx") from error

__all__ = ["export_onnx"]

_OPSET, _IR_VERSION = 18, 8  # what ONNX Runtime reads since 1.14, of 2023


def export_onnx(
    model: str,
    path: str | Path,
    *,
    levels: int | Sequence[int] | None = None,
    combine: Combine = "sum",
    normalize: bool = False,
    input_dtype: Literal["float32", "float64"] = "float64",
) -> Path:
    """Write a model's location encoder as ONNX.

    Metadata of the file: ``model``, ``version`` and ``fingerprint`` of the weights; ``settings`` of the encoder,
    ``levels``, ``combine`` and ``normalized`` as JSON.

    Args:
        model: ``geoclip``, ``earth``, ``hub:org/repo@revision`` or ``dir:/folder``.
        path: the file to write.
        levels: see :class:`~open_geoclip.features.LocationFeatures`, as for ``combine`` and ``normalize``.
        combine: ``sum`` or ``concat``.
        normalize: embeddings of length 1; default: as the network returns them.
        input_dtype: of ``coordinates``. float32 degrees are up to 0.8 m wrong; what follows is float64 all the same.

    Returns:
        The file.

    Raises:
        ModelNameError: the name does not follow the grammar.
        WeightsError: the weights are missing, damaged or of another layout.
        SettingsError: the encoder has no such level, or there is no such way to combine levels.
        OpenGeoCLIPError: the file cannot be written.
    """
    path, release = Path(path), load_release(model)
    encoder = load_model(release, towers=()).location_encoder
    chosen = select_levels(levels, len(encoder.levels))
    network = _Exported([encoder.levels[level] for level in chosen], combine, normalize).eval()
    about = {
        "model": release.name,
        "version": release.version,
        "fingerprint": release.fingerprint,
        "settings": json.dumps(asdict(release.location)),
        "levels": json.dumps(chosen),
        "combine": json.dumps(combine),
        "normalized": json.dumps(normalize),
    }
    content = _trace(network, getattr(torch, input_dtype), about)
    try:
        atomic_write(path, content)
    except OSError as error:
        raise OpenGeoCLIPError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


class _Exported(nn.Module):
    """What the graph computes: levels of the encoder, without the checks that raise errors."""

    def __init__(self, levels: Sequence[Level], combine: Combine, normalize: bool) -> None:
        super().__init__()
        self.levels, self.combine, self.normalize = nn.ModuleList(levels), combine, normalize

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float32[Tensor, "n k"]:
        lat, lon = coordinates.double().unbind(-1)
        valid = (lat.abs() <= 90) & (lon.abs() <= MAX_LONGITUDE_DEG)  # false for NaN
        turned = lon - 360 * torch.round(lon / 360)
        turned = torch.where(turned >= 180, turned - 360, turned)
        places = torch.stack((lat, torch.where(lon.abs() <= 180, lon, turned)), dim=-1)
        places = torch.where(valid[:, None], places, 0.0)
        embeddings = combine_levels([level(places) for level in self.levels], self.combine, normalize=self.normalize)
        return torch.where(valid[:, None], embeddings, torch.nan)


def _trace(network: nn.Module, input_dtype: torch.dtype, about: dict[str, str]) -> bytes:
    """Return the ONNX file of a network, by torch's exporter."""
    example = torch.tensor([[48.8584, 2.2945], [-33.8568, 151.2153]], dtype=input_dtype)
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["coordinates"],
            output_names=["vectors"],
            dynamic_shapes=({0: torch.export.Dim("n", min=0)},),
            opset_version=_OPSET,
            dynamo=True,
            custom_translation_table=_TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    graph = program.model
    graph.producer_name, graph.producer_version = "open-geoclip", __version__
    graph.doc_string = "coordinates: (lat, lon) in degrees, WGS84. A row that is not on Earth gives NaN."
    graph.metadata_props.update(about)
    proto = program.model_proto
    proto.ir_version = _IR_VERSION
    return bytes(proto.SerializeToString())


# Translations of operators in float64: the exporter's own round numbers to float32.


def _asin(x: Any) -> Any:
    """Arcsine, which ONNX Runtime has in float32 only: one Newton step squares that error of 1e-7."""
    rough = op.Cast(op.Asin(op.Cast(x, to=FLOAT.dtype)), to=DOUBLE.dtype)
    return op.Sub(rough, op.Div(op.Sub(op.Sin(rough), x), op.Cos(rough)))


def _deg2rad(x: Any) -> Any:
    return op.Mul(x, op.Constant(value=ir.tensor(math.pi / 180, dtype=ir.DataType.DOUBLE)))


def _matmul(x: Any, y: Any) -> Any:
    """A product of matrices as Gemm: into MatMul, ONNX Runtime fuses the factor of the phases as float32."""
    return op.Gemm(x, y)


def _scalar_tensor(value: float, dtype: int = FLOAT.dtype, **_: Any) -> Any:
    return op.Constant(value=ir.tensor(value, dtype=ir.DataType(dtype)))


_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.asin.default: _asin,
    torch.ops.aten.deg2rad.default: _deg2rad,
    torch.ops.aten.matmul.default: _matmul,
    torch.ops.aten.scalar_tensor.default: _scalar_tensor,
}
