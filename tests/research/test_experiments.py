"""The experiments: each row once, choices made on validation views, tables made of results alone."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the extra earth is not installed")

from research.experiment_report import write_report
from research.experiments import CELLS, EDGES, RESULTS, SEEDS, best_cells, read, rows


def record(key: str, near: float, method: str = "geoclip", share: float = 1.0) -> dict[str, Any]:
    part = {"n": 10, "within_km": {"25": near / 2, "200": near, "750": 90.0, "2500": 95.0}, "median_km": 100.0}
    views = {"all": part, "beyond 165 degrees of longitude": part, "beyond 65 degrees of latitude": part}
    sets = dict.fromkeys(("validation", "test", "shadedrelief"), views)
    edges = {edge: {"all": {**part, "n": 1011}} for edge in EDGES} if key.startswith(("main", "projection")) else {}
    return {"key": key, "settings": {"method": method, "share": share}, **sets, **edges}


def test_every_row_has_a_name_of_its_own() -> None:
    keys = [row.key for row in rows()]
    assert len(keys) == len(set(keys)) == 112
    for group in ("main", "levels", "projection", "data"):
        seeds = Counter(row.name for row in rows() if row.group == group)
        assert set(seeds.values()) == {len(SEEDS)}, group


def test_cells_are_chosen_on_validation_views() -> None:
    keys = [row.key for row in rows() if row.group == "cells"]
    done = {key: record(key, 10.0 + number) for number, key in enumerate(keys)}
    done[keys[2]] = record(keys[2], 99.0)
    assert best_cells(done) == CELLS[2]


def test_tables_show_means_and_spreads(tmp_path: Path) -> None:
    runs = {row.key: record(row.key, 80.0 + 2 * row.seed, row.method, row.share) for row in rows()}
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs.values()))
    assert read(tmp_path / "runs.jsonl") == runs
    write_report(runs, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "| sphere, sigmas 4 and 32 | 3 | 41.0 ± 1.0 | 82.0 ± 2.0 | 90.0 ± 0.0 | 95.0 ± 0.0 | 100.0 ± 0.0 |" in text
    assert "| degrees | 82.0 ± 2.0 (1,011) | 100.0 ± 0.0 | 82.0 ± 2.0 (1,011) | 100.0 ± 0.0 |" in text
    assert text.index("| 1 |") < text.index("| 4 |") < text.index("| 1 + 16 |"), "in the order of the experiments"
    assert "| queue 512 | 1 | 40.0 | 80.0 | 90.0 | 95.0 | 100.0 |" in text
    assert (tmp_path / "data.png").stat().st_size > 10_000


def test_the_committed_results_are_rows_of_today() -> None:
    path = Path(__file__).resolve().parents[2] / RESULTS / "runs.jsonl"
    assert set(read(path)) <= {row.key for row in rows()}
    assert len(read(path)) > 40
