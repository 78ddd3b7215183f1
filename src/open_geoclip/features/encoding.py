"""From rows of coordinates to rows of vectors, as NumPy arrays: rows without a place, levels, chunks."""

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
"""What becomes of a row without a coordinate: refused, a vector of NaN, or a vector of zeros."""

Combine = Literal["sum", "concat"]

CHUNK = 4096
"""Rows at a time: what one chunk needs stays near 100 MB."""


def open_encoder(model: str, dtype: DType) -> tuple[LocationEncoder, str]:
    """Load a location encoder by its name.

    Args:
        model: ``geoclip``, ``earth``, ``hub:org/repo@revision`` or ``dir:/folder``.
        dtype: what its networks compute in; ``auto`` is bfloat16 where the processor has it.

    Returns:
        The encoder and the fingerprint of its weights.

    Raises:
        ModelNameError: the name does not follow the grammar.
        WeightsError: the weights are missing, damaged or of another layout.
        SettingsError: there is no such dtype.
    """
    network = resolve_dtype(dtype, "cpu")
    release = load_release(model)
    return load_model(release, towers=()).location_encoder.to(network), release.fingerprint


def checked_rows(
    coordinates: Float64[np.ndarray, "n 2"], missing: Missing
) -> tuple[Float64[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Tell rows without a coordinate from wrong ones, which are always refused.

    Args:
        coordinates: (lat, lon) in degrees; NaN in either makes a row one without a coordinate.
        missing: ``error``, ``nan`` or ``zero``.

    Returns:
        The coordinates, with (0, 0) where there is none, and which rows have none.

    Raises:
        CoordinateError: a row has no coordinate and ``missing`` is ``error``, or one is not on Earth; the message
            names the first such row.
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
    """Vectors in the order of the rows, ``CHUNK`` rows at a time: memory does not grow with the number of rows.

    Phases are computed in float64 from float64 degrees, whatever the network runs in.

    Args:
        encoder: in evaluation mode.
        coordinates: as :func:`checked_rows` gives them.
        absent: rows that get no vector.
        missing: what they get instead, ``nan`` or ``zero``.
        levels: which of the encoder's levels, 0 is the coarsest; all when not given.
        combine: ``sum``, or ``concat``: one level's part after the other.
        normalize: to length 1; with ``concat`` each level's part.
        start: the row to begin with.
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
