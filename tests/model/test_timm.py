"""Models of timm as backbones. Where timm is needed, in a process of its own: it imports torchvision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from open_geoclip.errors import MissingExtraError, MissingWeightsError, ModelNameError
from open_geoclip.weights.backbones import load_image_backbone
from open_geoclip.weights.folders import backbone_of, folder, offline_folder
from open_geoclip.weights.names import Name, parse_name

ROOT = Path(__file__).resolve().parents[2]
TIMM = ROOT / "build" / "timm"


@pytest.mark.slow
def test_features_and_preprocessing_equal_timm(tmp_path: Path) -> None:
    if not (TIMM / "timm").is_dir():
        pytest.skip("timm is not in build/timm: run `make timm`")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TIMM), *sys.path])}
    environment["OPEN_GEOCLIP_CACHE"] = str(tmp_path / "cache")
    script = Path(__file__).with_name("timm_models.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6


def test_the_name_is_that_of_a_repository_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "timm:vit_base_patch16_clip_224.openai"
    assert parse_name(name) == Name("hub", "timm/vit_base_patch16_clip_224.openai")
    assert parse_name(f"{name}@abc").revision == "abc"
    with pytest.raises(ModelNameError, match="is not a repository"):
        parse_name("timm:a/b")
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="geoclip pull hub:timm/vit_base"):
        load_image_backbone(name)
    place = offline_folder(parse_name(name))
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_clip_224"}))
    (place / "model.safetensors").touch()
    assert folder(name) == place
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"open-geoclip\[timm\]"):
        load_image_backbone(name)
    config = {"format": "open-geoclip", "image_encoder": {"backbone": name}}
    assert backbone_of(config, "config.json") == name, "pulled together with the model"
