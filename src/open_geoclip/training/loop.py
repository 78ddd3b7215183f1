"""The training loop: an image head and a location encoder are aligned on features of a frozen backbone.

Every random number is a function of seed, epoch and step, and a checkpoint holds everything else. A run that was
killed at any moment therefore ends with the same weights, to the last bit, as one that was not.
"""

import json
import math
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from open_geoclip._version import __version__
from open_geoclip.errors import SettingsError, TrainingError
from open_geoclip.model.backbones.runtime import resolve_dtype
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.training.batches import Batch, InMemory, Part, TrainingData
from open_geoclip.training.checkpoint import (
    load_state,
    pack_optimizer,
    read_tensors,
    unpack_optimizer,
    write_file,
    write_tensors,
)
from open_geoclip.training.distributed import Ranks, gathered_vectors
from open_geoclip.training.features import FeatureSet
from open_geoclip.training.heads import StandardisedHead
from open_geoclip.training.loss import contrastive_loss, near_duplicates, noisy
from open_geoclip.training.settings import TrainSettings

__all__ = ["CHECKPOINT", "StandardisedHead", "TrainSettings", "contrastive_loss", "near_duplicates", "train"]

CHECKPOINT = "checkpoint.safetensors"

Figures = dict[str, float]


class _Aligned(nn.Module):
    """Both towers and the temperature, called as one, so that DDP sees one forward and one backward."""

    def __init__(self, head: nn.Module, locations: LocationEncoder, settings: TrainSettings, ranks: Ranks) -> None:
        super().__init__()
        self.head, self.locations = head, locations
        self.logit_scale = nn.Parameter(torch.tensor(math.log(settings.start_scale)))
        self.settings, self.ranks = settings, ranks
        self.dtype = resolve_dtype(settings.dtype, next(locations.parameters()).device)

    def forward(
        self,
        features: Float[Tensor, "n d"],
        candidates: Float64[Tensor, "m 2"],
        truth: Float64[Tensor, "m 2"],
        batch: int,
        first: int,
    ) -> Float[Tensor, ""]:
        """The loss of some pictures of a batch against all candidates.

        Args:
            features: of n pictures.
            candidates: places of the whole batch and of the queue, with noise.
            truth: the same without.
            batch: how many of these are the batch's.
            first: where the n pictures' own begin.
        """
        settings, own = self.settings, slice(first, first + len(features))
        half = self.dtype != torch.float32
        with torch.autocast(candidates.device.type, self.dtype) if half else nullcontext():
            image, location = self.head(features.float()), self.locations(candidates)
        scale = self.logit_scale.exp()
        # Without a radius nothing is left out: of the same place twice, rounding would decide.
        left_out = near_duplicates(truth[own], candidates, settings.mask_km, first) if settings.mask_km else None
        right = near_duplicates(truth[own], truth, settings.positive_km, first) if settings.positive_km else None
        loss = contrastive_loss(image, location, scale, left_out, first=first, also_right=right)
        if settings.symmetric:
            images = gathered_vectors(image, self.ranks)
            if settings.mask_km:
                left_out = near_duplicates(candidates[own], truth[:batch], settings.mask_km, first)
            right = None if right is None else right[:, :batch]
            back = contrastive_loss(location[own], images, scale, left_out, first=first, also_right=right)
            loss = (loss + back) / 2
        return loss


