"""The countries of a gallery's places: found once, kept on disk beside its location vectors."""

import logging
from pathlib import Path

import numpy as np

from open_geoclip.errors import MissingExtraError
from open_geoclip.files import atomic_file
from open_geoclip.search.gallery import Gallery

__all__ = ["country_labels"]

logger = logging.getLogger(__name__)


def country_labels(gallery: Gallery, folder: Path | None = None) -> np.ndarray | None:
    """The ISO code of each place's country; None where the extra ``places`` is not installed.

    Args:
        gallery: the places.
        folder: where codes are kept; nowhere when not given.
    """
    from open_geoclip.geo.geocode import Places

    file = None
    if folder is not None:
        file = folder / f"{gallery.fingerprint[:32]}.countries-1.npy"
        if (known := _read_labels(file, len(gallery))) is not None:
            return known
    try:
        codes = Places().countries(gallery.coordinates.astype(np.float64))
    except MissingExtraError:
        return None
    if file is not None:
        try:
            with atomic_file(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, codes.astype("<U3"))
        except OSError as error:
            logger.warning("the cache %s cannot be used (%s): countries are found anew each time", file, error)
    return codes


def _read_labels(file: Path, count: int) -> np.ndarray | None:
    """Labels from a cache file; None when there is no such file or it is damaged."""
    try:
        labels: np.ndarray = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is damaged (%s) and is made again", file, error)
        return None
    return labels if labels.shape == (count,) and labels.dtype.kind == "U" else None
