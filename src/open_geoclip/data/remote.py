"""Photos and folders on object stores, such as ``s3://bucket/folder``, by the file systems of pyarrow.

Credentials and the endpoint come from the environment, as AWS and Google define it (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``), never from a URI, which would show them in messages and manifests.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from open_geoclip.data.photos import IndexedPhotos, Photo
from open_geoclip.errors import DataError, MissingExtraError, SettingsError
from open_geoclip.images import SUFFIXES

__all__ = ["RemotePath", "RemotePhotos", "as_path", "is_uri"]

_URI = re.compile(r"^(s3|gs|gcs|abfss?|hdfs):/+(?=[^/])")  # a Path of a URI has one slash


def is_uri(text: Path | str) -> bool:
    """Return whether a text, or the path that it became, is the URI of a file system."""
    return _URI.match(str(text)) is not None


def as_path(text: "Path | str | RemotePath") -> "Path | RemotePath":
    """Return the path of a folder on this machine or on an object store.

    Raises:
        SettingsError: the URI has credentials or options, or pyarrow was built without this file system.
        DataError: the store cannot be reached, or refuses.
        MissingExtraError: the extra ``parquet`` is not installed.
    """
    if isinstance(text, RemotePath):
        return text
    if not is_uri(text):
        return Path(text)
    uri = _URI.sub(r"\1://", str(text)).rstrip("/")
    if "@" in uri.split("/")[2] or "?" in uri:
        shown = re.sub(r"//.*@|\?.*", "//", uri)
        raise SettingsError(f"{shown}: leave credentials and options out of URIs, and set AWS_ACCESS_KEY_ID and such")
    path = RemotePath(uri)
    _ = path.file
    return path


@lru_cache
def _filesystem(root: str) -> tuple[Any, str]:
    """Return the file system of a bucket, and the path of the bucket in it."""
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise MissingExtraError(root, "parquet") from error
    try:
        filesystem, path = FileSystem.from_uri(f"{root}/")
    except (ValueError, NotImplementedError) as error:
        raise SettingsError(f"{root}: pyarrow cannot open it ({error})") from error
    except OSError as error:
        raise DataError(f"{root}: it cannot be reached ({error})") from error
    return filesystem, path.rstrip("/")


@dataclass(frozen=True, order=True)
class RemotePath:
    """The part of :class:`pathlib.Path` that results and sources need. A file appears whole or not at all.

    Attributes:
        uri: such as ``s3://bucket/results/manifest.json``.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.uri}/{quote(name)}")

    @property
    def file(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        scheme, _, bucket, *rest = self.uri.split("/", 3)
        filesystem, path = _filesystem(f"{scheme}//{bucket}")
        return filesystem, "/".join([path, *(unquote(part) for part in rest)])

    @property
    def name(self) -> str:
        """The last part."""
        return unquote(self.uri.rpartition("/")[2])

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self.name.rpartition(".")[0] or self.name

    def iterdir(self) -> "Iterator[RemotePath]":
        """Yield what is in a folder."""
        return (self / name for name in self.names(recursive=False))

    def glob(self, pattern: str) -> "Iterator[RemotePath]":
        """Yield the files of a folder whose names match."""
        return (self / name for name in self.names(recursive=False) if fnmatchcase(name, pattern))

    def names(self, *, recursive: bool) -> list[str]:
        """Return the names of what is in a folder, or the paths of all files below it."""
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self.file
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True, recursive=recursive))
        return [one.path[len(path) + 1 :] for one in found if not recursive or one.type == FileType.File]

    def exists(self) -> bool:
        """Return whether there is such a file or folder."""
        from pyarrow.fs import FileType

        filesystem, path = self.file
        return bool(filesystem.get_file_info(path).type != FileType.NotFound)

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:
        """Make a folder where the store has folders; raises FileNotFoundError where there is no such bucket."""
        filesystem, path = self.file
        if filesystem.type_name in ("s3", "gcs"):
            bucket = "/".join(self.uri.split("/", 3)[:3])
            if not RemotePath(bucket).exists():
                raise FileNotFoundError(f"there is no bucket {bucket}")
        else:
            filesystem.create_dir(path, recursive=parents)

    def open(self) -> Any:
        """Open a file to read, at any position."""
        filesystem, path = self.file
        return filesystem.open_input_file(path)

    def read_text(self, encoding: str) -> str:
        """Read a file."""
        with self.open() as file:
            return str(file.read().decode(encoding))

    def write_bytes(self, content: bytes) -> None:
        """Write a file, in one go."""
        filesystem, path = self.file
        with filesystem.open_output_stream(path) as file:
            file.write(content)


@dataclass(frozen=True, eq=False)
class RemotePhotos(IndexedPhotos):
    """The photos below a folder of an object store, for jobs: their coordinates are not read.

    Attributes:
        folder: the folder.
        names: of the photos below it.
    """

    folder: RemotePath
    names: tuple[str, ...]

    @staticmethod
    def opened(uri: str, *, places: bool) -> "RemotePhotos":
        """List a folder.

        Raises:
            SettingsError: places are to be read.
            DataError: it cannot be listed, or holds no image.
        """
        folder = as_path(uri)
        assert isinstance(folder, RemotePath)
        if places:
            raise SettingsError(
                f"{folder}: geoclip locate -o FOLDER reads photos there; copy them to a disk for others"
            )
        try:
            names = sorted(name for name in folder.names(recursive=True) if name.lower().endswith(tuple(SUFFIXES)))
        except OSError as error:
            raise DataError(f"{folder}: it cannot be listed ({error})") from error
        if not names:
            raise DataError(f"{folder}: there is no image there")
        digest = hashlib.sha256("\n".join([folder.uri, *names]).encode()).hexdigest()
        return RemotePhotos(folder.uri, digest, np.arange(len(names)), folder, tuple(names))

    def entry(self, row: int) -> Photo:
        """Return the photo of a row; its image is a URI."""
        name = self.names[row]
        return Photo(name, (self.folder / name).uri, math.nan, math.nan)
