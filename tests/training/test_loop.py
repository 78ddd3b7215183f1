"""Contrastive training: the loss, what is left out of it, and runs that are taken up again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import haversine_km, unit_vectors
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.loop import Callbacks, learning_rate_factor, train
from open_geoclip.training.loss import SigLIPLoss, contrastive_loss, near_duplicates, smooth_targets
from open_geoclip.training.settings import PAPER, TrainSettings

LOCATION = LocationSettings(sigmas=(1.0, 4.0), features=16, width=32, depth=2, output=16, projection="sphere")
SETTINGS = TrainSettings(epochs=4, batch_size=32, queue_size=40, learning_rate=3e-3)


def world(n: int, seed: int = 0) -> FeatureSet:
    """Images whose features tell their place: a noisy linear map of the point on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
    lon = torch.rand(n, generator=generator, dtype=torch.float64) * 360 - 180
    coordinates = torch.stack([torch.rad2deg(torch.asin(z)), lon], dim=1)
    mixing = torch.randn(3, 24, generator=torch.Generator().manual_seed(7)).double()
    features = 5 + 3 * unit_vectors(coordinates) @ mixing
    return FeatureSet(features.half(), coordinates)


def new_model(data: FeatureSet, widths: tuple[int, ...] = (24, 32, 16)) -> GeoCLIP:
    """A model with the same random weights each time."""
    torch.manual_seed(1)
    encoder = ImageEncoder(None, None, ImageSettings(widths=widths))
    encoder.standardize_features(data.features)
    return GeoCLIP(encoder, LocationEncoder(LOCATION))


