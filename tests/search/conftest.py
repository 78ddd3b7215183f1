"""A locator with few places, for tests that need real posteriors."""

from dataclasses import replace

import pytest

from open_geoclip import Gallery, Locator
from open_geoclip.geo.sphere import even_points


@pytest.fixture(scope="session")
def locator(tmp_path_factory: pytest.TempPathFactory) -> Locator:
    """Without doubt: of images of nothing it would leave the prior alone to answer."""
    gallery = Gallery.from_coordinates(even_points(1000))
    found = Locator.from_pretrained("earth", gallery=gallery, cache=tmp_path_factory.mktemp("cache"))
    calibration = replace(found.calibration, background_slope=0.0)
    return Locator(found.model, found.search_space, model_name=found.model_name, calibration=calibration)
