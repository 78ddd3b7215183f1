"""Several processes as one: what each must know of the others, and nothing more.

Coordinates travel (16 bytes a picture) and each process encodes them all, so that no vector of a place is sent. Only
the symmetric objective needs the others' picture vectors.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from torch import Tensor

from open_geoclip.errors import SettingsError

__all__ = ["Ranks", "gathered_vectors", "joined"]


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: which one it is; 0 writes.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @staticmethod
    def current() -> "Ranks":
        """Of the process group, or alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        return Ranks(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, size: int) -> int:
        """Pictures of a batch for each process.

        Raises:
            SettingsError: the batch cannot be shared out evenly.
        """
        if size % self.world:
            raise SettingsError(f"batch_size: {size} cannot be shared out evenly among {self.world} processes")
        return size // self.world

    def agree(self, has_batch: bool, stop: bool) -> tuple[bool, bool]:
        """Whether all have a batch, and whether one was told to stop."""
        if self.world == 1:
            return has_batch, stop
        flags = torch.tensor([float(not has_batch), float(stop)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return not bool(flags[0]), bool(flags[1])

    def gathered(self, rows: Float64[Tensor, "n d"]) -> Float64[Tensor, "m d"]:
        """The rows of all processes, in their order; each has as many."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.world

    def told(self, value: Any) -> Any:
        """What the first process says."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


class joined:  # noqa: N801 - used as `with joined():`
    """With this, a process that `torchrun` started works together with the others; alone it does nothing."""

    def __enter__(self) -> Ranks:
        self._mine = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized()
        if self._mine:
            # Small things travel by gloo, from CPU memory; gradients of a GPU by nccl.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return Ranks.current()

    def __exit__(self, *_: object) -> None:
        if self._mine:
            dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Vectors of all processes; the gradient of each goes back to where it came from."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        ctx.size = len(mine)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.size :][: ctx.size]


def gathered_vectors(mine: Float[Tensor, "n k"], ranks: Ranks) -> Float[Tensor, "m k"]:
    """Picture vectors of all processes, with gradient."""
    return mine if ranks.world == 1 else _Gather.apply(mine)  # type: ignore[no-untyped-call]
