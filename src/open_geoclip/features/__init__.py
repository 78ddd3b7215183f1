"""Location embeddings for scikit-learn, in files and as ONNX; names are imported at first use."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_geoclip.features.onnx import export_onnx
    from open_geoclip.features.transformer import LocationFeatures

__all__ = ["LocationFeatures", "export_onnx"]


def __getattr__(name: str) -> object:
    modules = {"LocationFeatures": "transformer", "export_onnx": "onnx"}
    if name in modules:
        return getattr(import_module(f"{__name__}.{modules[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
