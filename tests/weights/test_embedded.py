"""The embedded model: it is small, and knows its backbone and preprocessing by the pictures of the self-check."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from open_geoclip.errors import WeightsError
from open_geoclip.model.backbones.self_check import centred_cosine
from open_geoclip.weights.folders import EMBEDDED
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.save import save_self_check


def test_weights_in_the_repository_are_at_most_12_megabytes() -> None:
    sizes = [path.stat().st_size for path in EMBEDDED.parent.rglob("*.safetensors")]
    assert 0 < sum(sizes) <= 12_000_000


def test_its_self_check_is_what_the_command_writes(tmp_path: Path) -> None:
    """``python -m research.earth_model --self-check`` writes it."""
    committed = load_release("earth").self_check
    assert committed is not None
    folder = shutil.copytree(EMBEDDED, tmp_path / "earth")
    save_self_check(folder)
    written = load_release(f"dir:{folder}").self_check
    assert written is not None
    torch.testing.assert_close(written.float(), committed.float(), rtol=0, atol=1e-3)
    assert centred_cosine(written.float(), committed.float()) > 0.9999


def test_other_preprocessing_is_refused_before_a_photo_is_located(tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED, tmp_path / "earth")
    config = json.loads((folder / "config.json").read_text())
    config["preprocessing"] |= {"mean": [0.481, 0.458, 0.408], "std": [0.269, 0.261, 0.276]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        WeightsError, match=r"saved with is 0\.\d+\. The image backbone or its preprocessing is not what"
    ):
        load_model(f"dir:{folder}", towers=("image",))
