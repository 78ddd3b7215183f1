"""Coordinates out of files, vectors into files.

Reading takes 16 bytes a row, so that every mistake in a file is found before the long work begins. Writing takes
the vectors as they come and keeps none. Rows stay in order.
"""

import csv
import hashlib
import io
import json
import os
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64

from open_geoclip.data.columns import LAT_NAMES, LON_NAMES, find_column
from open_geoclip.errors import CoordinateError, MissingExtraError, OpenGeoCLIPError, SettingsError
from open_geoclip.files import atomic_file

__all__ = ["OUTPUTS", "coordinate_columns", "read_coordinates", "write_vectors"]

_NO_NUMBER = ("", "na", "null")  # "nan" is a number to Python

Vectors = Callable[[int], Iterator[Float32[np.ndarray, "m k"]]]
"""Gives the vectors from a row on, some rows at a time."""


def coordinate_columns(names: Iterable[Any], given: tuple[Any, Any] | None, what: str) -> tuple[Any, Any]:
    """Find the columns of latitude and longitude.

    Args:
        names: of all columns.
        given: the names to take; common ones are looked for when not given.
        what: the table, for messages.

    Raises:
        CoordinateError: a column is not there, or it cannot be told which ones are meant.
    """
    all_names = list(names)
    listed = ", ".join(str(name) for name in all_names[:20]) or "none"
    if given is not None:
        absent = [name for name in given if name not in all_names]
        if absent:
            raise CoordinateError(f"{what} has no column {absent[0]!r}; its columns are {listed}")
        return given[0], given[1]
    named = {str(name): name for name in reversed(all_names)}  # a DataFrame's columns need not be text
    lat, lon = (find_column([str(name) for name in all_names], wanted) for wanted in (LAT_NAMES, LON_NAMES))
    if lat is None or lon is None:
        raise CoordinateError(
            f"{what} has no columns lat and lon, only {listed}; name them, or say which ones they are"
        )
    return named[lat], named[lon]


# --- reading --------------------------------------------------------------------------------------


def read_coordinates(
    path: Path, kind: Literal["csv", "parquet", "geojson"], columns: tuple[str, str] | None = None
) -> Float64[np.ndarray, "n 2"]:
    """Read the coordinates of all rows of a file; whether they are on Earth is not looked at.

    Args:
        path: the file.
        kind: its format. GeoJSON is a collection of points.
        columns: names of the columns of latitude and longitude; common ones are found without.

    Returns:
        (lat, lon) in degrees, one a row; NaN where a row has none.

    Raises:
        CoordinateError: something in it is no coordinate; the message says where.
        OpenGeoCLIPError: the file cannot be read.
        MissingExtraError: a Parquet file without the extra ``parquet``.
    """
    try:
        if kind == "csv":
            return _read_csv(path, columns)
        if kind == "parquet":
            return _read_parquet(path, columns)
        return _read_geojson(path)
    except FileNotFoundError as error:
        raise OpenGeoCLIPError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OpenGeoCLIPError(f"{path}: it cannot be read: {error}") from error


def _read_csv(path: Path, columns: tuple[str, str] | None) -> Float64[np.ndarray, "n 2"]:
    values = array("d")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        lat, lon = (header.index(name) for name in coordinate_columns(header, columns, str(path)))
        for row in reader:
            if not row:
                continue  # an empty line is no row, to pandas neither
            try:
                values.append(_number(row[lat]))
                values.append(_number(row[lon]))
            except IndexError as error:
                raise CoordinateError(
                    f"{path}, line {reader.line_num}: {len(row)} columns, where the header has {len(header)}"
                ) from error
            except ValueError as error:
                raise CoordinateError(
                    f"{path}, line {reader.line_num}: {row[lat]!r}, {row[lon]!r} are not two numbers in degrees"
                ) from error
    return np.frombuffer(values, np.float64).reshape(-1, 2) if values else np.empty((0, 2))


def _number(text: str) -> float:
    return float("nan") if text.strip().lower() in _NO_NUMBER else float(text)


def _read_parquet(path: Path, columns: tuple[str, str] | None) -> Float64[np.ndarray, "n 2"]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"Reading {path.name}", "parquet") from error
    try:
        schema = parquet.read_schema(path)
        names = coordinate_columns(schema.names, columns, str(path))
        for name in names:
            kind = schema.field(name).type
            if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)):
                raise CoordinateError(f"{path}: the column {name} holds {kind}, not numbers in degrees")
        table = parquet.read_table(path, columns=list(names))
    except pyarrow.ArrowException as error:
        raise OpenGeoCLIPError(f"{path}: it cannot be read as Parquet: {error}") from error
    out = np.empty((table.num_rows, 2))
    for i, name in enumerate(names):
        out[:, i] = table[name].to_numpy()  # NaN where there is none
    return out


