"""What is shown beside an answer: where the photo itself says it was taken, and the photo, small.

Both are made of the file when the answer is there already, so that nothing a photo says of itself can meet the
estimate.
"""

import math
from collections.abc import Sequence
from typing import Any

from open_geoclip.errors import ImageError
from open_geoclip.metadata.place import read_place
from open_geoclip.server.jobs import Options, Picture

__all__ = ["beside", "stated_place"]


def beside(pictures: Sequence[Picture], options: Options, *, max_pixels: int, readable: bool) -> dict[str, Any]:
    """What was asked for beside one answer, by the names that a record has for it.

    Args:
        pictures: that were answered; several of one place have one answer.
        options: what was asked for.
        max_pixels: larger pictures are not made small.
        readable: whether the picture could be read; there is no thumbnail of others.
    """
    told: dict[str, Any] = {}
    if options.exif:
        told["exif"] = next(filter(None, map(stated_place, pictures)), None)
    if options.thumbnails and readable:
        from open_geoclip.export.thumbnails import thumbnail

        told["thumbnail"] = thumbnail(pictures[0].data, max_pixels=max_pixels)
    return told


def stated_place(picture: Picture) -> dict[str, Any] | None:
    """The place that a photo's metadata name, JSON-ready; None where they name none, or one that is not on Earth."""
    try:
        place = read_place(picture.data, name=picture.name)
    except ImageError:  # it is no picture: its answer says so
        return None
    if place is None or not (abs(place.lat) <= 90 and abs(place.lon) <= 180):
        return None
    # JSON has no number for what is infinite.
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in place.to_dict().items()
    }
