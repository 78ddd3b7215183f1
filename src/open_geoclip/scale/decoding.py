"""Decoding in child processes with a deadline per photo: a hostile or damaged file cannot stop a job.

A child imports neither PyTorch nor the model, so it starts in half a second, and nothing that it sends is unpickled.
The parent kills a child that takes too long, reports the photo as an error, and starts another one.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import UInt8

from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.files import sha256
from open_geoclip.images import MAX_FILE_BYTES, MAX_PIXELS, ImageSource, load_image, read_bytes, resize_image

__all__ = ["DecodeSettings", "DecodedImage", "Decoder"]

_START_TIMEOUT_S = 120.0
_MEMORY_BYTES = 4 * 2**30  # of a child; an image that needs more is an error
_ATTEMPTS = 2  # a child may have been killed from outside: the image is tried again in a new one


@dataclass(frozen=True)
class DecodeSettings:
    """How images are decoded.

    Attributes:
        resize: length of the shortest edge after resizing, in pixels.
        resample: the filter; both are those of :class:`~open_geoclip.model.preprocessing.Preprocessing`.
        max_pixels: larger images are refused before they are decoded.
        timeout_s: time that one image may take.
        fast: decode JPEGs at a reduced scale, of at least twice that length.
        squash: whether images become squares of this size.

    Raises:
        SettingsError: a number is out of range.
    """

    resize: int
    resample: str
    max_pixels: int = MAX_PIXELS
    timeout_s: float = 60.0
    fast: bool = False
    squash: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise SettingsError(f"timeout_s: seconds above 0, not {self.timeout_s}")


@dataclass(frozen=True)
class DecodedImage:
    """An image that was decoded and resized.

    Attributes:
        pixels: upright RGB.
        sha256: of the bytes of the file; None for an array.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    sha256: str | None


class Decoder:
    """Decodes images. Each thread that calls it has a child process of its own. Use it in a ``with`` block.

    Args:
        settings: how.
    """

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self._of_thread = threading.local()
        self._children: list[_Child] = []

    def __call__(self, image: ImageSource, name: str) -> DecodedImage:
        """Decode an image.

        Args:
            image: a path or the bytes of a file; anything else is decoded already.
            name: for messages.

        Raises:
            ImageError: it cannot be decoded, or needs too much time or memory.
        """
        if not isinstance(image, str | os.PathLike | bytes):
            return _decode(image, name, self.settings)
        child: _Child | None = getattr(self._of_thread, "child", None)
        if child is None:
            child = self._of_thread.child = _Child(self.settings)
            self._children.append(child)
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(EOFError):
                return child.decode(image, name)
        raise ImageError(name, "crashed the process that decoded it")

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.stop()


class _Child:
    """A process that decodes one image at a time. It is started when it is needed, also after it ended."""

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, image: str | os.PathLike[str] | bytes, name: str) -> DecodedImage:
        """Decode an image.

        Raises:
            ImageError: it cannot be decoded, or takes too long.
            EOFError: the process died.
        """
        process = self._process or self._start()
        is_late = threading.Event()
        watchdog = threading.Timer(self.settings.timeout_s, _kill, (process, is_late))
        watchdog.start()
        try:
            self._tasks.send_bytes(json.dumps({"name": name, "is_file": not isinstance(image, bytes)}).encode())
            self._tasks.send_bytes(image if isinstance(image, bytes) else os.fsencode(image))
            reply = json.loads(self._results.recv_bytes())
            if "error" in reply:
                raise ImageError(name, reply["error"])
            pixels = np.frombuffer(self._results.recv_bytes(), np.uint8)
        except (EOFError, OSError) as error:
            self.stop()
            if is_late.is_set():
                raise ImageError(name, f"takes longer than {self.settings.timeout_s:g} s to decode") from error
            raise EOFError from error
        finally:
            watchdog.cancel()
        return DecodedImage(pixels.reshape(*reply["shape"]), reply["sha256"])

    def _start(self) -> "subprocess.Popen[bytes]":
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._tasks = Connection(os.dup(process.stdin.fileno()), readable=False)
        self._results = Connection(os.dup(process.stdout.fileno()), writable=False)
        process.stdin.close()
        process.stdout.close()
        try:
            self._tasks.send_bytes(json.dumps(asdict(self.settings)).encode())
            if not self._results.poll(_START_TIMEOUT_S):
                raise EOFError
            self._results.recv_bytes()
        except (EOFError, OSError) as error:
            self.stop()
            raise EOFError from error
        return process

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._tasks.close()
            self._results.close()


def _kill(process: "subprocess.Popen[bytes]", is_late: threading.Event) -> None:
    is_late.set()
    process.kill()


def _decode(image: ImageSource, name: str, settings: DecodeSettings) -> DecodedImage:
    digest = None
    if isinstance(image, str | os.PathLike | bytes):
        image = _read_uri(image, name) if isinstance(image, str) and "://" in image else read_bytes(image, name)
        digest = sha256(image)
    edge = 2 * settings.resize if settings.fast else 0
    pixels = load_image(image, name=name, max_pixels=settings.max_pixels, shortest_edge=edge)
    resized = resize_image(pixels, settings.resize, settings.resample, squash=settings.squash)
    return DecodedImage(np.asarray(resized), digest)


def _read_uri(uri: str, name: str) -> bytes:
    import pyarrow
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(uri)
        with filesystem.open_input_stream(path) as file:
            data: bytes = file.read(MAX_FILE_BYTES + 1)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ImageError(name, f"cannot be read ({error}); URIs of file, s3, gs, abfs and hdfs are") from error
    return read_bytes(data, name)


def _serve() -> None:
    """Run a child: read the settings, then answer tasks until stdin ends."""
    tasks, results = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # what a library prints must not meet the results
    settings = DecodeSettings(**json.loads(tasks.recv_bytes()))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    results.send_bytes(b"ready")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            task, content = json.loads(tasks.recv_bytes()), tasks.recv_bytes()
            try:
                done = _decode(os.fsdecode(content) if task["is_file"] else content, task["name"], settings)
            except (ImageError, MemoryError) as error:
                too_large = f"needs more than {_MEMORY_BYTES / 2**30:g} GiB of memory to decode"
                reason = error.reason if isinstance(error, ImageError) else too_large
                results.send_bytes(json.dumps({"error": reason}).encode())
            else:
                results.send_bytes(json.dumps({"shape": done.pixels.shape, "sha256": done.sha256}).encode())
                results.send_bytes(np.ascontiguousarray(done.pixels).data.cast("B"))


if __name__ == "__main__":
    _serve()
