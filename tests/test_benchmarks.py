"""The report of the benchmarks: what is made of times and memory. The benchmarks themselves run by `make bench`."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search import two_level
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.search_space import SearchSpace


def test_research_is_found_in_a_checkout(tmp_path: Path) -> None:
    """A benchmark that is run as a file has its own folder in the path, not the root of the repository."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('research') is None)"
    assert subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=False).returncode == 0


@pytest.fixture(scope="module")
def report(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("report")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00123, "1.23 ms"),
        (0.0123, "12.3 ms"),
        (0.123, "123 ms"),
        (1.234, "1.23 s"),
        (18.26, "18.3 s"),
        (384.4, "384 s"),
    ],
)
def test_durations_have_three_digits(report: ModuleType, value: float, text: str) -> None:
    assert report.seconds(value) == text


def test_memory_is_split_into_own_pages_and_mapped_files(report: ModuleType) -> None:
    status = (
        "Name:\tpython\nVmPeak:\t  9000 kB\nVmHWM:\t    3000 kB\nVmRSS:\t    2500 kB\n"
        "RssAnon:\t    1500 kB\nRssFile:\t     900 kB\nRssShmem:\t     100 kB\nThreads:\t4\n"
    )
    memory = report.parse_status(status)
    assert memory == report.Memory(own=1500 * 1024, files=1000 * 1024, peak=3000 * 1024)
    assert memory.total == 2500 * 1024


def test_a_process_that_is_ending_has_no_memory(report: ModuleType) -> None:
    assert report.parse_status("Name:\tpython\nState:\tZ (zombie)\n") == report.Memory(0, 0, 0)


def test_the_machine_s_own_status_can_be_read(report: ModuleType) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("there is no /proc here")
    memory = report.parse_status(status.read_text())
    assert 0 < memory.own < memory.total
    assert memory.peak > 1_000_000


def test_ratios_are_of_medians_and_one_slow_run_does_not_show(report: ModuleType) -> None:
    found = report.Report("make bench", {"machine": "two cores"})
    for released, ours in ((18.0, 1.0), (380.0, 1.2), (20.0, 0.9)):
        found.add("A photo", "released", released)
        found.add("A photo", "ours", ours)
    found.add("A photo", "limit", 0.8)
    found.add("A search", "ours", 0.04)
    text = found.to_markdown()
    assert "| A photo | **20** | 20.0 s (18.0 s to 380 s) | 1.00 s (900 ms to 1.20 s) | 800 ms |" in text
    assert "| A search |  |  | 40.0 ms |  |" in text
    assert "- machine: two cores" in text
    assert json.loads(found.to_json())["ratios"] == {"A photo": 20.0}
    assert json.loads(found.to_json())["rows"]["A photo"]["released"] == [18.0, 380.0, 20.0]


@pytest.mark.parametrize(("difference", "passed"), [(9e-6, True), (1e-5, True), (2e-5, False), (math.nan, False)])
def test_a_difference_above_the_limit_fails(report: ModuleType, difference: float, passed: bool) -> None:
    found = report.Report("make bench", {})
    found.check_at_most("probabilities", difference, 1e-5)
    assert list(found.checks.values()) == [passed]
    assert (f"- {'yes' if passed else '**NO**'}: probabilities within 1e-05" in found.to_markdown()) is True


