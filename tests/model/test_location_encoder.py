"""The location encoder: parity with the released package, projections, precision, memory."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from open_geoclip.errors import CoordinateError, SettingsError
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings

GOLDEN = {  # float64, not normalised, the first five numbers
    (40.7128, -74.0060): (-0.01039, 0.00788, 0.01302, 0.00284, -0.00234),
    (34.0522, -118.2437): (-0.00456, 0.00863, 0.00462, -0.00716, -0.00242),
    (48.8584, 2.2945): (-0.01321, 0.00858, -0.00471, 0.00516, -0.00834),
    (0.0, 0.0): (0.00466, 0.00069, 0.00735, -0.00151, -0.02280),
    (-33.8568, 151.2153): (-0.01870, 0.00666, 0.00807, -0.01009, 0.00430),
}
SMALL = LocationSettings(sigmas=(1.0, 16.0), features=32, width=48, depth=2, output=24)


@pytest.fixture(scope="module")
def trained(released: Path) -> LocationEncoder:
    assert released.is_dir()
    return LocationEncoder.from_pretrained("geoclip")


def random_coordinates(n: int) -> Tensor:
    return torch.stack([torch.rand(n) * 180 - 90, torch.rand(n) * 360 - 180], dim=1)


def test_equals_the_released_package(trained: LocationEncoder, released_module: Callable[[str], ModuleType]) -> None:
    theirs = released_module("location_encoder").LocationEncoder()
    coordinates = random_coordinates(1000)
    with torch.no_grad():
        expected = theirs(coordinates)
        torch.testing.assert_close(trained(coordinates), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(trained.encode(coordinates, normalize=False), expected, rtol=0, atol=1e-6)


def test_golden_values(trained: LocationEncoder) -> None:
    double = LocationEncoder.from_pretrained("geoclip").double()
    with torch.no_grad():
        vectors = double(torch.tensor(list(GOLDEN), dtype=torch.float64))
    torch.testing.assert_close(
        vectors[:, :5], torch.tensor(list(GOLDEN.values()), dtype=torch.float64), rtol=0, atol=6e-6
    )
    unit = trained.encode(torch.tensor(list(GOLDEN), dtype=torch.float64))
    assert float(unit[0] @ unit[1]) == pytest.approx(0.3744, abs=1e-4)
    assert float(unit[0] @ unit[2]) == pytest.approx(0.3122, abs=1e-4)


def test_takes_float64_as_well_as_float32(trained: LocationEncoder) -> None:
    coordinates = random_coordinates(200).double()
    torch.testing.assert_close(trained.encode(coordinates), trained.encode(coordinates.float()), rtol=0, atol=2e-4)


def test_bfloat16_network_keeps_its_phases(trained: LocationEncoder) -> None:
    half = LocationEncoder.from_pretrained("geoclip").to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert all(buffer.dtype == torch.float32 for buffer in half.buffers())
    for level, original in zip(half.levels, trained.levels, strict=True):
        assert torch.equal(level.capsule[0].b, original.capsule[0].b)  # type: ignore[arg-type]
    coordinates = random_coordinates(64)
    cosine = (half.encode(coordinates) * trained.encode(coordinates)).sum(dim=1)
    assert float(cosine.min()) >= 0.9999


def test_chunks_do_not_show() -> None:
    encoder = LocationEncoder(SMALL).eval()
    coordinates = random_coordinates(100)
    whole = encoder.encode(coordinates, chunk=100)
    torch.testing.assert_close(encoder.encode(coordinates, chunk=7), whole)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(100))
    assert encoder.encode(coordinates[:0]).shape == (0, 24)


def test_coordinates_on_the_cpu_go_to_the_device_of_the_encoder() -> None:
    devices = list[str]()

    class Elsewhere(LocationEncoder):
        def forward(self, coordinates: Tensor) -> Tensor:
            devices.append(coordinates.device.type)
            return torch.ones(len(coordinates), self.settings.output)

    encoder = Elsewhere(LocationSettings(features=4, width=4, output=8)).to("meta")  # as on a GPU
    found = encoder.encode(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), chunk=2)
    assert devices == ["meta", "meta"]
    assert found.device.type == "cpu"


def test_sphere_has_no_seam_and_one_pole_each() -> None:
    encoder = LocationEncoder(
        LocationSettings(sigmas=(1.0, 16.0), features=32, width=48, output=24, projection="sphere")
    )
    pairs = torch.tensor(
        [[[10.0, 180.0], [10.0, -180.0]], [[90.0, 0.0], [90.0, 123.0]], [[-90.0, -50.0], [-90.0, 7.0]]]
    )
    first, second = encoder.encode(pairs[:, 0]), encoder.encode(pairs[:, 1])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
    flat = LocationEncoder(SMALL)
    assert not torch.allclose(flat.encode(pairs[:, 0]), flat.encode(pairs[:, 1]), atol=0.05)


@pytest.mark.parametrize("projection", ["equal_earth", "sphere", "degrees"])
def test_all_projections_learn(projection: str) -> None:
    settings = LocationSettings(sigmas=(1.0, 8.0), features=32, width=48, output=3, projection=projection)  # type: ignore[arg-type]
    encoder = LocationEncoder(settings)
    coordinates = random_coordinates(256)
    goal = torch.stack(
        [torch.deg2rad(coordinates[:, 0]).sin(), torch.deg2rad(coordinates[:, 1]).cos(), coordinates[:, 0] / 90], 1
    )
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(encoder(coordinates), goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert all(not name.endswith(".b") for name, _ in encoder.named_parameters()), "frequencies are not trained"


def test_published_size() -> None:
    encoder = LocationEncoder(LocationSettings())
    assert sum(tensor.numel() for tensor in encoder.state_dict().values()) == 9_449_472


@pytest.mark.parametrize(
    "wrong",
    [{"sigmas": ()}, {"sigmas": (0.0,)}, {"width": 0}, {"depth": 0}],
)
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        LocationSettings(**wrong)  # type: ignore[arg-type]


def test_wrong_coordinates_are_refused() -> None:
    encoder = LocationEncoder(SMALL)
    with pytest.raises(CoordinateError, match="latitude"):
        encoder(torch.tensor([[200.0, 0.0]]))
    with pytest.raises(CoordinateError, match=r"(?i)nan|finite"):
        encoder.encode(torch.tensor([[math.nan, 0.0]]))
