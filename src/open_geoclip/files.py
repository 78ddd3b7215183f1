"""Files written beside their goal and renamed into place: under the goal's name there is never half a file."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["beside", "write_beside"]


@contextmanager
def beside(path: Path, *, like: Path | None = None, new: bool = False) -> Iterator[Path]:
    """An empty file beside a goal, to write to; it gets the goal's name when all went well and is removed when not.

    It is on the disk before the name is given to it, so a machine that stops leaves the old file or the new one.

    Args:
        path: the goal.
        like: a file whose permissions it gets; those of a new file when not given.
        new: refuse to write over anything.

    Raises:
        FileExistsError: there is a file already, and it is not to be written over.
        OSError: it cannot be written; the goal is what it was.
    """
    # The beginning of the name tells people whose it is; all of it could be too long for the disk with more behind it.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    # Nobody may read it who may not read the file that it is like, not even while it is written.
    mode = 0o666 if like is None else like.stat().st_mode & 0o777
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode | 0o600))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if like is not None:
            shutil.copymode(like, temporary)
        if new:
            _named(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_beside(path: Path, data: bytes, *, like: Path | None = None, new: bool = False) -> None:
    """Write all of a file at once; arguments and errors are those of :func:`beside`."""
    with beside(path, like=like, new=new) as temporary:
        temporary.write_bytes(data)


def _named(temporary: Path, path: Path) -> None:
    """Give a file a name that no other has."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(17, "exists already") from None
        temporary.replace(path)
