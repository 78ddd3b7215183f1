"""Training on several processes: together they take the steps that one process would take.

Coordinates are gathered (16 bytes per photo) and each process encodes all of them, so no location embedding is sent.
Only the symmetric loss gathers image embeddings.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from torch import Tensor, nn

from open_geoclip.errors import SettingsError

__all__ = ["Ranks", "process_group", "resolve_device"]

_Value = TypeVar("_Value")
_MOST_WAITING = timedelta(days=7)  # instead of torch's 30 minutes


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: its number; 0 is the main process, which writes files.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @staticmethod
    def current() -> "Ranks":
        """Return the ranks of the process group, or of a process on its own."""
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        return Ranks(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def synchronize(self, has_batch: bool, stop: bool) -> tuple[bool, bool]:
        """Return whether all processes have a batch, and whether any of them is to stop."""
        if self.world == 1:
            return has_batch, stop
        flags = torch.tensor([float(not has_batch), float(stop)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return not bool(flags[0]), bool(flags[1])

    def broadcast(self, value: _Value) -> _Value:
        """Return the main process's value."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_weights(self, module: nn.Module) -> None:
        """Give all processes the main process's weights and buffers."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients over all processes, in place."""
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world

    def gather(self, rows: Float64[Tensor, "n d"]) -> Float64[Tensor, "m d"]:
        """Return the rows of all processes, in their order; each has as many."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def gather_with_gradient(self, rows: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        """Return the rows of all processes; gradients go back to the process that a row is from."""
        return rows if self.world == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.size = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.size :][: ctx.size]


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started; without torchrun nothing happens."""
    start = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if start:
        # Small tensors travel by gloo, from CPU memory; gradients on a GPU by nccl.
        # The others wait while one encodes its share or validates; torchrun ends them all if one fails.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_MOST_WAITING)
    try:
        yield Ranks.current()
    finally:
        if start:
            dist.destroy_process_group()


def resolve_device(name: str) -> torch.device:
    """Return the device of this process: ``auto``, ``cpu``, ``cuda`` (with torchrun that of LOCAL_RANK) or ``cuda:N``.

    Raises SettingsError if this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise SettingsError(f"device: auto, cpu, cuda or cuda:N, not {name!r}") from error
    if device.type == "cuda":
        device = torch.device("cuda", device.index if ":" in str(device) else int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= gpus:
            raise SettingsError(
                f"device: {device} is not on this machine, which has {gpus} GPUs that torch {torch.__version__} can use"
            )
    elif device.type != "cpu":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0]  # torch lists all its backends after it
            raise SettingsError(f"device: {name} cannot be used here: {reason}") from error
    return device
