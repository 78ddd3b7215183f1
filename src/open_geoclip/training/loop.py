"""The training loop: image and location encoder are aligned, on features of a frozen backbone or on pixels.

Every random number is a function of seed, epoch and step, and a checkpoint holds everything else. A run that was
killed at any moment therefore ends with the same weights, to the last bit, as one that was not.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from open_geoclip.errors import SettingsError, TrainingError
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.training.batches import Batch, BatchRequest, FeatureSet, TrainingData
from open_geoclip.training.checkpoint import (
    CHECKPOINT,
    Figures,
    RunState,
    append_metrics,
    load_weights,
    open_folder,
    read_metrics,
    read_tensors,
)
from open_geoclip.training.distributed import Ranks
from open_geoclip.training.evaluation import evaluate_model
from open_geoclip.training.finetuning import finetuning
from open_geoclip.training.loss import Loss, SigLIPLoss, add_noise, batch_loss, contrastive_loss, nearby_places
from open_geoclip.training.settings import TrainSettings

__all__ = ["GALLERY_SIZE", "Callbacks", "train"]

GALLERY_SIZE = 100_000  # training coordinates at most to answer with, as many as the released gallery has


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls; each may be left out.

    Attributes:
        log: with a line of text.
        encoding: with what is encoded, entries done, and of how many if that is known.
        step: with the figures of a step: ``epoch``, ``step``, ``steps``, ``loss``, ``learning_rate``.
        epoch: with the figures of an epoch.
    """

    log: Callable[[str], None] = lambda _: None
    encoding: Callable[[str, int, int | None], None] = lambda *_: None
    step: Callable[[Figures], None] = lambda _: None
    epoch: Callable[[Figures], None] = lambda _: None


def train(
    model: GeoCLIP,
    data: TrainingData,
    settings: TrainSettings,
    folder: Path | str,
    *,
    validation: FeatureSet | None = None,
    evaluate: Callable[[GeoCLIP], Figures] | None = None,
    loss: Loss | None = None,
    callbacks: Callbacks | None = None,
    resume: bool = False,
    record: Mapping[str, Any] | None = None,
) -> Figures:
    """Train a model in place, and return the figures of the epoch whose weights it has at the end.

    A checkpoint is written after each epoch and every ``settings.checkpoint_every`` steps. Each epoch's figures are a
    line of ``metrics.jsonl``; settings, data, versions and commit are in ``run.json``. Processes of one
    :func:`~open_geoclip.training.distributed.process_group` together take the steps that one process would take.

    Args:
        model: needs no image backbone if ``data`` holds features.
        data: what to train on, such as a :class:`~open_geoclip.training.batches.FeatureSet`.
        settings: see :class:`~open_geoclip.training.settings.TrainSettings`.
        folder: for checkpoint and metrics; each run has its own.
        validation: images for :func:`~open_geoclip.training.evaluation.evaluate_model` after each epoch, with the
            training places as the gallery.
        evaluate: called with the model after each epoch; returns further figures of one's own.
        loss: replaces the loss of the settings. Parameters of an ``nn.Module`` are trained with the model's and are in
            the checkpoint, not in the model.
        callbacks: report progress.
        resume: continue the run in the folder, if there is one; it ends with the same weights as if never interrupted.
        record: further settings for ``run.json``, which must be the same when the run is resumed.

    Raises:
        SettingsError: the data is smaller than a batch, or the folder holds a run that is not to be resumed or differs.
        TrainingError: the loss is not a number (names epoch, step and images), or a file cannot be written.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written before.
    """
    ranks, callbacks, folder = Ranks.current(), callbacks or Callbacks(), Path(folder)
    checkpoint = folder / CHECKPOINT
    check_batch(settings, len(data), ranks.world)
    if loss is None:
        loss = SigLIPLoss() if settings.loss == "siglip" else contrastive_loss
    queue = data.sample_coordinates(settings.queue_size, settings.seed)
    gallery = data.sample_coordinates(GALLERY_SIZE, 0)
    with finetuning(model, settings) as rate_factors, _stop_between_steps() as stop_requested:
        trained = trainable_parameters(model, settings.freeze)
        if isinstance(loss, nn.Module):
            trained |= dict(loss.to(model.logit_scale.device).named_parameters(prefix="loss"))
        if ranks.is_main:
            open_folder(folder, model, settings, data, record or {}, resume=resume)
        frozen = [p for p in model.parameters() if p.requires_grad and not any(p is t for t in trained.values())]
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in (model, loss):  # before their moving average begins
            if isinstance(module, nn.Module):
                ranks.broadcast_weights(module)
        state = RunState(
            model, _make_optimizer(trained, rate_factors, settings), trained, queue, ranks, settings.ema_decay
        )
        if ranks.broadcast(checkpoint.exists()):
            state.load(checkpoint)
        while state.epoch < settings.epochs and not _out_of_patience(state, settings):
            began = time.monotonic()
            model.train()
            _train_epoch(state, data, settings, loss, checkpoint, stop_requested, callbacks)
            loss_sum = ranks.gather(torch.tensor([[state.loss_sum]], dtype=torch.float64)).mean().item()
            if not state.step:
                raise TrainingError(f"the epoch has no whole batch of {settings.batch_size} images")
            steps = state.step
            state.epoch, state.step, state.loss_sum, state.positions = state.epoch + 1, 0, 0.0, [0] * ranks.world
            model.eval()
            if ranks.is_main:
                state.swap_average()
                figures = {"epoch": state.epoch, "loss": loss_sum / steps, "scale": model.scale}
                if validation is not None:
                    figures |= evaluate_model(model, validation, gallery, settings)
                figures |= {} if evaluate is None else evaluate(model)
                figures["seconds"] = round(time.monotonic() - began, 1)
                append_metrics(folder, figures)
                if settings.monitor:
                    state.keep_if_best(figures, settings.monitor, folder / "best.safetensors")
                state.swap_average()
                state.save(checkpoint)
                callbacks.epoch(figures)
            state.best = ranks.broadcast(state.best)
            if stop_requested():
                raise KeyboardInterrupt
        if state.epoch < settings.epochs and ranks.is_main:
            better = f"{settings.patience} epochs without a better {settings.monitor}"
            callbacks.log(f"training ends with epoch {state.epoch} of {settings.epochs}: {better} (patience)")
        for parameter in frozen:
            parameter.requires_grad_(True)
        state.swap_average()
        if settings.monitor:
            load_weights(model, read_tensors(folder / "best.safetensors")[0], folder / "best.safetensors")
        model.eval()
        return ranks.broadcast(state.best or read_metrics(folder)[-1])


