"""Jobs: the photos of a source located into a folder of Parquet files, which survives interruptions.

A job's folder holds ``manifest.json`` and parts, Parquet files of a fixed number of photos, one row per photo. Each
part is written atomically, and a photo is done when its row is in one. So a job that was killed at any moment goes on
where its last part ends, on any machine that sees the folder, also with another number of shards.
"""

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from open_geoclip._version import __version__
from open_geoclip.data.decoding import available_cores
from open_geoclip.data.photos import PhotoSource
from open_geoclip.data.remote import RemotePath, as_path
from open_geoclip.errors import DataError, MissingExtraError, SettingsError
from open_geoclip.files import atomic_write, sha256
from open_geoclip.scale.batches import BatchLocator, Decoded, QuerySettings, decode_new, decode_settings
from open_geoclip.scale.decoding import Decoder
from open_geoclip.scale.results import (
    MANIFEST,
    PARTS,
    Location,
    Results,
    Row,
    part_path,
    part_prefix,
    replace_rows,
    write_part,
)
from open_geoclip.search.locator import Locator

if TYPE_CHECKING:
    from open_geoclip.scale.ray import RaySettings

__all__ = ["JobReport", "JobSettings", "describe_job", "run_job"]

_FORMAT = 1
_MAX_PART_S = 300.0  # a slow model writes smaller parts: a kill costs minutes at most
_Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class JobSettings:
    """How a job runs. None of it changes the answers.

    Attributes:
        resume: continue in a folder that holds results; otherwise that is an error.
        retry_errors: continue, and locate photos again whose rows have an error.
        shard: (number, count), numbers from 1: this process does one of so many shares of the source. The processes
            need not know of each other.
        part_size: photos per part, or fewer when these take longer than five minutes: what is lost at most when the
            process is killed.
        photo_timeout_s: a photo that takes longer to decode is a row with an error.
        workers: processes that decode; default: one per processor core.

    Raises:
        SettingsError: a number is out of range.
    """

    resume: bool = False
    retry_errors: bool = False
    shard: tuple[int, int] = (1, 1)
    part_size: int = 1000
    photo_timeout_s: float = 60.0
    workers: int | None = None

    def __post_init__(self) -> None:
        number, count = self.shard
        if not 1 <= number <= count:
            raise SettingsError(f"shard: a number from 1 to the number of shards, not {number}/{count}")
        if self.part_size < 1:
            raise SettingsError(f"part_size: 1 photo or more, not {self.part_size}")
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"workers: 1 or more, not {self.workers}")


@dataclass
class JobReport:
    """What a call of :func:`run_job` did.

    Attributes:
        located: photos that were located.
        failed: photos whose rows have an error.
        done_before: photos that were done already.
        duplicates: entries of the source with the name of another one; the first of them is located.
    """

    located: int = 0
    failed: int = 0
    done_before: int = 0
    duplicates: int = 0


