"""Reading each published layout, and writing our own."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from open_geoclip.errors import MissingWeightsError, SettingsError, WeightsError
from open_geoclip.files import sha256
from open_geoclip.model.adapter import backbone_sha256
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import CLIP_PREPROCESSING, Preprocessing
from open_geoclip.model.subspace import PrincipalSubspace
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.release import _fingerprint as fingerprint
from open_geoclip.weights.save import save_model, save_release, save_self_check, save_subspace

LOCATION = LocationSettings(sigmas=(1.0, 256.0), features=4, width=6, depth=2, output=5, projection="equal_earth")
WIDTHS = (7, 6, 5)
IMAGE = ImageSettings("earth", WIDTHS)
PREPROCESSING = Preprocessing(8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CONFIG: dict[str, Any] = {
    "location_encoder": asdict(LOCATION),
    "image_encoder": {"backbone": "earth", "widths": list(WIDTHS)},
    "preprocessing": asdict(PREPROCESSING),
    "card": {"licence": "MIT", "trained_on": "noise", "accuracy": {"nothing": {"25 km": 0.1}}},
}


def some_tensors(
    location: LocationSettings = LOCATION, widths: tuple[int, ...] | None = WIDTHS, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = None if widths is None else ImageEncoder(None, None, ImageSettings("earth", widths))
    shapes = GeoCLIP(image, LocationEncoder(location)).state_dict()
    if image is None:
        del shapes["logit_scale"]
    return {name: torch.randn(shapes[name].shape, generator=generator) for name in shapes}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A small release in our own layout."""
    gallery = tmp_path / "places.csv"
    gallery.write_text("LAT,LON\n1,2\n")
    return save_release(tmp_path / "own", some_tensors(), CONFIG, gallery=gallery, dtype="float32")


# --- our own layout -------------------------------------------------------------------------------


def test_another_backbone_of_the_same_length_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained_with, other = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 7)) for _ in range(2))
    image = {**asdict(IMAGE), "backbone": "custom", "backbone_sha256": backbone_sha256(trained_with)}
    folder = save_release(tmp_path / "own", some_tensors(), {**CONFIG, "image_encoder": image})
    load_model(f"dir:{folder}", backbone=trained_with, dtype="float32")
    assert not caplog.records
    load_model(f"dir:{folder}", backbone=other, dtype="float32")
    assert "trained with another backbone" in caplog.text


def test_what_is_saved_in_float32_is_loaded_to_the_bit(release: Path) -> None:
    loaded = load_release(f"dir:{release}")
    given_ = some_tensors()
    assert loaded.tensors.keys() == given_.keys()
    assert all(torch.equal(loaded.tensors[name], given_[name]) for name in given_)
    assert loaded.location == LOCATION
    assert loaded.image == IMAGE
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.gallery is not None
    assert loaded.gallery.read_text() == "LAT,LON\n1,2\n"
    assert loaded.name == f"dir:{release}"
    assert loaded.version == loaded.fingerprint[:12]
    assert loaded.record is not None
    assert (loaded.record.licence, loaded.record.trained_on) == ("MIT", "noise")
    assert loaded.record.accuracy == {"nothing": {"25 km": 0.1}}


def test_those_who_may_read_the_configuration_may_read_the_weights(release: Path) -> None:
    assert (release / "model.safetensors").stat().st_mode == (release / "config.json").stat().st_mode


def test_float16_halves_the_file_but_never_the_frequencies(tmp_path: Path) -> None:
    tensors = some_tensors()
    target = save_release(tmp_path / "half", tensors, CONFIG)
    on_disk = load_file(target / "model.safetensors")
    loaded = load_release(f"dir:{target}").tensors
    for name, tensor in tensors.items():
        exact = name == "logit_scale" or name.endswith("capsule.0.b")
        assert on_disk[name].dtype == (torch.float32 if exact else torch.float16)
        assert loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name], tensor, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-6)


