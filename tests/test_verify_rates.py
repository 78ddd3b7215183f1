"""The benchmark of ``geoclip verify``: places that are moved as far as it says, rates, and the page's own part."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from open_geoclip.data.earth import is_land
from open_geoclip.data.earth_views import view_centres
from open_geoclip.geo.sphere import haversine_km


@pytest.fixture(scope="module")
def rates(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("verify_rates")


def test_places_are_moved_so_far_and_onto_land(rates: ModuleType) -> None:
    centres = view_centres("test", 40)
    for km in rates.MOVED_KM:
        places = np.array([rates.moved(lat, lon, km, n) for n, (lat, lon) in enumerate(centres.tolist())])
        assert haversine_km(centres, places) == pytest.approx(np.full(40, km), rel=1e-6)
        assert is_land(places).mean() > 0.95
        assert np.abs(places[:, 1]).max() <= 180
    assert rates.moved(0.0, -140.0, 50, 1) == rates.moved(0.0, -140.0, 50, 1), "the same in every run, at sea too"


def test_rates_leave_out_what_cannot_be_told(rates: ModuleType) -> None:
    verdicts = [("true", "consistent")] * 18 + [("true", "unlikely"), ("true", "contradicts")]
    verdicts += [("true", "cannot tell")] * 5 + [("200", "contradicts")] * 4
    found = rates.rates(verdicts)
    assert (found["true"]["views"], found["true"]["doubted_percent"]) == (25, 10.0)
    assert (found["true"]["contradicted_percent"], found["true"]["cannot_tell_percent"]) == (5.0, 20.0)
    assert found["true"]["doubted_interval"] == pytest.approx((2.79, 30.10), abs=0.02)  # Wilson, of 2 in 20
    assert found["200"]["doubted_percent"] == 100
    assert found["5000"]["doubted_percent"] is None
    other = rates.rates([("true", "unlikely"), *[("true", "consistent")] * 9])
    text = rates.table({"model": "m", "views": 29, "rates": found, "renderings": {"January": other}})
    assert "| the true place (false alarms) | 25 | **10.0 %** (2.8 to 30.1) | 5.0 % | 20.0 % |" in text
    assert "moved by 200 km | 4 |" in text
    assert "moved by 5,000" not in text
    assert "| January | **10.0 %** (1.8 to 40.4) | - | - | - | - |" in text
