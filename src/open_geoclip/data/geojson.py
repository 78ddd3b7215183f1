"""GeoJSON of points, read as a stream: a million features need not fit into memory."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from open_geoclip.errors import DataError

__all__ = ["JsonReader", "feature_points", "read_features"]


def read_features(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the features of a collection, or the one feature or geometry of the file.

    Raises:
        DataError: the file is not GeoJSON, or in another reference system than longitude and latitude.
    """
    with closing(JsonReader(path)) as text:
        for number, feature in enumerate(_features(text, path)):
            if not isinstance(feature, dict) or "geometry" not in feature:
                raise DataError(f"{path}, feature {number}: it is no feature with a geometry")
            yield feature


def _features(text: "JsonReader", path: Path) -> Iterator[Any]:
    if text.peek() != "{":
        raise DataError(f"{path}: it is not GeoJSON, which begins with {{")
    single: dict[str, Any] = {}
    for key in text.members():
        if key == "features" and text.peek() == "[":
            yield from text.elements()
        else:
            single[key] = text.value()
            if key == "crs":
                _check_crs(single[key], path)
    if text.peek():
        raise DataError(f"{path}: it is not JSON: {text.peek()!r} comes after its end")
    match single.get("type"):
        case "FeatureCollection":
            pass
        case "Feature":
            yield single
        case "Point" | "MultiPoint":
            yield {"geometry": single}
        case kind:
            raise DataError(f"{path}: GeoJSON of points, or of features that are points, is needed, not {kind}")


def feature_points(geometry: Any, where: str) -> Iterator[tuple[float, float]]:
    """Yield (lat, lon) of the points of a geometry, NaN for none. GeoJSON has lon, lat (RFC 7946, 3.1.1).

    Raises:
        DataError: it is no point, or a position is not two numbers; ``where`` names the file and feature.
    """
    match geometry:
        case None | {"type": "Point", "coordinates": []}:
            yield float("nan"), float("nan")
            return
        case {"type": "Point", "coordinates": position}:
            positions = [position]
        case {"type": "MultiPoint", "coordinates": [*positions]}:
            pass
        case _:
            kind = geometry.get("type") if isinstance(geometry, dict) else geometry
            raise DataError(f"{where}: its geometry must be a point, this is a {kind}")
    for position in positions:
        match position:
            case [int() | float() as lon, int() | float() as lat, *_]:
                yield float(lat), float(lon)
            case _:
                raise DataError(f"{where}: {position!r} is not a position [lon, lat]")


def _check_crs(crs: Any, path: Path) -> None:
    """Refuse a reference system other than longitude and latitude, which older programs write."""
    properties = crs.get("properties") if isinstance(crs, dict) else None
    name = properties.get("name", "") if isinstance(properties, dict) else ""
    if name and not str(name).endswith(("CRS84", ":4326")):
        raise DataError(f"{path}: its coordinates are in {name}; write it in longitude and latitude, EPSG:4326")


class JsonReader:
    """Reads JSON as a stream."""

    def __init__(self, path: Path, block: int = 1 << 20) -> None:
        self._file = path.open(encoding="utf-8-sig")
        self._path = path
        self._block = block
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def peek(self) -> str:
        """Return the next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """Consume one of the wanted characters."""
        found = self.peek()
        if not found or found not in wanted:
            raise DataError(f"{self._path}: it is not JSON: {found or 'its end'!r} comes where {wanted!r} should")
        self._at += 1
        return found

    def value(self) -> Any:
        """Consume a value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError as error:
                if self._more():
                    continue
                raise DataError(f"{self._path}: it is not JSON: {error}") from error
            except RecursionError as error:
                raise DataError(f"{self._path}: its JSON is nested too deeply") from error
            # A number may go on: what is held of 1.5 or 1e-5 can end in "1.", of which 1 is read.
            if isinstance(value, int | float) and not self._text[end:].strip(".eE+-0123456789") and self._more():
                continue
            self._at = end
            return value

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; the caller consumes each value before the next key."""
        for _ in self._items("{", "}"):
            key = self.value()
            self.take(":")
            yield key

    def elements(self) -> Iterator[Any]:
        """Yield the values of an array."""
        return (self.value() for _ in self._items("[", "]"))

    def _items(self, opening: str, closing: str) -> Iterator[None]:
        self.take(opening)
        if self.peek() == closing:
            self.take(closing)
            return
        yield
        while self.take("," + closing) == ",":
            yield

    def _more(self) -> bool:
        # At least as much again as is held, so that a long value is not decoded from its start too often.
        rest = len(self._text) - self._at
        block = self._file.read(max(self._block, rest))
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)
