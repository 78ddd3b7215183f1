"""Trips: times of photos, known places and clocks, as options that commands share."""

import re
import sys
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from open_geoclip.errors import DataError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.data.clocks import TripPhoto
    from open_geoclip.search.locator import Locator
    from open_geoclip.search.query import Query

__all__ = ["TripOptions", "hours_of"]

_MAX_OFFSET_S = 100 * 366 * 86_400
_OFFSET = re.compile(
    r"(?:(?P<camera>.*)=)?(?P<sign>[+-]?)(?:(?P<h>\d+):(?P<m>[0-5]?\d)(?::(?P<s>[0-5]?\d(?:\.\d+)?))?|(?P<all>\d+(?:\.\d+)?))"
)


@Parameter(name="*", group="Trips")
@dataclass(frozen=True, kw_only=True)
class TripOptions:
    """What is known of a trip."""

    trip: Annotated[
        bool, Parameter(help="The images are of one trip: one answer each, consistent with --speed-kmh.")
    ] = False
    times: Annotated[
        Path | None,
        Parameter(
            help="CSV with columns image and time (2026-05-01T14:03:00, with or without a time zone); default: EXIF "
            "times."
        ),
    ] = None
    speed_kmh: Annotated[float, Parameter(help="The highest speed of travel; 900 is an airliner.")] = 900.0
    use_gps: Annotated[
        bool,
        Parameter(help="Photos of the trip that have a place by GPS are known places for the others.", negative=()),
    ] = False
    track: Annotated[
        list[Path] | None,
        Parameter(
            help="Where the photographer was: GPX, Google Timeline or Takeout (JSON), or a table of time, lat, lon and "
            "accuracy in metres. Several are used together."
        ),
    ] = None
    clock_offset: Annotated[
        list[str] | None,
        Parameter(
            help="[CAMERA=]OFFSET: what is added to the times of photos, H:MM:SS or seconds, such as -0:02:30 for a "
            "clock that is 150 s fast. Default: as photos with GPS time say.",
            allow_leading_hyphen=True,
        ),
    ] = None

    def check(self) -> None:
        """Refuse options that are for trips alone, and offsets that cannot be read.

        Raises:
            SettingsError: an option does not fit the others.
        """
        for field in fields(self):
            if not self.trip and getattr(self, field.name) != field.default:
                raise SettingsError(f"--{field.name.replace('_', '-')} is for --trip")
        if self._offsets() and not self.has_anchors:
            raise SettingsError("--clock-offset is for --track and --use-gps")

    @property
    def has_anchors(self) -> bool:
        """Whether there are known places."""
        return self.use_gps or bool(self.track)

    def query(self, locator: "Locator", files: list[Path]) -> "Query":
        """Encode the images of the trip as one query; how clocks were found is printed to stderr.

        Raises:
            SettingsError: a photo has no time.
            DataError: a track cannot be used.
            ImageError: an image cannot be read.
        """
        if not self.has_anchors:
            return locator.query_trip(files, hours_of(files, self.times), speed_kmh=self.speed_kmh)
        from open_geoclip.data.clocks import find_anchors
        from open_geoclip.data.tracks import read_track

        tracks = [read_track(path) for path in self.track or ()]
        photos = _read_photos(files, self.times)
        anchors = find_anchors(photos, tracks, use_gps=self.use_gps, clock_offsets=self._offsets())
        for note in anchors.notes:
            print(f"geoclip: {note}", file=sys.stderr)
        return locator.query_trip(files, anchors, speed_kmh=self.speed_kmh)

    def _offsets(self) -> dict[str, timedelta]:
        offsets = {}
        for text in self.clock_offset or ():
            match = _OFFSET.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-"))
            if match is None:
                raise SettingsError(f"--clock-offset: [CAMERA=]H:MM:SS or seconds, such as -0:02:30, not {text!r}")
            seconds = float(match["all"] or 0)
            seconds += 3600 * float(match["h"] or 0) + 60 * float(match["m"] or 0) + float(match["s"] or 0)
            if seconds > _MAX_OFFSET_S:
                raise SettingsError(f"--clock-offset: at most a century, not {text!r}")
            offsets[match["camera"] or ""] = timedelta(seconds=-seconds if match["sign"] == "-" else seconds)
        return offsets


def hours_of(files: list[Path], times: Path | None) -> list[float]:
    """Return when photos were taken, in hours: from a table, or from their EXIF data."""
    found = [photo.taken for photo in _read_photos(files, times) if photo.taken is not None]
    if any(time.tzinfo is None for time in found):  # then what the clocks showed is all that compares
        found = [time.replace(tzinfo=UTC) for time in found]
    return [time.timestamp() / 3600 for time in found]


def _read_photos(files: list[Path], times: Path | None) -> "list[TripPhoto]":
    """Return what photos say about time and place, with their times in the table where there is one."""
    from open_geoclip.data.clocks import TripPhoto
    from open_geoclip.metadata.read import read_metadata

    photos = [TripPhoto.from_metadata(file.name, read_metadata(file)) for file in files]
    if times is not None:
        known = _read_times(times)
        photos = [
            replace(photo, taken=known.get(str(file), known.get(file.name)))
            for photo, file in zip(photos, files, strict=True)
        ]
    missing = [photo.name for photo in photos if photo.taken is None]
    if missing:
        where = f"without a row in {times}" if times else "without a time in EXIF: give --times times.csv"
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise SettingsError(f"--trip: {names} {where}")
    return photos


def _read_times(path: Path) -> dict[str, datetime]:
    """Return the time of each file, by its name in the table."""
    from open_geoclip.data.columns import Column
    from open_geoclip.data.photo_tables import PHOTO_COLUMNS
    from open_geoclip.data.tables import read_table
    from open_geoclip.data.tracks import parse_time

    times = ("time", "taken", "taken_at", "date_time_original", "date_time", "timestamp", "create_date", "date")
    try:
        table = read_table(path, {"file": Column(("image", *PHOTO_COLUMNS["file"].names)), "time": Column(times)})
    except DataError as error:
        raise SettingsError(f"--times {error}") from error
    found = {}
    for row, (file, time) in enumerate(zip(table.texts["file"], table.texts["time"], strict=True)):
        try:
            found[file] = parse_time(time)
        except (ValueError, OverflowError) as error:
            raise SettingsError(
                f"--times {path}, {table.where(row)}: {time!r} is not a time such as 2026-05-01T14:03:00"
            ) from error
    return found
