"""The locator end to end on the released heads and a part of the released gallery."""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from open_geoclip import Answer, AnswerSettings, Gallery, GeoCLIP, ImageEncoder, LocationEncoder, Locator, compat
from open_geoclip.data.decoding import available_cores, map_ahead
from open_geoclip.errors import (
    ImageError,
    MissingWeightsError,
    ModelNameError,
    SettingsError,
    WeightsError,
)
from open_geoclip.search.encode import EncodedBatch, EncodeSettings, encode_batches, encode_images

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
def part(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the released gallery, some of them twice."""
    lines = (released / "model" / "gps_gallery" / "coordinates_100K.csv").read_text().splitlines()
    path = tmp_path_factory.mktemp("gallery") / "part.csv"
    path.write_text("\n".join([*lines[: ROWS + 1], *lines[1:200]]) + "\n")
    return path


@pytest.fixture(scope="module")
def photos(released: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The one real photo the wheel carries, whole and in pieces."""
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(released / "images" / "Kauai.png") as picture:
        whole = picture.convert("RGB")
    width, height = whole.size
    boxes = [
        (0, 0, width, height),
        (0, 0, width // 2, height),
        (width // 3, height // 3, width, height),
        (0, height // 2, width, height),
    ]
    paths = []
    for number, box in enumerate(boxes):
        paths.append(folder / f"photo_{number}.png")
        whole.crop(box).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def locator(clip: Path, part: Path, cache: Path) -> Locator:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_GEOCLIP_CACHE", str(cache))
        return Locator.from_pretrained("geoclip", backbone=f"dir:{clip}", gallery=part, batch_size=3, dtype="float32")


def places(answer: Answer) -> list[tuple[float, float]]:
    """Coordinates alone: in another batch, scores differ in their last digits."""
    return [(c.lat, c.lon) for c in answer.candidates]


def test_locator_agrees_with_predict_and_merges_duplicates(
    clip: Path, part: Path, photos: list[Path], locator: Locator
) -> None:
    model = compat.GeoCLIP(clip_path=clip)
    model.gps_gallery = torch.from_numpy(np.loadtxt(part, delimiter=",", skiprows=1).astype(np.float32))
    gps, prob = model.predict(photos[0], 40)
    plain = Locator(locator.model, locator.gallery, answers=AnswerSettings("max", merge_km=0))
    answer = plain.locate(photos[0], top_k=10)[0]
    assert len({(c.lat, c.lon) for c in answer.candidates}) == 10
    assert [round(c.lat, 5) for c in answer.candidates[:1]] == [round(float(gps[0, 0]), 5)]
    mass: dict[tuple[float, float], float] = {}
    for row, share in zip(gps.tolist(), prob.tolist(), strict=True):
        key = (round(row[0], 6), round(row[1], 6))
        mass[key] = mass.get(key, 0) + share
    for candidate in answer.candidates[:5]:
        assert candidate.probability == pytest.approx(mass[candidate.lat, candidate.lon], rel=1e-4)
        assert -1 <= candidate.score <= 1


def test_uncalibrated_weights_answer_with_places_of_the_gallery(
    photos: list[Path], locator: Locator, earth: Locator
) -> None:
    known = {(round(float(lat), 4), round(float(lon), 4)) for lat, lon in locator.gallery.coordinates}
    for answer in locator.locate(photos, top_k=3):
        assert (round(answer.candidates[0].lat, 4), round(answer.candidates[0].lon, 4)) in known
        assert answer.sure is None
    assert locator.answers.decode == "max"
    assert earth.answers.decode == "mass"


def test_answers_name_what_made_them_and_become_json(locator: Locator, photos: list[Path]) -> None:
    record = json.loads(json.dumps(locator.locate(photos[1], top_k=3)[0].to_dict()))
    assert list(record)[:5] == ["image", "model", "gallery", "version", "candidates"]
    assert list(record)[5:] == ["credible_radius_km", "within_km", "countries", "sure", "in_distribution", "sha256"]
    assert record["sha256"]["gallery"] == locator.gallery.fingerprint
    assert record["sha256"]["gallery"][:12] in record["gallery"]
    assert record["sure"] is None  # nothing was calibrated, and the answer says so
    assert record["image"] == str(photos[1])
    assert record["model"].startswith("geoclip 1.3.0")
    assert record["gallery"].startswith("part.csv, ")
    assert list(record["candidates"][0]) == ["lat", "lon", "score", "probability", "radius_km", "country", "place"]
    assert all(len(c["country"]) in (0, 2) and c["place"] for c in record["candidates"])
    assert Answer.from_dict(record).to_dict() == record
    detailed = json.loads(json.dumps(locator.locate(photos[1], top_k=3, detail=True)[0].to_dict()))
    assert list(detailed)[-2:] == ["regions", "heat"]
    assert {key: detailed[key] for key in record} == record
    assert Answer.from_dict(detailed).to_dict() == detailed
    probabilities = [candidate["probability"] for candidate in record["candidates"]]
    assert len(probabilities) == 3
    assert 0 < probabilities[0] < 1


def test_all_kinds_of_sources_give_one_answer(locator: Locator, photos: list[Path]) -> None:
    with Image.open(photos[2]) as picture:
        image = picture.convert("RGB")
    content = photos[2].read_bytes()
    sources: list[Any] = [photos[2], str(photos[2]), content, io.BytesIO(content), image, np.asarray(image)]
    answers = locator.locate(sources, top_k=2)
    assert len(answers) == 6
    assert len({tuple(places(answer)) for answer in answers}) == 1
    assert [a.image for a in answers[2:]] != [answers[0].image] * 4
    for alone in (content, image, np.asarray(image)):
        assert places(locator.locate(alone, top_k=2)[0]) == places(answers[0])


def test_batches_do_not_show(clip: Path, part: Path, photos: list[Path], locator: Locator) -> None:
    single = Locator.from_pretrained("geoclip", backbone=f"dir:{clip}", gallery=part, batch_size=1, dtype="float32")
    for one, other in zip(single.locate(photos * 2), locator.locate(photos * 2), strict=True):
        np.testing.assert_allclose(places(one), places(other), rtol=0, atol=1e-4)  # ten metres


def test_ten_crops_average_the_logits(locator: Locator, photos: list[Path], cache: Path) -> None:
    plain = AnswerSettings("max", merge_km=0)
    ten = Locator(locator.model, locator.gallery, crops=10, batch_size=3, cache=cache, answers=plain)
    places = locator.model.location_encoder.encode(torch.from_numpy(locator.gallery.coordinates))
    for photo, answer in zip(photos[:4], ten.stream(photos[:4], 3), strict=True):
        with Image.open(photo) as picture, torch.inference_mode():
            crops = locator.model.image_encoder.preprocessing.ten_crops(picture.convert("RGB"))
            each = torch.nn.functional.normalize(locator.model.image_encoder(crops), dim=1)
        logits = (locator.model.scale * each @ places.T).mean(dim=0)
        probabilities = (logits + torch.from_numpy(locator.gallery.weights).log()).softmax(dim=0)
        best = int(probabilities.argmax())  # a place that stands there twice counts twice
        assert answer.candidates[0].score * locator.model.scale == pytest.approx(float(logits[best]), abs=1e-4)
        assert answer.candidates[0].probability == pytest.approx(float(probabilities[best]), rel=1e-3)
    with pytest.raises(SettingsError, match="crops: 1 or 10, not 5"):
        Locator(locator.model, locator.gallery, crops=5, cache=cache)


def test_a_bad_image_is_reported_and_the_rest_is_done(locator: Locator, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("not a picture")
    answers = locator.locate([photos[0], bad, photos[1], b"", tmp_path / "none.png", photos[0]], top_k=1)
    assert [answer.error is None for answer in answers] == [True, False, True, False, False, True]
    assert answers[1].to_dict().keys() == {"image", "error"}
    assert answers[1].image == str(bad)
    assert places(answers[0]) == places(answers[5])
    assert locator.locate([], top_k=1) == []
    with pytest.raises(ImageError, match="none"):
        locator.encode([tmp_path / "none.png"])


def test_answers_have_the_hash_of_the_file_which_is_read_once(locator: Locator, photos: list[Path]) -> None:
    data = photos[1].read_bytes()

    class Counted(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1, /) -> bytes:
            part = super().read(size)
            Counted.total += len(part)
            return part

    with Image.open(photos[1]) as picture:
        sources: list[Any] = [photos[1], data, Counted(data), np.asarray(picture.convert("RGB")), picture]
        hashes = [answer.sha256.get("image") for answer in locator.locate(sources, 1)]
    assert hashes == 3 * [hashlib.sha256(data).hexdigest()] + [None, None]
    assert Counted.total == len(data)
    several = locator.locate_together(photos[:2], 1)
    assert several.sha256["image"] == ", ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in photos[:2])
    assert "image" not in locator.locate_together([data, np.zeros((9, 9, 3), np.uint8)], 1).sha256


def test_the_posterior_of_an_answer_is_that_of_its_image(locator: Locator, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    located = list(locator.answer(locator.query_images([photos[0], bad, *photos[1:]]), 2))
    assert [posterior is None for _, posterior in located] == [False, True, False, False, False]
    assert [answer for answer, _ in located] == locator.locate([photos[0], bad, *photos[1:]], 2)
    for answer, posterior in located:
        if posterior is not None:
            assert len(posterior) == 1
            best = np.array([[answer.candidates[0].lat, answer.candidates[0].lon]])
            assert posterior.profile(best).within((200,))[0, 0] == pytest.approx(answer.within_km["200"], abs=1e-6)


def test_stream_reads_no_further_than_it_must(locator: Locator, photos: list[Path]) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield photos[0]

    stream = locator.stream(endless(), top_k=1)
    assert next(stream).error is None
    batch_size = locator.encoding.batch_size
    assert taken <= batch_size + max(2 * batch_size, 4 * available_cores())
    stream.close()  # type: ignore[attr-defined]


def test_batches_that_are_encoded_ahead_as_on_a_gpu_are_the_same(
    locator: Locator, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ahead(*arguments: Any, workers: int | None = None, **options: Any) -> Any:
        return map_ahead(*arguments, workers=workers or 1, **options)  # 0 is a CPU, which encodes in the caller

    here = list(encode_batches(locator.model, photos, locator.encoding))
    monkeypatch.setattr("open_geoclip.search.encode.map_ahead", ahead)
    for one, other in zip(encode_batches(locator.model, photos, locator.encoding), here, strict=True):
        assert (one.names, one.sha256) == (other.names, other.sha256)
        torch.testing.assert_close(one.embeddings, other.embeddings)


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_out_of_range(locator: Locator, photos: list[Path], top_k: int) -> None:
    with pytest.raises(SettingsError, match="top_k"):
        locator.locate(photos, top_k=top_k)


def test_a_gallery_smaller_than_top_k_gives_fewer_candidates(
    locator: Locator, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "few.csv").write_text("lat,lon\n" + "".join(f"{lat},{lat}\n" for lat in range(20)))
    few = Locator(locator.model, Gallery.from_file(tmp_path / "few.csv"), answers=locator.answers)
    assert 1 <= len(few.locate(photos[:1], top_k=10**6)[0].candidates) <= len(few.gallery) == 20


def test_forward_is_the_contrastive_model(clip: Path) -> None:
    model = GeoCLIP.from_pretrained("geoclip", backbone=f"dir:{clip}")
    logits = model(torch.randn(2, 3, 56, 56), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert logits.shape == (2, 3)
    assert logits.abs().max() <= model.scale
    assert model.scale == pytest.approx(39.687, abs=1e-2)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.image_encoder.mlp.parameters())
    assert all(parameter.grad is None for parameter in model.image_encoder.backbone.parameters())


def test_published_head_size_and_encoders_alone(clip: Path) -> None:
    images = ImageEncoder.from_pretrained("geoclip", backbone=f"dir:{clip}")
    assert sum(parameter.numel() for parameter in images.mlp.parameters()) == 984_320
    assert images.preprocessing.crop == 56
    assert not images.train().backbone.training
    assert LocationEncoder.from_pretrained("geoclip")(torch.zeros(1, 2)).shape == (1, 512)


def test_transformers_is_never_imported(clip: Path, part: Path, photos: list[Path]) -> None:
    import subprocess

    code = (
        "import sys; from open_geoclip import Locator; "
        f"Locator.from_pretrained('geoclip', backbone='dir:{clip}', gallery={str(part)!r}).locate({str(photos[0])!r}); "
        "assert not {'transformers', 'torchvision', 'matplotlib', 'pyarrow', 'huggingface_hub'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_clear_errors(clip: Path, tmp_path: Path, save_clip: Callable[..., Path]) -> None:
    with pytest.raises(MissingWeightsError, match="geoclip pull"):
        Locator.from_pretrained("geoclip", backbone="hub:nobody/nothing@0000000")
    with pytest.raises(ModelNameError):
        Locator.from_pretrained("geoklip")
    other = save_clip(tmp_path / "other", projection=64)
    with pytest.raises(WeightsError, match="features of length 768"):
        Locator.from_pretrained("geoclip", backbone=f"dir:{other}")


def test_encoded_images_keep_the_features_of_the_backbone(locator: Locator, photos: list[Path]) -> None:
    model = locator.model
    batch = encode_images(model, photos[:3], EncodeSettings(batch_size=2))
    assert batch.features is not None
    assert batch.features.shape == (3, model.image_encoder.settings.feature_dim)
    assert torch.equal(model.encode_features(batch.features[:2]), batch.embeddings[:2])
    ten = encode_images(model, photos[:1], EncodeSettings(crops=10)).features
    assert ten is not None
    assert ten.shape == (1, batch.features.shape[1])
    assert not torch.equal(ten, batch.features[:1])


def test_encoded_images_are_split_and_concatenated_without_loss(locator: Locator, photos: list[Path]) -> None:
    batch = encode_images(locator.model, photos[:3])
    distances = torch.arange(3.0)
    again = EncodedBatch.concatenate(replace(batch, distances=distances).split())
    assert again.features is not None
    assert batch.features is not None
    assert torch.equal(again.embeddings, batch.embeddings)
    assert torch.equal(again.features, batch.features)
    np.testing.assert_array_equal(again.perceptual_hashes, batch.perceptual_hashes)
    assert again.distances is not None
    assert torch.equal(again.distances, distances)


def test_merged_tokens_are_other_weights_to_what_is_fitted_to_them(
    clip: Path, part: Path, photos: list[Path], locator: Locator
) -> None:
    merged = Locator.from_pretrained(
        "geoclip", backbone=f"dir:{clip}", gallery=part, dtype="float32", merge_tokens=2, batch_size=3
    )
    assert merged.weights_sha256 != locator.weights_sha256
    assert merged.model.image_encoder.subspace is None
    assert (merged.encode(photos) - locator.encode(photos)).abs().max() > 1e-3


def test_int8_wants_photos_that_can_be_read(clip: Path, part: Path, photos: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra fast is not installed")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(SettingsError, match=f"at least 32 photos like those to locate, and there are {len(photos)}"):
        Locator.from_pretrained(
            "geoclip", backbone=f"dir:{clip}", gallery=part, dtype="int8", calibration_images=[broken, *photos]
        )
