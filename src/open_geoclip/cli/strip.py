"""``geoclip strip``: photos without their places."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from open_geoclip.cli._output import Kind, choose
from open_geoclip.cli._photos import ROW_FORMATS, RowFormat, finish, photo_files, tell_errors
from open_geoclip.cli._photos import report as reported
from open_geoclip.cli._shared import progress_bar, write_output
from open_geoclip.errors import DataError, ImageError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.metadata.stripping import Stripped

__all__ = ["strip"]

_COLUMNS: dict[str, Kind] = {
    "image": "text",
    "removed": "texts",
    "unsure": "texts",
    "written": "text",
    "kept": "text",
    "error": "text",
}


def strip(
    photos: list[Path],
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    in_place: bool = False,
    check: bool = False,
    maker_notes: bool = False,
    format_: Annotated[RowFormat | None, Parameter(name="--format")] = None,
    report: Path | None = None,
) -> None:
    """Take places out of photos: EXIF GPS, XMP and IPTC fields, sidecars. Pixels are not touched.

    Exit status 1 if a photo could not be done; with --check also if one holds a place.

    Args:
        photos: JPEG, PNG, WebP, TIFF, HEIC or AVIF, or folders that are searched for them.
        output: A folder for the copies; the photos stay as they are. Folders keep their structure.
        in_place: Write over the photos; each is kept as it was beside it, as photo.jpg.original.
        check: Write nothing; say which photos hold a place.
        maker_notes: Take the camera maker's notes out as well, which may hold a place that only the maker can read.
        format_: What was done, as a table to read, JSON, CSV or Parquet. When not given, what the name of --report ends
            in, else a table.
        report: A file for that, instead of stdout.
    """
    if sum((output is not None, in_place, check)) != 1:
        raise SettingsError("give one of --output FOLDER (copies), --in-place (originals kept) and --check")
    chosen = choose(format_, report, ROW_FORMATS, option="--report")
    from open_geoclip.metadata.place import read_bytes
    from open_geoclip.metadata.stripping import strip as stripped

    goals = _goals(photos, output)
    files, records = photo_files(photos)
    interrupted = False
    try:
        with progress_bar("checking" if check else "stripping") as progress:
            for done, path in enumerate(files, 1):
                try:
                    found = stripped(read_bytes(path), str(path), maker_notes=maker_notes)
                    goal = None if check else _written(path, found, goals.get(path) if output else None)
                    records.append(_record(path, found, goal, _sidecars(path, in_place, check)))
                except (ImageError, DataError) as error:
                    reason = error.reason if isinstance(error, ImageError) else str(error)
                    records.append({"image": str(path), "error": reason})
                progress(done, len(files))
    except KeyboardInterrupt:  # what was done so far is told
        interrupted = True
        print(f"geoclip: interrupted after {len(records):,} of {len(files):,} photos", file=sys.stderr)
    tell_errors(records)
    write_output(reported(chosen, records, _COLUMNS, _table(records)), report)
    if in_place and any(record.get("kept") for record in records):
        print("geoclip: the .original files still hold the places: do not hand them on", file=sys.stderr)
    finish(records, interrupted=interrupted, found=check and any(record.get("removed") for record in records))


def _goals(photos: list[Path], output: Path | None) -> dict[Path, Path]:
    """Where the copy of each photo goes; two photos of one goal are an error before anything is written."""
    from open_geoclip.images import find_images

    goals: dict[Path, Path] = {}
    if output is None:
        return goals
    for given in photos:
        try:
            for path in find_images([given]):
                goals.setdefault(path, output / (path.relative_to(given) if given.is_dir() else Path(path.name)))
        except ImageError:
            continue  # told when the photos are gone through
    taken: dict[Path, Path] = {}
    for path, goal in goals.items():
        if goal in taken and not path.samefile(taken[goal]):
            raise SettingsError(f"--output: {taken[goal]} and {path} would both be {goal}")
        if goal.exists() and path.exists() and goal.samefile(path):
            raise SettingsError(f"--output: {goal} is the photo itself; choose another folder, or --in-place")
        taken[goal] = path
    return goals


def _written(path: Path, found: "Stripped", goal: Path | None) -> dict[str, str]:
    from open_geoclip.metadata.files import keep_original, write_bytes

    if goal is not None:
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{goal.parent} cannot be made: {error.strerror or error}") from error
        write_bytes(goal, found.data, new=True)
        return {"written": str(goal)}
    if not found.removed:
        return {}
    real = path.resolve()
    kept = keep_original(real)
    write_bytes(real, found.data, like=real)
    return {"written": str(path), "kept": str(kept)}


def _sidecars(path: Path, in_place: bool, check: bool) -> list[str]:
    """What was in the sidecars of a photo; they are done in place with it, and never copied."""
    from open_geoclip.metadata.files import keep_original, write_bytes
    from open_geoclip.metadata.place import find_sidecars
    from open_geoclip.metadata.stripping import strip_packet

    told = []
    for sidecar in find_sidecars(path) if in_place or check else []:
        try:
            changed, gone = strip_packet(sidecar.read_bytes())
        except OSError as error:
            raise DataError(f"{sidecar} cannot be read: {error.strerror or error}") from error
        except DataError as error:
            raise DataError(f"{sidecar}: {error}; look at it yourself") from error
        told += [f"{one} ({sidecar.name})" for one in gone]
        if gone and in_place:
            keep_original(sidecar.resolve())
            write_bytes(sidecar.resolve(), changed, like=sidecar)
    return told


def _record(path: Path, found: "Stripped", goal: dict[str, str] | None, sidecars: list[str]) -> dict[str, Any]:
    removed = [*found.removed, *sidecars]
    return {"image": str(path), "removed": removed, "unsure": list(found.unsure)} | (goal or {})


def _table(records: list[dict[str, Any]]) -> str:
    lines = []
    for record in records:
        if "error" in record:
            continue
        what = ", ".join(record["removed"]) or "no place found"
        lines.append(f"{record['image']}: {what}")
        lines += [f"  not sure: {reason}" for reason in record["unsure"]]
        lines += [
            f"  {word} {record[key]}"
            for key, word in (("written", "written to"), ("kept", "original in"))
            if record.get(key)
        ]
    return "".join(f"{line}\n" for line in lines)
