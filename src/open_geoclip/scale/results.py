"""Results of jobs: a folder of Parquet files with one row per photo."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.data.remote import RemotePath, as_path
from open_geoclip.errors import DataError, MissingExtraError
from open_geoclip.export.tables import COLUMNS, add_geometry, arrow_table, rows
from open_geoclip.files import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MANIFEST",
    "PARTS",
    "ROW",
    "Location",
    "Results",
    "Row",
    "Summary",
    "part_path",
    "part_prefix",
    "replace_rows",
    "result_row",
    "write_part",
]

MANIFEST = "manifest.json"
PARTS = "part-*-of-*-*.parquet"
_OF_THE_JOB = {"image", "rank", "caution", "created", "model", "gallery", "version", "weights_sha256"}
_OF_THE_JOB |= {"gallery_sha256", "image_sha256", "exif_lat", "exif_lon"}
Row = dict[str, Any]
Location = Path | RemotePath
"""A file or folder on a disk or an object store."""
ROW = {
    "photo": "string",
    "sha256": "string",
    **{name: kind for name, kind in COLUMNS.items() if name not in _OF_THE_JOB},
    "answer": "string",
}
"""Columns of a part beside ``geometry`` and ``bbox``; ``answer`` is the whole answer as JSON."""


def part_prefix(number: int, count: int) -> str:
    """Return what the names of the parts of a shard begin with."""
    return f"part-{number:05d}-of-{count:05d}"


def part_path(folder: Location, shard: tuple[int, int]) -> Location:
    """Return the path of the next part of a shard."""
    prefix = part_prefix(*shard)
    numbers = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{prefix}-*.parquet")]
    return folder / f"{prefix}-{max(numbers, default=-1) + 1:06d}.parquet"


def result_row(key: str, record: Mapping[str, Any]) -> Row:
    """Return the row of a photo.

    Args:
        key: the name of the photo.
        record: its answer, as :meth:`open_geoclip.search.answer.Answer.to_dict` gives it.
    """
    first = next(rows([record], {"caution": "", "created": ""}))
    answer = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return {
        **{name: first[name] for name in ROW if name in first},
        "photo": key,
        "sha256": first["image_sha256"],
        "answer": answer,
    }


def write_part(path: Location, rows: Sequence[Row], seconds: float) -> None:
    """Write a part atomically.

    Args:
        path: the file.
        rows: what :func:`result_row` returns.
        seconds: that they took.

    Raises:
        MissingExtraError: the extra ``parquet`` is not installed.
    """
    _write_table(path, arrow_table(rows, ROW), seconds)


def replace_rows(path: Location, new: Mapping[str, Row]) -> None:
    """Replace the rows of some photos, by their names, in a part, atomically."""
    table = _read(path)
    kept = [new.get(row["photo"], row) for row in table.select(list(ROW)).to_pylist()]
    _write_table(path, arrow_table(kept, ROW), _seconds(table.schema))


def _write_table(path: Location, table: "pa.Table", seconds: float) -> None:
    from pyarrow import parquet

    table = add_geometry(table)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), b"seconds": str(round(seconds, 3)).encode()}
    )
    if isinstance(path, RemotePath):
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression="zstd")
        path.write_bytes(buffer.getvalue())
        return
    with atomic_file(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def _read(path: Location, columns: list[str] | None = None) -> "pa.Table":
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Parquet", "parquet") from error
    try:
        return parquet.ParquetFile(path.open() if isinstance(path, RemotePath) else path).read(columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: it cannot be read ({error}): remove it, and its photos are located again") from error


def _seconds(schema: "pa.Schema") -> float:
    return float((schema.metadata or {}).get(b"seconds", b"0"))


@dataclass
class Summary:
    """What a job has found so far.

    Attributes:
        photos: number of rows.
        located: photos with an answer.
        sure: answers that are sure.
        unsure: answers that are not.
        errors: how often each reason occurs, the most frequent first.
        examples: a photo for each of these reasons.
        countries: how often each country is that of the first candidate.
        duplicates: rows of photos that have one already; they are not counted above.
        photos_per_s: of one process, while it ran.
    """

    photos: int = 0
    located: int = 0
    sure: int = 0
    unsure: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    countries: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    photos_per_s: float | None = None


class Results:
    """The folder of a job.

    Args:
        folder: the folder, or its URI: ``s3://bucket/results``.

    Attributes:
        manifest: what the answers depend on: version, weights, gallery, calibration and settings.

    Raises:
        DataError: it holds no results, or its manifest is damaged.
    """

    def __init__(self, folder: Location | str) -> None:
        self.folder = as_path(folder)
        path = self.folder / MANIFEST
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(self.manifest.get("settings"), dict):
                raise ValueError("it has no settings")
        except FileNotFoundError as error:
            raise DataError(f"{self.folder}: it holds no results ({MANIFEST} is missing)") from error
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}: it is damaged ({error}): restore it, or remove it if the settings are to be the same"
            ) from error

    @property
    def parts(self) -> list[Location]:
        """The parts, by name."""
        return sorted(self.folder.glob(PARTS), key=str)

    def keys(self, shard: tuple[int, int] | None = None) -> tuple[set[str], dict[str, Location]]:
        """Return the photos that are located, and those with an error and the part that has their row.

        Args:
            shard: read only its parts if all were written with this number of shards; default: read all.
        """
        parts = self.parts
        counts = {int(found[1]) for path in parts if (found := re.search(r"-of-(\d+)-", path.name))}
        if shard is not None and counts <= {shard[1]}:
            parts = [path for path in parts if path.name.startswith(part_prefix(*shard))]
        located: set[str] = set()
        failed: dict[str, Location] = {}
        for path in parts:
            table = _read(path, ["photo", "error"])
            for photo, error in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if error is None:
                    located.add(photo)
                else:
                    failed[photo] = path
        return located, {photo: path for photo, path in failed.items() if photo not in located}

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of all parts, each photo once.

        Args:
            columns: which; ``photo`` is always among them. Default: all.
        """
        seen: set[str] = set()
        for path in self.parts:
            wanted = None if columns is None else list(dict.fromkeys(["photo", *columns]))
            for row in _read(path, wanted).to_pylist():
                if row["photo"] not in seen:
                    seen.add(row["photo"])
                    yield row

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield the answers, as :meth:`open_geoclip.search.answer.Answer.to_dict` gives them."""
        return (json.loads(row["answer"]) for row in self.rows(["answer"]))

    def summary(self) -> Summary:
        """Count."""
        errors: Counter[str] = Counter()
        countries: Counter[str] = Counter()
        found = Summary()
        for row in self.rows(["error", "sure", "country"]):
            found.photos += 1
            if row["error"] is not None:
                errors[row["error"]] += 1
                found.examples.setdefault(row["error"], row["photo"])
                continue
            found.located += 1
            found.sure += row["sure"] is True
            found.unsure += row["sure"] is False
            countries[row["country"] or ""] += 1
        tables = [_read(path, ["error"]) for path in self.parts]
        n_rows, seconds = sum(map(len, tables)), sum(_seconds(table.schema) for table in tables)
        found.duplicates = n_rows - found.photos
        found.errors, found.countries = dict(errors.most_common()), dict(countries.most_common())
        found.photos_per_s = round(n_rows / seconds, 2) if seconds else None
        return found