def test_what_mp16_costs_follows_from_the_rates(benchmark_module: Callable[[str], ModuleType]) -> None:
    mp16 = benchmark_module("mp16")
    plan = mp16.Plan(3_600_000, views=2, epochs=10, processes=4, views_a_second=100.0, photos_a_second=2500.0)
    assert plan.encoding_hours == pytest.approx(5)
    assert plan.training_hours == pytest.approx(1)
    assert "| features, float16 | 11.1 GB |" in plan.table()
    assert "| encoding, 2 views a photo, once | 5 hours |" in plan.table()


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("benchmarks-gpu.md", "python benchmarks/gpu.py"),
        ("location-embeddings.md", "make location-benchmark"),
        ("refinement.md", "make refinement, earth"),
        ("refinement.md", "make refinement, released"),
        ("text.md", "make text-cost"),
        ("verify.md", "make verify-rates"),
    ],
)
def test_a_page_keeps_all_but_what_a_command_writes(report: ModuleType, tmp_path: Path, page: str, name: str) -> None:
    whole = (Path(__file__).resolve().parents[1] / "docs" / page).read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    copy = tmp_path / page
    copy.write_text(whole, encoding="utf-8")
    for _ in range(2):
        report.put_between(copy, name, "X")
        assert (
            copy.read_text(encoding="utf-8")
            == whole.partition(begin)[0] + f"{begin}\n\nX\n\n{end}" + whole.partition(end)[2]
        )
    with pytest.raises(SystemExit, match="no place for it"):
        report.put_between(copy, "make nothing", "X")
    assert [path.name for path in tmp_path.iterdir()] == [page]


def test_exact_search_goes_on_and_blocks_compare(
    benchmark_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    large = benchmark_module("large_gallery")
    monkeypatch.setattr(large, "BLOCK", 64)
    monkeypatch.setattr(large, "CHUNK", 3)
    monkeypatch.setattr(two_level, "MAX_INDEX_BYTES", 0)
    settings = LocationSettings(sigmas=(1.0,), features=8, width=16, depth=1, output=16, projection="sphere")
    encoder, gallery = LocationEncoder(settings).eval(), large.make_gallery(600)
    queries = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    first = large.search_exactly(encoder, gallery, queries, 30.0, tmp_path)
    (tmp_path / "00000192.npz").unlink()  # as if a run had ended there
    found = large.search_exactly(encoder, gallery, queries, 30.0, tmp_path, backwards=True)
    log_mass = torch.log_softmax(30 * queries @ encoder.encode(torch.from_numpy(gallery.coordinates)).T, dim=1)
    torch.testing.assert_close(found.log_mass, log_mass.topk(16, dim=1).values, rtol=0, atol=1e-4)
    assert torch.equal(first.rows, found.rows)
    space = SearchSpace.build(encoder, gallery, folder=tmp_path)
    for opened in (50, 10**6):
        monkeypatch.setattr(two_level, "_OPENED", opened)
        masses = [large.block_masses(space, space.posterior(query[None], 30.0, Calibration())) for query in queries]
        assert [float(mass.sum()) for mass in masses] == pytest.approx([1.0] * 5, abs=1e-5)
    torch.testing.assert_close(torch.stack(masses).float(), found.block_log_mass.exp(), rtol=0, atol=2e-3)


def test_a_precision_is_judged_by_its_answers(benchmark_module: Callable[[str], ModuleType]) -> None:
    precision = benchmark_module("precision")
    places, coordinates = torch.eye(3), torch.tensor([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0]], dtype=torch.float64)
    truth = coordinates[[0, 1]]
    same = precision.compare_answers(places[[0, 1]], places[[0, 1]], places, coordinates, truth)
    assert same["equal_top_1"] == same["within_25_km"] == 100
    assert same["moved_km"] == 0
    moved = precision.compare_answers(places[[0, 2]], places[[0, 1]], places, coordinates, truth)
    assert moved["equal_top_1"] == moved["moved_25_km"] == moved["within_200_km"] == 50
    assert moved["moved_km"] == pytest.approx(558.7, rel=0.01)
    row = {"one_s": 0.02, "batch_s": 0.01, "check_cosine": 1.0, "views_cosine": 1.0, **same}
    rows = {
        "float32": row,
        "bfloat16": row | {"check_cosine": 0.99, "one_s": 0.01},
        "int8": row | {"check_cosine": 0.8},
    }
    text = precision.to_markdown({"machine": {"machine": "a"}, "views": 2, "earth": rows})
    assert "| float32 | 20.0 ms | 1.00 | 10.0 ms | 1.00 | 1.00000 | chosen by `auto` |" in text
    assert "| bfloat16 | 10.0 ms | 2.00 | 10.0 ms | 1.00 | 0.99000 | if asked for |" in text
    assert "| 0.80000 | refused |" in text
