"""Probes: each finds what is there, none finds what is not, rows without a label do not count."""

import numpy as np
import pytest

from research.location_tasks import Split
from research.probes import PROBES, Probe, probe


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((900, 6)).astype(np.float32)


ROWS = Split(np.arange(0, 500), np.arange(500, 700), np.arange(700, 900))


@pytest.mark.parametrize("kind", PROBES)
def test_finds_what_is_there_and_not_what_is_not(kind: Probe, vectors: np.ndarray, rng: np.random.Generator) -> None:
    side = (vectors[:, 0] > 0).astype(np.int64)
    number = 100 + 7 * vectors[:, 1].astype(np.float64)
    tasks = {"side": side, "number": number, "noise": rng.standard_normal(900), "coin": rng.integers(0, 2, 900)}
    found = probe(vectors, tasks, ROWS, kind)
    assert list(found) == list(tasks)
    least = {"linear": (0.9, 0.999), "knn": (0.75, 0.5), "mlp": (0.8, 0.4)}[kind]
    assert found["side"] > least[0]
    assert found["number"] > least[1]
    assert found["noise"] < 0.1
    assert 0.35 < found["coin"] < 0.65
    assert probe(vectors, tasks, ROWS, kind) == found


@pytest.mark.parametrize("kind", PROBES)
def test_rows_without_a_label_do_not_count(kind: Probe, vectors: np.ndarray) -> None:
    side = (vectors[:, 0] > 0).astype(np.int64)
    number = vectors[:, 1].astype(np.float64)
    side[::3], number[::4] = -1, np.nan
    found = probe(vectors, {"side": side, "number": number}, ROWS, kind)
    assert found["side"] > 0.7
    assert found["number"] > 0.5


@pytest.mark.parametrize("kind", PROBES)
def test_a_class_that_was_not_trained_counts_as_wrong(kind: Probe, vectors: np.ndarray) -> None:
    classes = np.zeros(900, np.int64)
    classes[800:] = 1
    assert probe(vectors, {"new": classes}, ROWS, kind)["new"] == pytest.approx(0.5)


def test_ridge_equals_scikit_learns(vectors: np.ndarray, rng: np.random.Generator) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    number = vectors @ rng.standard_normal(6) + rng.standard_normal(900)
    x = (vectors - vectors[ROWS.train].mean(axis=0)) / vectors[ROWS.train].std(axis=0)
    scores = []
    for alpha in 10.0 ** np.arange(-4, 4):
        ridge = linear_model.Ridge(alpha=alpha * 500).fit(x[ROWS.train], number[ROWS.train])
        scores.append(
            (ridge.score(x[ROWS.validation], number[ROWS.validation]), ridge.score(x[ROWS.test], number[ROWS.test]))
        )
    assert probe(vectors, {"y": number}, ROWS, "linear")["y"] == pytest.approx(max(scores)[1], abs=1e-3)
