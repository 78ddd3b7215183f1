"""Files beside a photo that hold its metadata: XMP, and the JSON of Google Takeout.

``photo.jpg.xmp`` belongs to one photo. ``photo.xmp`` is shared by every photo of that name, unless it says whose it
is (``photoshop:SidecarForExtension``). Names are compared without regard to case. Takeout cuts off names after 46
characters and puts the number of a copy elsewhere: ``photo(1).jpg`` has ``photo.jpg.supplemental-metadata(1).json``.
"""

import json
import math
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from open_geoclip.errors import MetadataError
from open_geoclip.images import SUFFIXES
from open_geoclip.metadata import xmp

__all__ = ["Sidecar", "find_sidecars", "read_takeout", "remove_takeout_location", "sidecars_beside", "writable_sidecar"]

_RAW = frozenset(
    f".{suffix}"
    for suffix in "3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf "  # noqa: SIM905
    "srw x3f".split()
)
_TAKEOUT = ".supplemental-metadata"
_TAKEOUT_LENGTH = 46
_PLACES = ("geoData", "geoDataExif")
_EDITED = re.compile(r"(?i)-(edited|bearbeitet|modifié|editad[oa]|modificato|bewerkt|redigerad|edytowane|編集済み)$")
_RACY_S = 2.0


@dataclass(frozen=True)
class Sidecar:
    """A file beside a photo.

    Attributes:
        path: the file.
        kind: XMP, or the JSON of Google Takeout.
        is_own: whether what it says is about this photo.
        is_writable: whether it belongs to this photo and no other file.
    """

    path: Path
    kind: Literal["xmp", "takeout"]
    is_own: bool = True
    is_writable: bool = False


def find_sidecars(photo: Path) -> list[Path]:
    """The files whose content is about a photo, XMP first."""
    return [sidecar.path for sidecar in sidecars_beside(photo) if sidecar.is_own]


def sidecars_beside(photo: Path) -> list[Sidecar]:
    """The files that may hold a photo's place: its own, and those that it shares with other files of its name."""
    names = _names(photo.parent)
    stem, suffix = photo.stem.lower(), photo.suffix.lower()
    others = [one for other in SUFFIXES for one in names.get(f"{stem}{other}", ()) if one != photo.name]
    has_twin = any(one.lower() == photo.name.lower() for one in others)  # whose name differs by case alone
    own = [one for one in names.get(f"{photo.name.lower()}.xmp", ()) if one[:-4] == photo.name or not has_twin]
    found = [Sidecar(photo.with_name(one), "xmp", is_writable=True) for one in own]
    has_raw = any(f"{stem}{other}" in names for other in _RAW - {suffix})
    for one in names.get(f"{stem}.xmp", ()):
        owner, is_exact = _owner(photo.with_name(one)), one[:-4] == photo.stem
        is_shared = any(Path(other).stem == photo.stem or not is_exact for other in others)
        is_own = owner == suffix or (owner is None and not is_shared)
        found.append(Sidecar(photo.with_name(one), "xmp", is_own, owner == suffix or (is_own and not has_raw)))
    takeout = [one for key in _takeout_names(photo) for one in names.get(key, ())]
    return found + [Sidecar(photo.with_name(one), "takeout") for one in takeout]


def writable_sidecar(photo: Path) -> Path:
    """The XMP sidecar that is written to: the photo's own, or a new ``photo.jpg.xmp``."""
    own = (sidecar.path for sidecar in sidecars_beside(photo) if sidecar.is_writable)
    return next(own, photo.with_name(photo.name + ".xmp"))


def _takeout_names(photo: Path) -> list[str]:
    """The names, in lower case, that Google Takeout may give a photo's JSON."""
    stem = photo.stem.lower()
    match = re.fullmatch(r"(.+)(\(\d{1,4}\))", stem)
    found = []
    for base, number in [(stem, ""), *([(match[1], match[2])] if match else [])]:
        name = _EDITED.sub("", base) + photo.suffix.lower()
        shortest = min(len(name), _TAKEOUT_LENGTH - 1 - len(number))
        full = name + _TAKEOUT
        found += [f"{full[:length]}{number}.json" for length in range(len(full), shortest - 1, -1)]
    return found


def _names(folder: Path) -> dict[str, list[str]]:
    """The names in a folder, by their lower case; a folder is listed again when it has changed."""
    try:
        changed_ns = folder.stat().st_mtime_ns
    except OSError:
        return {}
    # A change within the clock's resolution would not show: what has just changed is not remembered.
    is_settled = time.time() - changed_ns / 1e9 > _RACY_S
    return (_list_folder if is_settled else _list_folder.__wrapped__)(str(folder), changed_ns)


@lru_cache(maxsize=4)
def _list_folder(folder: str, changed_ns: int) -> dict[str, list[str]]:
    del changed_ns  # of the cache's key
    found: dict[str, list[str]] = {}
    with suppress(OSError):
        for name in sorted(os.listdir(folder)):  # noqa: PTH208  # names alone, of which there may be many
            found.setdefault(name.lower(), []).append(name)
    return found


def _owner(sidecar: Path) -> str | None:
    """The suffix of the file that a sidecar says it belongs to."""
    with suppress(OSError, MetadataError):
        for found in xmp.properties(xmp.decode(sidecar.read_bytes())[0]):
            if (found.namespace, found.name) == (xmp.PHOTOSHOP_NS, "SidecarForExtension"):
                return f".{found.value.strip().lower().lstrip('.')}"
    return None


# --- Google Takeout -------------------------------------------------------------------------------


def _parse(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"it is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def read_takeout(content: bytes) -> dict[str, Any]:
    """The place and time in a photo's JSON of Google Takeout, by the names of ``PhotoPlace``; 0, 0 stands for no place.

    Raises:
        MetadataError: it is no JSON.
    """
    record = _parse(content)
    found: dict[str, Any] = {}
    for key in _PLACES:
        place = record.get(key)
        numbers = [place.get(name) for name in ("latitude", "longitude", "altitude")] if isinstance(place, dict) else []
        finite = [float(one) if isinstance(one, (int, float)) and math.isfinite(one) else None for one in numbers]
        if finite[:2].count(None) == 0 and any(finite[:2]):
            found |= {"lat": finite[0], "lon": finite[1], "altitude_m": finite[2] or None}
            break
    with suppress(TypeError, ValueError, OverflowError, OSError, KeyError):
        found["time"] = datetime.fromtimestamp(int(record["photoTakenTime"]["timestamp"]), UTC)
    return found


def remove_takeout_location(content: bytes) -> tuple[bytes, list[str]]:
    """The JSON without its places, and what was removed; the JSON itself when it has none.

    Raises:
        MetadataError: it is no JSON.
    """
    record = _parse(content)
    places = {key: record[key] for key in _PLACES if isinstance(record.get(key), dict)}
    removed = [key for key, place in places.items() if any(place.get(name) for name in ("latitude", "longitude"))]
    if not removed:
        return content, []
    kept = {key: value for key, value in record.items() if key not in _PLACES}
    return json.dumps(kept, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass"), removed
