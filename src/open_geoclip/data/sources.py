"""One way to name photos: ``open_source("photos.csv")``, ``"holiday/"``, ``"shards/{000..012}.tar"``..."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
from jaxtyping import Float64

from open_geoclip.data.earth import BASEMAPS, Basemap, Earth
from open_geoclip.data.earth_views import Split, sample_cameras, view_centres
from open_geoclip.data.exif import ExifPhotos
from open_geoclip.data.photo_tables import TablePhotos, open_table, read_photo_table
from open_geoclip.data.photos import IndexedPhotos, Photo, PhotoSource
from open_geoclip.data.remote import RemotePhotos, is_uri
from open_geoclip.data.shards import INDEX, SHARD_SUFFIXES, TarPhotos, expand_braces
from open_geoclip.data.tables import TABLE_SUFFIXES
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.images import SUFFIXES

__all__ = ["EarthViewPhotos", "open_source"]

_VERSION = 1  # raise it when views change
_HOW = (
    "a CSV, Parquet or GeoJSON table, a folder of photos with EXIF GPS, tar shards (shards/{000..012}.tar, or a "
    "folder of them), hf:NAME (a Hugging Face dataset) or earth-views:SPLIT:COUNT"
)


def open_source(spec: str | Path, *, images: str | Path | None = None, places: bool = True) -> PhotoSource:
    """Open photos by name.

    ===========================================  ==============================================================
    ``photos.csv``, ``.parquet``, ``.geojson``   a table of file, latitude, longitude, and perhaps a group
    ``holiday/``                                 a folder of photos that carry their GPS position
    ``shards/{000..012}.tar``, ``shards/``       tar shards in WebDataset's format; also ``*`` and ``.tar.gz``
    ``hf:NAME[:SPLIT]``                          a Hugging Face dataset, by name or folder; ``hf-stream:`` streams it
    ``s3://bucket/folder``                       photos on an object store, without places (see ``places``)
    ``earth-views:SPLIT[:COUNT[:BASEMAP]]``      rendered views of the Earth: train, validation or test
    ===========================================  ==============================================================

    Args:
        spec: the name.
        images: for a table, where its images lie when not beside it: a folder, or tar shards.
        places: read where photos were taken, and leave out those that do not say it. Otherwise photos need no
            coordinates, and all are NaN.

    Raises:
        DataError: it cannot be read, or holds nothing.
        SettingsError: the name follows none of these forms.
        MissingExtraError: an optional dependency is not installed.
    """
    text = str(spec)
    if text.startswith("earth-views:"):
        source: PhotoSource = _earth_views(text)
    elif text.startswith(("hf:", "hf-stream:")):
        from open_geoclip.data.hugging_face import open_dataset

        source = open_dataset(text, places=places)
    elif is_uri(text):
        source = RemotePhotos.opened(text, places=places)
    elif Path(text).suffix.lower() in TABLE_SUFFIXES:
        return _table(Path(text), images, places)
    elif "{" in text or "*" in text or text.lower().endswith(SHARD_SUFFIXES):
        source = TarPhotos.opened(text, places=places)
    elif Path(text).is_dir():
        kind = TarPhotos if _is_of_shards(Path(text)) else ExifPhotos
        source = kind.opened(Path(text), places=places)
    elif Path(text).exists():
        raise SettingsError(f"{text}: photos are named as {_HOW}")
    else:
        raise DataError(f"{text}: there is no such file or folder; photos are named as {_HOW}")
    if images is not None:
        raise SettingsError(f"{text} brings its own images; only a table has them elsewhere ({images})")
    return source


def _table(path: Path, images: str | Path | None, places: bool) -> PhotoSource:
    if images is None:
        return open_table(path, places=places)
    if not Path(images).is_dir():
        if not str(images).lower().endswith(SHARD_SUFFIXES) and not any(
            Path(name).exists() for name in expand_braces(str(images))
        ):
            raise DataError(f"{images}: there is no such folder of images or shards")
        return TarPhotos.opened(images, read_photo_table(path))
    photos = open_table(path, Path(images), places=places)
    assert isinstance(photos, TablePhotos)
    # An archive among the images says nothing: what counts is whether the table names files of the folder.
    if _shards_in(Path(images)) and not photos.names_files():
        return TarPhotos.opened(images, photos.table)
    return photos


def _is_of_shards(folder: Path) -> bool:
    """Whether a folder holds shards rather than photos, among which an archive may lie."""
    if not _shards_in(folder):
        return False
    return (folder / INDEX).exists() or not any(child.suffix.lower() in SUFFIXES for child in folder.iterdir())


def _shards_in(folder: Path) -> bool:
    return any(child.name.lower().endswith(SHARD_SUFFIXES) for child in folder.iterdir())


# --- Earth views ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EarthViewPhotos(IndexedPhotos):
    """Views of a split of `earth_views`, rendered on access at 224 pixels; ``centres`` are those of all views."""

    split: Split
    basemap: Basemap
    centres: Float64[np.ndarray, "m 2"]

    @staticmethod
    def opened(split: Split, count: int | None = None, basemap: Basemap = "bluemarble") -> "EarthViewPhotos":
        """Return the first views of a split.

        Raises:
            SettingsError: the split is smaller, or the count below 1.
            MissingExtraError: the extra ``earth`` is not installed.
        """
        if count is not None and count < 1:
            raise SettingsError(f"earth-views: 1 view or more, not {count}")
        centres = view_centres(split, count)
        name = f"earth-views:{split}:{len(centres)}:{basemap}"
        return EarthViewPhotos(name, f"{name}:v{_VERSION}", np.arange(len(centres)), split, basemap, centres)

    def entry(self, row: int) -> Photo:
        """Return a view; its image is an array."""
        width, turn, light = sample_cameras(self.split, row, row + 1)
        (image,) = Earth(self.basemap).render(self.centres[row : row + 1], width, turn, light)
        lat, lon = self.centres[row].tolist()
        return Photo(f"{self.basemap}-{self.split}-{row:07d}", image, lat, lon)


def _earth_views(spec: str) -> EarthViewPhotos:
    _, split, *rest = spec.split(":")
    if len(rest) > 2 or (rest and rest[0] and not rest[0].isdecimal()):
        raise SettingsError(f"{spec!r} is not earth-views:SPLIT[:COUNT[:BASEMAP]], such as earth-views:train:10000")
    if split not in get_args(Split):
        raise SettingsError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    basemap = rest[1] if len(rest) == 2 else "bluemarble"
    if basemap not in BASEMAPS:
        raise SettingsError(f"unknown basemap {basemap!r}: choose one of {', '.join(BASEMAPS)}")
    return EarthViewPhotos.opened(cast("Split", split), int(rest[0]) if rest and rest[0] else None, basemap)
