"""The drop-in, held against the released package: names, signatures, return types and numbers."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from open_geoclip import compat
from open_geoclip.errors import CoordinateError, ImageError, MissingWeightsError, SettingsError

# Of the released gallery. Encoding a place takes a millisecond, and the released package does it for each photo.
ROWS = 1000


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, save_clip: Callable[..., Path]) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(cache))


@pytest.fixture(scope="module")
def released_package(released: Path) -> ModuleType:
    assert released.is_dir()
    with warnings.catch_warnings(action="ignore"):
        import geoclip
        from transformers.utils import logging

        logging.set_verbosity_error()
    return geoclip


@pytest.fixture(scope="module")
def theirs(released_package: ModuleType, clip: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):
        from transformers import CLIPImageProcessor, CLIPModel

        model = released_package.GeoCLIP(clip_pretrained=False)
        model.image_encoder.CLIP = CLIPModel.from_pretrained(clip)
        model.image_encoder.image_processor = CLIPImageProcessor.from_pretrained(clip)
    rows = model.gps_gallery[:ROWS]
    model.gps_gallery = torch.cat([rows, rows[:199]])  # some of them twice
    return model.eval()


@pytest.fixture(scope="module")
def ours(clip: Path, theirs: Any) -> compat.GeoCLIP:
    model = compat.GeoCLIP(clip_path=clip)
    assert model.gps_gallery.shape == (100_000, 2)
    assert torch.equal(model.gps_gallery[:ROWS], theirs.gps_gallery[:ROWS])
    model.gps_gallery = theirs.gps_gallery
    return model


@pytest.fixture(scope="module")
def photos(released: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The one real photo that the wheel carries, whole and in part."""
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(released / "images" / "Kauai.png") as image:
        whole = image.convert("RGB")
    paths = [folder / "whole.png", folder / "part.png"]
    whole.save(paths[0])
    whole.crop((0, 0, whole.width // 2, whole.height)).save(paths[1])
    return paths


def test_signatures_are_those_of_the_released_package(released_package: ModuleType) -> None:
    for name in ("GeoCLIP", "ImageEncoder", "LocationEncoder"):
        released, own = getattr(released_package, name), getattr(compat, name)
        methods = [m for m, f in vars(released).items() if inspect.isfunction(f) and not m.startswith("_")]
        for method in ["__init__", *methods]:
            wanted = inspect.signature(getattr(released, method)).parameters
            found = inspect.signature(getattr(own, method)).parameters
            assert [(p.name, p.default, p.kind) for p in found.values()] == [
                (p.name, p.default, p.kind) for p in wanted.values()
            ], f"{name}.{method}"


def test_predict_gives_the_same_places_and_probabilities(ours: compat.GeoCLIP, theirs: Any, photos: list[Path]) -> None:
    for photo in photos:
        expected_gps, expected_prob = theirs.predict(str(photo), top_k=20)
        gps, prob = ours.predict(str(photo), top_k=20)
        assert (gps.shape, prob.shape, gps.dtype, prob.dtype) == ((20, 2), (20,), torch.float32, torch.float32)
        torch.testing.assert_close(prob, expected_prob, rtol=1e-3, atol=1e-6)
        assert torch.equal(gps[:5], expected_gps[:5])
        assert {tuple(row) for row in gps.tolist()} == {tuple(row) for row in expected_gps.tolist()}


def test_pixels_embeddings_and_logits_are_the_same(ours: compat.GeoCLIP, theirs: Any, photos: list[Path]) -> None:
    with Image.open(photos[0]) as image:
        rgb = image.convert("RGB")
    pixels = ours.image_encoder.preprocess_image(rgb)
    assert torch.equal(pixels, theirs.image_encoder.preprocess_image(rgb))
    places = torch.tensor([[48.8584, 2.2945], [-33.8568, 151.2153]])
    with torch.no_grad():
        torch.testing.assert_close(ours.location_encoder(places), theirs.location_encoder(places), rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.image_encoder(pixels), theirs.image_encoder(pixels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(pixels, places), theirs(pixels, places), rtol=1e-3, atol=1e-3)
    assert torch.equal(ours.logit_scale, theirs.logit_scale)


def test_the_queue_turns_like_the_released_one(ours: compat.GeoCLIP, theirs: Any) -> None:
    ours.gps_queue.copy_(theirs.gps_queue)
    assert ours.get_gps_queue().shape == (4096, 2)
    for n in (1000, 3000, 500, 4096, 5000, 7):
        gps = torch.rand(n, 2)
        ours.dequeue_and_enqueue(gps)
        theirs.dequeue_and_enqueue(gps)
        assert torch.equal(ours.get_gps_queue(), theirs.get_gps_queue())
        assert int(ours.gps_queue_ptr) == int(theirs.gps_queue_ptr)


def test_location_encoder_brings_trained_weights(theirs: Any) -> None:
    places = [[48.8584, 2.2945], [0.0, 0.0]]
    with torch.no_grad():
        expected = theirs.location_encoder(torch.tensor(places))
        for given in (torch.tensor(places), places, np.array(places), np.array(places, np.float32)):
            torch.testing.assert_close(compat.LocationEncoder()(given), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(compat.LocationEncoder(from_pretrained=False)(places), expected, atol=1e-3)
    assert compat.LocationEncoder(sigma=[1, 4], from_pretrained=False).n == 2


def test_new_weights_and_a_new_gallery_are_noticed(ours: compat.GeoCLIP, photos: list[Path]) -> None:
    model = copy.deepcopy(ours)
    before = model.predict(photos[0], 5)[0]
    with torch.no_grad():
        next(model.location_encoder.parameters()).neg_()
    assert not torch.equal(before, model.predict(photos[0], 5)[0])
    model.gps_gallery = torch.tensor([[1.0, 2.0]])
    assert model.predict(photos[0], 1)[0].tolist() == [[1.0, 2.0]]
    with pytest.raises(SettingsError, match="top_k must be between 1 and 1, got 2"):
        model.predict(photos[0], 2)


PLACES = [[48.8584, 2.2945], [-33.0, 151.0]]


@pytest.mark.parametrize(
    "given",
    [
        PLACES,
        [(48.8584, 2.2945), (-33.0, 151.0)],
        np.array(PLACES),
        np.array(PLACES, np.float32),
        np.array(PLACES, np.float32)[::-1][::-1],
        torch.tensor(PLACES, dtype=torch.float64),
    ],
    ids=["lists", "tuples", "float64", "float32", "view", "tensor"],
)
def test_coordinates_of_every_kind(ours: compat.GeoCLIP, theirs: Any, given: Any) -> None:
    with torch.no_grad():
        expected = theirs.location_encoder(torch.tensor(PLACES))  # the only kind that the released package takes
        # Phases of float64 coordinates are more precise.
        torch.testing.assert_close(ours.location_encoder(given).float(), expected, rtol=0, atol=1e-4)
        whole = torch.tensor([[48, 2]])
        torch.testing.assert_close(ours.location_encoder(whole), theirs.location_encoder(whole), rtol=0, atol=1e-6)
    assert ours.location_encoder(torch.zeros(0, 2)).shape == (0, 512)


@pytest.mark.parametrize("given", [[[48, 2], [1]], [[float("nan"), 0.0]], [[200.0, 0.0]]])
def test_what_is_no_coordinate_is_a_clear_error(ours: compat.GeoCLIP, given: Any) -> None:
    with pytest.raises(CoordinateError, match=r"pairs \(lat, lon\) in degrees|not a place on Earth"):
        ours.location_encoder.forward(given)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_predict_the_same(
    ours: compat.GeoCLIP, photos: list[Path], copied: Callable[[compat.GeoCLIP], compat.GeoCLIP]
) -> None:
    expected = ours.predict(photos[0], 3)
    model = copied(ours)
    found = model.predict(photos[0], 3)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)
    assert copied(model)._index is None  # the gallery's embeddings stay on disk


def test_devices_before_and_after_predict(ours: compat.GeoCLIP, photos: list[Path]) -> None:
    model = copy.deepcopy(ours)
    before = model.to("cpu").predict(photos[0], 3)
    assert torch.equal(model.to("cpu").predict(photos[0], 3)[0], before[0])
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            model.to("cuda")
        assert torch.equal(model.predict(photos[0], 3)[0], before[0])
    model = model.to("meta")  # a device that shows what is left behind on another one
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_predicts_the_same(ours: compat.GeoCLIP, photos: list[Path]) -> None:
    model = copy.deepcopy(ours)
    expected, probabilities = model.predict(photos[0], 3)
    for device in ("cuda", "cpu"):
        found = model.to(device).predict(photos[0], 3)
        assert torch.equal(found[0], expected)
        torch.testing.assert_close(found[1], probabilities, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_round_no_coordinate(ours: compat.GeoCLIP, photos: list[Path], dtype: torch.dtype) -> None:
    ours = copy.deepcopy(ours)
    ours.gps_gallery = ours.gps_gallery[:300]
    model = copy.deepcopy(ours).to(dtype)
    assert torch.equal(model.gps_gallery, ours.gps_gallery)  # float16 would move places by kilometres
    assert model.gps_queue.dtype == torch.float32
    gps, prob = model.predict(photos[0], 3)
    expected = ours.predict(photos[0], 3)
    assert torch.equal(gps[0], expected[0][0])
    torch.testing.assert_close(prob[:1], expected[1][:1], rtol=0.1, atol=0)
    places = torch.tensor(PLACES)
    found = model.location_encoder(places).float()
    assert (torch.nn.functional.cosine_similarity(found, ours.location_encoder(places)) > 0.999).all()
    with pytest.raises(CoordinateError, match="16 bits move a place by kilometres"):
        model.location_encoder(places.half())


def test_data_parallel(ours: compat.GeoCLIP, theirs: Any) -> None:
    pixels, places = torch.randn(2, 3, 56, 56), torch.tensor(PLACES)
    assert torch.nn.DataParallel(ours.location_encoder)(places).shape == (2, 512)
    with torch.no_grad():
        found, expected = (torch.nn.DataParallel(model)(pixels, places) for model in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_released_files_and_state_dicts_are_loaded(
    ours: compat.GeoCLIP, theirs: Any, released: Path, clip: Path
) -> None:
    model = compat.GeoCLIP(from_pretrained=False, clip_path=clip)
    for name, part in (("location_encoder", model.location_encoder), ("image_encoder_mlp", model.image_encoder.mlp)):
        tensors = torch.load(released / "model" / "weights" / f"{name}_weights.pth", weights_only=True)
        assert str(part.load_state_dict(tensors)) == "<All keys matched successfully>"
    state = theirs.state_dict()  # of a model that was fine-tuned in the released package, with its CLIP
    model = compat.GeoCLIP(from_pretrained=False, clip_path=clip)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
        pixels = torch.randn(2, 3, 56, 56)
        torch.testing.assert_close(model(pixels, PLACES), theirs(pixels, torch.tensor(PLACES)), rtol=1e-3, atol=1e-3)
    assert state.keys() == theirs.state_dict().keys()
    again = compat.GeoCLIP(from_pretrained=False, clip_path=clip)
    assert str(again.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"


def test_predict_takes_images_of_every_kind(ours: compat.GeoCLIP, photos: list[Path]) -> None:
    expected = ours.predict(str(photos[0]), 3)[0]
    with Image.open(photos[0]) as image, photos[0].open("rb") as file:
        for given in (photos[0], image, np.array(image), photos[0].read_bytes(), file):
            assert torch.equal(ours.predict(given, 3)[0], expected)
    with pytest.raises(ImageError, match=r"nothing.jpg: there is no such file"):
        ours.predict("nothing.jpg", 3)


def test_images_of_every_mode_and_several_at_a_time(ours: compat.GeoCLIP, theirs: Any, photos: list[Path]) -> None:
    with Image.open(photos[0]) as image:
        images = [image.convert(mode) for mode in ("RGB", "L", "RGBA", "P")]
    given: Any
    for given in (*images, images[:3]):
        found, expected = (model.image_encoder.preprocess_image(given) for model in (ours, theirs))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("top_k", [0, -1, 10**6])
def test_top_k_out_of_range(ours: compat.GeoCLIP, photos: list[Path], top_k: int) -> None:
    with pytest.raises(ValueError, match="top_k must be between 1 and"):
        ours.predict(photos[0], top_k)


def test_a_clip_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingWeightsError, match="no folder"):
        compat.ImageEncoder(clip_path=tmp_path / "clip")
    with pytest.raises(ValueError, match=r"clip_path requires from_pretrained=True\."):
        compat.ImageEncoder(False, clip_path=tmp_path)
