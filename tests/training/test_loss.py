"""The objective: the released formula, what is left out of it, several right answers, noise in metres."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from open_geoclip.geo.sphere import haversine_km
from open_geoclip.model.image_encoder import image_head
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.training.loss import add_noise, contrastive_loss, near_duplicates

SCALE = torch.tensor(10.0)


def embeddings(n: int) -> Tensor:
    return F.normalize(torch.randn(n, 8), dim=1)


def test_the_loss_is_the_released_packages_on_the_same_numbers(
    released: Path, released_module: Callable[[str], ModuleType]
) -> None:
    """Its forward, `train.py`: cross-entropy of the logits of images over [batch; queue] with targets 0, 1, 2..."""
    locations = LocationEncoder.from_pretrained("geoclip")
    theirs = released_module("location_encoder").LocationEncoder(from_pretrained=False)
    theirs.load_state_dict(locations.state_dict())
    head, features = image_head(), torch.randn(6, 768)
    places = torch.rand(20, 2) * torch.tensor([170.0, 350.0]) - torch.tensor([85.0, 175.0])
    scale = torch.tensor(39.687)
    image = torch.nn.functional.normalize(head(features), dim=1)
    logits = scale * (image @ torch.nn.functional.normalize(theirs(places), dim=1).t())
    expected = torch.nn.CrossEntropyLoss()(logits, torch.arange(6))
    found = contrastive_loss(F.normalize(head(features), dim=1), F.normalize(locations(places), dim=1), scale)
    torch.testing.assert_close(found, expected)


def test_a_later_part_of_the_batch_has_its_own_places_further_on() -> None:
    image, location = embeddings(6), embeddings(9)
    whole = contrastive_loss(image, location, SCALE)
    parts = [contrastive_loss(image[i : i + 2], location, SCALE, first=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_other_right_places_share_the_aim_and_are_never_ignore() -> None:
    image, location = embeddings(2), embeddings(4)
    right = torch.tensor([[False, False, True, False], [False, False, False, False]])
    log_p = (SCALE * torch.cosine_similarity(image[:, None], location[None], dim=2)).log_softmax(dim=1)
    expected = -(log_p[0, [0, 2]].mean() + log_p[1, 1]) / 2
    found = contrastive_loss(image, location, SCALE, ignore=right, positives=right)
    torch.testing.assert_close(found, expected)


def test_gradients_stay_numbers_beside_places_that_are_ignore() -> None:
    image, location = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    ignore, right = torch.zeros(3, 5, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.bool)
    ignore[0, 1:4] = True
    right[0, 3] = True
    contrastive_loss(image, location, SCALE, ignore=ignore, positives=right).backward()
    assert image.grad is not None
    assert location.grad is not None
    assert image.grad.isfinite().all()
    assert location.grad.isfinite().all()


def test_near_duplicates_of_a_later_part() -> None:
    places = torch.tensor([[10.0, 20.0], [10.1, 20.0], [0.0, 180.0], [0.0, -179.9]], dtype=torch.float64)
    whole = near_duplicates(places, places, 50)
    assert torch.equal(near_duplicates(places[2:], places, 50, 2), whole[2:])
    assert whole[2, 3]
    assert not whole.diagonal().any()


@given(lat=st.sampled_from([-90.0, -89.9999, 0.0, 52.0, 90.0]), sigma_m=st.sampled_from([150.0, 1000.0]))
def test_noise_has_its_metres_everywhere(lat: float, sigma_m: float) -> None:
    start = torch.tensor([[lat, 179.9999]], dtype=torch.float64).expand(4000, 2)
    moved = add_noise(start, sigma_m, torch.Generator().manual_seed(0))
    metres = 1000 * haversine_km(start, moved)
    # The distance of two normal numbers of deviation s has the mean s sqrt(pi / 2).
    assert float(metres.mean()) == pytest.approx(sigma_m * (torch.pi / 2) ** 0.5, rel=0.03)
    assert float(moved[:, 0].abs().max()) <= 90
