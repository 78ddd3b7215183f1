"""Weights from pip and from a folder that was carried over, without a hub."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as safetensors_bytes

from open_geoclip.errors import MissingWeightsError, ModelNameError, WeightsError
from open_geoclip.weights.folders import folder, status
from open_geoclip.weights.load import load_release
from open_geoclip.weights.pull import pull
from open_geoclip.weights.registry import CLIP_BACKBONE, GALLERY_FILE, LOCATION_FILE, RECORDS
from tests.weights.hub import NAME, SHA, WANTED, Files, Heard, Hub, no_network, small_clip, wheel_of, write_files


@pytest.mark.usefixtures("not_installed")
def test_the_wheel_is_got_by_pip_and_only_weights_and_gallery_are_kept(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, released: Path
) -> None:
    wheel_of(released, tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(MissingWeightsError, match="run: geoclip pull geoclip"):
        load_release("geoclip")
    heard = Heard()
    # The hub on loopback has no CLIP ViT-L/14, so this goes as far as the heads.
    with pytest.raises(ModelNameError, match=r"openai/clip-vit-large-patch14@.*: there is no such"):
        pull("geoclip", progress=heard)
    assert "getting geoclip==1.3.0" in heard.said[0]
    ours = tmp_path / "ours" / "geoclip-1.3.0"
    assert {file.name for file in ours.iterdir()} == set(RECORDS["geoclip"].sha256)
    assert [path.name for path in ours.parent.iterdir()] == ["geoclip-1.3.0"], "no wheel is left behind"
    with no_network():
        assert load_release("geoclip").gallery == ours / GALLERY_FILE
    assert status("geoclip").folder == ours
    assert status("geoclip").bytes_here == RECORDS["geoclip"].bytes
    assert status("geoclip").bytes_to_get == RECORDS[CLIP_BACKBONE].bytes
    # What was damaged since is got again.
    (ours / LOCATION_FILE).write_bytes(b"damaged")
    with pytest.raises(ModelNameError):
        pull("geoclip")
    assert load_release("geoclip").version == "1.3.0"


@pytest.mark.usefixtures("not_installed")
def test_a_package_index_that_has_no_wheel(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MissingWeightsError, match=r"pip could not get geoclip==1\.3\.0 .*--from FOLDER"):
        pull("geoclip")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "No matching distribution" in captured.err
    assert list((tmp_path / "ours").iterdir()) == []


@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize("how", ["weights", "missing", "cut"])
def test_a_wheel_that_is_not_the_one_on_record(hub: Hub, tmp_path: Path, released: Path, how: str) -> None:
    stem = LOCATION_FILE.partition(".")[0]
    wheel = wheel_of(released, tmp_path / "usb", **({stem: b"pickle"} if how == "weights" else {}))
    if how == "cut":
        wheel.write_bytes(wheel.read_bytes()[:-100])
    if how == "missing":
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("geoclip/__init__.py", "")
    with pytest.raises(WeightsError, match=rf"{stem}\.pth: is another file|damaged or not the wheel"):
        pull("geoclip", source=tmp_path / "usb")
    assert not (tmp_path / "ours" / "geoclip-1.3.0").exists()


# --- carried over from another machine ------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "clip", f"hub/models--org--clip/snapshots/{SHA}"])
def test_a_clip_that_was_carried_over(hub: Hub, tmp_path: Path, inner: str) -> None:
    write_files(tmp_path / "usb" / inner, small_clip())
    heard = Heard()
    with no_network():
        [path] = pull(NAME, source=tmp_path / "usb", progress=heard)
        assert path == tmp_path / "ours" / "hub" / "org--clip" / SHA
        assert folder(NAME) == path
        assert pull(NAME) == [path], "what was carried over needs no network"
    assert {file.name for file in path.iterdir()} == WANTED
    assert (path / "model.safetensors").read_bytes() == small_clip()["model.safetensors"]
    assert "no hash is on record; checked that it is a CLIP whose weights can be read" in heard.said[0]
    with pytest.raises(MissingWeightsError):
        folder("hub:org/clip")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (f"hub:facebook/dinov2@{SHA}", {"model_type": "dinov2"}),
        (f"hub:google/siglip2@{SHA}", {"model_type": "siglip", "vision_config": {}, "text_config": {}}),
        ("timm:vit_tiny", {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}),
    ],
)
def test_any_backbone_is_carried_over(hub: Hub, tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    write_files(tmp_path / "usb", small_clip() | {"config.json": json.dumps(config).encode()})
    heard = Heard()
    with no_network():
        [path] = pull(name, source=tmp_path / "usb", progress=heard)
        assert folder(name) == path
    assert {file.name for file in path.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    }
    kind = config.get("model_type", config.get("architecture"))
    assert f"checked that it is a {kind} whose weights can be read" in heard.said[0]


def test_of_several_the_one_whose_path_tells_is_taken(hub: Hub, tmp_path: Path) -> None:
    write_files(tmp_path / "usb" / "one", small_clip(1))
    write_files(tmp_path / "usb" / "two", small_clip(2))
    with pytest.raises(WeightsError, match=r"several folders could be hub:org/clip@.*usb/one.*usb/two"):
        pull(NAME, source=tmp_path / "usb")
    write_files(tmp_path / "usb" / "org--clip", small_clip(3))
    [path] = pull(NAME, source=tmp_path / "usb")
    assert (path / "model.safetensors").read_bytes() == small_clip(3)["model.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config.json": b'{"hidden_size": 8}'}, "neither a GeoCLIP nor a backbone"),
        ({"model.safetensors": small_clip()["model.safetensors"][:-1]}, r"model\.safetensors: is damaged"),
        ({"model.safetensors": b""}, r"model\.safetensors: is damaged"),
        ({"model.safetensors": safetensors_bytes({"text_model.x": np.zeros(1)})}, "without its vision half"),
    ],
)
def test_a_carried_folder_that_is_no_clip(hub: Hub, tmp_path: Path, change: Files, said: str) -> None:
    write_files(tmp_path / "usb", small_clip() | change)
    with pytest.raises(WeightsError, match=said):
        pull(NAME, source=tmp_path / "usb")
    assert not (tmp_path / "ours").exists()


@pytest.mark.usefixtures("not_installed")
def test_both_parts_of_geoclip_are_carried_and_what_is_missing_is_told(
    hub: Hub, tmp_path: Path, released: Path
) -> None:
    (tmp_path / "usb").mkdir()
    with pytest.raises(MissingWeightsError, match=f"did not find geoclip nor {CLIP_BACKBONE}"):
        pull("geoclip", source=tmp_path / "usb")
    wheel_of(released, tmp_path / "usb")
    with pytest.raises(MissingWeightsError, match=f"did not find {CLIP_BACKBONE}.*What was found is in place"):
        pull("geoclip", source=tmp_path / "usb")
    with no_network():
        assert load_release("geoclip").version == "1.3.0"
    write_files(tmp_path / "usb" / "clip-vit-large-patch14", small_clip())
    with pytest.raises(WeightsError, match=rf"model\.safetensors: is another file .* not that of {CLIP_BACKBONE}"):
        pull("geoclip", source=tmp_path / "usb")
    assert hub.log == []


def test_a_source_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="there is no such folder"):
        pull(NAME, source=tmp_path / "none")
