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
from open_geoclip.errors import CoordinateError, MissingWeightsError, SettingsError

ROWS = 6000  # of the released gallery: it is encoded anew for each photo by the released package


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


def test_what_people_do_with_a_module(ours: compat.GeoCLIP, photos: list[Path]) -> None:
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again.predict(photos[0], 3)[0], ours.predict(photos[0], 3)[0])
    assert torch.equal(ours.to("cpu").predict(photos[0], 3)[0], again.predict(photos[0], 3)[0])
    places = torch.tensor([[48.8584, 2.2945]])
    assert torch.nn.DataParallel(ours.location_encoder)(places).shape == (1, 512)
    half = copy.deepcopy(ours.location_encoder).half()
    assert torch.nn.functional.cosine_similarity(half(places).float(), ours.location_encoder(places)) > 0.9999
    with pytest.raises(CoordinateError, match="16 bits move a place by kilometres"):
        half(places.half())


@pytest.mark.parametrize("top_k", [0, -1, 10**6])
def test_top_k_out_of_range(ours: compat.GeoCLIP, photos: list[Path], top_k: int) -> None:
    with pytest.raises(ValueError, match="top_k must be between 1 and"):
        ours.predict(photos[0], top_k)


def test_a_clip_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingWeightsError, match="no folder"):
        compat.ImageEncoder(clip_path=tmp_path / "clip")
    with pytest.raises(ValueError, match=r"clip_path requires from_pretrained=True\."):
        compat.ImageEncoder(False, clip_path=tmp_path)
