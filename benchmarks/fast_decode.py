"""What decoding JPEGs at a reduced scale does to answers: ``python benchmarks/fast_decode.py``.

Test views of the Earth are written as 12-megapixel JPEGs of four cameras (see ``pipeline.py``), encoded and located
with ``earth``: whole, and with ``fast_decode``. The table has how similar the features of the backbone and the
embeddings are, how far the first candidate moved, and how many first candidates are the same place.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from open_geoclip.data.earth_views import view_centres
from open_geoclip.geo.sphere import haversine_km
from open_geoclip.search.encode import EncodedBatch, EncodeSettings, encode_images
from open_geoclip.search.locator import Locator
from pipeline import PAGE, write_photos
from report import put_between

BATCH = 16
RADII_KM = (25, 200, 750)
RESAMPLES = 2000


def encode_both(locator: Locator, count: int, megapixels: float) -> tuple[list[EncodedBatch], list[EncodedBatch]]:
    """Return the views' embeddings, batch by batch: decoded whole, and at a reduced scale."""
    whole: list[EncodedBatch] = []
    fast: list[EncodedBatch] = []
    for start in range(0, count, BATCH):
        with tempfile.TemporaryDirectory() as folder:
            files = write_photos(Path(folder), min(BATCH, count - start), megapixels, start)
            for batches, is_fast in ((whole, False), (fast, True)):
                batches.append(encode_images(locator.model, files, EncodeSettings(BATCH, fast_decode=is_fast)))
        print(f"{start + len(files)} of {count} views", flush=True)
    return whole, fast


def compare(locator: Locator, whole: list[EncodedBatch], fast: list[EncodedBatch]) -> list[str]:
    """Return the table."""
    cosines, places = {}, []
    for name in ("features", "embeddings"):
        one, other = (torch.cat([getattr(batch, name) for batch in batches]) for batches in (whole, fast))
        cosines[name] = F.cosine_similarity(one, other)
    rows = []
    for batches in (whole, fast):
        rows.append(torch.cat([locator.posterior(batch.embeddings).log_mass.argmax(dim=1) for batch in batches]))
        answers = [answer for batch in batches for answer in locator.locate_embeddings(batch.embeddings, 1)]
        places.append(np.array([(answer.candidates[0].lat, answer.candidates[0].lon) for answer in answers]))
    moved = haversine_km(*places)
    lines = [
        f"| {len(moved)} views, `earth` | |",
        "| --- | --- |",
        *(f"| cosine of {name}: mean, least | {c.mean():.5f}, {c.min():.5f} |" for name, c in cosines.items()),
        f"| most probable place of the gallery is the same | {_share((rows[0] == rows[1]).numpy())} |",
        f"| first candidate moved by more than 25 km, 200 km | {_share(moved > 25)}, {_share(moved > 200)} |",
        f"| by: median, 95th percentile, most | {_kilometres(moved)} |",
    ]
    truth, rng = view_centres("test", len(moved)), np.random.default_rng(0)
    errors = [haversine_km(truth, one) for one in places]
    for km in RADII_KM:
        right = [error <= km for error in errors]
        gain = 100.0 * (right[1].astype(float) - right[0])
        means = gain[rng.integers(0, len(gain), (RESAMPLES, len(gain)))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        shares = ", ".join(f"{100 * one.mean():.1f} %" for one in right)
        lines.append(f"| within {km} km: whole, fast | {shares} (difference {low:+.1f} to {high:+.1f} points) |")
    return lines


def _share(of: np.ndarray) -> str:
    return f"{100 * of.mean():.1f} %"


def _kilometres(moved: np.ndarray) -> str:
    return ", ".join(f"{value:.0f} km" for value in (*np.quantile(moved, (0.5, 0.95)), moved.max()))


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.name}")
    options = parser.parse_args(arguments)
    locator = Locator.from_pretrained("earth")
    lines = compare(locator, *encode_both(locator, options.views, options.megapixels))
    lines += ["", f"JPEGs of {options.megapixels:g} megapixels. Intervals: 95 %, paired bootstrap (seed 0)."]
    print("\n".join(lines))
    if options.write:
        put_between(PAGE, "benchmarks/fast_decode.py", "\n".join(lines))


if __name__ == "__main__":
    main()
