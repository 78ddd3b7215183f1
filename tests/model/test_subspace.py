"""The principal subspace of features: what lies in it is near, what does not is far, whatever the position."""

import pytest
import torch

from open_geoclip.model.subspace import PrincipalSubspace


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    """8 channels at 2 positions that vary along 3 directions, and 3 further numbers that do not count."""
    torch.manual_seed(0)
    signal = torch.randn(400, 2, 3) @ torch.randn(3, 8) + 0.01 * torch.randn(400, 2, 8)
    return torch.cat([signal.transpose(1, 2).reshape(400, 16), 9 * torch.randn(400, 3)], dim=1)


def test_what_lies_outside_of_the_subspace_is_far(features: torch.Tensor) -> None:
    subspace = PrincipalSubspace.fit(features, channels=8, positions=2, k=3)
    usual = subspace.distance(features)
    assert (subspace.distance(3 * features) < usual + 2).all()  # still in the subspace
    strange = subspace.distance(features + torch.randn(400, 19))
    assert float(strange.min()) > float(usual.max())
    changed = features.clone()
    changed[:, 16:] = 0
    torch.testing.assert_close(subspace.distance(changed), usual)


def test_a_release_keeps_it_in_half_precision(features: torch.Tensor) -> None:
    subspace = PrincipalSubspace.fit(features, channels=8, positions=2, k=3)
    tensors = subspace.to_tensors()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    read = PrincipalSubspace.from_tensors(tensors, 19)
    strange = features + torch.randn(400, 19)
    torch.testing.assert_close(read.distance(strange), subspace.distance(strange), atol=0.01, rtol=0)
    for broken, message in (
        ({**tensors, "more": tensors["std"]}, "not mean, std, components"),
        ({**tensors, "std": 0 * tensors["std"]}, "not above 0"),
        ({**tensors, "mean": tensors["mean"][:5]}, "other shapes"),
        ({**tensors, "components": tensors["components"] * torch.nan}, "other shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            PrincipalSubspace.from_tensors(broken, 19)
    with pytest.raises(ValueError, match="length 15"):
        PrincipalSubspace.from_tensors(tensors, 15)
