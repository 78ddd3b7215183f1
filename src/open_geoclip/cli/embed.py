"""``geoclip embed``: embeddings of coordinates."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from open_geoclip.cli._options import Model, NetworkDtype, parse_coordinate
from open_geoclip.cli._output import progress_bar, write_output
from open_geoclip.errors import CoordinateError, DataError, SettingsError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["embed"]

Missing = Literal["error", "nan", "zero"]
Kind = Literal["csv", "parquet", "geojson"]


def embed(
    coordinates: Annotated[list[str] | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    csv_: Annotated[Path | None, Parameter(name="--csv")] = None,
    parquet: Path | None = None,
    geojson: Path | None = None,
    lat: str | None = None,
    lon: str | None = None,
    missing: Missing = "error",
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    model: Model = "geoclip",
    dtype: NetworkDtype = "float32",
    format_: Annotated[Literal["json", "csv"] | None, Parameter(name="--format")] = None,
) -> None:
    """Encode coordinates with the location encoder of a model. Embeddings are not normalised.

    Files of any length take constant memory, and rows stay in order. The same command resumes an interrupted .npy file.

    Args:
        coordinates: LAT,LON in degrees, such as 48.8584,2.2945; or name a file instead.
        csv_: CSV with columns lat and lon.
        parquet: Parquet with columns lat and lon.
        geojson: GeoJSON collection of points.
        lat: Name of the column of latitudes.
        lon: Name of the column of longitudes.
        missing: What a row without coordinates becomes: an error, NaN or zeros.
        output: File to write: .npy (embeddings), .npz (with coordinates), .parquet or .csv.
        format_: Format on stdout: json (default), a list of {"lat", "lon", "vector"}; or csv, a column per dimension.
    """
    sources: dict[Kind, Path | None] = {"csv": csv_, "parquet": parquet, "geojson": geojson}
    files = [(kind, path) for kind, path in sources.items() if path is not None]
    if bool(coordinates) + len(files) != 1:
        raise SettingsError("give either coordinates, such as 48.8584,2.2945, or one of --csv, --parquet, --geojson")
    if (lat is None) != (lon is None) or (lat is not None and csv_ is None and parquet is None):
        raise SettingsError("--lat and --lon name columns of a CSV or Parquet file, both or neither")
    if output is not None and format_ is not None and output.suffix.lower() != f".{format_}":
        raise SettingsError(f"--format {format_} and --output {output} ask for two things: the ending tells the format")
    if files and output is None:
        raise SettingsError("embeddings of a file are written to a file: name one with --output, such as vectors.npy")
    places = [parse_coordinate(text) for text in coordinates or []]
    if output is None:
        _print(places, model, dtype, format_ or "json")
        return

    import numpy as np

    from open_geoclip.data.columns import COORDINATES, Column
    from open_geoclip.data.tables import read_table
    from open_geoclip.features.writers import OUTPUTS

    if output.suffix.lower() not in OUTPUTS:  # an error before a file is read
        raise SettingsError(f"--output {output}: a name that ends in {', '.join(OUTPUTS)} is needed")
    if not files:
        _write(np.array(places, np.float64), "the coordinates", "", output, missing, model, dtype)
        return
    [(kind, path)] = files
    named = {"lat": lat, "lon": lon}
    columns = COORDINATES if lat is None else {key: Column((str(name),), "degrees") for key, name in named.items()}
    try:
        table = read_table(path, columns, kind=kind).coordinates()
    except DataError as error:
        hint = "" if "it has no column" not in str(error) or kind == "geojson" else "; --lat and --lon name others"
        raise DataError(f"{error}{hint}") from error
    note = "GeoJSON itself writes [lon, lat]" if kind == "geojson" else "the header does not count"
    _write(table, str(path), f"the first of all is row 0; {note}", output, missing, model, dtype)


def _print(places: list[tuple[float, float]], model: str, dtype: NetworkDtype, format_: str) -> None:
    import torch

    from open_geoclip.export.tables import format_rows
    from open_geoclip.features.encoding import open_encoder

    encoder, _ = open_encoder(model, dtype)
    vectors = encoder.encode(torch.tensor(places, dtype=torch.float64), normalize=False).tolist()
    if format_ == "json":
        rows = zip(places, vectors, strict=True)
        records = [{"lat": lat, "lon": lon, "vector": vector} for (lat, lon), vector in rows]
        write_output(json.dumps(records) + "\n", None)
    else:
        named = ({f"v{i}": value for i, value in enumerate(vector)} for vector in vectors)
        shown = [{"lat": lat, "lon": lon, **one} for (lat, lon), one in zip(places, named, strict=True)]
        write_output(format_rows("csv", shown), None)


def _write(
    table: "np.ndarray", source: str, note: str, output: Path, missing: Missing, model: str, dtype: NetworkDtype
) -> None:
    from open_geoclip.features.encoding import checked_rows, open_encoder, vectors_by_chunk
    from open_geoclip.features.writers import write_vectors

    if len(table) == 0:
        raise CoordinateError(f"{source}: there is no row")
    try:
        places, absent = checked_rows(table, missing)
    except CoordinateError as error:
        raise CoordinateError(f"{source}: {error} ({note})") from error
    encoder, fingerprint = open_encoder(model, dtype)
    about = {"model": model, "fingerprint": fingerprint, "dtype": str(encoder.dtype), "missing": missing}
    with progress_bar("encoding") as progress:

        def vectors(start: int) -> "Iterator[np.ndarray]":
            done = start
            for part in vectors_by_chunk(encoder, places, absent, missing=missing, start=start):
                yield part
                done += len(part)
                progress(done, len(places))

        write_vectors(output, table, encoder.settings.output, vectors, about)
    if absent.any():
        print(f"geoclip: {int(absent.sum())} of {len(table)} rows have no coordinate: {missing}", file=sys.stderr)
