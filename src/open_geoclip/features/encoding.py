"""Location embeddings of rows of coordinates, as NumPy arrays: missing rows, levels, chunks."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from open_geoclip.errors import CoordinateError, SettingsError
from open_geoclip.geo.sphere import check_coordinates
from open_geoclip.model.backbones.runtime import DType, resolve_dtype
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.weights.load import load_model, load_release

__all__ = [
    "CHUNK",
    "Combine",
    "DType",
    "Missing",
    "checked_rows",
    "combine_levels",
    "open_encoder",
    "select_levels",
    "vectors_by_chunk",
]

Missing = Literal["error", "nan", "zero"]
"""A row without a coordinate is an error, or its embedding is NaN or zero."""

Combine = Literal["sum", "concat"]

CHUNK = 4096
"""Rows at a time, in about 100 MB."""


def open_encoder(model: str, dtype: DType) -> tuple[LocationEncoder, str]:
    """Load a location encoder by name, with networks of a dtype; return it with the fingerprint of its weights."""
    network = resolve_dtype(dtype, "cpu")
    release = load_release(model)
    return load_model(release, towers=()).location_encoder.to(network), release.fingerprint


def checked_rows(
    coordinates: Float64[np.ndarray, "n 2"], missing: Missing
) -> tuple[Float64[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Return coordinates with (0, 0) in rows without one (NaN), and which rows these are.

    Raises:
        CoordinateError: a coordinate is not on Earth, or missing where that is an error; names the first such row.
    """
    absent = np.isnan(coordinates).any(axis=1)
    if absent.any():
        if missing == "error":
            count = int(absent.sum())
            raise CoordinateError(
                f"{'1 row has' if count == 1 else f'{count} rows have'} no coordinate; the first is row "
                f"{int(absent.argmax())}; with missing set to nan or zero such rows are kept"
            )
        coordinates = np.where(absent[:, None], 0.0, coordinates)
    return check_coordinates(coordinates), absent


def select_levels(levels: int | Sequence[int] | None, count: int) -> list[int]:
    """Return the numbers of the chosen levels, all of ``count`` for None; raises SettingsError for a wrong one."""
    chosen = list(range(count)) if levels is None else np.atleast_1d(levels).tolist()
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(count)):
        raise SettingsError(f"levels: one or more of 0 to {count - 1}, each once, not {levels!r}")
    return chosen


def combine_levels(parts: Sequence[Tensor], combine: Combine, *, normalize: bool) -> Float32[Tensor, "n k"]:
    """Return the sum of the levels' embeddings, or one after the other, as float32; ``normalize``: of length 1 each."""
    if combine == "sum":
        parts = [torch.stack([part.float() for part in parts]).sum(dim=0)]
    elif combine != "concat":
        raise SettingsError(f"combine: sum or concat, not {combine!r}")
    return torch.cat([F.normalize(part.float(), dim=1) if normalize else part.float() for part in parts], dim=1)


def vectors_by_chunk(
    encoder: LocationEncoder,
    coordinates: Float64[np.ndarray, "n 2"],
    absent: Bool[np.ndarray, " n"],
    *,
    missing: Missing,
    levels: Sequence[int] | None = None,
    combine: Combine = "sum",
    normalize: bool = False,
    start: int = 0,
) -> Iterator[Float32[np.ndarray, "m k"]]:
    """Yield embeddings in the order of the rows, ``CHUNK`` rows at a time; phases are float64.

    Args:
        encoder: in evaluation mode.
        coordinates: as returned by :func:`checked_rows`.
        absent: rows without a coordinate.
        missing: their embedding, ``nan`` or ``zero``.
        levels: of the encoder, 0 is the coarsest; default: all.
        combine: ``sum`` or ``concat``.
        normalize: to length 1; with ``concat`` each level's part.
        start: first row.
    """
    chosen = [encoder.levels[level] for level in select_levels(levels, len(encoder.levels))]
    for at in range(start, len(coordinates), CHUNK):
        here = slice(at, at + CHUNK)
        rows = np.require(coordinates[here], requirements=["C", "W"])  # torch warns of read-only arrays
        with torch.inference_mode():
            places = torch.from_numpy(rows)
            vectors = combine_levels([level(places) for level in chosen], combine, normalize=normalize).numpy()
        vectors[absent[here]] = np.nan if missing == "nan" else 0.0
        yield vectors
