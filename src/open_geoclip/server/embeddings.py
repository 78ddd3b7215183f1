"""Inputs of embedding clients: pictures as data URIs, coordinates, texts."""

import base64
import binascii
import re
import struct

from open_geoclip.server.jobs import Picture
from open_geoclip.server.problems import Problem

__all__ = ["packed", "parse_input"]

_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_COORDINATE = re.compile(f"({_NUMBER}),({_NUMBER})")


def parse_input(text: str, number: int) -> Picture | tuple[float, float] | str:
    """What an input is.

    Args:
        text: a data URI of a picture, ``lat,lon`` in degrees, or a text.
        number: its place in the list, for messages.

    Raises:
        Problem: 422, it is empty, a data URI that is damaged, or a place that is not on Earth.
    """
    if not text.strip():
        raise Problem(422, "invalid_input", f"input {number} is empty")
    if text[:5].lower() == "data:":
        head, comma, body = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Problem(422, "invalid_input", f"input {number}: a picture is data:image/jpeg;base64,...")
        try:
            return Picture(f"input {number}", base64.b64decode(body, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Problem(422, "invalid_input", f"input {number}: its base64 is damaged: {error}") from error
    match = _COORDINATE.fullmatch(text)
    if match is None:
        return text
    lat, lon = float(match[1]), float(match[2])
    if not (abs(lat) <= 90 and abs(lon) <= 360):
        raise Problem(422, "invalid_coordinate", f"input {number}: ({lat:g}, {lon:g}) is no latitude and longitude")
    return lat, lon


def packed(vector: list[float]) -> str:
    """A vector as float32, little-endian, in base64, as embedding clients ask for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