def run(
    folder: Path, settings: TrainSettings = SETTINGS, stop_after: int | None = None, *, resume: bool = False
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    data = world(300)
    model = new_model(data)
    figures: list[dict[str, float]] = []

    def report(found: dict[str, float]) -> None:
        figures.append(found)
        if found["epoch"] == stop_after:
            raise KeyboardInterrupt

    train(model, data, settings, folder, callbacks=Callbacks(epoch=report), resume=resume)
    return model.state_dict(), figures


def test_loss_is_cross_entropy_over_batch_and_queue() -> None:
    image, location = F.normalize(torch.randn(3, 8), dim=1), F.normalize(torch.randn(5, 8), dim=1)
    cosine = torch.cosine_similarity(image[:, None], location[None], dim=2)
    expected = -torch.stack([(10 * cosine[i])[i] - torch.logsumexp(10 * cosine[i], 0) for i in range(3)]).mean()
    found = contrastive_loss(image, location, torch.tensor(10.0))
    torch.testing.assert_close(found, expected)
    ignore = torch.zeros(3, 5, dtype=torch.bool)
    ignore[0, 4] = True
    rest = -torch.stack(
        [10 * cosine[i, i] - torch.logsumexp(10 * (cosine[i] if i else cosine[i, :4]), 0) for i in range(3)]
    ).mean()
    torch.testing.assert_close(contrastive_loss(image, location, torch.tensor(10.0), ignore=ignore), rest)


def test_near_duplicates_are_those_within_the_radius_but_not_the_truth_itself() -> None:
    truth = torch.tensor([[10.0, 20.0], [10.1, 20.0], [0.0, 180.0]], dtype=torch.float64)
    candidates = torch.cat([truth, torch.tensor([[0.0, -179.9], [10.0, 21.0]], dtype=torch.float64)])
    near = near_duplicates(truth, candidates, 50)
    distance = haversine_km(truth[:, None], candidates[None])
    expected = distance < 50
    expected.fill_diagonal_(False)
    assert torch.equal(near, expected)
    assert near[2, 3], "across 180 degrees"
    assert near[0, 1]
    assert not near.diagonal().any()


def test_training_learns_and_reports(tmp_path: Path) -> None:
    _, figures = run(tmp_path, TrainSettings(epochs=12, batch_size=32, queue_size=40, learning_rate=5e-3))
    assert figures[-1]["loss"] < 0.6 * figures[0]["loss"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert lines == figures


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_after=2)
    resumed, figures = run(tmp_path / "parts", resume=True)
    assert [found["epoch"] for found in figures] == [3, 4]
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


OBJECTIVES: dict[str, dict[str, Any]] = {
    "smooth": {"smooth_km": (2000.0, 500.0), "smooth_end": 0.1, "mask_km": 0.0},
    "ring": {"positive_km": 500.0, "mask_km": 1000.0},
    "weights": {"near_weight": 1.0, "near_weight_km": 1000.0, "symmetric": True},
    "siglip": {"loss": "siglip"},
    "nearby": {"nearby_places": 3, "nearby_km": (50.0, 2000.0), "smooth_km": (500.0,), "mask_km": 0.0},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_learns_and_resumes_to_the_last_bit(tmp_path: Path, name: str) -> None:
    settings = replace(SETTINGS, **OBJECTIVES[name])
    whole, figures = run(tmp_path / "whole", settings)
    assert figures[-1]["loss"] < figures[0]["loss"] - 0.2
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", settings, stop_after=2)
    resumed, again = run(tmp_path / "parts", settings, resume=True)
    assert [one["loss"] for one in again] == [one["loss"] for one in figures[2:]]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    if name != "weights":  # which is symmetric
        parts, _ = run(tmp_path / "accumulated", replace(settings, epochs=1, schedule="constant", accumulate=4))
        one, _ = run(tmp_path / "one", replace(settings, epochs=1, schedule="constant"))
        assert all(torch.allclose(tensor, parts[key], rtol=0, atol=2e-5) for key, tensor in one.items())


def test_the_parameters_of_a_loss_are_trained_and_resumed_but_not_in_the_model(tmp_path: Path) -> None:
    data, loss = world(300), SigLIPLoss(-4.0)
    model = new_model(data)
    names = model.state_dict().keys()
    train(model, data, replace(SETTINGS, epochs=2), tmp_path, loss=loss)
    assert loss.bias.item() != -4.0
    assert model.state_dict().keys() == names
    again = SigLIPLoss()
    train(new_model(data), data, replace(SETTINGS, epochs=2), tmp_path, loss=again, resume=True)
    assert torch.equal(again.bias, loss.bias)


def test_widths_shrink_geometrically_over_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[float] = []

    def record(km: Tensor, sizes: list[float]) -> Tensor:
        widths.extend(sizes)
        return smooth_targets(km, sizes)

    monkeypatch.setattr("open_geoclip.training.loss.smooth_targets", record)
    run(tmp_path, replace(SETTINGS, epochs=2, mask_km=0.0, smooth_km=(400.0,), smooth_end=0.25))
    steps = 300 // 32
    assert widths == pytest.approx([400 * 0.25 ** (step / (2 * steps)) for step in range(2 * steps)])


def test_bfloat16_learns_while_weights_and_phases_keep_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Also where the processor has no instructions for it, and it would be refused for being slow.
    monkeypatch.setattr("open_geoclip.training.loss.resolve_dtype", lambda *_: torch.bfloat16)
    seen: dict[str, set[torch.dtype]] = {"phases": set(), "layers": set()}
    data = world(300)
    model = new_model(data)
    level = model.location_encoder.levels[0].capsule
    level[0].register_forward_pre_hook(lambda _, given: seen["phases"].add(given[0].dtype))
    level[0].register_forward_hook(lambda _, given, made: seen["phases"].add(made.dtype))
    level[1].register_forward_hook(lambda _, given, made: seen["layers"].add(made.dtype))
    settings = TrainSettings(epochs=4, batch_size=32, queue_size=40, learning_rate=3e-3, dtype="bfloat16")
    figures: list[dict[str, float]] = []
    train(model, data, settings, tmp_path, callbacks=Callbacks(epoch=figures.append))
    assert seen["layers"] == {torch.bfloat16}
    assert seen["phases"] <= {torch.float32, torch.float64}
    assert figures[-1]["loss"] < figures[0]["loss"] - 0.2
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    monkeypatch.undo()
    _, exact = run(tmp_path / "float32")
    assert figures[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.05)


def test_without_a_radius_the_same_place_twice_counts_as_it_is(tmp_path: Path) -> None:
    """The loss of one batch does not hang on how the cosine of a place with itself is rounded."""
    data = world(32)
    losses = []
    for number, order in enumerate((torch.arange(32), torch.arange(32).flip(0), torch.randperm(32))):
        settings = TrainSettings(
            epochs=1, batch_size=32, queue_size=32, noise_m=0.0, queue_noise_m=0.0, mask_km=0.0, warmup=0.0
        )
        same = FeatureSet(data.features[order], data.coordinates[order])
        figures: list[dict[str, float]] = []
        train(new_model(data), same, settings, tmp_path / str(number), callbacks=Callbacks(epoch=figures.append))
        losses.append(figures[0]["loss"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_seeds_matter(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", TrainSettings(epochs=1, batch_size=32, queue_size=40))
    other, _ = run(tmp_path / "other", TrainSettings(epochs=1, batch_size=32, queue_size=40, seed=1))
    assert not torch.equal(one["image_encoder.mlp.0.weight"], other["image_encoder.mlp.0.weight"])


def test_the_temperature_is_bounded(tmp_path: Path) -> None:
    weights, _ = run(tmp_path, TrainSettings(epochs=2, batch_size=32, queue_size=0, max_scale=14.0))
    assert float(weights["logit_scale"].exp()) <= 14.0 + 1e-4


def test_a_loss_that_is_not_a_number_stops_and_says_where(tmp_path: Path) -> None:
    data = world(100)
    data.features[50] = math.nan
    with pytest.raises(RuntimeError, match=r"epoch 0, step .* row 50"):
        train(new_model(world(100)), data, replace(SETTINGS, batch_size=4), tmp_path)


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="epochs"):
        TrainSettings(epochs=0)
    with pytest.raises(SettingsError, match="noise_m"):
        TrainSettings(noise_m=-1)
    with pytest.raises(SettingsError, match="mask_km: 0 or more, not inf"):
        TrainSettings(mask_km=math.inf)
    with pytest.raises(SettingsError, match="mask_km: at most 20,015, half the Earth"):
        TrainSettings(mask_km=21_000)
    with pytest.raises(SettingsError, match="smooth_km: gives every place a share"):
        TrainSettings(smooth_km=(75.0,))
    with pytest.raises(SettingsError, match="smooth_km: widths above 0"):
        TrainSettings(smooth_km=(75.0, 0.0), mask_km=0.0)
    with pytest.raises(SettingsError, match="siglip knows right and wrong pairs only"):
        TrainSettings(loss="siglip", near_weight=1.0)
    with pytest.raises(SettingsError, match="smooth_end: at most 1"):
        TrainSettings(smooth_end=2.0)
    with pytest.raises(SettingsError, match="10 images are fewer than a batch of 32"):
        train(new_model(world(10)), world(10), SETTINGS, tmp_path)


def one_epoch(folder: Path, settings: TrainSettings) -> dict[str, Tensor]:
    return run(folder, settings)[0]


def test_a_batch_in_parts_is_the_same_batch(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, batch_size=32, queue_size=40)
    whole = one_epoch(tmp_path / "whole", settings)
    parts = one_epoch(tmp_path / "parts", replace(settings, accumulate=4))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_frozen_parts_stay(tmp_path: Path) -> None:
    freeze = ("image_encoder", "logit_scale", "location_encoder.LocEnc0")
    before = new_model(world(300)).state_dict()
    after = one_epoch(tmp_path, TrainSettings(epochs=2, batch_size=32, freeze=freeze))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    trained = {name for name in before if name.startswith("location_encoder.LocEnc1") and not name.endswith(".b")}
    assert changed == trained


@pytest.mark.parametrize("freeze", [("towers",), ("image_encoder", "location_encoder", "logit_scale")])
def test_freezing_nothing_or_everything_is_a_mistake(tmp_path: Path, freeze: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="freeze"):
        run(tmp_path, replace(SETTINGS, freeze=freeze))


def test_the_best_epoch_is_kept_and_the_run_stops_early(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=9, monitor="median_km", patience=2)
    medians, seen = iter([5.0, 3.0, 4.0, 3.5, 1.0]), []

    def evaluate(model: GeoCLIP) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"median_km": next(medians)}

    data = world(300)
    model = new_model(data)
    logged: list[str] = []
    callbacks = Callbacks(log=logged.append)
    kept = train(model, data, settings, tmp_path, evaluate=evaluate, callbacks=callbacks)
    assert (kept["epoch"], kept["median_km"]) == (2, 3.0)
    assert logged == ["training ends with epoch 4 of 9: 2 epochs without a better median_km (patience)"]
    assert len(seen) == 4, "two epochs without a better one"
    assert all(torch.equal(seen[1][name], tensor) for name, tensor in model.state_dict().items())
    again = train(new_model(data), data, settings, tmp_path, evaluate=evaluate, resume=True)
    assert list(again.items()) == list(kept.items()), "in the order in which they are reported"


def test_a_folder_keeps_to_one_run(tmp_path: Path) -> None:
    once = replace(SETTINGS, epochs=1)
    run(tmp_path, once)
    with pytest.raises(SettingsError, match="holds a run: resume it"):
        run(tmp_path, once)
    with pytest.raises(SettingsError, match=r"with other settings .noise_m was 2000"):
        run(tmp_path, replace(once, noise_m=5.0), resume=True)
    data = world(300, seed=3)
    with pytest.raises(SettingsError, match="other data"):
        train(new_model(data), data, once, tmp_path, resume=True)
    with pytest.raises(SettingsError, match=r"another model or other data .widths was"):
        train(new_model(world(300), (24, 64, 16)), world(300), once, tmp_path, resume=True)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["settings"]["batch_size"] == 32
    assert len(record["data"]["fingerprint"]) == 64


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_learning_rates(schedule: Literal["cosine", "step", "constant"]) -> None:
    settings = replace(PAPER, schedule=schedule)
    rates = [learning_rate_factor(settings, epoch, 0.5) for epoch in range(10)]
    middle = {"cosine": 0.5, "step": 0.87**5, "constant": 1.0}
    assert learning_rate_factor(settings, 5, 0.0) == pytest.approx(middle[schedule])
    assert rates == sorted(rates, reverse=True)
    assert learning_rate_factor(replace(settings, warmup=0.1), 0, 0.5) == pytest.approx(0.5)


def test_bfloat16_where_there_is_none_computes_in_float32(tmp_path: Path) -> None:
    weights = one_epoch(tmp_path, TrainSettings(epochs=1, batch_size=32, dtype="auto", clip_norm=1.0))
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_a_run_can_be_extended(tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, epochs=2))
    _, figures = run(tmp_path, replace(SETTINGS, epochs=4), resume=True)
    assert [found["epoch"] for found in figures] == [3, 4]
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["epochs"] == 4
    with pytest.raises(SettingsError, match="a run of 4 epochs already"):
        run(tmp_path, replace(SETTINGS, epochs=3), resume=True)


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    def sigmoid_loss(image: Tensor, location: Tensor, scale: Tensor, **_: object) -> Tensor:
        logits = scale * image @ location[: len(image)].T - 10
        return -F.logsigmoid(logits * (2 * torch.eye(len(image)) - 1)).sum(dim=1).mean()

    figures: list[dict[str, float]] = []
    data = world(300)
    callbacks = Callbacks(epoch=figures.append)
    train(new_model(data), data, replace(SETTINGS, queue_size=0), tmp_path, loss=sigmoid_loss, callbacks=callbacks)
    assert figures[-1]["loss"] < 0.9 * figures[0]["loss"]
