"""What is done to files outside of any model: decoding images, reading their metadata, writing answers as files."""

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, timedelta
from typing import Any

from open_geoclip.data.clocks import TripPhoto, find_anchors
from open_geoclip.data.tracks import read_track
from open_geoclip.errors import ImageError
from open_geoclip.images import load_image, resize_image
from open_geoclip.metadata.read import read_metadata, read_place
from open_geoclip.server.jobs import Message, Pixels, PreparedImage, Upload
from open_geoclip.server.problems import Problem, problem_of
from open_geoclip.server.schemas import ExportRequest, parse_json

__all__ = ["handle", "prepare_image"]


def prepare_image(
    upload: Upload,
    *,
    resize: int,
    resample: str,
    max_pixels: int,
    squash: bool = False,
    exif: bool = False,
    thumbnail: bool = False,
    trip: bool = False,
) -> PreparedImage:
    """Decode an image file and resize it for a model.

    On request read its place, or what it says of time and place for a trip, and make a thumbnail.
    """
    digest = hashlib.sha256(upload.data).hexdigest()
    place = _place_in_metadata(upload) if exif else None
    try:
        image = load_image(upload.data, name=upload.name, max_pixels=max_pixels)
        small = resize_image(image, resize, resample, squash=squash)
        data_uri = None
        if thumbnail:
            from open_geoclip.export.thumbnails import thumbnail as thumbnail_of

            data_uri = thumbnail_of(image, max_pixels=max_pixels)
    except ImageError as error:
        return PreparedImage(None, error.reason, digest, place)
    photo = TripPhoto.from_metadata(upload.name, read_metadata(upload.data)).to_dict() if trip else None
    return PreparedImage(Pixels(*small.size, small.tobytes()), None, digest, place, data_uri, photo)


def _place_in_metadata(upload: Upload) -> dict[str, Any] | None:
    try:
        place = read_place(upload.data, name=upload.name)
    except ImageError:  # not an image: its answer says so
        return None
    return place.to_dict() if place is not None and place.is_on_earth else None


def _find_anchors(content: dict[str, Any], blobs: Sequence[bytes | bytearray]) -> dict[str, Any]:
    """The times of photos, the known places around each (none without tracks and GPS), and notes; JSON-ready."""
    photos = [TripPhoto.from_dict(photo) for photo in content["photos"]]
    if not blobs and not content["use_gps"]:
        taken = [photo.taken for photo in photos if photo.taken is not None]
        return {"times_s": [time.replace(tzinfo=time.tzinfo or UTC).timestamp() for time in taken], "brackets": None}
    tracks = []
    for name, blob in zip(content["tracks"], blobs, strict=True):
        with os.fdopen(os.memfd_create("track"), "wb") as file:
            file.write(blob)
            file.flush()
            tracks.append(read_track(f"/proc/self/fd/{file.fileno()}", name=name))
    offset_s = content["clock_offset_s"]
    offsets = None if offset_s is None else {"": timedelta(seconds=offset_s)}
    anchors = find_anchors(photos, tracks, use_gps=content["use_gps"], clock_offsets=offsets)
    brackets = [[fix and vars(fix) for fix in pair] for pair in anchors.brackets]
    return {"times_s": anchors.times_s, "brackets": brackets, "notes": anchors.notes}


def handle(message: Message) -> Message:
    """Do one task.

    ``prepare`` an image, find the ``anchors`` of a trip, or ``export`` the answers of an
    :class:`~.schemas.ExportRequest`.
    """
    content, blobs = message
    try:
        if content["task"] == "prepare":
            done = prepare_image(Upload(content["name"], blobs[0]), **content["options"])
            pixels = done.pixels
            size = None if pixels is None else (pixels.width, pixels.height)
            return {**vars(done), "pixels": size}, [] if pixels is None else [pixels.data]
        if content["task"] == "anchors":
            return _find_anchors(content, blobs), []
        from open_geoclip.export import formats  # slow to import

        asked = parse_json(blobs[0], ExportRequest)
        formats.check_records(asked.records)
        kind = formats.FORMATS[asked.format]
        return {"media_type": kind.media_type, "suffix": kind.suffix}, [formats.render(asked.records, asked.format)]
    except Problem as error:
        problem = error
    except MemoryError:
        problem = Problem(413, "too_large", "this needs more memory than the server allows")
    except Exception as error:  # noqa: BLE001
        problem = problem_of(error)
    return {"problem": [problem.status, problem.code, problem.message]}, []
