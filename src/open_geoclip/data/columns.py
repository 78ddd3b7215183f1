"""Which column of anybody's table holds what."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from open_geoclip.errors import DataError

__all__ = [
    "FILE_NAMES",
    "GROUP_NAMES",
    "ID_NAMES",
    "LAT_NAMES",
    "LON_NAMES",
    "PHOTO_LAT_NAMES",
    "PHOTO_LON_NAMES",
    "PhotoColumns",
    "find_column",
]

LAT_NAMES = ("lat", "latitude", "lat_deg", "gps_lat", "gpslatitude")
LON_NAMES = ("lon", "lng", "long", "longitude", "lon_deg", "gps_lon", "gps_lng", "gpslongitude")
PHOTO_LAT_NAMES, PHOTO_LON_NAMES = (*LAT_NAMES, "y"), (*LON_NAMES, "x")  # as map software writes a table of photos
FILE_NAMES = (
    *("img_file", "file", "file_name", "filename", "path", "file_path", "filepath", "img_path", "image_path"),
    *("image", "img", "photo", "picture", "jpg", "image_file", "photo_file"),
)
ID_NAMES = ("img_id", "image_id", "photo_id", "id", "key", "__key__", "idx")
GROUP_NAMES = (
    *("group", "author", "user", "user_id", "userid", "owner", "uid", "photographer", "author_id", "creator_username"),
    *("sequence", "sequence_id", "place", "place_id"),
)


def find_column(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted names that is there; capitals, spaces around it and - for _ do not matter."""
    plain = {name.strip().lower().replace("-", "_").replace(" ", "_"): name for name in reversed(list(names))}
    return next((plain[name] for name in wanted if name in plain), None)


@dataclass(frozen=True)
class PhotoColumns:
    """The columns of a table of photos, by the names they have there.

    Attributes:
        lat: latitude in degrees.
        lon: longitude in degrees.
        file: the picture.
        key: what the photo is called; the same as ``file`` where there is nothing better.
        group: what it belongs to, if the table says so.
    """

    lat: str
    lon: str
    file: str
    key: str
    group: str | None = None

    @staticmethod
    def found(names: Sequence[str], what: str) -> "PhotoColumns":
        """Tell the columns by their names.

        Args:
            names: of all columns.
            what: the table, for messages.

        Raises:
            DataError: a column that is needed is not there.
        """
        lat, lon = find_column(names, PHOTO_LAT_NAMES), find_column(names, PHOTO_LON_NAMES)
        file, key = find_column(names, FILE_NAMES), find_column(names, ID_NAMES)
        listed = ", ".join(names[:20]) or "none"
        if lat is None or lon is None:
            raise DataError(f"{what} has no columns of latitude and longitude (LAT and LON, for one), only {listed}")
        if file is None and key is None:
            raise DataError(f"{what} has no column that names the picture (IMG_FILE, for one), only {listed}")
        picture, called = file or key, key or file
        assert picture is not None
        assert called is not None
        return PhotoColumns(lat, lon, picture, called, find_column(names, GROUP_NAMES))
