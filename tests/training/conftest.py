"""Photos to train on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_geoclip.geo.sphere import even_points


@pytest.fixture(scope="session")
def save_colours() -> Callable[[Path, int], Path]:
    """Write n photos of one colour each, at places all over the Earth, and return their table."""

    def save(folder: Path, n: int) -> Path:
        drawn = np.random.default_rng(0).integers(0, 256, (n, 1, 1, 3), dtype=np.uint8)
        lines = ["IMG_FILE,LAT,LON"]
        for i, (lat, lon) in enumerate(even_points(n).tolist()):
            Image.fromarray(np.tile(drawn[i], (60, 60, 1))).save(folder / f"{i}.png")
            lines.append(f"{i}.png,{lat:.5f},{lon:.5f}")
        table = folder / "photos.csv"
        table.write_text("\n".join(lines) + "\n")
        return table

    return save
