"""Runs in processes of their own: killed at any moment, and several as one."""

import json
import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from small_run import small_run  # type: ignore[import-not-found]

sys.path.pop(0)


@pytest.fixture(scope="module", autouse=True)
def _path_of_the_children() -> Any:
    """Let processes find `small_run`; torch is imported once, in the server that they are forked from.

    The server finds installed packages alone: before Python 3.13 it is not told this process's `sys.path`.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent))
    # What the first step of an optimizer imports takes the longest.
    context.set_forkserver_preload(["open_geoclip.training.contrastive", "torch._dynamo", "pytest"])
    yield
    sys.path.pop(0)


context = multiprocessing.get_context("forkserver")


def start(folder: Path, told: Any = None, rank: int = 0, world: int = 1, **changes: Any) -> ForkServerProcess:
    process = context.Process(target=small_run, args=(folder, changes, told, rank, world))
    process.start()
    return process


def finish(process: ForkServerProcess) -> None:
    process.join(timeout=120)
    assert process.exitcode == 0
    process.close()


def stopped_after(folder: Path, steps: int, number: signal.Signals) -> int | None:
    """How a run ends that gets a signal when it has told so many steps."""
    hears, tells = context.Pipe(duplex=False)
    with hears, tells:
        process = start(folder, tells, checkpoint_every=3)
        for _ in range(steps):
            assert hears.poll(60)
            hears.recv()
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(timeout=60)
        return process.exitcode


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


@pytest.mark.slow
def test_killed_at_any_step_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    finish(start(tmp_path / "whole", checkpoint_every=3))
    expected = weights(tmp_path / "whole")
    for steps in (1, 13, 9):  # before the first checkpoint, and within later epochs
        assert stopped_after(tmp_path / "killed", steps, signal.SIGKILL) == -signal.SIGKILL
    finish(start(tmp_path / "killed", checkpoint_every=3))
    found = weights(tmp_path / "killed")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


@pytest.mark.slow
def test_ctrl_c_saves_the_step_and_ends(tmp_path: Path) -> None:
    assert stopped_after(tmp_path, 2, signal.SIGINT) == 1
    assert "weight.logit_scale" in weights(tmp_path)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
def test_two_processes_make_the_steps_of_one(tmp_path: Path, symmetric: bool) -> None:
    changes: dict[str, Any] = {
        "epochs": 1,
        "symmetric": symmetric,
        "mask_km": 300.0,
        "positive_km": 100.0,
        "optimizer": "adam",
    }
    finish(start(tmp_path / "one", **changes))
    both = [start(tmp_path / "two", None, rank, 2, **changes) for rank in range(2)]
    for process in both:
        finish(process)
    (one,), (two,) = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in expected.items():
        if name.startswith("weight."):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert torch.equal(expected["queue"], found["queue"])
