"""`geoclip pull`: the only command that downloads."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from open_geoclip.weights.hub import DownloadProgress
from open_geoclip.weights.pull import pull as pull_weights

__all__ = ["pull"]


def pull(name: str, *, from_: Annotated[Path | None, Parameter(name="--from")] = None) -> None:
    """Download a model, and the backbone that it needs.

    Prints the folders. The same command resumes an interrupted download. HF_ENDPOINT is the hub, HF_HOME its cache, as
    for all tools of Hugging Face, and OPEN_GEOCLIP_CACHE the cache of this package. Only the name of the model is sent.

    Args:
        name: geoclip, or hub:org/repo@revision for another model or backbone.
        from_: Folder with files from another machine, to use instead of the network: config.json and model.safetensors
            of a model or backbone, the cache of Hugging Face's tools, the wheel of geoclip, or all of them.
    """
    progress = _ConsoleProgress()
    try:
        for folder in pull_weights(name, source=from_, progress=progress):
            print(folder)
    except KeyboardInterrupt:
        progress.message("interrupted; what has arrived is kept: run the same command again to go on")
        raise
    finally:
        progress.close()


class _ConsoleProgress(DownloadProgress):
    """Shows messages and, on a terminal, one bar at a time, on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._file = ""

    def message(self, text: str) -> None:
        self.close()
        print(text, file=sys.stderr)

    def update(self, file: str, done: int, total: int) -> None:
        if file != self._file:
            self.close()
            self._file = file
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.add_task(file, total=total, completed=done)
            self._bar.start()
        assert self._bar is not None
        self._bar.update(self._bar.task_ids[0], completed=done)
        if done == total:
            self.close()

    def close(self) -> None:
        """End the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._file = None, ""
