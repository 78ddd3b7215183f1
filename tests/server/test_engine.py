"""The engine answers as the locator does that it holds."""

import numpy as np
import pytest

from open_geoclip.data.earth import Earth
from open_geoclip.search.locator import Locator
from open_geoclip.server.engine import Engine
from open_geoclip.server.jobs import Job, Pixels


def test_images_that_the_model_is_not_for_are_recognised() -> None:
    locator = Locator.from_pretrained("earth", towers=("image",))
    view = Earth("bluemarble").render(np.array([[41.9, 12.5]]), np.full(1, 900.0), np.zeros(1), size=224)[0]
    noise = np.random.default_rng(0).integers(0, 256, view.shape, dtype=np.uint8)
    jobs = [Job("locate", images=(Pixels(224, 224, image.tobytes()),)) for image in (view, noise)]
    outcomes = Engine(locator).run(jobs)
    expected = locator.locate([view, noise])
    assert [one.in_distribution for one in expected] == [True, False]
    for outcome, answer in zip(outcomes, expected, strict=True):
        assert outcome.answers is not None
        [record] = outcome.answers
        assert record["in_distribution"] is answer.in_distribution
        assert record.get("warning") == answer.warning
        # The share of the mass that follows the prior depends on the distance of the features.
        assert record["candidates"][0]["probability"] == pytest.approx(answer.candidates[0].probability, rel=1e-3)