class _Run:
    """Everything that changes while training, and how it is written down and taken up again."""

    def __init__(self, model: _Aligned, settings: TrainSettings, data: TrainingData) -> None:
        self.model, self.settings = model, settings
        given = {name: p for name, p in model.named_parameters() if p.requires_grad}
        trained = {name: p for name, p in given.items() if not is_frozen(name, settings.freeze)}
        self.frozen = [p for name, p in given.items() if name not in trained]
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        names = [name for name, _ in model.named_parameters()]
        for part in settings.freeze:
            if not any(is_frozen(name, (part,)) for name in names):
                levels = ", ".join(f"locations.{name}" for name, _ in model.locations.named_children())
                raise SettingsError(f"freeze: unknown part {part!r}; known are head, locations, {levels}, logit_scale")
        if not trained:
            raise SettingsError("freeze: nothing is left to train")
        self.trained = trained
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        self.optimizer = kind(trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.queue = data.some_coordinates(settings.queue_size, settings.seed)
        self.epoch = self.step = 0
        self.loss_sum = 0.0
        self.positions = [0] * model.ranks.world
        self.best: float | None = None
        self.waited = 0  # epochs since the best

    def save(self, path: Path) -> None:
        state = {f"weight.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state |= pack_optimizer(self.optimizer, self.trained)
        progress = {"epoch": self.epoch, "step": self.step, "loss_sum": self.loss_sum, "positions": self.positions}
        write_tensors(path, state | {"queue": self.queue}, progress | {"best": self.best, "waited": self.waited})

    def load(self, path: Path) -> None:
        state, progress = read_tensors(path)
        load_state(self.model, state, path)
        unpack_optimizer(self.optimizer, self.trained, state)
        self.queue = state["queue"]
        for name, value in progress.items():
            setattr(self, name, value)
        if self.step and len(self.positions) != self.model.ranks.world:
            raise SettingsError(
                f"{path} was written in the middle of an epoch by {len(self.positions)} processes, "
                f"not {self.model.ranks.world}: go on with as many"
            )

    def keep_if_best(self, figures: Figures, folder: Path) -> None:
        """Keep the weights of an epoch that is better than all before."""
        name = self.settings.monitor
        if not name:
            return
        if name not in figures:
            raise SettingsError(f"monitor: {name!r} is not among the figures {', '.join(figures)}")
        value = figures[name]
        rises = name.startswith(("within", "geoscore", "accuracy"))
        if self.best is None or (value > self.best if rises else value < self.best):
            self.best, self.waited = value, 0
            weights = {f"weight.{key}": tensor for key, tensor in self.model.state_dict().items()}
            write_tensors(folder / "best.safetensors", weights, {"epoch": self.epoch, name: value})
        else:
            self.waited += 1

    @property
    def is_over(self) -> bool:
        settings = self.settings
        return self.epoch >= settings.epochs or bool(settings.patience and self.waited >= settings.patience)


def train(
    head: nn.Module,
    locations: LocationEncoder,
    data: FeatureSet | TrainingData,
    settings: TrainSettings,
    folder: Path,
    *,
    evaluate: Callable[[float], Figures],
    report: Callable[[Figures], None],
    progress: Callable[[Figures], None] | None = None,
    start_scale: float | None = None,
) -> float:
    """Train both towers in place; returns the temperature's inverse.

    A checkpoint is written after each epoch and every ``settings.checkpoint_every`` steps; a run that was interrupted
    goes on from the last one and ends with the same weights as one that was not. Each epoch's figures are a line of
    ``metrics.jsonl``; settings, data, versions and commit are in ``run.json``. Started by ``torchrun`` (see
    :class:`~open_geoclip.training.distributed.joined`), all processes together make the steps that one would make.

    Args:
        head: from features to vectors; see :class:`StandardisedHead`.
        locations: the location encoder.
        data: what to train on.
        settings: see :class:`TrainSettings`.
        folder: for checkpoint and metrics; a run with other settings needs another folder.
        evaluate: called after each epoch with the temperature's inverse, gives figures of validation pictures.
        report: called with each epoch's figures.
        progress: called after each step with ``epoch``, ``step``, ``steps``, ``loss``, ``learning_rate``.
        start_scale: inverse of a trained temperature to begin with; ``settings.start_scale`` when not given.

    Raises:
        SettingsError: the data is smaller than a batch, or the folder holds a run with other settings or data.
        TrainingError: the loss is not a number (names epoch, step and pictures), or a file cannot be written.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written before.
    """
    ranks = Ranks.current()
    ranks.share(settings.batch_size)
    if isinstance(data, FeatureSet):
        data = InMemory(data)
    if len(data) < settings.batch_size:
        raise SettingsError(f"{len(data)} pictures are fewer than a batch of {settings.batch_size}")
    model = _Aligned(head, locations, settings, ranks).to(next(locations.parameters()).device)
    if start_scale is not None:
        model.logit_scale.data.fill_(math.log(start_scale))
    run, checkpoint = _Run(model, settings, data), folder / CHECKPOINT
    _open_folder(folder, settings, data, ranks)
    if checkpoint.exists():
        run.load(checkpoint)
    if ranks.leads:
        _trim_metrics(folder, run.epoch)
    wrapped: nn.Module = model
    if ranks.world > 1:
        wrapped = nn.parallel.DistributedDataParallel(model)
    with _stop_at_step_end() as stop:
        while not run.is_over:
            began = time.monotonic()
            head.train()
            locations.train()
            _train_epoch(run, wrapped, data, checkpoint, stop, progress)
            run.epoch, steps, mean_loss = run.epoch + 1, run.step, ranks.mean(run.loss_sum) / max(run.step, 1)
            if not steps:
                raise TrainingError(f"the epoch gave no whole batch of {settings.batch_size} pictures")
            run.step, run.loss_sum, run.positions = 0, 0.0, [0] * ranks.world
            head.eval()
            locations.eval()
            scale = model.logit_scale.exp().item()
            figures = {"epoch": run.epoch, "loss": mean_loss, "scale": scale}
            figures = ranks.told(figures | evaluate(scale) if ranks.leads else None)
            figures["seconds"] = round(time.monotonic() - began, 1)
            if ranks.leads:
                _append(folder / "metrics.jsonl", json.dumps(figures) + "\n")
                run.keep_if_best(figures, folder)
                run.save(checkpoint)
            run.best, run.waited = ranks.told((run.best, run.waited))
            if ranks.leads:
                report(figures)
            if stop():
                raise KeyboardInterrupt
    for parameter in run.frozen:
        parameter.requires_grad_(True)
    if settings.monitor:
        load_state(model, read_tensors(folder / "best.safetensors")[0], folder / "best.safetensors")
    return model.logit_scale.exp().item()


def _train_epoch(
    run: _Run,
    wrapped: nn.Module,
    data: TrainingData,
    checkpoint: Path,
    stop: Callable[[], bool],
    progress: Callable[[Figures], None] | None,
) -> None:
    """The rest of an epoch, from where the run is."""
    settings, ranks = run.settings, run.model.ranks
    device = run.model.logit_scale.device
    most = len(data) // settings.batch_size
    position = run.positions[ranks.rank]
    part = Part(run.epoch, settings.seed, settings.batch_size, ranks.rank, ranks.world, position)
    batches = iter(data.batches(part))
    while True:
        batch = next(batches, None)
        go_on, halt = ranks.agree(batch is not None, stop())
        if halt or not go_on or batch is None:
            break
        rate = settings.learning_rate * rate_factor(settings, run.epoch, min(run.step / most, 1.0))
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        batch_truth = ranks.gathered(batch.coordinates)
        truth = torch.cat([batch_truth, run.queue])
        generator = torch.Generator().manual_seed((part.generator().initial_seed() * 1_000_003 + run.step) % 2**63)
        candidates = torch.cat(
            [
                noisy(batch_truth, settings.noise_m, generator),
                noisy(run.queue, settings.queue_noise_m, generator),
            ]
        )
        run.optimizer.zero_grad()
        loss = _backward(run, wrapped, batch, candidates.to(device), truth.to(device), len(batch_truth))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at epoch {run.epoch}, step {run.step}; the batch is {_some(batch.keys())}. "
                "The last checkpoint is unharmed"
            )
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(run.trained.values(), settings.clip_norm)
        run.optimizer.step()
        with torch.no_grad():
            run.model.logit_scale.clamp_(max=math.log(settings.max_scale))
        if settings.queue_size:
            run.queue = truth[: settings.queue_size]
        run.loss_sum += loss
        run.step += 1
        if progress is not None and ranks.leads:
            progress({"epoch": run.epoch, "step": run.step, "steps": most, "loss": loss, "learning_rate": rate})
        due = settings.checkpoint_every and run.step % settings.checkpoint_every == 0
        run.positions[ranks.rank] = batch.position
        if due:
            _save_within(run, checkpoint)
    if halt:
        _save_within(run, checkpoint)
        raise KeyboardInterrupt


def _backward(
    run: _Run,
    wrapped: nn.Module,
    batch: Batch,
    candidates: Float64[Tensor, "m 2"],
    truth: Float64[Tensor, "m 2"],
    n: int,
) -> float:
    """Add up the gradient of a batch, part by part, each against all candidates; returns the mean loss."""
    parts = run.settings.accumulate
    first, total = run.model.ranks.rank * len(batch.features), 0.0
    for i, features in enumerate(batch.features.chunk(parts)):
        waits = isinstance(wrapped, nn.parallel.DistributedDataParallel) and i < parts - 1
        with wrapped.no_sync() if waits else nullcontext():  # type: ignore[operator]
            loss = wrapped(features.to(candidates.device), candidates, truth, n, first)
            share = len(features) / len(batch.features)
            (loss * share if parts > 1 else loss).backward()
        first, total = first + len(features), total + loss.item() * share
    return total


def _save_within(run: _Run, checkpoint: Path) -> None:
    """A checkpoint in the middle of an epoch, with where each process stands and what it has added up."""
    ranks = run.model.ranks
    mine = torch.tensor([[run.positions[ranks.rank], run.loss_sum]], dtype=torch.float64)
    everyone = ranks.gathered(mine)
    run.positions = [int(position) for position in everyone[:, 0].tolist()]
    run.loss_sum = float(everyone[:, 1].mean())
    if ranks.leads:
        run.save(checkpoint)


def rate_factor(settings: TrainSettings, epoch: int, within: float) -> float:
    """The learning rate as a share of its peak, ``within`` an epoch (0 to 1)."""
    share = (epoch + within) / settings.epochs
    if share < settings.warmup:
        return share / settings.warmup
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * (share - settings.warmup) / (1 - settings.warmup))) / 2
    return settings.gamma**epoch if settings.schedule == "step" else 1.0


