"""One ExifTool process that reads and writes the metadata of many files.

ExifTool is started once and takes commands on its standard input (``-stay_open``). It never sees a user's file name:
each photo is written into a private folder under a fixed name, so names with newlines, leading dashes or bytes of no
encoding cannot change a command. The user's configuration file, which is Perl code, is not run.
"""

import base64
import json
import os
import re
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from open_geoclip.errors import MetadataError, MissingProgramError

__all__ = ["ExifTool", "Tag"]

_MIN_VERSION = (12, 24)  # older versions run code that is hidden in an image: CVE-2021-22204
_READ = ("-json", "-all", "-a", "-ee", "-n", "-G0:1:3:4", "-e", "-api", "largefilesupport=1", "-charset", "utf8")
# Maker notes of an unknown format are copied; a block of EXIF data that a PNG holds twice is edited in both.
_HARMLESS = re.compile(r"Error: \[minor\] (Maker notes|Bad CRC|\w+ pointer references previous)")
# ExifTool waits for more when its input ends. This passes commands on, and when the process that sends them is gone,
# ends ExifTool and removes the folder with its copy of a photo. Without a POSIX shell both stay until they are ended.
_FEED = ("sh", "-c", "cat && printf '%s\\n' -stay_open False && rm -rf -- \"$0\"")  # $0: the folder
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

    def __init__(self, program: str = "exiftool", *, timeout_s: float = 120.0) -> None:
        self._timeout_s = timeout_s
        self._command = [program, "-config", "", "-stay_open", "True", "-@", "-"]
        self._folder = tempfile.TemporaryDirectory(prefix="geoclip-")
        self._process: subprocess.Popen[bytes] | None = None
        self._feed: subprocess.Popen[bytes] | None = None
        try:
            version = self._execute("-ver")[0].strip()[:20]
        except OSError as error:
            self.close()
            raise MissingProgramError(f"ExifTool is not installed; {_INSTALL}") from error
        match = re.match(r"(\d+)\.(\d+)", version)
        if match is None or (int(match[1]), int(match[2])) < _MIN_VERSION:
            self.close()
            needed = ".".join(map(str, _MIN_VERSION))
            raise MissingProgramError(f"ExifTool {version or '?'} is too old: {needed} or newer is needed; {_INSTALL}")

    def __enter__(self) -> "ExifTool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its folder."""
        self._kill()
        self._folder.cleanup()

    def read(self, data: bytes, suffix: str) -> list[Tag]:
        """All tags of a file and of what is embedded in it (``-ee``), without composite ones.

        Args:
            data: the file.
            suffix: the ending of its name, which tells ExifTool the kind of the file.
        """
        output, warnings = self._execute(*_READ, self._put(f"photo{suffix}", data).name)
        try:
            [found] = json.loads(output)
        except ValueError as error:
            raise MetadataError(f"ExifTool cannot read it: {warnings or output[:200]}") from error
        tags = []
        found.pop("SourceFile", None)
        for key, value in found.items():
            family, *others, name = key.split(":")
            if others and (family not in ("File", "ExifTool") or name in ("Error", "Warning", "Comment")):
                # A group that repeats its family is left out; Main is the document itself.
                group = family if re.fullmatch(r"Main|Doc\d.*|Copy\d+", others[0]) else others[0]
                tags.append(Tag(family, group, name, value))
        return tags

    def read_xmp(self, data: bytes, suffix: str) -> bytes:
        """The first XMP packet of a file; empty when there is none."""
        output, _ = self._execute("-json", "-b", "-XMP", self._put(f"photo{suffix}", data).name)
        packet = json.loads(output or "[{}]")[0].get("XMP", "")
        return base64.b64decode(packet[7:]) if packet.startswith("base64:") else packet.encode()

    def write(self, data: bytes, suffix: str, *arguments: str, xmp: bytes = b"") -> bytes:
        """A file with tags changed; the file itself when there was nothing to change.

        Args:
            data: the file.
            suffix: the ending of its name.
            arguments: assignments in ExifTool's syntax, each on one line.
            xmp: a packet that replaces the file's, unchanged; empty to keep that.

        Raises:
            MetadataError: ExifTool cannot write it.
        """
        photo = self._put(f"photo{suffix}", data)
        if xmp:
            arguments = (f"-XMP<={self._put('packet', xmp).name}", *arguments)
        arguments = (*arguments, "-overwrite_original", photo.name)  # with -o it writes no WebP
        output, warnings = self._execute(*arguments)
        if _HARMLESS.search(warnings):
            output, warnings = self._execute("-m", *arguments)
        if "1 image files updated" in output:
            return photo.read_bytes()
        if "1 image files unchanged" in output or "Nothing to do" in warnings:
            return data
        raise MetadataError(f"ExifTool cannot write it: {warnings or output.strip()}")

    def _put(self, name: str, data: bytes) -> Path:
        path = Path(self._folder.name, name)
        path.with_name(f"{name}_exiftool_tmp").unlink(missing_ok=True)  # of a process that was ended
        path.write_bytes(data)
        return path

    def _execute(self, *arguments: str) -> tuple[str, str]:
        """What a command prints, and its warnings and errors in one line."""
        if any("\n" in argument or "\r" in argument for argument in arguments):
            raise ValueError("an argument of ExifTool is one line")
        log = Path(self._folder.name, "stderr")
        if self._process is not None and self._process.poll() is not None:
            self._kill()
        process = self._process or self._start(log)
        start = log.stat().st_size
        commands = (self._feed or process).stdin
        assert commands is not None
        assert process.stdout is not None
        timer = threading.Timer(self._timeout_s, process.kill)
        timer.start()
        try:
            commands.write(("\n".join([*arguments, "-execute"]) + "\n").encode())
            commands.flush()
            output = []
            for line in process.stdout:
                if line.rstrip(b"\r\n") == b"{ready}":
                    break
                output.append(line.decode(errors="replace"))
            else:
                raise MetadataError(f"ExifTool ended, or took longer than {self._timeout_s:g} s")
        except BaseException as error:  # also an interrupt: what is still printed belongs to no later command
            self._kill()
            if isinstance(error, BrokenPipeError):
                raise MetadataError("ExifTool ended unexpectedly") from error
            raise
        finally:
            timer.cancel()
        warnings = log.read_bytes()[start:].decode(errors="replace")
        return "".join(output), " ".join(warnings.split())

    def _start(self, log: Path) -> "subprocess.Popen[bytes]":
        # In a session of their own an interrupt is this process's alone, which ends the two.
        pipe, folder, environment = subprocess.PIPE, self._folder.name, {**os.environ, "LC_ALL": "C"}
        options: dict[str, Any] = {"stdout": pipe, "cwd": folder, "env": environment, "start_new_session": True}
        if os.name == "posix":
            self._feed = subprocess.Popen((*_FEED, folder), stdin=pipe, stderr=subprocess.DEVNULL, **options)
        source = self._feed.stdout if self._feed else None
        with log.open("wb") as errors:
            self._process = subprocess.Popen(self._command, stdin=source or pipe, stderr=errors, **options)
        if source is not None:
            source.close()  # ExifTool's alone: commands to one that has ended are refused
        return self._process

    def _kill(self) -> None:
        for process in (self._feed, self._process):
            if process is not None:
                process.kill()
                for stream in (process.stdin, process.stdout):
                    with suppress(OSError):
                        if stream is not None:
                            stream.close()
                process.wait()
        self._process = self._feed = None
