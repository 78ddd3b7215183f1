"""A module from Python as image backbone: the script of docs/models.md, and what goes wrong."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from open_geoclip.errors import WeightsError
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.model.preprocessing import CLIP_PREPROCESSING
from open_geoclip.search.locator import Locator
from open_geoclip.weights.load import load_model
from open_geoclip.weights.save import save_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_the_script_trains_saves_and_locates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = even_points(24)
    drawn = np.random.default_rng(0).integers(0, 256, (len(places), 1, 1, 3), dtype=np.uint8)
    for i, colour in enumerate(drawn):
        Image.fromarray(np.tile(colour, (70, 80, 1))).save(f"{i}.png")
    rows = [f"{i}.png,{lat:.5f},{lon:.5f}" for i, (lat, lon) in enumerate(places.tolist())]
    Path("photos.csv").write_text("\n".join(["IMG_FILE,LAT,LON", *rows]) + "\n")
    [script] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    names: dict[str, object] = {}
    exec(script, names)
    locator = names["locator"]
    assert isinstance(locator, Locator)
    answers = locator.locate([f"{i}.png" for i in range(len(places))], 1)
    found = np.array([(answer.candidates[0].lat, answer.candidates[0].lon) for answer in answers])
    assert (haversine_km(places, found) < 500).sum() >= 18, "images of one colour each are learned by heart"
    with pytest.raises(WeightsError, match=r"does not name its image backbone: give one, .* or in Python the module"):
        Locator.from_pretrained("dir:runs/own/model")
    with pytest.raises(WeightsError, match="trained on features of length 192; those of custom have 12288"):
        Locator.from_pretrained("dir:runs/own/model", backbone=nn.Flatten())


def test_a_module_that_is_on_the_device_already(tmp_path: Path) -> None:
    shape = LocationSettings(sigmas=(1.0,), features=4, width=8, depth=1, output=8)
    model = GeoCLIP.for_features(torch.randn(9, 5), shape, hidden=(), preprocessing=CLIP_PREPROCESSING)
    model.image_encoder.fold_standardization()
    save_model(tmp_path / "model", model, card={})
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)).to("meta")  # as on a GPU
    found = load_model(f"dir:{tmp_path / 'model'}", backbone=backbone, device="meta")
    assert found.image_encoder.backbone is backbone
