"""Settings from tables: unknown keys, wrong kinds, ranges."""

from typing import Any

import pytest

from open_geoclip.errors import SettingsError
from open_geoclip.schema import from_dict
from open_geoclip.training.settings import PAPER, DataSettings, TrainSettings, read_settings


def test_a_table_becomes_settings() -> None:
    found = from_dict(
        TrainSettings, {"epochs": 3, "noise_m": 150, "freeze": ["image_encoder", "logit_scale"]}, "[train]"
    )
    assert found == TrainSettings(epochs=3, noise_m=150.0, freeze=("image_encoder", "logit_scale"))


def test_the_papers_recipe() -> None:
    assert (PAPER.optimizer, PAPER.learning_rate, PAPER.weight_decay, PAPER.gamma) == ("adam", 3e-5, 1e-6, 0.87)
    assert (PAPER.noise_m, PAPER.queue_noise_m, PAPER.queue_size) == (150, 1000, 4096)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"learning_rat": 1}, r"\[train\]: unknown key learning_rat; did you mean learning_rate\?"),
        ({"zzz": 1}, "unknown key zzz; known are epochs, batch_size"),
        ({"epochs": 1.5}, r"\[train\]: epochs must be a whole number, not 1.5"),
        ({"epochs": True}, "a whole number, not True"),
        ({"optimizer": "sgd"}, "optimizer: one of adamw, adam, not 'sgd'"),
        ({"freeze": "head"}, "freeze must be a list"),
        ({"symmetric": 1}, "symmetric must be true or false"),
        ({"epochs": 0}, "epochs: above 0"),
        ({"noise_m": float("nan")}, "noise_m must be a finite number"),
        ({"mask_km": float("inf")}, "mask_km must be a finite number"),
        ({"batch_size": 10, "accumulate": 3}, "accumulate: 10 images cannot be divided into 3 parts"),
        ({"symmetric": True, "accumulate": 2}, "symmetric: needs all images"),
        ({"patience": 2}, "patience: set monitor"),
        ({"warmup": 1.0}, "warmup"),
        ({"positive_km": 30.0}, "positive_km: at most mask_km"),
        ({"backbone_rate": 0.5}, "backbone_rate: it has no effect as it is: set unfreeze_blocks or lora_rank"),
        ({"smooth_end": 0.5}, "smooth_end: it has no effect as it is: set smooth_km"),
        ({"near_weight_km": 50.0}, "near_weight_km: it has no effect as it is: set near_weight"),
        ({"nearby_km": [1.0, 50.0]}, "nearby_km: it has no effect as it is: set nearby_places"),
        ({"gamma": 0.5}, "gamma: it has no effect as it is: set schedule"),
        ({"seed": 2**32}, "seed: below"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_dict(TrainSettings, table, "[train]")


def test_values_that_are_no_tables_and_a_scale_that_is_not_used_are_refused() -> None:
    named = ["data.train=photos.csv", "model.start=geoclip"]
    with pytest.raises(SettingsError, match="max_swapped: a share from 0 to 1"):
        DataSettings("photos.csv", max_swapped=5.0)
    for name in ("data", "model", "train"):
        with pytest.raises(SettingsError, match=rf"\[{name}\] must be"):
            read_settings(None, [f"{name}=1"] if name == "data" else [named[0], f"{name}=1"])
    with pytest.raises(SettingsError, match="start_scale: the scale is that of geoclip"):
        read_settings(None, [*named, "train.start_scale=20.0"])
    with pytest.raises(SettingsError, match='feature: one of "", projected'):
        read_settings(None, [named[0], "model.backbone=earth", "model.feature=patches"])


def test_the_same_view_twice_is_no_augmentation() -> None:
    assert DataSettings("photos.csv", together=2).together == 2
    with pytest.raises(SettingsError, match="together: views of a photo are all the same"):
        DataSettings("photos.csv", together=2, augment=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": 8, "augment": False}, "views: it has no effect as it is: set pixels = false, augment = true"),
        ({"views": 8, "pixels": True}, "views: it has no effect"),
        ({"buffer_km": 5.0, "validation": 0.0}, "buffer_km: it has no effect as it is: set validation to a share"),
        ({"buffer_km": 5.0, "validation": "others.csv"}, "buffer_km: it has no effect"),
    ],
)
def test_settings_of_photos_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        DataSettings("photos.csv", **values)
