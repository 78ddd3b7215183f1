"""Location embeddings into files, as they are computed: nothing is kept, whatever the number of rows."""

import csv
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from open_geoclip.errors import MissingExtraError, OpenGeoCLIPError, SettingsError
from open_geoclip.files import atomic_file

__all__ = ["OUTPUTS", "write_vectors"]

Vectors = Callable[[int], Iterator[Float32[np.ndarray, "m k"]]]
"""Returns the embeddings from a row on, some rows at a time."""


def write_vectors(
    output: Path,
    coordinates: Float64[np.ndarray, "n 2"],
    width: int,
    vectors: Vectors,
    about: Mapping[str, str],
) -> None:
    """Write embeddings as they are computed, to a temporary file that is renamed at the end.

    ``.npy`` has the embeddings, ``.npz`` also ``coordinates``; ``.csv`` has columns lat, lon, v0, v1...; ``.parquet``
    has lat, lon and ``vector``, a list of fixed size. An interrupted ``.npy`` is kept as a hidden ``.part`` file, and
    the same call continues it.

    Args:
        output: its suffix is one of :data:`OUTPUTS`.
        coordinates: (lat, lon) in degrees of each row.
        width: length of an embedding.
        vectors: called with the first row.
        about: what the embeddings depend on besides, such as model and fingerprint; stored in .npz and .parquet.

    Raises:
        SettingsError: another suffix.
        OpenGeoCLIPError: the file cannot be written.
        MissingExtraError: Parquet without the extra ``parquet``.
    """
    if output.suffix.lower() not in OUTPUTS:
        raise SettingsError(f"{output}: a file name that ends in {', '.join(OUTPUTS)} is needed")
    try:
        OUTPUTS[output.suffix.lower()](output, coordinates, width, vectors, about)
    except OSError as error:
        raise OpenGeoCLIPError(f"{output} cannot be written: {error.strerror or error}") from error


def _array_header(rows: int, width: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return header.getvalue()


def _write_npy(
    output: Path, coordinates: Float64[np.ndarray, "n 2"], width: int, vectors: Vectors, about: Mapping[str, str]
) -> None:
    # Plain writes rather than a memory map, whose pages would count as memory in use until the system wrote them.
    key = hashlib.sha256(json.dumps([1, width, dict(about)], sort_keys=True).encode())
    key.update(np.ascontiguousarray(coordinates).tobytes())
    part = output.with_name(f".{output.name}.{key.hexdigest()[:16]}.part")
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        header, row = _array_header(len(coordinates), width), 4 * width
        file.write(header)
        done = (file.seek(0, os.SEEK_END) - len(header)) // row
        file.seek(len(header) + done * row)
        for block in vectors(done):
            file.write(np.ascontiguousarray(block, "<f4").data)
        file.truncate()
    part.replace(output)


def _write_npz(
    output: Path, coordinates: Float64[np.ndarray, "n 2"], width: int, vectors: Vectors, about: Mapping[str, str]
) -> None:
    with atomic_file(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("vectors.npy", "w", force_zip64=True) as file:
            file.write(_array_header(len(coordinates), width))
            for block in vectors(0):
                file.write(np.ascontiguousarray(block, "<f4").data)
        for name, content in {
            "coordinates": coordinates,
            **{key: np.array(value) for key, value in about.items()},
        }.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(content), allow_pickle=False)


def _write_csv(
    output: Path, coordinates: Float64[np.ndarray, "n 2"], width: int, vectors: Vectors, about: Mapping[str, str]
) -> None:
    line = "%s,%s," + ",".join(["%.9g"] * width) + "\r\n"  # nine digits give back every float32
    with atomic_file(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(["lat", "lon", *(f"v{i}" for i in range(width))])
        start = 0
        for block in vectors(0):
            places = coordinates[start : start + len(block)].tolist()
            file.writelines(line % (*place, *row.tolist()) for place, row in zip(places, block, strict=True))
            start += len(block)


def _write_parquet(
    output: Path, coordinates: Float64[np.ndarray, "n 2"], width: int, vectors: Vectors, about: Mapping[str, str]
) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"Writing {output.name}", "parquet") from error
    number = pyarrow.float64()
    schema = pyarrow.schema(
        {"lat": number, "lon": number, "vector": pyarrow.list_(pyarrow.float32(), width)}, metadata=dict(about)
    )
    # Vectors neither repeat nor compress: 1 % is not worth the time.
    with (
        atomic_file(output) as temporary,
        parquet.ParquetWriter(temporary, schema, use_dictionary=False, compression="none") as writer,
    ):
        start = 0
        for block in vectors(0):
            lat, lon = coordinates[start : start + len(block)].T
            flat = pyarrow.array(np.ascontiguousarray(block).ravel())
            columns = [pyarrow.array(lat, from_pandas=True), pyarrow.array(lon, from_pandas=True)]
            columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, width))
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            start += len(block)


OUTPUTS = {".npy": _write_npy, ".npz": _write_npz, ".parquet": _write_parquet, ".csv": _write_csv}
"""Writer of each suffix."""
