"""Answers on disk, line by line, so that a killed run resumes where it ended."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float

from open_geoclip.errors import BenchmarkError
from open_geoclip.evaluation.labelled import Labelled
from open_geoclip.files import sha256
from open_geoclip.images import ImageSource

__all__ = ["Journal"]

logger = logging.getLogger(__name__)

_KEYS = {"image", "bytes", "mtime_ns", "sha256"}  # of the line of an answer
_SAME = 0.9999  # cosine of two embeddings of one image by one model; that of another model is far below


class Journal:
    """A JSONL file of answers by one model, gallery and settings; open it with :meth:`opened`.

    A line is an answer with the file's size, time and sha256, so that a photo that was changed is answered again. The
    first line has the settings and a probe, the embedding of a fixed image, which differs with other backbone weights.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], probe: Float[np.ndarray, " k"]) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        header = {"settings": dict(settings), "probe": [round(float(value), 7) for value in probe]}
        self._read(header)
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size == 0:
            self._append(header)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, settings: Mapping[str, Any], probe: Float[np.ndarray, " k"]) -> Iterator["Journal"]:
        """Open the journal of these settings in a folder, and lock it against a second run.

        Raises:
            BenchmarkError: the folder cannot be written, or another run is writing there.
        """
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            journal = cls(folder / f"answers-{key}.jsonl", settings, probe)
        except Timeout as error:
            raise BenchmarkError(
                f"{folder}: another run is writing there: wait for it or name another folder"
            ) from error
        except OSError as error:
            lock.release()
            raise BenchmarkError(f"{folder} cannot be written: {error.strerror or error}") from error
        try:
            yield journal
        finally:
            journal._file.close()
            lock.release()

    def complete(
        self,
        labelled: Labelled,
        compute: Callable[[Iterator[ImageSource]], Iterable[Mapping[str, Any]]],
        progress: Callable[[int, int, int], None] | None = None,
    ) -> tuple[list[dict[str, Any]], int]:
        """Return a line per photo, from the journal or computed now, and the number of those from the journal.

        Args:
            labelled: the photos.
            compute: yields the fields of a line for each photo that it is given, in order.
            progress: called with photos done, all photos, and those done by an earlier run.
        """
        lines: list[dict[str, Any] | None] = [None] * len(labelled)
        if self._known:
            lines = [self.answer(*photo) for photo in zip(labelled.photos, labelled.images, strict=True)]
        resumed = done = len(lines) - lines.count(None)
        waiting: deque[tuple[int, ImageSource]] = deque()

        def missing() -> Iterator[ImageSource]:
            for row, (photo, line) in enumerate(zip(labelled.photos, list(lines), strict=True)):
                if line is None:
                    waiting.append((row, photo))
                    yield photo

        if progress is not None:
            progress(done, len(lines), resumed)
        for found in compute(missing()):
            row, photo = waiting.popleft()
            lines[row] = self.add(photo, labelled.images[row], found)
            done += 1
            if progress is not None:
                progress(done, len(lines), resumed)
        return [line for line in lines if line is not None], resumed

    def answer(self, photo: ImageSource, image: str) -> dict[str, Any] | None:
        """Return the line of a photo, if it is still the one that was answered."""
        line = self._known.get(image)
        if line is None or "error" in line:  # permissions or an extra may have been the reason
            return None
        same = _file_state(photo) == (line["bytes"], line["mtime_ns"]) != (0, 0)
        return line if same or line["sha256"] == _sha256(photo) != "" else None

    def add(self, photo: ImageSource, image: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Append an answer, and flush it."""
        size, mtime_ns = _file_state(photo)
        line = {"image": image, **answer, "bytes": size, "mtime_ns": mtime_ns, "sha256": _sha256(photo)}
        self._append(line)
        return line

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self, header: Mapping[str, Any]) -> None:
        """Read the answers of an earlier run, without lines that are damaged.

        A line that was being written when the run was killed is truncated.
        """
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = [_parse(line) for line in data[:whole].splitlines()]
        if not lines or not _alike(lines[0].get("probe", ()), header["probe"]):
            self.path.write_bytes(b"")  # another backbone of the same name
            return
        if whole < len(data):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        self._known = {line["image"]: line for line in lines[1:] if line.keys() >= _KEYS}
        if damaged := len(lines) - 1 - sum(line.keys() >= _KEYS for line in lines[1:]):
            logger.warning("%s: %d damaged lines; their photos are located again", self.path, damaged)


def _parse(line: bytes) -> dict[str, Any]:
    """Return the content of a line; nothing where it is damaged, as after a power failure."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _alike(a: Sequence[float], b: Sequence[float]) -> bool:
    if len(a) != len(b):
        return False
    return float(np.dot(a, b)) >= _SAME * float(np.linalg.norm(a) * np.linalg.norm(b))


def _file_state(photo: ImageSource) -> tuple[int, int]:
    """Size and time of change of a file; zeros for what is no file."""
    if not isinstance(photo, str | Path) or not Path(photo).is_file():
        return 0, 0
    status = Path(photo).stat()
    return status.st_size, status.st_mtime_ns


def _sha256(photo: ImageSource) -> str:
    """Hash of a file, its bytes or an array; the empty text for what cannot be read, as the answer says already."""
    if isinstance(photo, np.ndarray):
        return sha256(np.ascontiguousarray(photo).tobytes())
    if isinstance(photo, bytes):
        return sha256(photo)
    try:
        return sha256(Path(photo)) if isinstance(photo, str | Path) else ""
    except OSError:
        return ""