class _JsonText:
    """A JSON text read piece by piece, since one of a million features does not belong into memory at once."""

    def __init__(self, path: Path, block: int = 1 << 20) -> None:
        self._file = path.open(encoding="utf-8-sig")
        self._path = path
        self._block = block
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0

    def __enter__(self) -> "_JsonText":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """Step over one of the wanted characters."""
        found = self.peek()
        if not found or found not in wanted:
            raise CoordinateError(f"{self._path}: it is not JSON: {found or 'its end'!r} comes where {wanted!r} should")
        self._at += 1
        return found

    def value(self) -> Any:
        """A whole value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError as error:
                if self._more():
                    continue
                raise CoordinateError(f"{self._path}: it is not JSON: {error}") from error
            # A number may go on: what is held of 1.5 or 1e-5 can end in "1.", of which 1 is read.
            if not self._text[end:].strip(".eE+-0123456789") and self._more():
                continue
            self._at = end
            return value

    def members(self) -> Iterator[str]:
        """The keys of an object; the caller takes each value before it asks for the next."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            key = self.value()
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def elements(self) -> Iterator[Any]:
        """The values of an array."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def _more(self) -> bool:
        # At least as much again as is held, so that a long value is not decoded from its start too often.
        rest = len(self._text) - self._at
        block = self._file.read(max(self._block, rest))
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)


def _read_geojson(path: Path) -> Float64[np.ndarray, "n 2"]:
    values = array("d")
    single: dict[str, Any] = {}
    with _JsonText(path) as text:
        if text.peek() != "{":
            raise CoordinateError(f"{path}: it is not GeoJSON, which begins with {{")
        for key in text.members():
            if key == "features" and text.peek() == "[":
                for number, feature in enumerate(text.elements()):
                    values.extend(_position(feature, f"{path}, feature {number}"))
            else:
                single[key] = text.value()
                if key == "crs":
                    _check_crs(single[key], path)
        if text.peek():
            raise CoordinateError(f"{path}: it is not JSON: {text.peek()!r} comes after its end")
    match single.get("type"):
        case "FeatureCollection":
            pass
        case "Feature":
            values.extend(_position(single, str(path)))
        case "Point":
            values.extend(_position({"geometry": single}, str(path)))
        case kind:
            raise CoordinateError(f"{path}: places are points, or features that are points, not {kind}")
    return np.frombuffer(values, np.float64).reshape(-1, 2) if values else np.empty((0, 2))


def _position(feature: Any, where: str) -> tuple[float, float]:
    """(lat, lon) of a feature; GeoJSON itself writes lon, lat (RFC 7946, section 3.1.1)."""
    if not isinstance(feature, dict) or "geometry" not in feature:
        raise CoordinateError(f"{where}: it is no feature with a geometry")
    match feature["geometry"]:
        case None | {"type": "Point", "coordinates": []}:
            return float("nan"), float("nan")
        case {"type": "Point", "coordinates": [int() | float() as lon, int() | float() as lat, *_]}:
            return float(lat), float(lon)
        case {"type": "Point", "coordinates": position}:
            raise CoordinateError(f"{where}: {position!r} is not a position [lon, lat]")
        case geometry:
            kind = geometry.get("type") if isinstance(geometry, dict) else geometry
            raise CoordinateError(f"{where}: places are points, this is a {kind}")


def _check_crs(crs: Any, path: Path) -> None:
    """Refuse a reference system other than longitude and latitude, which older programs write into GeoJSON."""
    name = crs.get("properties", {}).get("name", "") if isinstance(crs, dict) else ""
    if name and not str(name).endswith(("CRS84", ":4326")):
        raise CoordinateError(f"{path}: its coordinates are in {name}; write it in longitude and latitude, EPSG:4326")


# --- writing --------------------------------------------------------------------------------------


def write_vectors(
    output: Path,
    coordinates: Float64[np.ndarray, "n 2"],
    width: int,
    vectors: Vectors,
    about: Mapping[str, str],
) -> None:
    """Write vectors as they are computed, beside the goal, and rename the whole file into place.

    ``.npy`` holds the vectors, ``.npz`` also ``coordinates``; ``.csv`` has columns lat, lon, v0, v1...; ``.parquet``
    has lat, lon and ``vector``, a list of fixed size. A ``.npy`` that was interrupted stays as a hidden ``.part`` file;
    the same call goes on where it ended.

    Args:
        output: ends in one of :data:`OUTPUTS`.
        coordinates: as they are told in the file, one a row.
        width: numbers a vector.
        vectors: called with the row to begin with.
        about: what the vectors depend on besides, such as model and fingerprint; kept in .npz and .parquet.

    Raises:
        SettingsError: the name ends in something else.
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
"""What a file of vectors may end in."""