def _make_optimizer(
    trained: Mapping[str, nn.Parameter], rate_factors: Mapping[str, float], settings: TrainSettings
) -> torch.optim.Optimizer:
    """Return the optimizer, with a group of parameters for each factor of the learning rate, 1 where none is given."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        groups.setdefault(rate_factors.get(name, 1.0), []).append(parameter)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(
        [{"params": parameters, "factor": factor} for factor, parameters in groups.items()],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )


def _train_epoch(
    state: RunState,
    data: TrainingData,
    settings: TrainSettings,
    loss: Loss,
    checkpoint: Path,
    stop_requested: Callable[[], bool],
    callbacks: Callbacks,
) -> None:
    """Take the steps of an epoch that are left."""
    model, ranks, steps = state.model, state.ranks, len(data) // settings.batch_size
    position = state.positions[ranks.rank]
    request = BatchRequest(state.epoch, settings.seed, settings.batch_size, ranks.rank, ranks.world, position)
    batches = iter(data.batches(request))
    while True:
        batch = next(batches, None)
        all_have_batches, stop = ranks.synchronize(batch is not None, stop_requested())
        if stop:
            state.save_within_epoch(checkpoint)
            raise KeyboardInterrupt
        if not all_have_batches or batch is None:
            return
        within = min(state.step / steps, 1.0)
        rate = settings.learning_rate * learning_rate_factor(settings, state.epoch, within)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        # Candidates: places of the batch and of the queue, encoded anew, with noise, and some around the batch's.
        batch_places = ranks.gather(batch.coordinates)
        noise = torch.Generator().manual_seed((request.generator().initial_seed() * 1_000_003 + state.step) % 2**63)
        noisy_batch = add_noise(batch_places, settings.noise_m, noise)
        noisy_queue = add_noise(state.queue, settings.queue_noise_m, noise)
        nearby = nearby_places(batch_places, settings.nearby_places, settings.nearby_km, noise)
        places = torch.cat([batch_places, state.queue, nearby])
        candidates = torch.cat([noisy_batch, noisy_queue, nearby])

        state.optimizer.zero_grad()
        progress = (state.epoch + within) / settings.epochs
        value = _backward(state, loss, settings, batch, places, candidates, progress)
        if not math.isfinite(value):
            where = f"epoch {state.epoch}, step {state.step}; the batch is {_shorten(batch.keys())}"
            raise TrainingError(f"the loss is {value} at {where}. The last checkpoint is unharmed")
        ranks.average_gradients(state.trained.values())
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(state.trained.values(), settings.clip_norm)
        state.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(settings.max_scale))
        state.update_average()
        # Enqueue the batch, dequeue the oldest places.
        state.queue = torch.cat([batch_places, state.queue])[: settings.queue_size]

        state.loss_sum += value
        state.step += 1
        state.positions[ranks.rank] = batch.position
        if settings.checkpoint_every and state.step % settings.checkpoint_every == 0:
            state.save_within_epoch(checkpoint)
        if ranks.is_main:
            figures = {"epoch": state.epoch, "step": state.step, "steps": steps, "loss": value}
            callbacks.step(figures | {"learning_rate": rate})


def _backward(
    state: RunState,
    loss: Loss,
    settings: TrainSettings,
    batch: Batch,
    places: Float64[Tensor, "m 2"],
    candidates: Float64[Tensor, "m 2"],
    progress: float,
) -> float:
    """Add up the gradient of a batch, part by part, each against all candidates; return the mean loss."""
    model, ranks = state.model, state.ranks
    device, total = model.logit_scale.device, 0.0
    places, candidates, n = places.to(device), candidates.to(device), len(batch.features)
    first = ranks.rank * n
    if settings.trains_backbone and batch.features.dtype != torch.uint8:
        raise SettingsError("unfreeze_blocks, lora_rank: the data hold features: give pixels, uint8 (n, h, w, 3)")
    for features in batch.features.chunk(settings.accumulate):
        share = len(features) / n
        features = features.to(device)
        part = batch_loss(
            model, features, places, candidates, settings, loss=loss, first=first, progress=progress, ranks=ranks
        )
        (part * share).backward()
        first, total = first + len(features), total + part.item() * share
    return total


def check_batch(settings: TrainSettings, images: int, processes: int) -> None:
    """Raise SettingsError if an epoch has no whole batch, or processes cannot share one."""
    if settings.batch_size % processes:
        raise SettingsError(f"batch_size: {settings.batch_size} cannot be divided evenly among {processes} processes")
    if images < settings.batch_size:
        raise SettingsError(
            f"{images:,} images are fewer than a batch of {settings.batch_size}: set batch_size, such as "
            f"--set train.batch_size={max(processes, images // 4 // processes * processes)}"
        )


def trainable_parameters(model: GeoCLIP, freeze: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name; raises SettingsError for a wrong name or if none is left."""
    names = [name for name, _ in model.named_parameters()]
    for part in freeze:
        if not any(_is_within(name, (part,)) for name in names):
            levels = ", ".join(f"location_encoder.{name}" for name, _ in model.location_encoder.named_children())
            raise SettingsError(
                f"freeze: unknown part {part!r}; known are image_encoder, location_encoder, {levels}, logit_scale"
            )
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and not _is_within(n, freeze)}
    if not trained:
        raise SettingsError("freeze: nothing is left to train")
    return trained


def _is_within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def learning_rate_factor(settings: TrainSettings, epoch: int, within: float) -> float:
    """Return the learning rate as a share of its peak, ``within`` (0 to 1) an epoch."""
    progress = (epoch + within) / settings.epochs
    if progress < settings.warmup:
        return progress / settings.warmup
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * (progress - settings.warmup) / (1 - settings.warmup))) / 2
    return settings.gamma**epoch if settings.schedule == "step" else 1.0


def _out_of_patience(state: RunState, settings: TrainSettings) -> bool:
    return bool(settings.patience and state.best and state.epoch - state.best["epoch"] >= settings.patience)


def _shorten(keys: Any) -> str:
    shown = ", ".join(list(keys)[:5])
    return shown if len(keys) <= 5 else f"{shown} and {len(keys) - 5} more"


@contextmanager
def _stop_between_steps() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM wait for the end of the step; a second one does not wait."""
    requested = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, old in before.items():
            signal.signal(number, old)
