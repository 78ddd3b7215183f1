"""Probes: small models that tell what is in a vector. Their settings are chosen on validation rows alone.

All tasks of one set of embeddings are fitted together, which changes nothing in the answers: a ridge regression shares
its decomposition, nearest neighbours their distances, and the small networks stand side by side in one matrix, each
with hidden units, a loss and a stopping point of its own.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from research.location_tasks import Split

__all__ = ["PROBES", "Probe", "Task", "probe"]

Probe = Literal["linear", "knn", "mlp"]
PROBES: tuple[Probe, ...] = ("linear", "knn", "mlp")
_ALPHAS = tuple(10.0**k for k in range(-4, 4))
_NEIGHBOURS = (1, 3, 5, 10, 20)
_HIDDEN, _EPOCHS, _BATCH, _RATE = 32, 10, 256, 1e-2

Task = np.ndarray
"""Of each row its class (whole numbers, -1 for none) or its number (NaN for none)."""


def probe(
    embeddings: Float32[np.ndarray, "n d"], tasks: Mapping[str, Task], split: Split, kind: Probe, *, seed: int = 0
) -> dict[str, float]:
    """How well tasks are solved from embeddings: accuracy for classes, R² for numbers, on test rows.

    A class that the training rows lack cannot be found, and counts as wrong.

    Args:
        embeddings: of n places.
        tasks: rows without a label are left out of their task.
        split: which rows are for what.
        kind: ``linear``, ridge regression (of classes: on one column a class); ``knn``, by cosine; ``mlp``, one
            hidden layer of 32.
        seed: of the networks' first weights and batches.
    """
    known = {name: labels >= 0 if labels.dtype == np.int64 else np.isfinite(labels) for name, labels in tasks.items()}
    train = embeddings[split.train]
    x = torch.from_numpy((embeddings - train.mean(axis=0)) / (train.std(axis=0) + 1e-6)).float()
    whole = (split.train, split.validation, split.test)
    if kind == "mlp":
        goals = [_Goal(labels, split.train[known[name][split.train]]) for name, labels in tasks.items()]
        answers = _mlp(x, goals, whole, seed)
        has = [split.test[known[name][split.test]] for name in tasks]
        told = [answer[known[name][split.test]] for name, answer in zip(tasks, answers, strict=True)]
        return {name: _score(told[i], tasks[name][has[i]]) for i, name in enumerate(tasks)}
    found: dict[str, float] = {}
    groups: dict[bytes, list[str]] = {}  # tasks of the same rows share their work
    for name, there in known.items():
        groups.setdefault(there.tobytes(), []).append(name)
    for names in groups.values():
        parts = tuple(part[known[names[0]][part]] for part in whole)
        goals = [_Goal(tasks[name], parts[0]) for name in names]
        answers = _linear(x, goals, parts) if kind == "linear" else _knn(torch.from_numpy(embeddings), goals, parts)
        for name, answer in zip(names, answers, strict=True):
            found[name] = _score(answer, tasks[name][parts[2]])
    return {name: found[name] for name in tasks}


class _Goal:
    """What a task's models are fitted to: one column a class, or the standardised number."""

    def __init__(self, labels: Task, train: np.ndarray) -> None:
        self.labels = labels
        self.classes = labels.dtype == np.int64
        self.mean = 0.0 if self.classes else float(labels[train].mean())
        self.std = 1.0 if self.classes else float(labels[train].std()) + 1e-9
        self.width = int(labels.max()) + 1 if self.classes else 1

    def columns(self, rows: np.ndarray) -> Float[Tensor, "m w"]:
        if self.classes:
            return F.one_hot(torch.from_numpy(self.labels[rows]), self.width).float()
        return torch.from_numpy((self.labels[rows] - self.mean) / self.std).float()[:, None]

    def answer(self, columns: Float[Tensor, "m w"]) -> np.ndarray:
        out = columns.argmax(dim=1) if self.classes else columns[:, 0] * self.std + self.mean
        return np.asarray(out.numpy())

    def score(self, columns: Float[Tensor, "m w"], rows: np.ndarray) -> float:
        """Of the rows that have a label."""
        known = self.known(rows)
        return _score(self.answer(columns)[known], self.labels[rows][known])

    def known(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.labels[rows] >= 0 if self.classes else np.isfinite(self.labels[rows]))

    def loss(self, columns: Float[Tensor, "m w"], rows: np.ndarray) -> Tensor:
        """Of the rows that have a label; 0 when none has."""
        known = self.known(rows)
        if not known.any():
            return columns.sum() * 0
        told, labels = columns[torch.from_numpy(known)], self.labels[rows][known]
        if self.classes:
            return F.cross_entropy(told, torch.from_numpy(labels))
        return F.mse_loss(told[:, 0], torch.from_numpy((labels - self.mean) / self.std).float())


