"""Photos located on a cluster of `Ray <https://docs.ray.io>`_: a stage that decodes, and actors that hold the model.

The first stage runs wherever a processor core is free, the second in actors that load the model once each. Ray Data
holds back the first when the second is busy, starts more actors when it is not, and repeats what was on a node that
died. A photo that cannot be decoded, or not in time, is a row with an error.

Ray is imported when a function needs it, and only then.
"""

import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from open_geoclip._version import __version__
from open_geoclip.data.decoding import available_cores, skipped_record
from open_geoclip.data.photos import IndexedPhotos, PhotoSource, SkippedRecord
from open_geoclip.errors import ImageError, MissingExtraError, RayError, SettingsError
from open_geoclip.export.tables import arrow_table, escape
from open_geoclip.scale.batches import BatchLocator, Decoded, QuerySettings, decode_new, decode_settings
from open_geoclip.scale.decoding import DecodedImage, Decoder, DecodeSettings
from open_geoclip.scale.results import ROW, Row
from open_geoclip.search.locator import Locator

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef
    from ray.data import Dataset

__all__ = [
    "NO_PROGRESS_S",
    "TASK",
    "RaySettings",
    "actor_pool",
    "check_node",
    "connect",
    "failures",
    "fetch",
    "import_ray",
    "locate_dataset",
    "locate_source",
]

Loaded = TypeVar("Loaded")

_DECODED = "_decoded"  # the column between the stages
_PIECES_PER_CORE = 8
_LARGEST_PIECE = 500  # photos that a task decodes: a minute's work
_DECODE_BATCH = 32
NO_PROGRESS_S = 900.0  # a job ends when it stands still so long: time for an autoscaler to start machines
# Of a task that decodes. Actors have other resources, so Ray Data does not merge the two stages into one.
TASK: dict[str, Any] = {"num_cpus": 1, "memory": 512 * 2**20}
_REASON = re.compile(r"^(?:open_geoclip\.errors\.\w+: )?((?<=: ).+|(?!ray\.)[\w.]+Error: .+)$", re.MULTILINE)


@dataclass(frozen=True)
class RaySettings(Generic[Loaded]):
    """What runs on a Ray cluster.

    Attributes:
        load: called in each actor, returns its locator; with ``device="cuda"`` where actors have a GPU. It is sent to
            other nodes, so what it reads must lie on them: ``partial(Locator.from_pretrained, "geoclip")``.
        actors: how many: the least and the most; None: as many as the cluster has room for. Fewer than the least start
            where they would leave no processor core to decode with.
        num_gpus: GPUs of an actor, perhaps a part of one; 0: it computes on its processor cores.
        num_cpus: processor cores of an actor.

    Raises:
        SettingsError: a number is out of range.
    """

    load: Callable[..., Loaded]
    actors: tuple[int, int | None] = (1, None)
    num_gpus: float = 0
    num_cpus: float = 1

    def __post_init__(self) -> None:
        least, most = self.actors
        if least < 1 or (most is not None and most < least):
            raise SettingsError(f"actors: the least, 1 or more, and the most, not {least} and {most}")
        if self.num_gpus < 0 or self.num_cpus < 0:
            raise SettingsError("num_gpus, num_cpus: 0 or more")

    def load_model(self) -> Loaded:
        """Return the locator, on the device of an actor."""
        return self.load(device="cuda") if self.num_gpus else self.load()