def run_job(
    locator: Locator,
    source: PhotoSource,
    folder: Location | str,
    settings: JobSettings | None = None,
    *,
    top_k: int = 5,
    text: str | None = None,
    text_weight: float = 0.5,
    detail: bool = False,
    options: Mapping[str, Any] | None = None,
    ray: "RaySettings[Locator] | None" = None,
    progress: _Progress | None = None,
) -> JobReport:
    """Locate the photos of a source into a folder; read it with :class:`~open_geoclip.scale.results.Results`.

    On KeyboardInterrupt, what is finished is written before the exception is raised.

    Args:
        locator: with which to locate.
        source: the photos, opened without places: ``open_source(spec, places=False)``.
        folder: is made if it does not exist; perhaps on an object store: ``s3://bucket/results``. There no file can be
            locked: start one process per shard.
        settings: default: :class:`JobSettings`.
        top_k: candidates per photo.
        text: what is known about all photos, in words; see :meth:`open_geoclip.search.locator.Locator.locate`.
        text_weight: weight of the text.
        detail: whether answers have regions and heat.
        options: further settings that answers depend on, JSON-ready: they are compared when the job is resumed.
        ray: decode and locate on the Ray cluster that this process is connected to; see
            :mod:`open_geoclip.scale.ray`. ``locator`` then tells what the answers depend on, and may be on another
            device than those of the cluster.
        progress: called with how many photos are done, and of how many (None: not known).

    Raises:
        DataError: the folder holds results and ``resume`` is not set, results of other weights or settings, or other
            files; it cannot be written; or another process works on this shard.
        MissingExtraError: the extra ``parquet`` is not installed.
    """
    settings = settings or JobSettings()
    if find_spec("pyarrow") is None:
        raise MissingExtraError("A job", "parquet")
    manifest = describe_job(
        locator, source.name, top_k=top_k, text=text, text_weight=text_weight, detail=detail, options=options
    )
    query = QuerySettings(top_k, text, text_weight, detail)
    prefix, folder = part_prefix(*settings.shard), as_path(folder)
    with ExitStack() as stack:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(folder, Path):
                try:
                    stack.enter_context(FileLock(folder / f".{prefix}.lock", timeout=0))
                except Timeout as error:
                    shard = "/".join(map(str, settings.shard))
                    raise DataError(f"{folder}: another process works on shard {shard}") from error
                for left in folder.glob(f".{prefix}-*.part"):  # by a process that was killed
                    left.unlink()
            _check_manifest(folder, manifest, settings)
        return _run(locator, source, folder, settings, query, ray, progress)


@contextmanager
def _writing(folder: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: the results cannot be written: {error.strerror or error}; what is finished is kept, and "
            "--resume continues from there"
        ) from error


def _run(
    locator: Locator,
    source: PhotoSource,
    folder: Location,
    settings: JobSettings,
    query: QuerySettings,
    ray: "RaySettings[Locator] | None",
    progress: _Progress | None,
) -> JobReport:
    number, count = settings.shard
    source = source.shard(number - 1, count)
    done, failed = Results(folder).keys(settings.shard)
    if not settings.retry_errors:
        done, failed = done | failed.keys(), {}
    report = JobReport(done_before=len(done))
    writer = _Writer(folder, settings)
    decoding = decode_settings(locator, settings.photo_timeout_s)
    seen: set[str] = set()

    def is_new(key: str) -> bool:
        report.duplicates += key in seen
        is_first = key not in seen
        seen.add(key)
        return is_first

    if ray is None:
        workers = settings.workers or available_cores()
        found = _locate_here(locator, source, done, Decoder(decoding), workers, query, is_new, progress)
    else:
        from open_geoclip.scale.ray import locate_source

        found = locate_source(locator, source, done, decoding, ray, query, is_new, progress)
    with closing(found) as rows:
        try:
            for row in rows:
                report.failed += row["error"] is not None
                report.located += row["error"] is None
                writer.add(row, replaces=failed.get(row["photo"]))
        except KeyboardInterrupt:
            writer.flush()
            raise
        writer.flush()
    return report


def _locate_here(
    locator: Locator,
    source: PhotoSource,
    done: Set[str],
    decoder: Decoder,
    workers: int,
    query: QuerySettings,
    is_new: Callable[[str], bool],
    progress: _Progress | None,
) -> Generator[Row, None, None]:
    """Yield rows of photos that are not done, from this process."""
    locate = BatchLocator(locator, query)

    def new(results: Iterable[tuple[str, Decoded | None]]) -> Iterator[tuple[str, Decoded]]:
        for at, (key, decoded) in enumerate(results, 1):
            if is_new(key) and decoded is not None:
                yield key, decoded
            if progress is not None:
                progress(at, source.count)

    with decoder, closing(decode_new(source, done, decoder, workers=workers)) as results:
        decoded = new(results)
        while batch := list(islice(decoded, locator.encoding.batch_size)):
            yield from locate(batch)