def _score(answer: np.ndarray, truth: np.ndarray) -> float:
    if truth.dtype == np.int64:
        return float((answer == truth).mean())
    return float(1 - ((answer - truth) ** 2).mean() / truth.var())


def _linear(x: Tensor, goals: list[_Goal], parts: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    train, validation, _ = parts
    values, axes = torch.linalg.eigh(x[train].T.double() @ x[train].double() / len(train))
    turned = [(x[rows].double() @ axes) for rows in parts]
    out = []
    for goal in goals:
        columns = goal.columns(train).double()
        middle = columns.mean(dim=0)
        moments = turned[0].T @ (columns - middle) / len(train)
        fits = [moments / (values.clamp_min(0)[:, None] + alpha) for alpha in _ALPHAS]
        scores = [goal.score((turned[1] @ fit + middle).float(), validation) for fit in fits]
        out.append(goal.answer((turned[2] @ fits[int(np.argmax(scores))] + middle).float()))
    return out


def _knn(embeddings: Tensor, goals: list[_Goal], parts: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    train, validation, test = parts
    unit = F.normalize(embeddings.float(), dim=1)
    most = min(max(_NEIGHBOURS), len(train))
    near = {name: (unit[rows] @ unit[train].T).topk(most).indices for name, rows in (("v", validation), ("t", test))}
    out = []
    for goal in goals:
        columns = goal.columns(train)

        def voted(which: str, k: int, columns: Tensor = columns) -> Float[Tensor, "m w"]:
            nearest = near[which][:, :k]
            # A tie goes to the class of the nearest of them.
            weight = 1 - torch.arange(nearest.shape[1]) * 1e-4
            return (columns[nearest] * weight[:, None]).sum(dim=1) / weight.sum()

        scores = [goal.score(voted("v", k), validation) for k in _NEIGHBOURS]
        out.append(goal.answer(voted("t", _NEIGHBOURS[int(np.argmax(scores))])))
    return out


def _mlp(x: Tensor, goals: list[_Goal], parts: tuple[np.ndarray, ...], seed: int) -> list[np.ndarray]:
    train, validation, _ = parts
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = nn.Linear(x.shape[1], _HIDDEN * len(goals))
        heads = nn.ModuleList(nn.Linear(_HIDDEN, goal.width) for goal in goals)
        optimizer = torch.optim.AdamW([*hidden.parameters(), *heads.parameters()], lr=_RATE, weight_decay=0.01)
        inputs = [x[rows] for rows in parts]

        def run(batch: Tensor) -> list[Tensor]:
            units = F.relu(hidden(batch)).split(_HIDDEN, dim=1)
            return [head(unit) for head, unit in zip(heads, units, strict=True)]

        best: list[tuple[float, Any]] = [(-np.inf, None)] * len(goals)
        for epoch in range(_EPOCHS):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - epoch / _EPOCHS)
            for rows in torch.randperm(len(train)).split(_BATCH):
                loss = torch.zeros(())
                for goal, answer in zip(goals, run(inputs[0][rows]), strict=True):
                    loss = loss + goal.loss(answer, train[rows.numpy()])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                told, tested = run(inputs[1]), run(inputs[2])
            for i, goal in enumerate(goals):
                reached = goal.score(told[i], validation)
                if reached > best[i][0]:
                    best[i] = (reached, goal.answer(tested[i]))
    return [answer for _, answer in best]
