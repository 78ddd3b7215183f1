"""Training the image backbone: its last blocks, or low-rank updates of its attention (LoRA, by the library peft).

The backbone stays in evaluation mode (no dropout, statistics of batch norms as published), so that a step depends on
nothing but weights and batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.model.adapter import BackboneAdapter, apply_changes, backbone_sha256
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.training.settings import TrainSettings

__all__ = ["check_finetuning", "find_blocks", "finetuning"]

_ATTENTION = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj", "q", "k", "v")
"""Names of the layers that make queries, keys and values, in CLIP here and in models of transformers."""

_PREFIX = "image_encoder.backbone."


def find_blocks(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a backbone by name, from the first to the last.

    They are the members of its largest ``nn.ModuleList``; where these are stages, the blocks of the stages.
    """
    lists = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        return {}
    name = max(lists, key=lambda name: (_size(lists[name]), -len(name)))
    blocks: dict[str, nn.Module] = {}
    for index, block in enumerate(lists[name]):
        inner = find_blocks(block)
        if 2 * sum(map(_size, inner.values())) > _size(block):
            blocks |= {f"{name}.{index}.{key}": value for key, value in inner.items()}
        else:
            blocks[f"{name}.{index}"] = block
    return blocks


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def check_finetuning(backbone: nn.Module | None, settings: TrainSettings) -> None:
    """Raise SettingsError if a backbone cannot be trained like that, and MissingExtraError without peft."""
    if not settings.trains_backbone:
        return
    key = "unfreeze_blocks" if settings.unfreeze_blocks else "lora_rank"
    if backbone is None:
        raise SettingsError(f"{key}: the model has no backbone to train: load one, and train on pixels")
    kind, blocks = type(getattr(backbone, "model", backbone)).__name__, find_blocks(backbone)
    if settings.unfreeze_blocks > len(blocks):
        raise SettingsError(f"unfreeze_blocks: {kind} has {len(blocks)} blocks, not {settings.unfreeze_blocks}")
    if settings.lora_rank:
        if not _attention_layers(blocks):
            raise SettingsError(
                f"lora_rank: {kind} has no linear layers for queries, keys and values: train its last blocks "
                "(unfreeze_blocks) instead"
            )
        if find_spec("peft") is None:
            raise MissingExtraError("lora_rank", "lora")


def _attention_layers(blocks: dict[str, nn.Module]) -> list[str]:
    return [
        f"{block}.{name}"
        for block, module in blocks.items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in _ATTENTION
    ]


@contextmanager
def finetuning(model: GeoCLIP, settings: TrainSettings) -> Iterator[dict[str, float]]:
    """Let the parameters of a backbone that the settings ask for be trained, if any.

    Yields the factor of the learning rate for each of them, by its name in the model. At the end the model has a plain
    backbone again, with the changes, which are also in ``model.image_encoder.adapter``; after an error it has those
    weights that it had before.

    Raises:
        SettingsError: see :func:`check_finetuning`.
    """
    backbone = model.image_encoder.backbone
    check_finetuning(backbone, settings)
    if not settings.trains_backbone:
        yield {}
        return
    encoder, blocks, adapter = model.image_encoder, find_blocks(backbone), model.image_encoder.adapter
    encoder.adapter = start = adapter or BackboneAdapter(backbone_sha256(backbone), {})
    first = len(blocks) - settings.unfreeze_blocks if settings.unfreeze_blocks else 0
    if settings.lora_rank:
        _inject_lora(backbone, _attention_layers(blocks), settings.lora_rank)
    trained: dict[str, nn.Parameter] = {}
    factors, current = {}, -1
    names = [f"{name}." for name in blocks]
    for name, parameter in backbone.named_parameters():  # in the order of the network
        current = next((i for i, block in enumerate(names) if name.startswith(block)), current)
        if current >= first and (not settings.lora_rank or ".lora_" in name):
            parameter.requires_grad_(True)
            trained[name] = parameter
            factors[_PREFIX + name] = settings.backbone_rate * settings.layer_decay ** (len(blocks) - 1 - current)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    if settings.gradient_checkpointing:
        for block in list(blocks.values())[first:]:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    finished = False
    try:
        yield factors
        finished = True
    finally:
        if settings.gradient_checkpointing:
            for block in list(blocks.values())[first:]:
                del block.forward
        with torch.no_grad():
            changed = {n: p.detach().clone() for n, p in trained.items() if not torch.equal(p, before[n])}
            if settings.lora_rank:
                changed = _remove_lora(backbone)
            for name, parameter in trained.items():
                parameter.requires_grad_(False)
                if not (finished or settings.lora_rank):
                    parameter.copy_(before[name])
        encoder.adapter = start.followed_by({n: t.cpu() for n, t in changed.items()}) if finished else adapter
        if finished and settings.lora_rank:
            apply_changes(backbone, changed)


def _inject_lora(backbone: nn.Module, layers: list[str], rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    # The usual scale of twice the rank: the update is 2 B A.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), backbone)


def _remove_lora(backbone: nn.Module) -> dict[str, Tensor]:
    """Put the plain layers back, and return the updates."""
    updates = {}
    layers: list[tuple[str, Any]] = list(backbone.named_modules())
    for name, layer in layers:
        if hasattr(layer, "lora_A"):
            updates[f"{name}.lora_A"] = layer.lora_A["default"].weight.detach().clone()
            updates[f"{name}.lora_B"] = layer.lora_B["default"].weight.detach() * layer.scaling["default"]
            backbone.set_submodule(name, layer.get_base_layer())
    del backbone.peft_config
    return updates
