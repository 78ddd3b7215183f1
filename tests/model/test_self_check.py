"""A precision is used where its features are those of float32, and refused where they are not."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.model.backbones import runtime, self_check
from open_geoclip.model.backbones.runtime import MIN_CALIBRATION, CompiledBackbone, prepare_backbone
from open_geoclip.model.backbones.self_check import (
    Reference,
    agreement,
    centred_cosine,
    check_images,
    check_pictures,
    embed_pictures,
)
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.weights.backbones import load_image_backbone

CPU = torch.device("cpu")


class Means(nn.Module):
    """Means over 4 x 4 blocks; with a large offset, bfloat16 rounds their differences away."""

    image_size = 16

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, pixels: Float[Tensor, "n 3 16 16"]) -> Float[Tensor, "n 48"]:
        means = nn.functional.avg_pool2d(pixels.to(self.offset.dtype), 4)
        return means.flatten(1) + self.offset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "cache_dir", lambda: tmp_path / "checks")
    monkeypatch.setattr(runtime, "_has_bfloat16", lambda device: True)  # it computes everywhere, only slowly


def test_the_images_are_the_same_each_time_and_cover_contrasts() -> None:
    images = check_images(56)
    assert torch.equal(images, check_images(56))
    assert images.shape == (32, 3, 56, 56)
    assert images.abs().max() <= 1
    contrast = images.flatten(1).std(dim=1)
    assert contrast.min() < 0.12
    assert contrast.max() > 0.4


def test_the_pictures_of_releases_never_change() -> None:
    pictures = check_pictures()
    assert pictures.shape == (32, 240, 320, 3)
    corners = np.stack([pictures[0, 0, 0], pictures[31, 239, 319]]).astype(int)
    assert np.abs(corners - [[40, 47, 54], [76, 122, 75]]).max() <= 1  # but for a rounding
    assert len({picture.tobytes() for picture in pictures}) == 32


def test_what_all_images_share_makes_no_agreement() -> None:
    features = torch.randn(50, 20)
    other = torch.randn(50, 20)
    assert centred_cosine(features + 100, features + 100) == pytest.approx(1, abs=1e-4)
    assert abs(centred_cosine(other + 100, features + 100)) < 0.2


def test_auto_leaves_out_a_precision_that_changes_features() -> None:
    assert next(prepare_backbone(Means(0.0), "torch", "auto").parameters()).dtype == torch.bfloat16
    kept = Means(100.0)
    assert prepare_backbone(kept, "torch", "auto") is kept
    assert kept.offset.dtype == torch.float32


def test_a_precision_that_is_asked_for_is_refused_where_features_are_others() -> None:
    assert next(prepare_backbone(Means(1.0), "torch", "bfloat16").parameters()).dtype == torch.bfloat16
    said = r"dtype bfloat16: bfloat16 by torch: the centred cosine with features of torch in float32 is 0\.\d+, below"
    with pytest.raises(SettingsError, match=said):
        prepare_backbone(Means(100.0), "torch", "bfloat16")


def test_where_the_size_of_images_is_not_known_auto_is_float32() -> None:
    linear = nn.Linear(2, 2)
    assert prepare_backbone(linear, "torch", "auto") is linear
    assert linear.weight.dtype == torch.float32


def test_a_check_is_done_once_and_again_where_its_file_is_damaged(tmp_path: Path) -> None:
    calls: list[int] = []

    def candidate() -> nn.Module:
        calls.append(1)
        return Means(0.0)

    reference = Reference.from_backbone(Means(0.0), 16, CPU)
    for weights in ("one", "one", "other"):
        assert agreement("bfloat16 by torch", weights, reference, candidate, CPU).cosine == pytest.approx(1)
    assert len(calls) == 2
    for file in (tmp_path / "checks" / "self-check").iterdir():
        file.write_text("{")
    agreement("bfloat16 by torch", "one", reference, candidate, CPU)
    assert len(calls) == 3


def test_features_that_are_not_finite_agree_with_nothing() -> None:
    reference = Reference.from_backbone(Means(0.0), 16, CPU)
    assert agreement("bfloat16 by torch", "x", reference, lambda: Means(float("nan")), CPU).cosine == 0


def test_progress_is_shown_at_the_first_time_only() -> None:
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        prepare_backbone(Means(0.0), "torch", "bfloat16", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 32), (16, 32), (24, 32), (32, 32)] * 2  # of the reference, then of the candidate


# --- what a release was saved with ----------------------------------------------------------------

PREPROCESSING = Preprocessing(16, 16, "bicubic", (0.5,) * 3, (0.5,) * 3)


@cache
def embeddings_of(offset: float) -> Tensor:
    """Return what a release of a model would store."""
    return embed_pictures(Means(offset), PREPROCESSING, nn.functional.normalize, CPU)


def stored(offset: float, preprocessing: Preprocessing = PREPROCESSING) -> Reference:
    """Return the reference of a release, now loaded with some preprocessing."""
    embeddings = embeddings_of(offset)
    return Reference.from_release(embeddings, preprocessing, nn.functional.normalize, "dir:model", "0")


def test_a_release_recognises_its_backbone_and_refuses_others() -> None:
    reference = stored(0.0)
    same = Means(0.0)
    assert prepare_backbone(same, "torch", "float32", reference=reference) is same
    flipped = nn.Sequential(Means(0.0), nn.Linear(48, 48))
    with pytest.raises(WeightsError, match=r"with embeddings that dir:model was saved with is -?0\.\d+\. The image"):
        prepare_backbone(flipped, "torch", "float32", reference=reference)
    with pytest.raises(WeightsError, match="The image backbone or its preprocessing is not what the model was saved"):
        prepare_backbone(flipped, "torch", "bfloat16", reference=reference, side=16)


@pytest.mark.parametrize("change", [{"squash": True}, {"resize": 20}, {"mean": (0.3, 0.5, 0.7)}])
def test_a_release_recognises_its_preprocessing(change: dict[str, Any]) -> None:
    other = stored(0.0, replace(PREPROCESSING, **change))
    with pytest.raises(WeightsError, match="float32 by torch: the centred cosine with embeddings that dir:model"):
        prepare_backbone(Means(0.0), "torch", "float32", reference=other)


def test_precisions_are_held_against_what_a_release_was_saved_with() -> None:
    reference = stored(0.0)
    assert next(prepare_backbone(Means(0.0), "torch", "auto", reference=reference).parameters()).dtype == torch.bfloat16
    coarse = stored(100.0)
    with pytest.raises(SettingsError, match=r"dtype bfloat16: .* embeddings that .* is .*, below 0\.9: use float32"):
        prepare_backbone(Means(100.0), "torch", "bfloat16", reference=coarse)
    kept = Means(100.0)
    assert prepare_backbone(kept, "torch", "auto", reference=coarse) is kept


@pytest.mark.slow
def test_int8_is_quantised_once_and_refused_where_features_are_others(
    tmp_path: Path,
    save_clip: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if find_spec("openvino") is None or find_spec("nncf") is None:  # importing them here would import telemetry
        pytest.skip("the extra int8 is not installed")
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path / "networks")
    model, _ = load_image_backbone(f"dir:{save_clip(tmp_path, projection=24)}")
    images = [*check_images(56)]
    with pytest.raises(SettingsError, match="at least 32 photos like those to locate, and there are 31"):
        CompiledBackbone(model, "int8", calibration=lambda: images[: MIN_CALIBRATION - 1])
    with pytest.raises(SettingsError, match="and there are 0"):
        CompiledBackbone(model, "int8")
    first, again = CompiledBackbone(model, "int8", calibration=lambda: images), CompiledBackbone(model, "int8")
    pixels = torch.stack(images)
    with torch.no_grad():
        cosine = centred_cosine(first(pixels), model(pixels))
    assert 0.9 < cosine < 0.9999
    assert torch.equal(first(pixels), again(pixels))
    monkeypatch.setattr(runtime, "LEAST_COSINE", cosine - 1e-3)
    assert torch.equal(prepare_backbone(model, "auto", "int8")(pixels), first(pixels))
    monkeypatch.setattr(runtime, "LEAST_COSINE", cosine + 1e-3)
    with pytest.raises(
        SettingsError, match="int8 by openvino: the centred cosine with features of torch in float32 is 0"
    ):
        prepare_backbone(model, "openvino", "int8")
    assert capfd.readouterr().out == ""
    telemetry = import_module("nncf.telemetry.wrapper")
    assert isinstance(telemetry.telemetry, telemetry.NNCFTelemetryStub)


def test_int8_needs_openvino_on_a_cpu() -> None:
    with pytest.raises(SettingsError, match="dtype int8 is for CLIP and other named backbones on a CPU"):
        prepare_backbone(Means(0.0), "torch", "int8")
    with pytest.raises(SettingsError, match="dtype int8 is for CLIP and other named backbones on a CPU"):
        prepare_backbone(nn.Linear(2, 2), "auto", "int8")
