"""Contrastive training of an image head and a location encoder on cached features.

Each picture's vector is compared with the vectors of the batch's coordinates and of a queue of coordinates
seen before, and cross-entropy asks for its own (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023, section 3.2 and
equation 5). Three things the released code lacks: coordinates are moved by a little noise, the queue starts
full of real places, and a negative that lies too near the truth to be wrong is left out.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from open_geoclip.errors import SettingsError
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.sphere import EARTH_RADIUS_KM, offset, unit_vectors
from open_geoclip.training.features import FeatureSet

__all__ = ["StandardisedHead", "TrainSettings", "contrastive_loss", "near_duplicates", "train"]


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run.

    Attributes:
        epochs: passes over the pictures.
        batch_size: pictures a step.
        queue_size: coordinates of earlier steps that serve as negatives.
        learning_rate: of AdamW at its peak; it rises over the first twentieth and falls as a cosine to nothing.
        weight_decay: of AdamW.
        noise_m: standard deviation in metres of the noise on the batch's coordinates, north and east each.
        queue_noise_m: the same for the queue.
        mask_km: negatives nearer to the truth than this are left out.
        max_scale: bound of the temperature's inverse.
        seed: of everything that is drawn.

    Raises:
        SettingsError: a setting is out of range.
    """

    epochs: int = 12
    batch_size: int = 512
    queue_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    noise_m: float = 2000.0
    queue_noise_m: float = 2000.0
    mask_km: float = 25.0
    max_scale: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "max_scale"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name}: above 0, not {getattr(self, name)}")
        for name in ("queue_size", "weight_decay", "noise_m", "queue_noise_m", "mask_km"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}: 0 or more, not {getattr(self, name)}")


def near_duplicates(
    truth: Float64[Tensor, "n 2"], candidates: Float64[Tensor, "m 2"], radius_km: float
) -> Bool[Tensor, "n m"]:
    """Which candidates are too near a truth to be called wrong. A truth's own, in the same row, is not one of them."""
    cosine = unit_vectors(truth) @ unit_vectors(candidates).T
    near = cosine > math.cos(radius_km / EARTH_RADIUS_KM)
    near.fill_diagonal_(False)
    return near


