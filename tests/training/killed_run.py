"""A run from a configuration in a process of its own. Not a test: `test_killed_runs.py` starts it, and kills it."""

from typing import Any

import torch

from open_geoclip.training.loop import Callbacks
from open_geoclip.training.run import run
from open_geoclip.training.settings import RunSettings


def whole_run(settings: RunSettings, steps: Any, resume: bool) -> None:
    """Run; ``steps`` is a connection that is sent each step, or None."""
    torch.set_num_threads(1)

    def step(figures: dict[str, float]) -> None:
        if steps is not None:
            steps.send(figures["step"])

    run(settings, resume=resume, callbacks=Callbacks(step=step))