@contextmanager
def connect(address: str) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster, until the block ends.

    Neither usage statistics nor a dashboard are started, and Ray on this machine listens to this machine alone.

    Args:
        address: ``auto``: the cluster that RAY_ADDRESS names, or else this machine; or HOST:PORT of a cluster that
            this machine is a node of.

    Raises:
        MissingExtraError: the extra ``ray`` is not installed.
        RayError: there is no cluster at this address.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "local")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ part writes its log to stderr, this setting too
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address == "local":
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what makes Ray listen to 127.0.0.1 alone, everywhere
        os.environ.setdefault("RAY_worker_niceness", "0")  # as a plain job; Ray's 15 starves it beside other work
        options |= {"include_dashboard": False, "num_cpus": max(2, available_cores())}  # to locate and to decode
    else:  # Ray itself tries for minutes
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise RayError(f"--ray {address}: there is no cluster at HOST:PORT of this name ({error})") from error
    ray = import_ray()
    try:
        with _silent_stderr():
            ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RayError(f"--ray {address}: no cluster can be reached there ({error})") from error
    with warnings.catch_warnings(action="ignore"):  # about Ray's own defaults
        ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # errors are raised, and the log in the folder of the session is complete
            handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def import_ray() -> Any:
    """Return the package; raises `MissingExtraError`."""
    try:
        import ray.data
    except ImportError as error:
        raise MissingExtraError("Ray", "ray") from error
    return ray


def locate_dataset(
    dataset: "Dataset",
    ray: RaySettings[Locator],
    *,
    image: str = "image",
    name: str | None = None,
    query: QuerySettings | None = None,
    photo_timeout_s: float = 60.0,
) -> "Dataset":
    """Locate the photos of a Ray Data dataset, as a step of a pipeline.

    Args:
        dataset: a row per photo.
        ray: how to load a locator, and how many actors do it.
        image: the column of the images: paths, URIs (file, s3, gs) or the bytes of files.
        name: the column with the names of photos, for ``photo`` and messages; default: paths, or the ``sha256``.
        query: what is asked of each photo.
        photo_timeout_s: a photo that takes longer to decode is a row with an error.

    Returns:
        A dataset with the rows in any order: the other columns of the dataset, and those of the
        :class:`~open_geoclip.scale.results.Results` of a job, such as ``lat``, ``lon``, ``error`` and ``answer``.

    Raises:
        SettingsError: the dataset has no such column, or one with the name of a column of results.
        MissingExtraError: the extra ``ray`` is not installed.
    """
    module = import_ray()
    columns = dataset.columns() or []
    if missing := {image, name or image} - set(columns):
        raise SettingsError(f"the dataset has no column {min(missing)!r}, but {', '.join(columns)}")
    if same := sorted(set(columns) & set(ROW) - {name, image}):
        raise SettingsError(f"results have columns of these names too, rename them: {', '.join(same)}")
    settings = module.get(module.remote(_decode_settings).options(**_resources(ray)).remote(ray, photo_timeout_s))
    decode = partial(_decode_table, image=image, name=name, settings=settings)
    decoded = dataset.map_batches(decode, batch_size=_DECODE_BATCH, batch_format="pyarrow", **TASK)
    return _locate(decoded, ray, query or QuerySettings())


