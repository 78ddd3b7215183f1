"""What is done to files outside of any model: decoding images, reading their metadata, writing answers as files."""

import hashlib
from typing import Any

from open_geoclip.errors import ImageError
from open_geoclip.images import load_image, resize_shortest_edge
from open_geoclip.metadata.read import read_place
from open_geoclip.server.jobs import Message, Pixels, PreparedImage, Upload
from open_geoclip.server.problems import Problem, problem_of
from open_geoclip.server.schemas import ExportRequest, parse_json

__all__ = ["handle", "prepare_image"]


def prepare_image(
    upload: Upload, *, resize: int, resample: str, max_pixels: int, exif: bool = False, thumbnail: bool = False
) -> PreparedImage:
    """Decode an image file and resize its shortest edge for a model; on request read its place and make a thumbnail."""
    digest = hashlib.sha256(upload.data).hexdigest()
    place = _place_in_metadata(upload) if exif else None
    try:
        image = load_image(upload.data, name=upload.name, max_pixels=max_pixels)
        small = resize_shortest_edge(image, resize, resample)
        data_uri = None
        if thumbnail:
            from open_geoclip.export.thumbnails import thumbnail as thumbnail_of

            data_uri = thumbnail_of(image, max_pixels=max_pixels)
    except ImageError as error:
        return PreparedImage(None, error.reason, digest, place)
    return PreparedImage(Pixels(*small.size, small.tobytes()), None, digest, place, data_uri)


def _place_in_metadata(upload: Upload) -> dict[str, Any] | None:
    try:
        place = read_place(upload.data, name=upload.name)
    except ImageError:  # not an image: its answer says so
        return None
    return place.to_dict() if place is not None and place.is_on_earth else None


def handle(message: Message) -> Message:
    """Do one task: ``prepare`` an image, or ``export`` the answers of an :class:`~.schemas.ExportRequest`."""
    content, blobs = message
    try:
        if content["task"] == "prepare":
            done = prepare_image(Upload(content["name"], blobs[0]), **content["options"])
            pixels = done.pixels
            size = None if pixels is None else (pixels.width, pixels.height)
            return {**vars(done), "pixels": size}, [] if pixels is None else [pixels.data]
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