def contrastive_loss(
    image: Float[Tensor, "n k"],
    location: Float[Tensor, "m k"],
    scale: Float[Tensor, ""],
    left_out: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of each picture over all places, its own being the one in the same row.

    Args:
        image: vectors of n pictures, any length.
        location: vectors of m >= n places, the first n those of the pictures.
        scale: what cosines are multiplied with.
        left_out: negatives that do not count.
    """
    logits = scale * F.normalize(image, dim=1) @ F.normalize(location, dim=1).T
    if left_out is not None:
        logits = logits.masked_fill(left_out, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(image), device=image.device))


class StandardisedHead(nn.Module):
    """A head that is trained on features of mean 0 and deviation 1, and saved as one that takes them as they are.

    Args:
        head: linear layers.
        features: of some thousands of pictures, to take mean and deviation from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, head: nn.Sequential, features: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", features.float().mean(dim=0))
        self.register_buffer("std", features.float().std(dim=0) + 1e-3)

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Vectors of features as the backbone gives them."""
        return self.head((features - self.mean) / self.std)

    @torch.no_grad()
    def folded(self) -> nn.Sequential:
        """The same function as a plain head: mean and deviation go into its first layer."""
        plain = copy.deepcopy(self.head)
        first = plain[0]
        assert isinstance(first, nn.Linear)
        first.weight.div_(self.std)
        first.bias.sub_(first.weight @ self.mean)
        return plain


class _Run:
    """What a run is made of, and how it is written down and taken up again."""

    def __init__(self, head: nn.Module, locations: LocationEncoder, settings: TrainSettings, data: FeatureSet) -> None:
        self.head, self.locations, self.settings = head, locations, settings
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.named = {
            **{f"head.{name}": p for name, p in head.named_parameters()},
            **{f"locations.{name}": p for name, p in locations.named_parameters()},
            "logit_scale": self.logit_scale,
        }
        self.optimizer = torch.optim.AdamW(
            self.named.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.epoch = 0
        generator = torch.Generator().manual_seed(settings.seed)
        self.queue = data.coordinates[torch.randperm(len(data), generator=generator)[: settings.queue_size]]

    def save(self, path: Path) -> None:
        state = {"queue": self.queue.contiguous(), "epoch": torch.tensor(self.epoch)}
        for name, parameter in self.named.items():
            state[f"weight.{name}"] = parameter.detach().contiguous()
            for key, value in self.optimizer.state[parameter].items():
                state[f"optimizer.{key}.{name}"] = torch.as_tensor(value).contiguous()
        state.update({f"buffer.{name}": b.contiguous() for name, b in self.locations.named_buffers()})
        temporary = path.with_suffix(".part")
        save_file(state, temporary, metadata={"settings": json.dumps(asdict(self.settings), sort_keys=True)})
        temporary.replace(path)

    def load(self, path: Path) -> None:
        state = load_file(path)
        self.queue, self.epoch = state["queue"], int(state["epoch"])
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(state[f"weight.{name}"])
                self.optimizer.state[parameter] = {
                    key: state[f"optimizer.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
            for name, buffer in self.locations.named_buffers():
                buffer.copy_(state[f"buffer.{name}"])


def train(
    head: nn.Module,
    locations: LocationEncoder,
    data: FeatureSet,
    settings: TrainSettings,
    folder: Path,
    *,
    evaluate: Callable[[float], dict[str, float]],
    report: Callable[[dict[str, float]], None],
) -> float:
    """Train both towers in place; returns the temperature's inverse.

    A checkpoint is written after each epoch; a run that was interrupted goes on from the last one and ends with the
    same weights as one that was not. Each epoch's figures are appended to ``metrics.jsonl``.

    Args:
        head: from features to vectors; see :class:`StandardisedHead`.
        locations: the location encoder.
        data: what to train on.
        settings: see :class:`TrainSettings`.
        folder: for checkpoint and metrics; a run with other settings needs another folder.
        evaluate: called after each epoch with the temperature's inverse, gives figures of validation pictures.
        report: called with each epoch's figures.

    Raises:
        SettingsError: the data is smaller than a batch.
        RuntimeError: the loss is not a number; names epoch and step.
    """
    if len(data) < settings.batch_size:
        raise SettingsError(f"{len(data)} pictures are fewer than a batch of {settings.batch_size}")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    run = _Run(head, locations, settings, data)
    if checkpoint.exists():
        run.load(checkpoint)
    steps = len(data) // settings.batch_size
    while run.epoch < settings.epochs:
        began = time.monotonic()
        loss_sum = 0.0
        head.train()
        locations.train()
        generator = torch.Generator().manual_seed(settings.seed * 100_003 + run.epoch + 1)
        for step, rows in enumerate(_batches(len(data), settings.batch_size, generator)):
            _set_learning_rate(run, (run.epoch * steps + step) / (settings.epochs * steps))
            truth = data.coordinates[rows]
            candidates = torch.cat(
                [
                    _noisy(truth, settings.noise_m, generator),
                    _noisy(run.queue, settings.queue_noise_m, generator),
                ]
            )
            loss = contrastive_loss(
                head(data.features[rows].float()),
                locations(candidates),
                run.logit_scale.exp(),
                near_duplicates(truth, candidates, settings.mask_km),
            )
            if not torch.isfinite(loss):
                raise RuntimeError(f"the loss is {loss.item()} at epoch {run.epoch}, step {step}")
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
            with torch.no_grad():
                run.logit_scale.clamp_(max=math.log(settings.max_scale))
            if settings.queue_size:
                run.queue = torch.cat([truth, run.queue])[: settings.queue_size]
            loss_sum += loss.item()
        run.epoch += 1
        run.save(checkpoint)
        head.eval()
        locations.eval()
        scale = run.logit_scale.exp().item()
        figures = {"epoch": run.epoch, "loss": loss_sum / steps, "scale": scale, **evaluate(scale)}
        figures["seconds"] = round(time.monotonic() - began, 1)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")
        report(figures)
    return run.logit_scale.exp().item()


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(n, generator=generator)
    return iter(order[: n // size * size].split(size))


def _noisy(coordinates: Float64[Tensor, "n 2"], sigma_m: float, generator: torch.Generator) -> Float64[Tensor, "n 2"]:
    if sigma_m == 0 or len(coordinates) == 0:
        return coordinates
    north, east = sigma_m * torch.randn(2, len(coordinates), generator=generator, dtype=torch.float64)
    return offset(coordinates, north, east)


def _set_learning_rate(run: _Run, share: float) -> None:
    """Linear rise over the first twentieth, then a cosine to nothing."""
    factor = share / 0.05 if share < 0.05 else (1 + math.cos(math.pi * (share - 0.05) / 0.95)) / 2
    for group in run.optimizer.param_groups:
        group["lr"] = run.settings.learning_rate * factor
