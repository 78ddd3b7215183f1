"""The state of a run and its folder: written whole or not at all, and read again to the last bit."""

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from open_geoclip._version import __version__
from open_geoclip.errors import SettingsError, TrainingError
from open_geoclip.files import atomic_write
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.training.batches import TrainingData
from open_geoclip.training.distributed import Ranks
from open_geoclip.training.settings import TrainSettings

__all__ = [
    "CHECKPOINT",
    "Figures",
    "RunState",
    "append_metrics",
    "check_record",
    "load_weights",
    "open_folder",
    "read_metrics",
    "read_tensors",
    "write_tensors",
]

CHECKPOINT = "checkpoint.safetensors"
Figures = dict[str, float]

_BACKBONE = "image_encoder.backbone."
_PROGRESS = ("epoch", "step", "updates", "loss_sum", "positions", "best")
_MAY_CHANGE = {("settings", name) for name in ("epochs", "patience", "checkpoint_every")}  # when a run is resumed


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None) -> None:
    """Write tensors and JSON values atomically; raises TrainingError where that fails."""
    record = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write(path, safetensors.torch.save(cpu, record or None))


def _write(path: Path, content: bytes | str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    except OSError as error:
        raise TrainingError(
            f"{path} ({len(content) / 1e6:,.1f} MB) cannot be written: {error.strerror or error}. What was written "
            "before is unharmed: make room and resume the run"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote; raises TrainingError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); remove it to begin again") from error
    return tensors, metadata


class RunState:
    """Everything that changes while training.

    Args:
        model: the model; of its backbone, what is trained is part of the state.
        optimizer: of the trained parameters.
        trained: these parameters by name; names of a loss's own begin with ``loss.``.
        ema_decay: keep a moving average of them; 0 keeps none.
        queue: coordinates of earlier batches, the latest first.
        ranks: the processes of the run.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the current epoch.
        updates: finished steps of the run.
        average: of the trained parameters, by name.
        loss_sum: of these steps.
        positions: where each process continues its batches.
        best: figures of the best epoch so far, by ``monitor``.
    """

    def __init__(
        self,
        model: GeoCLIP,
        optimizer: torch.optim.Optimizer,
        trained: Mapping[str, nn.Parameter],
        queue: Tensor,
        ranks: Ranks,
        ema_decay: float = 0.0,
    ) -> None:
        self.model, self.optimizer, self.trained, self.queue, self.ranks = model, optimizer, trained, queue, ranks
        self.ema_decay = ema_decay
        self.average = {name: p.detach().clone() for name, p in trained.items()} if ema_decay else {}
        self.epoch = self.step = self.updates = 0
        self.loss_sum = 0.0
        self.positions = [0] * ranks.world
        self.best: Figures | None = None

    def save(self, path: Path) -> None:
        """Write a checkpoint. Weights have the names of the published ones."""
        optimizer = {
            f"optimizer.{key}.{name}": torch.as_tensor(value)
            for name, parameter in self.trained.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        progress = {name: getattr(self, name) for name in _PROGRESS}
        weights = self._weights() | {n: p.detach() for n, p in self.trained.items() if n.startswith("loss.")}
        average = {f"average.{name}": tensor for name, tensor in self.average.items()}
        write_tensors(path, weights | optimizer | average | {"queue": self.queue}, progress)

    def _weights(self) -> dict[str, Tensor]:
        """Return the model's weights, of its backbone those that are trained."""
        state = self.model.state_dict()
        return {name: t for name, t in state.items() if not name.startswith(_BACKBONE) or name in self.trained}

    def update_average(self) -> None:
        """Count a step and move the average towards the weights after it."""
        self.updates += 1
        decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.average.items():
            average.lerp_(self.trained[name].detach(), 1 - decay)

    def swap_average(self) -> None:
        """Exchange the weights of the model and their average, if there is one."""
        for name, average in self.average.items():
            parameter = self.trained[name]
            self.average[name], parameter.data = parameter.data, average

    def save_within_epoch(self, path: Path) -> None:
        """Write a checkpoint between two steps, with the position and loss of every process."""
        mine = torch.tensor([[self.positions[self.ranks.rank], self.loss_sum]], dtype=torch.float64)
        everyone = self.ranks.gather(mine)
        self.positions = [int(position) for position in everyone[:, 0].tolist()]
        self.loss_sum = float(everyone[:, 1].mean())
        if self.ranks.is_main:
            self.save(path)

    def load(self, path: Path) -> None:
        """Read a checkpoint; raises SettingsError if another number of processes wrote it within an epoch."""
        tensors, progress = read_tensors(path)
        load_weights(self.model, tensors, path)
        for name, parameter in self.trained.items():
            if name.startswith("loss."):
                parameter.data.copy_(tensors[name])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:
                    # Adam counts its steps on the CPU; its moments are laid out in memory as the parameter is.
                    moment = value if key == "step" else torch.empty_like(parameter).detach().copy_(value)
                    self.optimizer.state[parameter][key] = moment
            if name in self.average:
                self.average[name].copy_(tensors[f"average.{name}"])
        self.queue = tensors["queue"]
        for name, value in progress.items():
            setattr(self, name, value)
        if self.step and len(self.positions) != self.ranks.world:
            raise SettingsError(
                f"{path} was written within an epoch by {len(self.positions)} processes, not {self.ranks.world}: "
                "resume with as many"
            )

    def keep_if_best(self, figures: Figures, monitor: str, path: Path) -> None:
        """Write the weights of an epoch that is better than all before; raises SettingsError for another monitor."""
        if monitor not in figures:
            raise SettingsError(f"monitor: {monitor!r} is not one of the figures {', '.join(figures)}")
        sign = -1 if monitor.startswith(("within", "geoscore", "accuracy")) else 1  # larger is better
        if self.best is None or sign * figures[monitor] < sign * self.best[monitor]:
            self.best = figures
            write_tensors(path, self._weights(), figures)


def load_weights(model: GeoCLIP, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights of a checkpoint into a model; raises TrainingError if they do not fit."""
    others = ("optimizer.", "loss.", "average.", "queue")
    backbone = {n: t for n, t in model.state_dict().items() if n.startswith(_BACKBONE)}
    try:
        model.load_state_dict(backbone | {n: t for n, t in tensors.items() if not n.startswith(others)})
    except RuntimeError as error:
        raise TrainingError(f"{path} is of another model: {error}") from error


def open_folder(
    folder: Path,
    model: GeoCLIP,
    settings: TrainSettings,
    data: TrainingData,
    record: Mapping[str, Any],
    *,
    resume: bool,
) -> None:
    """Write ``run.json``; raises SettingsError if the folder holds a run that is not to be resumed, or differs."""
    about: dict[str, Any] = {
        "settings": asdict(settings),
        "model": {
            "location_encoder": asdict(model.location_encoder.settings),
            "widths": model.image_encoder.settings.widths,
            "backbone": None if model.image_encoder.adapter is None else model.image_encoder.adapter.base_sha256,
            **record,
        },
        "data": {"fingerprint": data.fingerprint, "pictures": len(data)},
        "versions": {"open_geoclip": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": _git_commit(),
        "processes": Ranks.current().world,
    }
    if (folder / CHECKPOINT).exists():
        if not resume:
            raise SettingsError(f"{folder} holds a run: resume it (--resume, resume=True) or choose another folder")
        check_record(folder, about)
    _write(folder / "run.json", json.dumps(about, indent=2) + "\n")


def check_record(folder: Path, now: Mapping[str, Any]) -> None:
    """Compare settings with those of the run in a folder; raises SettingsError where what cannot change differs."""
    path, now = folder / "run.json", json.loads(json.dumps(now))
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part, differing in (("settings", "other settings"), ("model", "another model or other data")):
        old, new = before.get(part, {}), now.get(part, {})
        changed = [k for k in new.keys() & old.keys() if old[k] != new[k] and (part, k) not in _MAY_CHANGE]
        if changed:
            listed = ", ".join(f"{k} was {old[k]}, now {new[k]}" for k in sorted(changed))
            raise SettingsError(f"{folder} holds a run with {differing} ({listed}): choose another folder")
    done = (read_metrics(folder) or [{"epoch": 0}])[-1]["epoch"]
    if done > now.get("settings", {}).get("epochs", done):
        raise SettingsError(f"{folder} holds a run of {done:.0f} epochs already: set epochs to as many or more")
    if "data" in now and before.get("data", now["data"])["fingerprint"] != now["data"]["fingerprint"]:
        raise SettingsError(f"{folder} holds a run on other data: choose another folder")


def _git_commit() -> str | None:
    """Return the commit of this package's checkout, with a + if it was changed; None if it is installed otherwise."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def append_metrics(folder: Path, figures: Figures) -> None:
    """Add an epoch's line to ``metrics.jsonl``; lines of this epoch and later ones, of before a kill, are removed."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < figures["epoch"]]
    _write(path, "".join([*kept, json.dumps(figures) + "\n"]))


def read_metrics(folder: Path) -> list[Figures]:
    """Return the figures of all epochs."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
