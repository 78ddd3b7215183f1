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

from open_geoclip.errors import CoordinateError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors
from open_geoclip.model.image_encoder import image_head
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.training.loss import (
    SigLIPLoss,
    add_noise,
    contrastive_loss,
    distances_km,
    near_duplicates,
    near_weights,
    nearby_places,
    siglip_loss,
    smooth_targets,
)

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


def test_noise_folds_no_swapped_coordinates_over_the_pole() -> None:
    swapped = torch.tensor([[10.0, 20.0], [139.7, 35.7]], dtype=torch.float64)
    with pytest.raises(CoordinateError, match=r"row 1: .139.7, 35.7.*looks like .lon, lat."):
        add_noise(swapped, 150.0, torch.Generator())


PLACES = torch.tensor([[48.0, 2.0], [48.2, 2.0], [-30.0, 179.95], [-30.0, -179.95], [90.0, 0.0]], dtype=torch.float64)


def pairs64(n: int = 3, m: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, location = (torch.randn(k, 4, generator=generator, dtype=torch.float64) for k in (n, m))
    scale = torch.tensor(3.0, dtype=torch.float64)
    return image.requires_grad_(), location.requires_grad_(), scale.requires_grad_()


def test_distances_are_great_circles() -> None:
    torch.testing.assert_close(
        distances_km(PLACES, PLACES), haversine_km(PLACES[:, None], PLACES[None]), rtol=1e-9, atol=1e-3
    )


def test_smooth_targets_are_normalised_gaussians_of_the_distance() -> None:
    km = distances_km(PLACES[:3], PLACES)
    gaussian = [torch.exp(-((km / width) ** 2) / 2) for width in (20.0, 75.0)]
    expected = sum(g / g.sum(dim=1, keepdim=True) for g in gaussian) / 2
    torch.testing.assert_close(smooth_targets(km, [20.0, 75.0]), expected)
    torch.testing.assert_close(smooth_targets(km, [1e-2]), torch.eye(3, 5, dtype=torch.float64))
    far = smooth_targets(km, [1e6])
    torch.testing.assert_close(far, torch.full_like(far, 0.2), rtol=1e-3, atol=0)


def test_nearby_places_lie_in_all_directions_with_as_many_in_each_octave() -> None:
    places = torch.tensor([[48.0, 2.0], [-89.0, 0.0], [0.0, 179.9]], dtype=torch.float64)
    found = nearby_places(places, 2000, (20.0, 320.0), torch.Generator().manual_seed(0))
    assert torch.equal(found, nearby_places(places, 2000, (20.0, 320.0), torch.Generator().manual_seed(0)))
    for place, around in zip(places, found.reshape(3, 2000, 2), strict=True):
        km = distances_km(place[None], around)[0]
        assert km.min() > 20 - 1e-6
        assert km.max() < 320 + 1e-6
        octaves = torch.histc(torch.log2(km / 20), 4, 0, 4)
        assert ((octaves - 500).abs() < 5 * 500**0.5).all()
        # Directions cancel, seen from the place: no side has more.
        mean = unit_vectors(around).mean(dim=0) - unit_vectors(place[None])[0]
        assert mean.norm() * EARTH_RADIUS_KM < 10
    assert len(nearby_places(places, 0, (20.0, 320.0), torch.Generator())) == 0
    assert torch.allclose(
        distances_km(places[:1], nearby_places(places[:1], 9, (30.0, 30.0), torch.Generator())),
        torch.tensor(30.0, dtype=torch.float64),
    )


def test_the_objectives_are_the_plain_loss_in_their_limits() -> None:
    image, location, scale = pairs64()
    km = distances_km(PLACES[:3], PLACES)
    plain = contrastive_loss(image, location, scale)
    for value in (
        contrastive_loss(image, location, scale, targets=smooth_targets(km, [1e-2])),
        contrastive_loss(image, location, scale, weights=near_weights(km, 0.0, 500.0)),
    ):
        torch.testing.assert_close(value, plain)
        found, expected = (torch.autograd.grad(x, image, retain_graph=True)[0] for x in (value, plain))
        torch.testing.assert_close(found, expected)


def test_smooth_targets_and_weights_against_written_out_sums() -> None:
    image, location, scale = pairs64()
    km = distances_km(PLACES[:3], PLACES)
    logits = scale * image @ location.T
    targets, weights = smooth_targets(km, [75.0]), near_weights(km, 1.5, 300.0)
    expected = -(targets * logits.log_softmax(dim=1)).sum() / 3
    torch.testing.assert_close(contrastive_loss(image, location, scale, targets=targets), expected)
    # The gradient by the logits is softmax minus targets, as for any cross-entropy.
    (found,) = torch.autograd.grad(contrastive_loss(image, location, scale, targets=targets), location)
    torch.testing.assert_close(found, scale * (logits.softmax(dim=1) - targets).T @ image / 3)
    w = (1 + 1.5 * torch.exp(-km / 300)).fill_diagonal_(1.0)
    expected = ((w * logits.exp()).sum(dim=1).log() - logits.diagonal()).mean()
    torch.testing.assert_close(contrastive_loss(image, location, scale, weights=weights), expected)


def test_positives_within_a_radius_and_an_ignored_ring() -> None:
    """Row 0: its neighbour at 22 km is right, one at 44 km counts not at all."""
    places = torch.tensor([[48.0, 2.0], [48.2, 2.0], [48.4, 2.0], [-30.0, 0.0]], dtype=torch.float64)
    image, location, scale = pairs64(1, 4)
    positives, ignore = (near_duplicates(places[:1], places, radius) for radius in (30.0, 60.0))
    log_p = (scale * image @ location.T)[:, [0, 1, 3]].log_softmax(dim=1)
    found = contrastive_loss(image, location, scale, ignore=ignore, positives=positives)
    torch.testing.assert_close(found, -log_p[0, :2].mean())
    (gradient,) = torch.autograd.grad(found, location)
    assert not gradient[2].any()


def test_the_siglip_loss_against_a_written_out_reference() -> None:
    image, location, scale = pairs64()
    bias = torch.tensor(-2.0, dtype=torch.float64)
    ignore, positives = torch.zeros(3, 5, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.bool)
    ignore[0, 3] = ignore[1, 2] = positives[1, 2] = True

    def reference(first: int, *, with_masks: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(3):
            for j in range(5):
                if with_masks and (i, j) == (0, 3):
                    continue
                z = 1 if j == first + i or (with_masks and (i, j) == (1, 2)) else -1
                total = total + torch.log1p(torch.exp(-z * (scale * image[i] @ location[j] + bias)))
        return total / 3

    torch.testing.assert_close(siglip_loss(image, location, scale, bias, first=2), reference(2, with_masks=False))
    found = siglip_loss(image, location, scale, bias, ignore=ignore, positives=positives)
    torch.testing.assert_close(found, reference(0, with_masks=True))
    module = SigLIPLoss(-2.0).double()
    torch.testing.assert_close(module(image, location, scale, ignore=ignore, positives=positives), found)


def test_gradients_against_finite_differences() -> None:
    image, location, scale = pairs64()
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    km = distances_km(PLACES[:3], PLACES)
    ignore = near_duplicates(PLACES[:3], PLACES, 50.0)
    options = {"targets": smooth_targets(km, [20.0, 200.0]), "weights": near_weights(km, 2.0, 500.0)}
    for extra in (options, {"ignore": ignore, "positives": near_duplicates(PLACES[:3], PLACES, 15.0)}):
        assert torch.autograd.gradcheck(
            lambda a, b, s, extra=extra: contrastive_loss(a, b, s, **extra), (image, location, scale)
        )
    assert torch.autograd.gradcheck(
        lambda a, b, s, t: siglip_loss(a, b, s, t, ignore=ignore), (image, location, scale, bias)
    )
