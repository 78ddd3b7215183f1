"""A backbone run by OpenVINO gives what torch gives, and OpenVINO is chosen only where it can be used."""

import gc
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from open_geoclip.errors import SettingsError
from open_geoclip.model.backbones.clip import ClipVision
from open_geoclip.model.backbones.runtime import CompiledBackbone, prepare_backbone, resolve_dtype
from open_geoclip.weights.backbones import load_image_backbone

pytest.importorskip("openvino", reason="the extra fast is not installed")


@pytest.mark.parametrize("vision", [{}, {"hidden_act": "gelu"}, {"patch_size": 28, "layer_norm_eps": 1e-3}])
def test_equals_torch(tmp_path: Path, save_clip: Callable[..., Path], vision: dict[str, Any]) -> None:
    model, _ = load_image_backbone(f"dir:{save_clip(tmp_path, projection=40, **vision)}")
    compiled = CompiledBackbone(model)
    assert compiled.dim == 40
    for n in (1, 5, 2):
        pixels = torch.randn(n, 3, 56, 56)
        with torch.no_grad():
            expected = model(pixels)
        torch.testing.assert_close(compiled(pixels), expected, rtol=1e-4, atol=1e-4)


def test_the_embedded_backbone_equals_torch() -> None:
    model = load_image_backbone("earth")[0]
    compiled = CompiledBackbone(model)
    for n in (1, 3):
        pixels = torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(n))
        torch.testing.assert_close(compiled(pixels), model(pixels), rtol=1e-4, atol=1e-4)


def test_weights_outlive_the_model_they_came_from(tmp_path: Path, save_clip: Callable[..., Path]) -> None:
    model, _ = load_image_backbone(f"dir:{save_clip(tmp_path)}")
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = model(pixels)
    compiled = CompiledBackbone(model)
    del model
    gc.collect()
    torch.randn(4_000_000)  # takes up what was freed
    torch.testing.assert_close(compiled(pixels), expected, rtol=1e-4, atol=1e-4)


def test_engines_are_chosen(tmp_path: Path, save_clip: Callable[..., Path]) -> None:
    folder = save_clip(tmp_path)
    assert isinstance(prepare_backbone(load_image_backbone(f"dir:{folder}")[0], "auto", "float32"), CompiledBackbone)
    assert isinstance(prepare_backbone(load_image_backbone(f"dir:{folder}")[0], "torch", "float32"), ClipVision)
    assert isinstance(prepare_backbone(load_image_backbone("earth")[0], "auto", "float32"), CompiledBackbone)
    linear = nn.Linear(2, 2)
    assert prepare_backbone(linear, "auto", "float32") is linear
    with pytest.raises(SettingsError, match="on a CPU: use torch"):
        prepare_backbone(linear, "openvino", "float32")


class Cut(nn.Module):
    """What cannot be converted, as OpenVINO does not know an operator, or is another network once it was traced."""

    image_size = 16

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(48, 6)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        means = nn.functional.adaptive_avg_pool2d(pixels, 4)
        if self.how == "unknown operator":
            means = torch.linalg.eigvals(means).abs()[..., None] * means
        if self.how == "constant":
            means = means * float(means.flatten(1).std(dim=1).max())
        return self.linear(means.flatten(1))


@pytest.mark.parametrize(
    ("how", "said"),
    [("unknown operator", "OpenVINO cannot convert a Cut ("), ("constant", "float32 by openvino: the centred cosine")],
)
def test_torch_runs_what_openvino_cannot_and_says_so(how: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    backbone = Cut(how).eval()
    for _ in range(2):  # the second time by what the cache remembers
        caplog.clear()
        assert prepare_backbone(backbone, "auto", "float32") is backbone
        assert f"torch runs the image backbone, not OpenVINO: {said}" in caplog.text
    with pytest.raises(SettingsError, match=f"engine openvino: {re.escape(said)}.*: use torch"):
        prepare_backbone(backbone, "openvino", "float32")


def test_float32_is_not_tf32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    was = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    linear = nn.Linear(2, 2)
    prepare_backbone(linear, "torch", "float32", "cpu")
    allowed = [torch.backends.cudnn.allow_tf32]
    monkeypatch.setattr(linear, "to", lambda device: linear)  # there may be no GPU
    prepare_backbone(linear, "torch", "float32", "cuda")
    allowed += [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]
    torch.backends.cuda.matmul.allow_tf32 = was
    assert allowed == [True, False, False]


def test_a_compiled_backbone_equals_torch_or_says_why_it_cannot_be(
    tmp_path: Path, save_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pixels = load_image_backbone(f"dir:{save_clip(tmp_path)}")[0], torch.randn(3, 3, 56, 56)
    with torch.no_grad():
        expected = model(pixels)
    monkeypatch.setattr(torch, "compile", lambda module: module)  # compiling takes a minute
    with torch.no_grad():
        torch.testing.assert_close(prepare_backbone(model, "compile", "float32")(pixels), expected)

    def fail(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def call(pixels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("InvalidCxxCompiler: no g++\nmore")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(SettingsError, match=r"compile does not work here \(InvalidCxxCompiler: no g\+\+\): it needs"):
        prepare_backbone(model, "compile", "float32")
    with pytest.raises(SettingsError, match="needs a backbone with an image_size"):
        prepare_backbone(nn.Linear(2, 2), "compile", "float32")


def test_nothing_is_reported_to_anybody() -> None:
    """OpenVINO carries telemetry; it must not even be imported by us."""
    code = (
        "import sys, torch\n"
        "from open_geoclip.model.backbones.clip import ClipVision, ClipVisionSettings\n"
        "from open_geoclip.model.backbones.runtime import CompiledBackbone\n"
        "CompiledBackbone(ClipVision(ClipVisionSettings(32, 32, 1, 2, 28, 56, 8)))\n"
        "assert not any(module for name, module in sys.modules.items() if name.startswith('openvino_telemetry'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bfloat16_only_where_the_processor_has_it(caplog: pytest.LogCaptureFixture) -> None:
    automatic = resolve_dtype("auto")
    wished = resolve_dtype("bfloat16")
    assert automatic == wished
    assert (wished == torch.float32) == ("no bfloat16 instructions" in caplog.text)
    assert resolve_dtype("float32") == torch.float32


def test_float16_is_for_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_dtype("float16", "cuda") == torch.float16
    assert resolve_dtype("float16") == torch.float32
    assert "for a GPU" in caplog.text
