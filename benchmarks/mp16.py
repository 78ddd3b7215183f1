"""What it costs to train on MP-16 (or any photos): hours, bytes and what travels, from measured rates.

    python benchmarks/mp16.py        # at the rates of benchmarks/results/training.json
    python benchmarks/mp16.py --views-a-second 900 --photos-a-second 40000 --processes 8    # at yours

Both rates are a process's: ``geoclip train`` shows them while it encodes ("a second") and while it trains ("photos a
second"; with several processes it shows that of all together). Encoding is done once, however often is trained.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "training.json"
PHOTOS = 4_120_000  # of MP-16's 4.7 million, those that can still be had
FEATURE, PARAMETERS = 768, 10_432_257  # of CLIP ViT-L/14; of the released head and location encoder
IMAGE_BYTES = 50_000  # of a photo in a shard, resized to 336 pixels


@dataclass(frozen=True)
class Plan:
    """A training to be costed.

    Attributes:
        photos: how many.
        views: augmented views of each that are kept.
        epochs: passes over the photos.
        processes: over all nodes.
        views_a_second: encoded by one process.
        photos_a_second: trained on by one process.
        batch: photos a step, over all processes.
    """

    photos: int
    views: int
    epochs: int
    processes: int
    views_a_second: float
    photos_a_second: float
    batch: int = 512

    @property
    def encoding_hours(self) -> float:
        """Once."""
        return self.photos * self.views / self.views_a_second / self.processes / 3600

    @property
    def training_hours(self) -> float:
        """Each time, if the processes lose nothing to one another."""
        return self.photos * self.epochs / self.photos_a_second / self.processes / 3600

    def table(self) -> str:
        """All of it as Markdown."""
        rows = [
            (f"photos in shards, at {IMAGE_BYTES // 1000} kB", size(self.photos * IMAGE_BYTES)),
            ("features, float16", size(self.photos * self.views * FEATURE * 2)),
            ("coordinates, in each process", size(self.photos * 16)),
            ("a checkpoint (weights and two moments, float32)", size(PARAMETERS * 12)),
            ("a step sends: coordinates", size(self.batch * 16)),
            ("a step sends: gradients, each process", size(PARAMETERS * 4)),
            (f"encoding, {self.views} views a photo, once", hours(self.encoding_hours)),
            (f"training, {self.epochs} epochs", hours(self.training_hours)),
        ]
        about = (
            f"{self.photos:,} photos, {self.processes} processes, {self.views_a_second:,.3g} views encoded and "
            f"{self.photos_a_second:,.3g} photos trained on a second in each"
        )
        return "\n".join([f"| {about} | |", "| --- | ---: |", *(f"| {what} | {cost} |" for what, cost in rows)])


def size(count: float) -> str:
    """Bytes for people."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:,.3g} {unit}"
    return f"{count:.0f} bytes"


def hours(count: float) -> str:
    """Hours, or days where they are many."""
    return f"{count:,.3g} hours" if count < 100 else f"{count:,.0f} hours ({count / 24:,.0f} days)"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=PHOTOS)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--views-a-second", type=float, help="of one process; measured here when not given")
    parser.add_argument("--photos-a-second", type=float, help="of one process; measured here when not given")
    options = parser.parse_args()
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    largest = max(measured["batches"], key=int)
    print(
        Plan(
            options.photos,
            options.views,
            options.epochs,
            options.processes,
            options.views_a_second or measured["features a second, once a view"],
            options.photos_a_second or measured["batches"][largest]["photos a second"]["ours"],
        ).table()
    )


if __name__ == "__main__":
    main()
