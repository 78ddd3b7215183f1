"""The other encodings of a place: what they are held against, what they know of seams and poles, how they are kept."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.model.encodings import ENCODINGS, Encoding, SphericalHarmonics
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.weights.save import save_model, save_release

SMALL: dict[str, Any] = {"width": 24, "depth": 2, "output": 8}
OTHERS: list[dict[str, Any]] = [
    {"encoding": "harmonics", "degree": 6, "network": "siren"},
    {"encoding": "space2vec", "scales": 4, "finest_deg": 10.0},
    {"encoding": "sphere2vec", "scales": 4, "finest_deg": 10.0},
    {"encoding": "wrapped"},
    {"encoding": "unit"},
    {"encoding": "plain", "projection": "equal_earth"},
    {"encoding": "plain", "projection": "sphere"},
    {"encoding": "plain", "projection": "degrees"},
]


def some_places(n: int) -> Tensor:
    return torch.stack([torch.rand(n) * 180 - 90, torch.rand(n) * 360 - 180], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_harmonics_equal_scipys(dtype: torch.dtype) -> None:
    special = pytest.importorskip("scipy.special")
    poles = torch.tensor([[90.0, 0.0], [-90.0, 77.0], [89.999, 5.0], [0.0, 180.0], [0.0, -180.0]])
    places = torch.cat([some_places(200), poles]).to(dtype)
    encoder = LocationEncoder(LocationSettings(encoding="harmonics", **SMALL))
    found = encoder.levels[0].capsule[0](places).to(dtype).numpy()
    lat, lon = np.deg2rad(places.double().numpy()).T
    assert found.shape == (205, 41**2)
    for degree in range(41):
        for m in range(degree + 1):
            y = special.sph_harm_y(degree, m, np.pi / 2 - lat, lon)
            # scipy has the Condon-Shortley phase; a real harmonic carries both signs of m.
            both = y if m == 0 else np.sqrt(2) * (-1) ** m * y
            middle = degree**2 + degree
            np.testing.assert_allclose(found[:, middle + m], both.real, rtol=0, atol=1e-6)
            if m:
                np.testing.assert_allclose(found[:, middle - m], both.imag, rtol=0, atol=1e-6)


def test_harmonics_are_as_long_everywhere_and_have_gradients() -> None:
    """Unsöld's theorem: over all orders, the squares of a degree sum to (2l + 1) / 4π at each place."""
    points = some_places(50).double().requires_grad_()
    values = SphericalHarmonics(LocationSettings(encoding="harmonics", degree=100), 0)(points)
    for degree in (0, 1, 2, 40, 100):
        squares = (values[:, degree**2 : (degree + 1) ** 2] ** 2).sum(dim=1)
        torch.testing.assert_close(squares, torch.full_like(squares, (2 * degree + 1) / (4 * np.pi)))
    values.sum().backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()


@pytest.mark.parametrize("settings", OTHERS, ids=lambda s: s["encoding"])
def test_each_learns_and_is_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    shape = LocationSettings(**settings, **SMALL)
    encoder = LocationEncoder(shape)
    assert len(encoder.levels) == 1
    places = some_places(128)
    goal = torch.cat([unit_vectors(places), torch.zeros(128, 5)], dim=1)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(encoder(places), goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    config = {
        "location_encoder": asdict(shape) | {"sigmas": list(shape.sigmas)},
        "image_encoder": None,
        "preprocessing": None,
        "card": {},
    }
    tensors = {f"location_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    save_release(tmp_path / "kept", tensors, config, dtype="float32")
    again = LocationEncoder.from_pretrained(f"dir:{tmp_path / 'kept'}")
    assert again.settings == shape
    torch.testing.assert_close(again.encode(places), encoder.encode(places), rtol=0, atol=0)
    half = again.to(torch.bfloat16).encode(places)
    assert float((half * encoder.encode(places)).sum(dim=1).min()) > 0.99
    wrong = config | {"location_encoder": config["location_encoder"] | {"encoding": "geohash"}}  # type: ignore[operator]
    with pytest.raises(WeightsError, match="geohash"):
        save_release(tmp_path / "wrong", tensors, wrong)


def test_seams_and_poles() -> None:
    pairs = torch.tensor(
        [[[10.0, 180.0], [10.0, -180.0]], [[90.0, 0.0], [90.0, 123.0]], [[-90.0, -50.0], [-90.0, 7.0]]]
    )
    known = {"harmonics": (True, True), "unit": (True, True), "wrapped": (True, False)}
    for settings in OTHERS:
        encoder = LocationEncoder(LocationSettings(**settings, **SMALL))
        seen = encoder.levels[0].capsule[0](pairs.view(-1, 2).double()).view(3, 2, -1)
        apart = (seen[:, 0] - seen[:, 1]).abs().amax(dim=1)
        named = "unit" if settings.get("projection") == "sphere" else settings["encoding"]
        seamless, one_pole = known.get(named, (False, False))
        assert (float(apart[0]) < 1e-6) == seamless, settings
        assert (float(apart[1:].min()) < 1e-6) == one_pole, settings


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"encoding": "harmonics", "degree": 0}, "degree: from 1 to 200"),
        ({"encoding": "space2vec", "finest_deg": 0.0}, "finest_deg"),
        ({"encoding": "unit", "sigmas": (4.0,)}, "sigmas is a setting of fourier; unit does not use it"),
        ({"degree": 10}, "degree is a setting of harmonics"),
    ],
)
def test_settings_out_of_range_or_of_another_encoding(wrong: dict[str, Any], said: str) -> None:
    types_aside: Any = LocationSettings
    with pytest.raises(SettingsError, match=said):
        types_aside(**wrong)


class LatitudeOnly(Encoding):
    """Sine and cosine of multiples of the latitude."""

    settings_used = ("degree",)

    def __init__(self, settings: LocationSettings, level: int) -> None:
        super().__init__(settings, level)
        self.size = 2 * settings.degree
        self.multiples = range(1, settings.degree + 1)

    def forward(self, coordinates: Tensor) -> Tensor:
        angles = torch.deg2rad(coordinates[:, :1]) * coordinates.new_tensor(self.multiples)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def test_a_new_encoding_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ENCODINGS, "latitude", LatitudeOnly)
    settings = LocationSettings(encoding="latitude", degree=5, **SMALL)
    encoder = LocationEncoder(settings)
    places = some_places(40)
    assert torch.equal(encoder.encode(places), encoder.encode(places * torch.tensor([1.0, 0.5])))
    save_model(tmp_path / "kept", GeoCLIP(None, encoder), card={}, dtype="float32")
    again = LocationEncoder.from_pretrained(f"dir:{tmp_path / 'kept'}")
    assert again.settings == settings
    assert torch.equal(again.encode(places), encoder.encode(places))
    with pytest.raises(SettingsError, match="sigmas is a setting of fourier; latitude does not use it"):
        LocationSettings(encoding="latitude", sigmas=(2.0,))