def locate_source(
    locator: Locator,
    source: PhotoSource,
    done: Set[str],
    decoding: DecodeSettings,
    ray: RaySettings[Locator],
    query: QuerySettings,
    is_new: Callable[[str], bool],
    progress: Callable[[int, int | None], None] | None,
) -> Generator[Row, None, None]:
    """Yield rows of photos that are not done, in any order; see :func:`open_geoclip.scale.jobs.run_job`.

    Raises:
        RayError: the cluster has failed, or a node has another version or other weights than ``locator``.
    """
    module = import_ray()
    cores = int(module.cluster_resources().get("CPU", 1))
    if isinstance(source, IndexedPhotos):
        size = min(max(len(source) // (_PIECES_PER_CORE * cores), _DECODE_BATCH), _LARGEST_PIECE)
        pieces = -(-len(source) // size)
    else:  # a stream has one reader; shards have one each, or are divided if there are fewer than cores
        paths = getattr(source, "paths", ())
        size, pieces = 0, max(len(paths), cores) if paths else 1
    shared = module.put(_Shared(source, done, decoding, size, pieces))
    pieces_of = module.data.range(pieces, override_num_blocks=pieces)
    decoded = pieces_of.map_batches(partial(_decode_piece, shared), **TASK)
    located = _locate(decoded, ray, query, _fingerprint(locator))
    located.context.execution_no_progress_timeout_s = max(NO_PROGRESS_S, _DECODE_BATCH * decoding.timeout_s)
    at = len(done)
    with failures(ray):
        for table in located.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for row in table.select(list(ROW)).to_pylist():
                at += 1
                if is_new(row["photo"]):
                    yield row
                if progress is not None:
                    progress(at, source.count)


def _resources(ray: RaySettings[Any]) -> dict[str, float]:
    return {"num_gpus": ray.num_gpus, "num_cpus": ray.num_cpus}


def _decode_settings(ray: RaySettings[Locator], timeout_s: float) -> DecodeSettings:
    return decode_settings(ray.load_model(), timeout_s)


def _fingerprint(locator: Locator) -> dict[str, str | None]:
    return {"version": __version__, "weights": locator.weights_sha256, "gallery": locator.gallery.fingerprint}


@contextmanager
def failures(ray: RaySettings[Any]) -> Iterator[None]:
    """Replace an error of Ray, which is a traceback of its own ways, by the error that it contains as text."""
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError as RaysError

    kept = "what is finished is kept, and --resume continues from there"
    try:
        yield
    except ExecutionTimeoutError as error:
        has = import_ray().cluster_resources()
        raise RayError(
            f"Ray: the job stood still. Of {has.get('CPU', 0):g} processor cores and {has.get('GPU', 0):g} GPUs, an "
            f"actor takes {ray.num_cpus:g} and {ray.num_gpus:g}, and a core must be left to decode with. After a "
            f"machine was lost, actors can take all that remains: lower MAX of --ray-actors, or add machines; {kept}"
        ) from error
    except RaysError as error:
        reasons = _REASON.findall(str(error)) or str(error).strip().splitlines() or [type(error).__name__]
        raise RayError(f"Ray: {reasons[-1]}; {kept}") from error


# --- what runs on the nodes -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """What each task of a job needs; Ray sends it to each node once.

    Attributes:
        source: the photos.
        done: names of photos to leave out.
        decoding: how images are decoded.
        size: photos of a task where the source has random access.
        pieces: how many tasks there are.
    """

    source: PhotoSource
    done: Set[str]
    decoding: DecodeSettings
    size: int
    pieces: int

    def piece(self, number: int) -> PhotoSource:
        """Return the photos of a task."""
        if isinstance(self.source, IndexedPhotos):
            return self.source.select(np.arange(number * self.size, min((number + 1) * self.size, len(self.source))))
        return self.source.shard(number, self.pieces)


@lru_cache(maxsize=1)
def fetch(shared: "ObjectRef[Any]") -> Any:
    """Return what each task of a job needs; Ray sends it to each node once."""
    import ray

    return ray.get(shared)


def check_node(found: Mapping[str, str | None], expected: Mapping[str, str | None]) -> None:
    """Raise `RayError` unless this node has the version and the weights of the machine that runs the command."""
    if different := [f"{name} {found[name]}, not {value}" for name, value in expected.items() if found[name] != value]:
        raise RayError(f"a node of the cluster has another {', '.join(different)}")


@lru_cache(maxsize=1)
def _decoder(settings: DecodeSettings) -> Decoder:
    """Return the decoder of this process, which has one thread that decodes; its child ends when this process does."""
    return Decoder(settings)


def _decode_piece(shared: "ObjectRef[_Shared]", numbers: Mapping[str, Any]) -> Iterator["pa.Table"]:
    """Decode a piece of a source: the first stage of a job."""
    job: _Shared = fetch(shared)
    for number in numbers["id"].tolist():
        decoded = decode_new(job.piece(number), job.done, _decoder(job.decoding))
        new = ((key, image) for key, image in decoded if image is not None)
        while batch := list(islice(new, _DECODE_BATCH)):
            yield _pack(batch)


def _decode_table(table: "pa.Table", *, image: str, name: str | None, settings: DecodeSettings) -> "pa.Table":
    """Decode a column: the first stage of a dataset."""
    decoder, batch = _decoder(settings), []
    names = table.column(name or image).to_pylist()
    for file, given in zip(table.column(image).to_pylist(), names, strict=True):
        key = "" if given is None or isinstance(given, bytes) else escape(str(given))
        decoded: Decoded
        try:
            if not isinstance(file, str | bytes):
                raise ImageError(key, "it has no image")
            decoded = decoder(file, key)
            key = key or str(decoded.sha256)
        except ImageError as error:
            decoded = skipped_record(key, error)
        batch.append((key, decoded))
    return table.drop_columns(list({image, name or image})).append_column(_DECODED, _pack(batch).column(_DECODED))


def _pack(batch: Sequence[tuple[str, Decoded]]) -> "pa.Table":
    """Return decoded images as a table of one column."""
    import pyarrow as pa

    strings = [("photo", pa.string()), ("sha256", pa.string()), ("error", pa.string())]
    kind = pa.struct([*strings, ("pixels", pa.large_binary()), ("shape", pa.list_(pa.int32(), 3))])
    values = [
        {"photo": key, "pixels": image.pixels.tobytes(), "shape": image.pixels.shape, "sha256": image.sha256}
        if isinstance(image, DecodedImage)
        else {"photo": key, "error": image.reason}
        for key, image in batch
    ]
    return pa.table({_DECODED: pa.array(values, kind)})


def _unpack(table: "pa.Table") -> list[tuple[str, Decoded]]:
    return [
        (
            one["photo"],
            SkippedRecord(one["photo"], "broken", one["error"])
            if one["error"] is not None
            else DecodedImage(np.frombuffer(one["pixels"], np.uint8).reshape(one["shape"]), one["sha256"]),
        )
        for one in table.column(_DECODED).to_pylist()
    ]


class _Actor:
    """Holds a locator: the second stage."""

    def __init__(self, ray: RaySettings[Locator], query: QuerySettings, expected: dict[str, str | None] | None) -> None:
        locator = ray.load_model()
        if expected is not None:
            check_node(_fingerprint(locator), expected)
        self._locate = BatchLocator(locator, query)

    def __call__(self, table: "pa.Table") -> "pa.Table":
        """Return the rows of a batch, beside the other columns of its photos."""
        batch, size = _unpack(table), self._locate.locator.encoding.batch_size
        rows = [row for start in range(0, len(batch), size) for row in self._locate(batch[start : start + size])]
        found, others = arrow_table(rows, ROW), table.drop_columns([_DECODED])
        for name in others.column_names:
            found = found.append_column(name, others.column(name))
        return found


def _locate(
    decoded: "Dataset",
    ray: RaySettings[Locator],
    query: QuerySettings,
    expected: dict[str, str | None] | None = None,
) -> "Dataset":
    arguments = (ray, query, expected)
    return decoded.map_batches(
        _Actor, fn_constructor_args=arguments, batch_size=_DECODE_BATCH, batch_format="pyarrow", **actor_pool(ray)
    )


def actor_pool(ray: RaySettings[Any]) -> dict[str, Any]:
    """Return how Ray Data runs the actors of a stage."""
    from ray.data import ActorPoolStrategy

    # Ray starts the least number of actors whatever they leave, and nothing is decoded without a core.
    least, most = ray.actors
    if ray.num_cpus:
        cores = import_ray().cluster_resources().get("CPU", 0)
        least = max(1, min(least, int((cores - 1) // ray.num_cpus)))
    return {"compute": ActorPoolStrategy(min_size=least, max_size=most), **_resources(ray)}