def test_a_location_encoder_alone(tmp_path: Path) -> None:
    config = {**CONFIG, "image_encoder": None, "preprocessing": None}
    tensors = some_tensors(widths=None)
    loaded = load_release(f"dir:{save_release(tmp_path / 'alone', tensors, config)}")
    assert loaded.tensors.keys() == tensors.keys()
    assert (loaded.image, loaded.gallery, loaded.preprocessing) == (None, None, None)


def test_three_numbers_a_place_for_the_sphere(tmp_path: Path) -> None:
    location = replace(LOCATION, projection="sphere")
    target = save_release(tmp_path / "sphere", some_tensors(location), {**CONFIG, "location_encoder": asdict(location)})
    loaded = load_release(f"dir:{target}")
    assert loaded.location.projection == "sphere"
    assert loaded.tensors["location_encoder.LocEnc0.capsule.0.b"].shape == (4, 3)


def test_the_subspace_of_training_images_is_part_of_a_release(release: Path) -> None:
    before = load_release(f"dir:{release}")
    assert before.subspace is None
    features = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    save_subspace(release, PrincipalSubspace.fit(features, channels=3, positions=2, k=1))
    after = load_release(f"dir:{release}")
    assert after.subspace is not None
    assert after.subspace.distance(features).shape == (50,)
    assert after.fingerprint == before.fingerprint  # answers of images in distribution stay the same
    save_file({"mean": torch.zeros(1)}, release / "subspace.safetensors")
    with pytest.raises(WeightsError, match=r"subspace.safetensors: is another file than expected"):
        load_release(f"dir:{release}")


