"""Loading the released weights, from their wheel and from a folder: no other file of their names is opened."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from open_geoclip.errors import WeightsError
from open_geoclip.model.image_encoder import ImageSettings
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.model.preprocessing import CLIP_PREPROCESSING
from open_geoclip.weights.load import load_release
from open_geoclip.weights.registry import CLIP_BACKBONE, GALLERY_FILE, LOCATION_FILE, RECORDS


def test_the_released_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, released: Path) -> None:
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(tmp_path))
    loaded = load_release("geoclip")
    assert loaded.location == LocationSettings()
    assert loaded.image == ImageSettings(CLIP_BACKBONE)
    assert loaded.version == "1.3.0"
    assert loaded.preprocessing == CLIP_PREPROCESSING
    assert loaded.record is RECORDS["geoclip"]
    assert loaded.gallery == released / "model" / "gps_gallery" / GALLERY_FILE
    assert loaded.tensors["logit_scale"].item() == pytest.approx(3.68103, abs=1e-5)
    sizes = {"location_encoder": 9_449_472, "image_encoder": 984_320, "logit_scale": 1}
    for start, size in sizes.items():
        assert sum(t.numel() for name, t in loaded.tensors.items() if name.startswith(start)) == size
    # Anyone who reads the same files gets the same fingerprint, on any machine.
    assert loaded.fingerprint.startswith("b16061b3f7171f57")


@pytest.mark.parametrize("inner", ["", "model", "geoclip/model"])
def test_the_released_files_unpacked(tmp_path: Path, released: Path, inner: str) -> None:
    flat = inner == ""
    for file in RECORDS["geoclip"].sha256:
        kind = "gps_gallery" if file == GALLERY_FILE else "weights"
        target = tmp_path / file if flat else tmp_path / inner / kind / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(released / "model" / kind / file)
    assert load_release(f"dir:{tmp_path}").fingerprint.startswith("b16061b3f7171f57")
    (target.parent / file).unlink()
    with pytest.raises(WeightsError, match="holds no weights of a known layout"):
        load_release(f"dir:{tmp_path}")


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_another_pickle_is_never_opened(tmp_path: Path, released: Path) -> None:
    for file in RECORDS["geoclip"].sha256:
        kind = "gps_gallery" if file == GALLERY_FILE else "weights"
        shutil.copyfile(released / "model" / kind / file, tmp_path / file)
    (tmp_path / LOCATION_FILE).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(WeightsError) as caught:
        load_release(f"dir:{tmp_path}")
    message = str(caught.value)
    assert str(tmp_path / LOCATION_FILE) in message
    assert RECORDS["geoclip"].sha256[LOCATION_FILE] in message
    assert "geoclip pull geoclip" in message
    assert not (tmp_path / "exploded").exists()


def test_another_gallery_is_refused(tmp_path: Path, released: Path) -> None:
    for file in RECORDS["geoclip"].sha256:
        kind = "gps_gallery" if file == GALLERY_FILE else "weights"
        shutil.copyfile(released / "model" / kind / file, tmp_path / file)
    with (tmp_path / GALLERY_FILE).open("a") as gallery:
        gallery.write("0,0\n")
    with pytest.raises(WeightsError, match=f"{GALLERY_FILE}: is another file"):
        load_release(f"dir:{tmp_path}")
