"""One ExifTool process that reads and writes the metadata of many files.

ExifTool is started once and takes commands on its standard input (``-stay_open``). It never sees a user's file name:
each photo is written into a private folder under a fixed name, so names with newlines, leading dashes or bytes of no
encoding cannot change a command. The user's configuration file, which is Perl code, is not run.
"""

import json
import math
import os
import re
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from open_geoclip.errors import MetadataError, MissingProgramError

__all__ = ["ExifTool", "Tag"]

_MIN_VERSION = (12, 24)  # older versions run code that is hidden in a picture: CVE-2021-22204
_TIMEOUT_S = 120.0
_WATCH_S = 0.5
_READ = ("-json", "-all", "-a", "-ee", "-n", "-G0:1:3:4", "-e", "-api", "largefilesupport=1", "-charset", "utf8")
_INSTALL = (
    "install it: apt-get install libimage-exiftool-perl (Debian, Ubuntu), brew install exiftool (macOS), "
    "or https://exiftool.org (Windows)"
)


@dataclass(frozen=True)
class Tag:
    """One value in a file.

    Attributes:
        family: the kind of metadata, such as ``EXIF``, ``XMP`` or ``QuickTime`` (group family 0).
        group: the location in the file, such as ``GPS``, ``XMP-exif`` or ``UserData`` (group family 1).
        name: the name of the tag.
        value: a number, a text, or a list of these.
    """

    family: str
    group: str
    name: str
    value: Any


class ExifTool:
    """A running ExifTool; use it as a context manager. Not for several threads at once.

    Args:
        program: the command.
        timeout_s: the longest that one file may take.

    Raises:
        MissingProgramError: ExifTool is not installed, or older than 12.24.
    """

    def __init__(self, program: str = "exiftool", *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._command = [program, "-config", "", "-stay_open", "True", "-@", "-"]
        self._folder = tempfile.TemporaryDirectory(prefix="geoclip-")
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline, self._is_closed = math.inf, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            text, _ = self._execute("-ver")
        except OSError as error:
            self.close()
            raise MissingProgramError(f"ExifTool is not installed; {_INSTALL}") from error
        match = re.match(r"(\d+)\.(\d+)", text)
        if match is None or (int(match[1]), int(match[2])) < _MIN_VERSION:
            self.close()
            needed = ".".join(map(str, _MIN_VERSION))
            raise MissingProgramError(
                f"ExifTool {text.strip()[:20] or '?'} is too old: {needed} or newer is needed; {_INSTALL}"
            )

    def __enter__(self) -> "ExifTool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its folder."""
        self._is_closed.set()
        self._kill()
        self._folder.cleanup()

    def read(self, data: bytes, suffix: str) -> list[Tag]:
        """All tags of a file and of what is embedded in it (``-ee``), without composite ones.

        Args:
            data: the file.
            suffix: the ending of its name, which tells ExifTool the kind of the file.
        """
        photo = self._put(f"photo{suffix}", data)
        text, warnings = self._execute(*_READ, photo.name)
        photo.unlink()
        try:
            [found] = json.loads(text)
        except ValueError as error:
            raise MetadataError(f"ExifTool cannot read it: {warnings or text[:200] or error}") from error
        tags = []
        for key, value in found.items():
            if key == "SourceFile":
                continue
            family, *others, name = key.split(":")
            is_message = name in ("Error", "Warning", "Comment")
            if others and (family not in ("File", "ExifTool") or is_message):
                # A group that repeats its family is left out; Main is the document itself.
                group = family if re.fullmatch(r"Main|Doc\d.*|Copy\d+", others[0]) else others[0]
                tags.append(Tag(family, group, name, value))
        return tags

    def write(self, data: bytes, suffix: str, *arguments: str, block: bytes = b"") -> bytes:
        """A file with tags changed; the file itself when there was nothing to change.

        Args:
            data: the file.
            suffix: the ending of its name.
            arguments: assignments in ExifTool's syntax, each on one line.
            block: the content of the file ``block``, for arguments such as ``-XMP<=block``.

        Raises:
            MetadataError: ExifTool cannot write it.
        """
        photo, changed = self._put(f"photo{suffix}", data), Path(self._folder.name, f"changed{suffix}")
        self._put("block", block)
        try:
            text, warnings = self._execute(*arguments, "-o", changed.name, photo.name)
            if "Error: [minor] Maker notes" in warnings:  # of an unknown format: they are copied as they are
                text, warnings = self._execute("-m", *arguments, "-o", changed.name, photo.name)
            if changed.exists():
                return changed.read_bytes()
        finally:
            for path in (photo, changed):
                path.unlink(missing_ok=True)
        if "unchanged" in text or "Nothing to do" in warnings:
            return data
        raise MetadataError(f"ExifTool cannot write it: {warnings or text.strip()}")

    def _put(self, name: str, data: bytes) -> Path:
        path = Path(self._folder.name, name)
        path.write_bytes(data)
        return path

    def _execute(self, *arguments: str) -> tuple[str, str]:
        """What a command prints, and its warnings and errors in one line."""
        if any("\n" in argument or "\r" in argument for argument in arguments):
            raise ValueError("an argument of ExifTool is one line")
        log = Path(self._folder.name, "stderr")
        if self._process is None or self._process.poll() is not None:
            self._kill()
            with log.open("wb") as errors:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=self._folder.name,
                    env={**os.environ, "LC_ALL": "C"},
                )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        start = log.stat().st_size
        self._deadline = time.monotonic() + self._timeout_s
        try:
            process.stdin.write(("\n".join([*arguments, "-execute"]) + "\n").encode())
            process.stdin.flush()
            lines = []
            for line in process.stdout:
                if line.rstrip(b"\r\n") == b"{ready}":
                    break
                lines.append(line)
            else:
                raise MetadataError(f"ExifTool ended, or took longer than {self._timeout_s:g} s")
        except BrokenPipeError as error:
            self._kill()
            raise MetadataError("ExifTool ended unexpectedly") from error
        except BaseException:  # an interrupt: what the process still prints belongs to no later command
            self._kill()
            raise
        finally:
            self._deadline = math.inf
        warnings = log.read_bytes()[start:].decode(errors="replace")
        return b"".join(lines).decode(errors="replace"), " ".join(warnings.split())

    def _watch(self) -> None:
        """Kill the process when a file takes too long; the command that waits for it then fails."""
        while not self._is_closed.wait(_WATCH_S):
            if time.monotonic() > self._deadline and (process := self._process) is not None:
                process.kill()

    def _kill(self) -> None:
        if self._process is None:
            return
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self._process.kill()
        self._process.wait()
        self._process = None