class Thumbnail(nn.Module):
    """Seven means of the pixels, some of which a gain changes."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(1.0, gain, 7))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.gain * nn.functional.adaptive_avg_pool2d(pixels, 3).flatten(1)[:, 3:10]


def test_a_release_knows_its_backbone_by_the_pictures_of_its_self_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = {**asdict(IMAGE), "backbone": "custom", "backbone_sha256": backbone_sha256(Thumbnail())}
    folder = save_release(tmp_path / "own", some_tensors(), {**CONFIG, "image_encoder": image})
    before = load_release(f"dir:{folder}")
    with pytest.raises(WeightsError, match="does not name its image backbone"):
        save_self_check(folder)
    save_self_check(folder, Thumbnail())
    release = load_release(f"dir:{folder}")
    assert release.self_check is not None
    assert (release.self_check.shape, release.fingerprint) == ((32, 5), before.fingerprint)
    assert (
        sha256(folder / "self_check.safetensors")
        == json.loads((folder / "config.json").read_text())["sha256"]["self_check.safetensors"]
    )
    load_model(release, backbone=Thumbnail())
    load_model(release, backbone=Thumbnail(1 + 1e-6))  # other weights, the same features
    assert not caplog.records
    with pytest.raises(WeightsError, match=f"embeddings that dir:{folder} was saved with .* is not what the model was"):
        load_model(release, backbone=Thumbnail(-1.0))
    save_self_check(folder, Thumbnail(-1.0))  # and it may be written again
    load_model(f"dir:{folder}", backbone=Thumbnail(-1.0))


@pytest.mark.parametrize(
    ("tensors", "pictures", "said"),
    [
        ({"embeddings": torch.zeros(32, 4)}, "1", "holds no embeddings of 32 pictures, of length 5"),
        ({"embeddings": torch.full((32, 5), torch.nan)}, "1", "holds no embeddings of 32 pictures, of length 5"),
        ({"mean": torch.zeros(32, 5)}, "1", "holds no embeddings of 32 pictures, of length 5"),
        ({"embeddings": torch.ones(32, 5)}, "99", None),
    ],
)
def test_a_self_check_that_does_not_fit(
    release: Path, tensors: dict[str, Tensor], pictures: str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(tensors, release / "self_check.safetensors", {"pictures": pictures})
    hashed = sha256(release / "self_check.safetensors")
    changed(release, lambda config: config["sha256"].update({"self_check.safetensors": hashed}))
    if said is None:
        assert load_release(f"dir:{release}").self_check is None
        assert "was made by another version of OpenGeoCLIP" in caplog.text
        return
    with pytest.raises(WeightsError, match=said):
        load_release(f"dir:{release}")


def test_a_model_that_tells_no_picture_from_another_has_no_self_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = some_tensors()
    tensors["image_encoder.mlp.2.weight"].zero_()
    folder = save_release(tmp_path / "own", tensors, CONFIG)
    save_self_check(folder, Thumbnail())
    assert "gives all pictures of the self-check the same embedding" in caplog.text
    assert load_release(f"dir:{folder}").self_check is None


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(extra=1), "unknown key extra"),
        (lambda c: c.pop("card"), "key card is missing"),
        (lambda c: c.pop("sha256"), "key sha256 is missing"),
        (lambda c: c.update(format_version=2), "format_version is 2"),
        (lambda c: c.update(format_version=True), "format_version is True"),
        (lambda c: c.update(location_encoder=[]), "location_encoder must be an object"),
        (lambda c: c["location_encoder"].update(layers=3), "location_encoder: unknown key layers"),
        (lambda c: c["location_encoder"].pop("width"), "location_encoder: the key width is missing"),
        (lambda c: c["location_encoder"].update(projection="mercator"), "mercator"),
        (lambda c: c["location_encoder"].update(features=0), "features: from 1 to"),
        (lambda c: c["location_encoder"].update(width=6.0), "width must be a whole number, not 6.0"),
        (lambda c: c["location_encoder"].update(depth=10**9), "depth: from 1 to 64, not 1000000000"),
        (lambda c: c["location_encoder"].update(sigmas=[]), "sigmas: one to 64 numbers"),
        (lambda c: c["location_encoder"].update(sigmas=[1, -2]), "sigmas: one to 64 numbers above 0"),
        (
            lambda c: c["location_encoder"].update(sigmas=[1, float("nan")]),
            r"sigmas\[1\] must be a finite number, not nan",
        ),
        (lambda c: c["location_encoder"].update(sigmas=[1] * 10**5), "sigmas: one to 64"),
        (lambda c: c["image_encoder"].update(widths=[7]), "widths: two or more"),
        (lambda c: c["image_encoder"].update(backbone="geoclp"), "Did you mean 'geoclip'"),
        (lambda c: c["image_encoder"].update(backbone=None), "backbone must be a text"),
        (lambda c: c.update(card="x"), "card must be an object"),
        (lambda c: c.update(gallery="../places.csv"), "'../places.csv' is not the name of a .csv file"),
        (lambda c: c.update(gallery="/etc/x.csv"), "is not the name of a .csv file"),
        (lambda c: c.update(gallery="..\\x.csv"), "is not the name of a .csv file"),
        (lambda c: c.update(gallery="model.safetensors"), "is not the name of a .csv file"),
        (lambda c: c.update(gallery="other.csv"), "gallery .* is missing"),
        (lambda c: c["sha256"].pop("gallery.csv"), "sha256: the key gallery.csv is missing"),
        (lambda c: c["sha256"].update({"x": ""}), "sha256: unknown key x"),
        (lambda c: c["sha256"].update({"model.safetensors": "0" * 64}), "model.safetensors: is another file"),
        (lambda c: c["sha256"].update({"gallery.csv": None}), "gallery.csv: is another file"),
        (lambda c: c.update(format="other"), "describes no GeoCLIP"),
        (lambda c: (c.pop("format"), c.update(model_type="clip")), "is a CLIP.*--backbone dir:"),
    ],
)
def test_a_wrong_configuration_is_refused_by_its_key(
    release: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    changed(release, change)
    with pytest.raises(WeightsError, match=said):
        load_release(f"dir:{release}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("\xff", "is not JSON"),
        ("[" * 9**5, "is not JSON"),
    ],
)
def test_what_is_no_configuration_at_all(release: Path, text: str, said: str) -> None:
    (release / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=said):
        load_release(f"dir:{release}")


@pytest.mark.parametrize("file", ["model.safetensors", "gallery.csv"])
def test_one_bit_flipped_on_disk_is_seen(release: Path, file: str) -> None:
    content = bytearray((release / file).read_bytes())
    content[-1] ^= 1
    (release / file).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{file}: is another file than expected \(sha256 .*, expected"):
        load_release(f"dir:{release}")


def test_weights_that_are_gone(release: Path) -> None:
    (release / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing"):
        load_release(f"dir:{release}")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        (
            "location_encoder.LocEnc1.head.0.bias",
            torch.zeros(4),
            r"LocEnc1.head.0.bias has shape \(4,\), expected \(5,\)",
        ),
        (
            "location_encoder.LocEnc0.capsule.0.b",
            torch.zeros(4, 3),
            r"LocEnc0.capsule.0.b has shape \(4, 3\)",
        ),
        ("image_encoder.mlp.2.weight", torch.full((5, 6), torch.nan), "mlp.2.weight holds NaN or infinity"),
        ("logit_scale", torch.tensor(torch.inf), "logit_scale holds NaN or infinity"),
        ("logit_scale", torch.tensor([1.0]), r"logit_scale has shape \(1,\)"),
        ("logit_scale", torch.tensor(1), "logit_scale holds torch.int64"),
        ("image_encoder.mlp.4.weight", torch.zeros(5, 5), "mlp.4.weight is not expected"),
        ("image_encoder.mlp.0.bias", None, "mlp.0.bias is missing"),
        ("image_encoder.mlp.0.bias", torch.full((6,), 1e5), "mlp.0.bias holds numbers too large for float16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, name: str, tensor: Tensor | None, said: str
) -> None:
    tensors = some_tensors()
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    with pytest.raises(WeightsError, match=said):
        save_release(tmp_path / "bad", tensors, CONFIG)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_two_sides_of_different_lengths(tmp_path: Path) -> None:
    config = {**CONFIG, "image_encoder": {"backbone": "earth", "widths": [7, 6]}}
    with pytest.raises(WeightsError, match="image head ends in 6 numbers, the location encoder in 5"):
        save_release(tmp_path / "bad", some_tensors(widths=(7, 6)), config)


@pytest.mark.parametrize("change", [{"colour": 1}, {"gallery": "gallery.csv"}])
def test_saving_takes_no_unknown_key(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="config: unknown key"):
        save_release(tmp_path / "bad", some_tensors(), {**CONFIG, **change})


def test_saving_replaces_as_a_whole_or_not_at_all(release: Path, tmp_path: Path) -> None:
    before = load_release(f"dir:{release}")
    with pytest.raises(FileNotFoundError):
        save_release(release, some_tensors(seed=1), CONFIG, gallery=tmp_path / "none.csv")
    assert load_release(f"dir:{release}").fingerprint == before.fingerprint
    save_release(release, some_tensors(seed=1), CONFIG)
    after = load_release(f"dir:{release}")
    assert after.fingerprint != before.fingerprint
    assert after.gallery is None
    assert sorted(path.name for path in release.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "places.csv"], "nothing is left behind"


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years")
    with pytest.raises(WeightsError, match="holds files that are no release"):
        save_release(tmp_path, some_tensors(), CONFIG)
    assert (tmp_path / "thesis.tex").exists()


def test_a_saved_model_is_the_model_that_is_loaded(tmp_path: Path) -> None:
    model = GeoCLIP(ImageEncoder(torch.nn.Identity(), PREPROCESSING, IMAGE), LocationEncoder(LOCATION), scale=20.0)
    folder = save_model(tmp_path / "saved", model, card={}, dtype="float32")
    loaded = load_model(f"dir:{folder}", towers=("text",))
    assert loaded.image_encoder.settings == IMAGE
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert load_model(f"dir:{folder}", towers=()).image_encoder is None
    with pytest.raises(SettingsError, match="has no backbone"):
        loaded(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2))


# --- fingerprint ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_fingerprint_changes_with_any_number(data: st.DataObject) -> None:
    tensors = some_tensors()
    before = fingerprint(tensors, LOCATION)
    name = data.draw(st.sampled_from(sorted(tensors)))
    flat = tensors[name].view(-1)
    at = data.draw(st.integers(0, flat.numel() - 1))
    flat[at] = torch.nextafter(flat[at], torch.tensor(torch.inf))
    assert fingerprint(tensors, LOCATION) != before


def test_the_fingerprint_is_of_the_content_not_of_its_order_or_place(release: Path, tmp_path: Path) -> None:
    tensors = some_tensors()
    turned = dict(reversed(tensors.items()))
    assert fingerprint(turned, LOCATION) == fingerprint(tensors, LOCATION) == load_release(f"dir:{release}").fingerprint
    other = replace(LOCATION, projection="sphere")
    assert fingerprint(tensors, other) != fingerprint(tensors, LOCATION)


# --- releases on the Hub --------------------------------------------------------------------------


def hub_release(folder: Path, *, alone: bool = False, **config: Any) -> Path:
    folder.mkdir(parents=True)
    tensors = some_tensors(widths=None if alone else WIDTHS)
    if alone:
        tensors = {name.removeprefix("location_encoder."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "gallery.csv").write_text("LAT,LON\n1,2\n")
    kind = "geoclip-location-encoder" if alone else "geoclip-geolocation"
    whole = {"model_type": kind, "format_version": 1, "sigma": [1, 256], "library_name": "geoclip"}
    if not alone:
        whole |= {"gallery_file": "gallery.csv", "backbone": {"repo_id": "org/clip", "revision": "a" * 40}}
    (folder / "config.json").write_text(json.dumps(whole | config))
    return folder


def test_a_release_on_the_hub(tmp_path: Path) -> None:
    loaded = load_release(f"dir:{hub_release(tmp_path / ('c' * 40))}")
    assert loaded.location == LOCATION
    assert loaded.image == ImageSettings(f"hub:org/clip@{'a' * 40}", WIDTHS)
    assert loaded.gallery == tmp_path / ("c" * 40) / "gallery.csv"
    assert loaded.preprocessing == CLIP_PREPROCESSING
    assert loaded.version == "c" * 40
    assert loaded.record is None
    for name, tensor in some_tensors().items():
        assert torch.equal(loaded.tensors[name], tensor.bfloat16().float())


def test_our_own_layout_in_a_cache_tells_its_commit(release: Path) -> None:
    assert load_release(f"dir:{release.rename(release.with_name('d' * 40))}").version == "d" * 40


def test_a_location_encoder_from_the_hub_gets_its_prefix(tmp_path: Path) -> None:
    loaded = load_release(f"dir:{hub_release(tmp_path / 'loc', alone=True)}")
    assert loaded.location == LOCATION
    assert loaded.tensors.keys() == some_tensors(widths=None).keys()
    assert (loaded.image, loaded.gallery) == (None, None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"format_version": 2}, "format_version is 2, only 1"),
        ({"format_version": None}, "format_version is None"),
        ({"sigma": [1, 16, 256]}, "LocEnc2.* missing"),
        ({"sigma": [1]}, "LocEnc1.* not expected"),
        ({"sigma": None}, "sigmas must be a list"),
        ({"gallery_file": "../x.csv"}, "is not the name of a .csv"),
        ({"gallery_file": None}, "is not the name of a .csv"),
        ({"backbone": "org/clip"}, "backbone must give repo_id and revision"),
        ({"backbone": {"repo_id": "../..", "revision": "main"}}, "is not a repository"),
    ],
)
def test_a_wrong_release_on_the_hub(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        load_release(f"dir:{hub_release(tmp_path / 'bad', **config)}")


def test_safetensors_that_are_cut_short(tmp_path: Path) -> None:
    path = hub_release(tmp_path / "cut")
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(WeightsError, match=r"model\.safetensors: is damaged"):
        load_release(f"dir:{path}")


# --- what is not there ----------------------------------------------------------------------------


def test_folders_that_are_not_there_or_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="there is no folder there"):
        load_release(f"dir:{tmp_path / 'none'}")
    (tmp_path / "file").touch()
    with pytest.raises(MissingWeightsError, match="there is a file, no folder there"):
        load_release(f"dir:{tmp_path / 'file'}")
    with pytest.raises(WeightsError, match="holds no weights of a known layout"):
        load_release(f"dir:{tmp_path}")
