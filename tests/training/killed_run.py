"""A run from a configuration in a process of its own. Not a test: `test_killed_runs.py` starts it, and kills it."""

from typing import Any

import torch

from open_geoclip.training.configuration import RunSettings
from open_geoclip.training.run import Listener, run


def whole_run(settings: RunSettings, told: Any, resume: bool) -> None:
    """Run; ``told`` is a connection that hears of each step, or None."""
    torch.set_num_threads(1)

    def step(figures: dict[str, float]) -> None:
        if told is not None:
            told.send(figures["step"])

    run(settings, resume=resume, listener=Listener(step=step))
