"""Runs in processes of their own: killed at any moment, and several as one."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from open_geoclip.errors import TrainingError
from open_geoclip.training.checkpoint import read_tensors
from open_geoclip.training.distributed import process_group

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
    # What the first step of an optimizer imports takes the longest, and peft, which imports transformers.
    context.set_forkserver_preload(["open_geoclip.training.loop", "torch._dynamo", "peft", "pytest"])
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


def joined_pair(folder: Path, told: Any = None, **changes: Any) -> list[ForkServerProcess]:
    """Two processes of one run; they meet at a file that must not be there before."""
    Path(f"{folder}.store").unlink(missing_ok=True)
    return [start(folder, told if rank == 0 else None, rank, 2, **changes) for rank in range(2)]


def stopped_after(folder: Path, steps: int, number: signal.Signals, **changes: Any) -> int | None:
    """How a run ends that gets a signal when it has told so many steps."""
    hears, tells = context.Pipe(duplex=False)
    with hears, tells:
        process = start(folder, tells, checkpoint_every=3, **changes)
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
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unfreeze_blocks": 2, "layer_decay": 0.5, "ema_decay": 0.9},
        {"lora_rank": 2, "layer_decay": 0.5, "ema_decay": 0.9},
    ],
)
def test_killed_at_any_step_it_ends_with_the_same_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    finish(start(tmp_path / "whole", checkpoint_every=3, **changes))
    expected = weights(tmp_path / "whole")
    for steps in (1, 13, 9) if not changes else (13,):  # before the first checkpoint, and within later epochs
        assert stopped_after(tmp_path / "killed", steps, signal.SIGKILL, **changes) == -signal.SIGKILL
    finish(start(tmp_path / "killed", checkpoint_every=3, **changes))
    found = weights(tmp_path / "killed")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


@pytest.mark.slow
def test_ctrl_c_saves_the_step_and_ends(tmp_path: Path) -> None:
    assert stopped_after(tmp_path, 2, signal.SIGINT) == 1
    assert "logit_scale" in weights(tmp_path)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        {"mask_km": 300.0, "positive_km": 100.0},
        {"mask_km": 300.0, "positive_km": 100.0, "symmetric": True},
        {
            "mask_km": 0.0,
            "smooth_km": (500.0, 100.0),
            "smooth_end": 0.5,
            "near_weight": 1.0,
            "nearby_places": 2,
            "symmetric": True,
        },
        {"loss": "siglip"},
        {"unfreeze_blocks": 1, "ema_decay": 0.9},
        {"lora_rank": 2, "ema_decay": 0.9},
    ],
)
def test_two_processes_make_the_steps_of_one(tmp_path: Path, objective: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"epochs": 1, "optimizer": "adam", **objective}
    finish(start(tmp_path / "one", **changes))
    for process in joined_pair(tmp_path / "two", **changes):
        finish(process)
    (one,), (two,) = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert any(".lora_B." in name and tensor.any() for name, tensor in expected.items()) == ("lora_rank" in changes)
    for name, tensor in expected.items():
        if name.startswith("optimizer."):
            continue
        if name.endswith("qkv.bias"):  # softmax ignores a bias of the keys: its gradient is noise, which Adam scales up
            tensor, found[name] = (torch.cat(part.chunk(3)[::2]) for part in (tensor, found[name]))
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert torch.equal(expected["queue"], found["queue"])
    first, second = (torch.load(f"{tmp_path / 'two'}.rank{rank}", weights_only=True) for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed_and_both_go_on(tmp_path: Path, victim: int) -> None:
    changes: dict[str, Any] = {"epochs": 2, "checkpoint_every": 3}
    for process in joined_pair(tmp_path / "whole", **changes):
        finish(process)
    hears, tells = context.Pipe(duplex=False)
    with hears, tells:
        both = joined_pair(tmp_path / "killed", tells, **changes)
        for _ in range(14):  # 10 steps an epoch: the last checkpoint lies two steps back
            assert hears.poll(60)
            hears.recv()
        both[victim].kill()
        other = both[1 - victim]
        other.join(timeout=60)
        assert other.exitcode not in (None, 0), "the other process does not wait for ever"
    for process in joined_pair(tmp_path / "killed", **changes):
        finish(process)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


class FullDiskAfter:
    """Takes what a run tells; from some step on, this process can write no file larger than a kilobyte."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def send(self, _: int) -> None:
        self.steps -= 1
        if self.steps == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 2, "checkpoint_every": 3}
    limit, threads = resource.getrlimit(resource.RLIMIT_FSIZE), torch.get_num_threads()
    try:
        with pytest.raises(TrainingError, match=r"checkpoint.* cannot be written: File too large.*make room"):
            small_run(tmp_path / "full", changes, FullDiskAfter(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        torch.set_num_threads(threads)
    assert not list((tmp_path / "full").glob("*.part"))
    assert read_tensors(tmp_path / "full" / "checkpoint.safetensors")[1]["step"] == 3
    for name in ("full", "whole"):
        finish(start(tmp_path / name, **changes))
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "full")
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_processes_wait_for_the_one_that_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with process_group() as ranks:
        assert ranks.is_main
        assert torch.distributed.group.WORLD is not None
        gloo = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
        assert gloo.options._timeout >= timedelta(days=1)  # torch's 30 minutes are soon over
    assert not torch.distributed.is_initialized()