def is_frozen(name: str, freeze: tuple[str, ...]) -> bool:
    """Whether a parameter is, or lies in, one of the frozen parts."""
    return any(name == part or name.startswith(f"{part}.") for part in freeze)


def _open_folder(folder: Path, settings: TrainSettings, data: TrainingData, ranks: Ranks) -> None:
    """Write down what is run, or see that it is the same as before."""
    record: dict[str, Any] = {
        "settings": json.loads(json.dumps(asdict(settings))),
        "data": {"fingerprint": data.fingerprint, "pictures": len(data)},
        "versions": {"open_geoclip": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": _commit(),
        "processes": ranks.world,
    }
    if not ranks.leads:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    if path.exists() and (folder / CHECKPOINT).exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [k for k, v in record["settings"].items() if before["settings"].get(k, v) != v]
        if other:
            told = ", ".join(f"{k} was {before['settings'][k]}, now {record['settings'][k]}" for k in other)
            raise SettingsError(f"{folder} holds a run with other settings ({told}): take another folder")
        if before["data"]["fingerprint"] != record["data"]["fingerprint"]:
            raise SettingsError(f"{folder} holds a run on other data: take another folder")
        return
    write_file(path, (json.dumps(record, indent=2) + "\n").encode())


def _commit() -> str | None:
    """The git commit of this package's checkout, with a + if it was changed; None if it is installed otherwise."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _trim_metrics(folder: Path, epoch: int) -> None:
    """Take away lines of epochs that will be run again."""
    path = folder / "metrics.jsonl"
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epoch]
        if kept != lines:
            write_file(path, "".join(kept).encode())


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}; make room and go on") from error


def _some(keys: Any) -> str:
    shown = ", ".join(list(keys)[:5])
    return shown if len(keys) <= 5 else f"{shown} and {len(keys) - 5} more"


@contextmanager
def _stop_at_step_end() -> Iterator[Callable[[], bool]]:
    """While this is open, Ctrl-C and SIGTERM wait for the end of the step; a second one does not."""
    told = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            raise KeyboardInterrupt
        told = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: told
    finally:
        for number, old in before.items():
            signal.signal(number, old)
