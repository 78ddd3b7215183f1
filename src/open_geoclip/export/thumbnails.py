"""Thumbnails for reports: small upright JPEGs as data URIs, without metadata."""

import base64
import binascii

from open_geoclip.errors import SettingsError
from open_geoclip.images import ImageSource, load_image, small_jpeg

__all__ = ["decode_thumbnail", "thumbnail"]

_SIDE = 320
_PREFIX = "data:image/jpeg;base64,"
_MAX_CHARACTERS = 2**20


def thumbnail(image: ImageSource, *, max_pixels: int) -> str:
    """Return a JPEG of at most 320 pixels a side as a data URI; it has no EXIF, and so no place.

    Raises:
        ImageError: the image cannot be read.
    """
    jpeg = small_jpeg(load_image(image, max_pixels=max_pixels), _SIDE)
    return _PREFIX + base64.b64encode(jpeg).decode()


def decode_thumbnail(data_uri: str, where: str = "thumbnail") -> bytes:
    """Return the JPEG in a data URI.

    Raises:
        SettingsError: it is something else, or too large.
    """
    if not data_uri.startswith(_PREFIX) or len(data_uri) > _MAX_CHARACTERS:
        raise SettingsError(f"{where}: a JPEG as a data URI ({_PREFIX}...) of at most {_MAX_CHARACTERS:,} characters")
    try:
        jpeg = base64.b64decode(data_uri.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SettingsError(f"{where}: its base64 is damaged: {error}") from error
    if not jpeg.startswith(b"\xff\xd8\xff"):
        raise SettingsError(f"{where}: it is no JPEG")
    return jpeg
