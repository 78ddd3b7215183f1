"""Contrastive training: the loss, what is left out of it, and runs that are taken up again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import haversine_km, unit_vectors
from open_geoclip.model.image_encoder import image_head
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.training.features import FeatureSet
from open_geoclip.training.heads import StandardisedHead
from open_geoclip.training.loop import rate_factor, train
from open_geoclip.training.loss import contrastive_loss, near_duplicates
from open_geoclip.training.settings import PAPER, TrainSettings

LOCATION = LocationSettings(sigmas=(1.0, 4.0), features=16, width=32, depth=2, output=16, projection="sphere")
SETTINGS = TrainSettings(epochs=4, batch_size=32, queue_size=40, learning_rate=3e-3)


def world(n: int, seed: int = 0) -> FeatureSet:
    """Pictures whose features tell their place: a noisy linear map of the point on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
    lon = torch.rand(n, generator=generator, dtype=torch.float64) * 360 - 180
    coordinates = torch.stack([torch.rad2deg(torch.asin(z)), lon], dim=1)
    mixing = torch.randn(3, 24, generator=torch.Generator().manual_seed(7)).double()
    features = 5 + 3 * unit_vectors(coordinates) @ mixing
    return FeatureSet(features.half(), coordinates)


def run(
    folder: Path, settings: TrainSettings = SETTINGS, stop_after: int | None = None
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    torch.manual_seed(1)
    data = world(300)
    head, locations = StandardisedHead(image_head((24, 32, 16)), data.features), LocationEncoder(LOCATION)
    figures: list[dict[str, float]] = []

    def report(found: dict[str, float]) -> None:
        figures.append(found)
        if found["epoch"] == stop_after:
            raise KeyboardInterrupt

    scale = train(head, locations, data, settings, folder, evaluate=lambda _: {}, report=report)
    weights = {**head.state_dict(), **locations.state_dict(), "scale": torch.tensor(scale)}
    return weights, figures


def test_loss_is_cross_entropy_over_batch_and_queue() -> None:
    image, location = torch.randn(3, 8), torch.randn(5, 8)
    cosine = torch.cosine_similarity(image[:, None], location[None], dim=2)
    expected = -torch.stack([(10 * cosine[i])[i] - torch.logsumexp(10 * cosine[i], 0) for i in range(3)]).mean()
    found = contrastive_loss(image, location, torch.tensor(10.0))
    torch.testing.assert_close(found, expected)
    left_out = torch.zeros(3, 5, dtype=torch.bool)
    left_out[0, 4] = True
    rest = -torch.stack(
        [10 * cosine[i, i] - torch.logsumexp(10 * (cosine[i] if i else cosine[i, :4]), 0) for i in range(3)]
    ).mean()
    torch.testing.assert_close(contrastive_loss(image, location, torch.tensor(10.0), left_out), rest)


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
    resumed, figures = run(tmp_path / "parts")
    assert [found["epoch"] for found in figures] == [3, 4]
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_bfloat16_learns_while_weights_and_phases_keep_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Also where the processor has no instructions for it, and it would be refused for being slow.
    monkeypatch.setattr("open_geoclip.training.loop.resolve_dtype", lambda *_: torch.bfloat16)
    seen: dict[str, set[torch.dtype]] = {"phases": set(), "layers": set()}
    torch.manual_seed(1)
    data = world(300)
    head, locations = StandardisedHead(image_head((24, 32, 16)), data.features), LocationEncoder(LOCATION)
    level = locations.levels[0].capsule
    level[0].register_forward_pre_hook(lambda _, given: seen["phases"].add(given[0].dtype))
    level[0].register_forward_hook(lambda _, given, made: seen["phases"].add(made.dtype))
    level[1].register_forward_hook(lambda _, given, made: seen["layers"].add(made.dtype))
    settings = TrainSettings(epochs=4, batch_size=32, queue_size=40, learning_rate=3e-3, dtype="bfloat16")
    figures: list[dict[str, float]] = []
    train(head, locations, data, settings, tmp_path, evaluate=lambda _: {}, report=figures.append)
    assert seen["layers"] == {torch.bfloat16}
    assert seen["phases"] <= {torch.float32, torch.float64}
    assert figures[-1]["loss"] < figures[0]["loss"] - 0.2
    kept = {**head.state_dict(), **locations.state_dict()}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    monkeypatch.undo()
    _, exact = run(tmp_path / "float32")
    assert figures[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.05)


def test_without_a_radius_the_same_place_twice_counts_as_it_is(tmp_path: Path) -> None:
    """The loss of one batch does not hang on how the cosine of a place with itself is rounded."""
    data = world(32)
    losses = []
    for number, order in enumerate((torch.arange(32), torch.arange(32).flip(0), torch.randperm(32))):
        torch.manual_seed(1)
        head, locations = StandardisedHead(image_head((24, 32, 16)), data.features), LocationEncoder(LOCATION)
        settings = TrainSettings(
            epochs=1, batch_size=32, queue_size=32, noise_m=0.0, queue_noise_m=0.0, mask_km=0.0, warmup=0.0
        )
        same = FeatureSet(data.features[order], data.coordinates[order])
        figures: list[dict[str, float]] = []
        train(head, locations, same, settings, tmp_path / str(number), evaluate=lambda _: {}, report=figures.append)
        losses.append(figures[0]["loss"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_seeds_matter(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", TrainSettings(epochs=1, batch_size=32, queue_size=40))
    other, _ = run(tmp_path / "other", TrainSettings(epochs=1, batch_size=32, queue_size=40, seed=1))
    assert not torch.equal(one["head.0.weight"], other["head.0.weight"])


def test_the_temperature_is_bounded(tmp_path: Path) -> None:
    weights, _ = run(tmp_path, TrainSettings(epochs=2, batch_size=32, queue_size=0, max_scale=14.0))
    assert float(weights["scale"]) <= 14.0 + 1e-4


def test_a_folded_head_is_the_same_function() -> None:
    data = world(200)
    head = StandardisedHead(image_head((24, 32, 16)), data.features)
    plain = head.folded()
    torch.testing.assert_close(plain(data.features.float()), head(data.features.float()), rtol=1e-4, atol=1e-4)
    assert not torch.equal(plain[0].weight, head.head[0].weight), "the head itself stays"  # type: ignore[arg-type]


def test_a_loss_that_is_not_a_number_stops_and_says_where(tmp_path: Path) -> None:
    data = world(100)
    data.features[50] = math.nan
    head, locations = StandardisedHead(image_head((24, 16)), world(100).features), LocationEncoder(LOCATION)
    with pytest.raises(RuntimeError, match="epoch 0, step"):
        train(head, locations, data, SETTINGS, tmp_path, evaluate=lambda _: {}, report=lambda _: None)


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="epochs"):
        TrainSettings(epochs=0)
    with pytest.raises(SettingsError, match="noise_m"):
        TrainSettings(noise_m=-1)
    head, locations = image_head((24, 16)), LocationEncoder(LOCATION)
    with pytest.raises(SettingsError, match="10 pictures are fewer than a batch of 32"):
        train(head, locations, world(10), SETTINGS, tmp_path, evaluate=lambda _: {}, report=lambda _: None)


def one_epoch(folder: Path, settings: TrainSettings) -> dict[str, Tensor]:
    return run(folder, settings)[0]


def test_a_batch_in_parts_is_the_same_batch(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, batch_size=32, queue_size=40)
    whole = one_epoch(tmp_path / "whole", settings)
    parts = one_epoch(tmp_path / "parts", replace(settings, accumulate=4))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_frozen_parts_stay(tmp_path: Path) -> None:
    before = one_epoch(tmp_path / "seed", TrainSettings(epochs=1, batch_size=32, freeze=("head", "logit_scale")))
    again = one_epoch(
        tmp_path / "other",
        TrainSettings(epochs=2, batch_size=32, freeze=("head", "logit_scale", "locations.LocEnc0")),
    )
    torch.manual_seed(1)
    head, locations = StandardisedHead(image_head((24, 32, 16)), world(300).features), LocationEncoder(LOCATION)
    assert torch.equal(before["head.0.weight"], head.state_dict()["head.0.weight"])
    assert float(before["scale"]) == pytest.approx(1 / 0.07, rel=1e-5)
    name = "LocEnc{}.head.0.weight"
    assert torch.equal(again[name.format(0)], locations.state_dict()[name.format(0)])
    assert not torch.equal(again[name.format(1)], locations.state_dict()[name.format(1)])


@pytest.mark.parametrize("freeze", [("towers",), ("head", "locations", "logit_scale")])
def test_freezing_nothing_or_everything_is_a_mistake(tmp_path: Path, freeze: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="freeze"):
        run(tmp_path, replace(SETTINGS, freeze=freeze))


def test_the_best_epoch_is_kept_and_the_run_stops_early(tmp_path: Path) -> None:
    torch.manual_seed(1)
    data = world(300)
    head, locations = StandardisedHead(image_head((24, 32, 16)), data.features), LocationEncoder(LOCATION)
    settings = replace(SETTINGS, epochs=9, monitor="median_km", patience=2)
    told, seen = iter([5.0, 3.0, 4.0, 3.5, 1.0]), []

    def evaluate(_: float) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in locations.state_dict().items()})
        return {"median_km": next(told)}

    train(head, locations, data, settings, tmp_path, evaluate=evaluate, report=lambda _: None)
    assert len(seen) == 4, "two epochs without a better one"
    assert all(torch.equal(seen[1][name], tensor) for name, tensor in locations.state_dict().items())


def test_a_folder_keeps_to_one_run(tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, epochs=1))
    with pytest.raises(SettingsError, match="noise_m was 2000"):
        run(tmp_path, replace(SETTINGS, epochs=1, noise_m=5.0))
    torch.manual_seed(1)
    data = world(300, seed=3)
    head, locations = StandardisedHead(image_head((24, 32, 16)), data.features), LocationEncoder(LOCATION)
    with pytest.raises(SettingsError, match="other data"):
        train(
            head, locations, data, replace(SETTINGS, epochs=1), tmp_path, evaluate=lambda _: {}, report=lambda _: None
        )
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["settings"]["batch_size"] == 32
    assert len(record["data"]["fingerprint"]) == 64


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_learning_rates(schedule: Literal["cosine", "step", "constant"]) -> None:
    settings = replace(PAPER, schedule=schedule)
    rates = [rate_factor(settings, epoch, 0.5) for epoch in range(10)]
    middle = {"cosine": 0.5, "step": 0.87**5, "constant": 1.0}
    assert rate_factor(settings, 5, 0.0) == pytest.approx(middle[schedule])
    assert rates == sorted(rates, reverse=True)
    assert rate_factor(replace(settings, warmup=0.1), 0, 0.5) == pytest.approx(0.5)


def test_bfloat16_where_there_is_none_computes_in_float32(tmp_path: Path) -> None:
    weights = one_epoch(tmp_path, TrainSettings(epochs=1, batch_size=32, dtype="auto", clip_norm=1.0))
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