class _Writer:
    """Collects rows into parts, and rows that replace others in parts that were written before."""

    def __init__(self, folder: Location, settings: JobSettings) -> None:
        self.folder, self.settings = folder, settings
        self._rows: list[Row] = []
        self._replaced: dict[Location, dict[str, Row]] = {}
        self._since = time.monotonic()

    def add(self, row: Row, *, replaces: Location | None = None) -> None:
        """Add a row; ``replaces`` is the part that has an older one."""
        if replaces is None:
            self._rows.append(row)
        else:
            self._replaced.setdefault(replaces, {})[row["photo"]] = row
        if len(self._rows) >= self.settings.part_size or time.monotonic() - self._since > _MAX_PART_S:
            self._write_part()

    def flush(self) -> None:
        """Write what is there."""
        self._write_part()
        for part, rows in self._replaced.items():
            with _writing(self.folder):
                replace_rows(part, rows)
        self._replaced = {}

    def _write_part(self) -> None:
        if not self._rows:
            return
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        with _writing(self.folder):
            write_part(part_path(self.folder, self.settings.shard), self._rows, seconds)
        self._rows = []


# --- manifest -------------------------------------------------------------------------------------


def describe_job(
    locator: Locator,
    source: str,
    *,
    top_k: int,
    text: str | None,
    text_weight: float,
    detail: bool,
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the manifest: what answers depend on, and what they are answers to.

    Args:
        locator: with which to locate.
        source: the name of the photos.
        top_k: candidates per photo.
        text: what is known about all photos.
        text_weight: weight of the text.
        detail: whether answers have regions and heat.
        options: further settings that answers depend on.
    """
    asked = {"top_k": top_k, "detail": detail, **(options or {})}
    if text is not None:
        asked |= {"text": text, "text_weight": text_weight}
    if locator.evidence is not None:
        asked["photo_index_sha256"] = locator.evidence.fingerprint
    answers = {name: str(value) for name, value in vars(locator.answers).items() if value is not None}
    if callable(locator.answers.prior):
        answers["prior"] = getattr(locator.answers.prior, "__qualname__", type(locator.answers.prior).__qualname__)
    named = [locator.answers.prior, *(options or {}).get("within", ()), *(options or {}).get("not_within", ())]
    files = {str(path): sha256(Path(path)) for path in named if isinstance(path, str | Path) and Path(path).is_file()}
    if files:  # whose content may change
        asked["files_sha256"] = files
    encoding = {name: value for name, value in vars(locator.encoding).items() if name != "batch_size"}
    return {
        "format": _FORMAT,
        "version": __version__,
        "source": source,
        "model": locator.model_name,
        "weights_sha256": locator.weights_sha256,
        "gallery": locator.search_space.name,
        "calibration_sha256": locator.calibration.fingerprint,
        "settings": {**answers, **encoding, "refine": locator.refine, **asked},
    }


def _check_manifest(folder: Location, manifest: dict[str, Any], settings: JobSettings) -> None:
    """Write the manifest; where there is one, refuse to continue if anything differs."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    parts = set(folder.glob(PARTS))  # left when somebody removed a damaged manifest
    if not (folder / MANIFEST).exists() and any(
        path not in parts and not path.name.startswith(".") for path in folder.iterdir()
    ):
        raise DataError(f"{folder}: it holds other files, and no results: choose an empty or a new folder")
    text, path = json.dumps({**manifest, "created": created}, indent=1) + "\n", folder / MANIFEST
    if isinstance(path, RemotePath):
        if not path.exists():
            path.write_bytes(text.encode())
            return
    else:
        try:
            atomic_write(path, text, new=True)
        except FileExistsError:
            pass
        else:
            return
    before, after = _flat(Results(folder).manifest), _flat(manifest)
    keys = sorted((before.keys() | after.keys()) - {"created"})
    different = [
        f"{key} {before.get(key)!r}, now {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)
    ]
    if different:
        raise DataError(f"{folder}: it holds results of another job ({'; '.join(different)}): choose another folder")
    if not (settings.resume or settings.retry_errors) and any(folder.glob(f"{part_prefix(*settings.shard)}-*.parquet")):
        raise DataError(f"{folder}: it holds results already: continue with --resume, or choose another folder")


def _flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {**manifest, **manifest["settings"], "settings": None}
