"""The one grammar for the names of weights.

::

    earth, efficientnet-lite2            a name that this package has on record: a model, or an image backbone
    hub:org/repo                         a repository on the Hugging Face Hub
    hub:org/repo@revision                the same, held to a commit, tag or branch
    timm:model@revision                  the repository timm/model on the Hub: an image backbone of the library timm
    dir:/some/folder                     a folder on this machine (~ and relative paths are understood)
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from open_geoclip.errors import ModelNameError
from open_geoclip.weights.registry import BACKBONES, RECORDS

__all__ = ["REGISTERED", "TRUST", "Name", "parse_name", "trusts_code"]

REGISTERED: tuple[str, ...] = tuple(sorted(name for name in RECORDS if ":" not in name))
"""Names of models that stand for themselves."""

TRUST = "OPEN_GEOCLIP_TRUST_REMOTE_CODE"
"""The environment variable with the names of backbones whose own code may run, separated by spaces."""

GRAMMAR = (
    "A name is one of: a registered name ({known}); hub:org/repo or hub:org/repo@revision "
    "(a commit, tag or branch; without one the default branch is meant, with a commit the answer "
    "never changes); dir:/some/folder; for an image backbone also timm:model, {backbones}"
).format(known=", ".join(REGISTERED), backbones=", ".join(BACKBONES))

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class Name:
    """A parsed name; ``str(name)`` is the name.

    Attributes:
        kind: its form.
        value: the registered name, ``org/repo``, or the absolute path of the folder.
        revision: commit, tag or branch of a ``hub:`` name, if given.
    """

    kind: Literal["registered", "hub", "dir"]
    value: str
    revision: str | None = None

    def __str__(self) -> str:
        if self.kind == "registered":
            return self.value
        return f"{self.kind}:{self.value}" + (f"@{self.revision}" if self.revision else "")


def parse_name(text: str) -> Name:
    """Parse a name; a folder is made absolute and ``~`` is replaced. ``parse_name(str(name)) == name``.

    Raises:
        ModelNameError: the text is not a name; the message says which form was probably meant.
    """
    if text in REGISTERED or text in BACKBONES:
        return Name("registered", text)
    kind, colon, value = text.partition(":")
    if colon and kind in ("hub", "timm"):
        value = f"timm/{value}" if kind == "timm" else value
        repo, at, revision = value.partition("@")
        if not _is_repo(repo):
            raise ModelNameError(f"{text!r}: {repo!r} is not a repository as org/repo. {GRAMMAR}.")
        if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision[-1] == "/"):
            raise ModelNameError(f"{text!r}: {revision!r} is not a revision. {GRAMMAR}.")
        return Name("hub", repo, revision or None)
    if colon and kind == "dir":
        if not value or "\0" in value:
            raise ModelNameError(f"{text!r} names no folder. {GRAMMAR}.")
        try:
            return Name("dir", str(Path(value).expanduser().absolute()))
        except RuntimeError as error:  # "~somebody" where there is no such person
            raise ModelNameError(f"{text!r}: {error}. {GRAMMAR}.") from error
    raise ModelNameError(f"{text!r} is not the name of a model. {_suggest(text)}{GRAMMAR}.")


def trusts_code(name: str) -> bool:
    """Return whether the user has said that the code of a backbone may run."""
    return name in os.environ.get(TRUST, "").split()


def _is_repo(repo: str) -> bool:
    # The Hub allows neither doubled mark, and "--" separates org from repo in the name of a cache folder.
    return bool(_REPO.fullmatch(repo)) and "--" not in repo and ".." not in repo


def _suggest(text: str) -> str:
    """Return what was most likely meant."""
    meant = []
    if text.startswith(("/", "./", "../", "~", ".\\")) or _exists(text):
        meant.append(f"the folder, written dir:{text}")
    address = re.fullmatch(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(.+?)/?", text)
    repo = address[1] if address else text
    if _is_repo(repo.partition("@")[0]):
        meant.append(f"the repository on the Hub, written hub:{repo}")
    if meant:
        return f"Perhaps {' or '.join(meant)}. "
    close = difflib.get_close_matches(text.lower(), [*REGISTERED, *BACKBONES], n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def _exists(text: str) -> bool:
    try:
        return text != "" and Path(text).exists()
    except (OSError, ValueError):  # too long, or a zero byte in it: not a path
        return False
