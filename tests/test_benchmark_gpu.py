"""The benchmark of GPUs, at a small size on the processor: its operations are counted right, and every part runs."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from open_geoclip.model.backbones.clip import ClipVision


@pytest.fixture(scope="module")
def gpu(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("gpu")


def test_products_are_all_operations_of_the_image_encoder(gpu: ModuleType) -> None:
    shape = gpu.SMALL.tower
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        ClipVision(shape)(torch.empty(2, 3, 224, 224))
    assert sum(part.flops for part in gpu.products(shape, 2)) == counter.get_total_flops()


def test_the_whole_report_is_made_without_a_gpu(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "REPEATS", 1)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    text = gpu.report(gpu.SMALL, torch.device("cpu"), compiled=False)
    assert "- device: no GPU: the processor" in text
    for table in ("Image encoder, 2 photos at once", "Its products alone", "Search", "2 photos of 500 x 375 pixels"):
        assert f"## {table}" in text
    assert text.count("**all, by `train`**") >= 2
    assert "nan" not in text


def test_figures_of_a_run_without_a_gpu_are_not_published(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["--small", "--write"]):
        monkeypatch.setattr("sys.argv", ["gpu.py", *arguments])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit) as stopped:
            gpu.main()
        assert stopped.value.code == 2
