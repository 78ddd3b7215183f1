"""Pushing a model to a hub on loopback, and its README."""

from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from open_geoclip.errors import MissingWeightsError, ModelNameError, SettingsError, WeightsError
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.weights.hub import hub_errors
from open_geoclip.weights.load import load_release
from open_geoclip.weights.names import parse_name
from open_geoclip.weights.pull import pull
from open_geoclip.weights.push import push
from open_geoclip.weights.save import save_model
from tests.weights.hub import NAME, SHA, Heard, Hub, small_clip, write_files


def trained_model(folder: Path, backbone: str) -> str:
    """Write a model with gallery and curves, as `geoclip train` does; return its name."""
    location = LocationSettings(sigmas=(4.0,), features=2, width=3, depth=1, output=2)
    model = GeoCLIP(ImageEncoder(None, None, ImageSettings(backbone, (3, 2))), LocationEncoder(location))
    gallery, curves = folder / "places.csv", folder / "curves.png"
    gallery.write_text("lat,lon\n48.86,2.35\n")
    curves.write_bytes(b"png")
    card = {"title": "Holiday", "trained_on": "200 photos", "kept_epoch": {"epoch": 3, "median_km": 81.25}}
    return f"dir:{save_model(folder / 'model', model, card=card, gallery=gallery, curves=curves)}"


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log in, and upload over plain HTTP: the hub here has no Xet storage."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


@pytest.mark.usefixtures("token")
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
def test_what_is_pushed_is_pulled_on_another_machine(hub: Hub, tmp_path: Path) -> None:
    name, heard = trained_model(tmp_path, f"dir:{tmp_path / 'clip'}"), Heard()
    with pytest.raises(SettingsError, match=r"a folder that nobody else has.*--backbone hub:org/repo"):
        push(name, "hub:me/holiday")
    assert "me/holiday" not in hub.created, "nothing is made before all is checked"
    assert push(name, "hub:me/holiday", backbone=NAME, progress=heard) == f"hub:me/holiday@{SHA}"
    assert hub.created == {"me/holiday": True}, "private unless asked for"
    assert "gallery.csv lists the places" in heard.said[0]
    pushed = hub.repositories["me/holiday"]
    assert set(pushed) == {"config.json", "model.safetensors", "gallery.csv", "README.md", "training.png"}
    assert str(tmp_path) not in pushed["config.json"].decode() + pushed["README.md"].decode()
    pulled = f"hub:me/holiday@{SHA}"
    assert len(pull(pulled)) == 2, "with its backbone"
    mine, theirs = load_release(name), load_release(pulled)
    assert mine.fingerprint == theirs.fingerprint
    assert theirs.image is not None
    assert theirs.image.backbone == NAME
    push(name, "hub:me/open", backbone=NAME, public=True)
    assert hub.created["me/open"] is False


def test_the_readme_says_what_a_model_is(tmp_path: Path) -> None:
    readme = (Path(trained_model(tmp_path, "earth").removeprefix("dir:")) / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: open-geoclip\n")
    for text in ("# Holiday", "geoclip locate photo.jpg --model", "| 200 photos |", "epoch 3, median_km 81.25"):
        assert text in readme
    assert "1 places; whoever has this folder has them" in readme
    assert "![Training curves](training.png)" in readme


def test_a_push_that_cannot_be(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = trained_model(tmp_path, "earth")
    with pytest.raises(ModelNameError, match=r"may not be written .status 40.*: log in"):
        push(name, "hub:me/holiday")
    with pytest.raises(ModelNameError, match="pushed to hub:org/repo"):
        push(name, "hub:me/holiday@main")
    with pytest.raises(WeightsError, match="only a model that `geoclip train`"):
        push(f"dir:{write_files(tmp_path / 'clip', small_clip())}", "hub:me/holiday")
    with (
        pytest.raises(MissingWeightsError, match=r"broke off .Network error.* run the same command again$"),
        hub_errors(parse_name(NAME)),
    ):
        raise ConnectionError("Network error: no Xet storage")  # as hf_xet says it
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeightsError, match="HF_HUB_OFFLINE is set"):
        push(name, "hub:me/holiday")
