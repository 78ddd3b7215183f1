"""When the pictures of a trip were taken."""

import re
from datetime import UTC, datetime
from pathlib import Path

from open_geoclip.errors import DataError, SettingsError

__all__ = ["hours_of"]


def hours_of(files: list[Path], times: Path | None) -> list[float]:
    """When pictures were taken, in hours; from a table, or as the cameras wrote it down."""
    from open_geoclip.images import taken_at

    known = {} if times is None else _read_times(times)
    taken = [known.get(str(file), known.get(file.name)) if times else taken_at(file) for file in files]
    missing = [file.name for file, time in zip(files, taken, strict=True) if time is None]
    if missing:
        where = f"have no row in {times}" if times else "have no time in their EXIF data: give --times times.csv"
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise SettingsError(f"--trip: {names} {where}")
    found = [time for time in taken if time is not None]
    if any(time.tzinfo is None for time in found):  # then what the clocks showed is all that compares
        found = [time.replace(tzinfo=UTC) for time in found]
    return [time.timestamp() / 3600 for time in found]


def _read_times(path: Path) -> dict[str, datetime]:
    """The time of each file, by the name that the table has for it."""
    from open_geoclip.data.columns import Column
    from open_geoclip.data.photo_tables import PHOTO_COLUMNS
    from open_geoclip.data.tables import read_table

    times = ("time", "taken", "taken_at", "date_time_original", "date_time", "timestamp", "create_date", "date")
    try:
        table = read_table(path, {"file": Column(("image", *PHOTO_COLUMNS["file"].names)), "time": Column(times)})
    except DataError as error:
        raise SettingsError(f"--times {error}") from error
    found = {}
    for row, (file, time) in enumerate(zip(table.texts["file"], table.texts["time"], strict=True)):
        try:
            # EXIF and exiftool write 2026:05:01 14:03:00.
            found[file] = datetime.fromisoformat(re.sub(r"^(\d{4}):(\d\d):(\d\d)\b", r"\1-\2-\3", time))
        except ValueError as error:
            raise SettingsError(
                f"--times {path}, {table.where(row)}: {time!r} is not a time such as 2026-05-01T14:03:00"
            ) from error
    return found
