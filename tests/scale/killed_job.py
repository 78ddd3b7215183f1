"""A job in a process of its own. Not a test: `test_jobs.py` starts it, and kills it."""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Literal

from open_geoclip.data.sources import open_source
from open_geoclip.errors import DataError
from open_geoclip.scale.jobs import JobSettings, run_job
from open_geoclip.search.locator import Locator

Mishap = Literal["kill", "full disk"]
DATA_ERROR = 3  # exit status
PRELOADED = ["open_geoclip.scale.jobs", "open_geoclip.search.locator", "openvino", "pandas", "scipy.spatial"]


def disturbed_job(photos: Path, folder: Path, mishap: Mishap | None, count: int) -> None:
    """Run a job to which something happens when so many photos are done."""

    def progress(done: int, _: int | None) -> None:
        if done != count:
            return
        if mishap == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mishap == "full disk":  # no file of this process may grow beyond a kilobyte
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    settings = JobSettings(part_size=3, resume=True, workers=2)
    try:
        run_job(
            Locator.from_pretrained("earth"), open_source(photos, places=False), folder, settings, progress=progress
        )
    except DataError:
        sys.exit(DATA_ERROR)
