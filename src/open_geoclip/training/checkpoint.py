"""A run as a file: written whole or not at all, and read again to the last bit."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from open_geoclip.errors import TrainingError
from open_geoclip.files import atomic_write

__all__ = ["load_state", "pack_optimizer", "read_tensors", "unpack_optimizer", "write_file", "write_tensors"]


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        TrainingError: it cannot be written; what was there before is still there.
    """
    try:
        atomic_write(path, content)
    except OSError as error:
        size = f"{len(content) / 1e6:,.1f} MB"
        raise TrainingError(
            f"{path} ({size}) cannot be written: {error.strerror or error}. What was written before is unharmed: "
            "make room and take the work up again"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None) -> None:
    """Write tensors as :func:`write_file` does, so that a full disk leaves what was there before."""
    record = {key: json.dumps(value, sort_keys=True) for key, value in (metadata or {}).items()}
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, safetensors.torch.save(cpu, record or None))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors and metadata.

    Raises:
        TrainingError: the file is damaged or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); remove it to begin again") from error
    return tensors, metadata


def pack_optimizer(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """An optimizer's state as tensors with names."""
    return {
        f"optimizer.{key}.{name}": torch.as_tensor(value)
        for name, parameter in named.items()
        for key, value in optimizer.state[parameter].items()
    }


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """The other way."""
    for name, parameter in named.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            found = state.get(f"optimizer.{key}.{name}")
            if found is not None:
                # Adam counts its steps on the CPU.
                optimizer.state[parameter][key] = found if key == "step" else found.to(parameter.device)


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors named ``weight.*`` into a module.

    Raises:
        TrainingError: they do not fit.
    """
    weights = {name.removeprefix("weight."): tensor for name, tensor in state.items() if name.startswith("weight.")}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{path} holds another model: {error}") from error
