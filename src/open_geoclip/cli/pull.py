"""`geoclip pull`: the only command that downloads."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from open_geoclip.weights.hub import DownloadProgress
from open_geoclip.weights.pull import pull as pull_weights

__all__ = ["pull"]


def pull(name: str, *, from_: Annotated[Path | None, Parameter(name="--from")] = None) -> None:
    """Download a model, and the backbone that it needs.

    Prints the folders. A download that was interrupted goes on where it was: run the same command again.
    The hub is HF_ENDPOINT, its cache HF_HOME, as for all tools of Hugging Face; our own cache is
    OPEN_GEOCLIP_CACHE. Nothing is sent but the name of what is wanted.

    Args:
        name: geoclip, or hub:org/repo@revision for another model or backbone.
        from_: A folder carried over from another machine, to take the files from instead of the network:
            a CLIP folder (config.json and model.safetensors), the wheel of geoclip, or both.
    """
    with _ConsoleProgress() as progress:
        folders = pull_weights(name, source=from_, progress=progress)
    for folder in folders:
        print(folder)


class _ConsoleProgress(DownloadProgress):
    """Shows sentences and, on a terminal, a bar a file. All of it on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._file = ""

    def __enter__(self) -> "_ConsoleProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if kind is KeyboardInterrupt:
            self.message("interrupted; what has arrived is kept: run the same command again to go on")

    def message(self, text: str) -> None:
        self._end()
        print(text, file=sys.stderr)

    def update(self, file: str, done: int, total: int) -> None:
        if file != self._file:
            self._end()
            self._file = file
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=self._console,
            )
            self._bar.add_task(file, total=total, completed=done)
            self._bar.start()
        assert self._bar is not None
        self._bar.update(self._bar.task_ids[0], completed=done)
        if done == total:
            self._end()

    def _end(self) -> None:
        # One bar at a time, and none while pip shows its own.
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._file = None, ""
