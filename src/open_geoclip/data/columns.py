"""Columns of tables: their usual names, and texts in little memory."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Literal

from open_geoclip.errors import DataError

__all__ = ["COORDINATES", "LATITUDE", "LONGITUDE", "Column", "Texts", "find_columns"]


def _spellings(*names: str, axis: str) -> tuple[str, ...]:
    units = [
        f"{name}_{unit}"
        for name in names
        for unit in ("deg", "degree", "degrees", "dd", "decimal", "decimal_degrees", "wgs84")
    ]
    return (*names, *units, *(f"{kind}_{name}" for name in names for kind in ("decimal", "gps")), axis)


LATITUDE = _spellings("lat", "latitude", axis="y")
LONGITUDE = _spellings("lon", "lng", "long", "longitude", axis="x")


@dataclass(frozen=True)
class Column:
    """A column to read.

    Attributes:
        names: what files call it, the preferred name first. Capitals, spaces and punctuation do not matter.
        kind: ``degrees`` and ``number`` are read as float64, NaN where a cell is empty; ``text`` is stripped.
        required: refuse a file without it.
    """

    names: tuple[str, ...]
    kind: Literal["degrees", "number", "text"] = "text"
    required: bool = True


COORDINATES = {"lat": Column(LATITUDE, "degrees"), "lon": Column(LONGITUDE, "degrees")}
"""Latitude and longitude; in GeoJSON they are taken from the geometry."""


def find_columns(names: Sequence[str], wanted: Mapping[str, Column]) -> dict[str, int]:
    """Return the positions of the wanted columns that are there.

    The first of a column's names that is there is taken; an exact match goes before one that differs in capitals,
    spaces or punctuation.

    Raises:
        DataError: two columns fit equally well.
    """
    plain = [_plain(name) for name in names]
    found = {}
    for key, column in wanted.items():
        for name in column.names:
            held = [at for at, given in enumerate(names) if given.strip() == name]
            held = held or [at for at, given in enumerate(plain) if given and given == _plain(name)]
            if len(held) > 1:
                raise DataError(f"it has {len(held)} columns named {name}: rename all but one of them")
            if held:
                found[key] = held[0]
                break
    return found


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


class Texts:
    """Many short texts in two arrays: a tenth of the memory of a list, and fast to send to a process."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Add texts at the end."""
        encoded = [text.encode(errors="surrogateescape") for text in texts]
        self._ends.extend(islice(accumulate(map(len, encoded), initial=self._ends[-1]), 1, None))
        self._bytes += b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
