"""When the pictures of a trip were taken."""

import csv
from datetime import UTC, datetime
from pathlib import Path

from open_geoclip.errors import SettingsError

__all__ = ["hours_of"]


def hours_of(files: list[Path], times: Path | None) -> list[float]:
    """When pictures were taken, in hours; from a table, or as the cameras wrote it down."""
    from open_geoclip.images import taken_at

    known = {} if times is None else _table_of_times(times)
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


def _table_of_times(path: Path) -> dict[str, datetime]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"image", "time"} <= set(reader.fieldnames or ()):
                raise SettingsError(f"{path}: it needs the columns image and time")
            found = {}
            for row in reader:
                try:
                    found[row["image"]] = datetime.fromisoformat(row["time"])
                except (TypeError, ValueError) as error:
                    raise SettingsError(
                        f"{path}, line {reader.line_num}: {row['time']!r} is not a time such as 2026-05-01T14:03:00"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    return found
