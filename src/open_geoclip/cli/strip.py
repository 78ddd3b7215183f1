"""``geoclip strip``: remove places from photos."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter

from open_geoclip.cli._options import Photos, photo_files
from open_geoclip.cli._output import RowOutput, attempt, collect, exit_if_failed, file_or_database, print_errors
from open_geoclip.errors import DataError, ImageError, MetadataError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.metadata.exiftool import ExifTool

__all__ = ["strip"]

_COLUMNS = {
    "image": "string",
    **dict.fromkeys(("removed", "unsure", "unreadable"), "strings"),
    **dict.fromkeys(("written", "kept", "error"), "string"),
}


@dataclass(frozen=True, kw_only=True)
class ReportOutput(RowOutput):
    """Options of the report, as --output names the photos."""

    option: ClassVar[str] = "--report"
    target: Annotated[
        Path | str | None,
        Parameter(name="--report", converter=file_or_database, help="Write the report to this file; default: stdout."),
    ] = None


def strip(
    photos: Photos,
    /,
    *,
    folder: Annotated[Path | None, Parameter(name="--output", alias="-o")] = None,
    in_place: bool = False,
    check: bool = False,
    maker_notes: bool = False,
    report: ReportOutput = ReportOutput(),
) -> None:
    """Remove places from photos: EXIF GPS, XMP and IPTC fields, embedded videos, sidecars. Pixels stay the same.

    Needs ExifTool. Exit status 0 only if ExifTool finds no place afterwards; 1 if a photo failed or has metadata that
    cannot be read and may contain a place; with --check also if a photo has a place.

    Args:
        folder: A folder for the copies; the photos stay unchanged. Folders keep their structure.
        in_place: Overwrite the photos; each original is kept beside it as photo.jpg.original.
        check: Write nothing; report which photos have a place.
        maker_notes: Remove the camera maker's notes as well, which may contain a place that only the maker can read.
    """
    if sum((folder is not None, in_place, check)) != 1:
        raise SettingsError("give one of --output FOLDER (copies), --in-place (originals kept) and --check")
    from open_geoclip.metadata.exiftool import ExifTool

    targets = _targets(photos, folder)
    files, failed = photo_files(photos)
    with ExifTool() as exiftool:

        def work(path: Path) -> dict[str, Any]:
            if check:
                return _check(path, exiftool)
            return _strip(path, exiftool, targets.get(path), maker_notes=maker_notes)

        stripped = (attempt(path, work) for path in files)
        done, interrupted = collect(stripped, len(files), "checking" if check else "stripping")
    records = failed + done
    print_errors(records)
    report.write(records, table=_table(records), rows=records, columns=_COLUMNS)
    if in_place and any(record.get("kept") for record in records):
        print("geoclip: the .original files still contain the places: do not share them", file=sys.stderr)
    found = any(record.get("unreadable") or (check and record.get("removed")) for record in records)
    exit_if_failed(records, interrupted=interrupted, found=found)


def _targets(photos: list[Path], folder: Path | None) -> dict[Path, Path]:
    """Return the path of the copy of each photo; two photos with one path are an error before anything is written."""
    from open_geoclip.images import find_images

    targets: dict[Path, Path] = {}
    if folder is None:
        return targets
    for given in photos:
        try:
            for path in find_images([given]):
                targets.setdefault(path, folder / (path.relative_to(given) if given.is_dir() else Path(path.name)))
        except ImageError:
            continue  # reported when the photos are listed
    taken: dict[Path, Path] = {}
    for path, target in targets.items():
        if target in taken and not path.samefile(taken[target]):
            raise SettingsError(f"--output: {taken[target]} and {path} would both be {target}")
        if target.exists() and path.exists() and target.samefile(path):
            raise SettingsError(f"--output: {target} is the photo itself; choose another folder, or --in-place")
        taken[target] = path
    return targets


def _check(path: Path, exiftool: "ExifTool") -> dict[str, Any]:
    from open_geoclip.images import read_bytes
    from open_geoclip.metadata.inspection import inspect

    found = inspect(read_bytes(path, str(path)), str(path), exiftool)
    places = [*found.places, *_strip_sidecars(path, exiftool, write=False)]
    return {"image": str(path), "removed": places, "unsure": [*found.notes], "unreadable": [*found.unreadable]}


def _strip(path: Path, exiftool: "ExifTool", target: Path | None, *, maker_notes: bool) -> dict[str, Any]:
    """Write a copy without places, or overwrite the photo when there is no target."""
    from open_geoclip.images import read_bytes
    from open_geoclip.metadata.files import create_file, replace_file
    from open_geoclip.metadata.strip import strip

    try:
        found = strip(read_bytes(path, str(path)), str(path), exiftool, maker_notes=maker_notes)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    removed, written = list(found.removed), {}
    if target is not None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{target.parent} cannot be made: {error.strerror or error}") from error
        create_file(target, found.data, times=path)
        written = {"written": str(target)}
    else:
        if found.removed:
            written = {"written": str(path), "kept": str(replace_file(path, found.data))}
        removed += _strip_sidecars(path, exiftool, write=True)
    record = {"image": str(path), "removed": removed, "unsure": [*found.unsure], "unreadable": [*found.unreadable]}
    return record | written


def _strip_sidecars(path: Path, exiftool: "ExifTool", *, write: bool) -> list[str]:
    """Return the places in the sidecars of a photo; with ``write``, remove them. Sidecars are never copied."""
    from open_geoclip.metadata.files import read_file, replace_file
    from open_geoclip.metadata.sidecars import remove_takeout_location, sidecars_beside
    from open_geoclip.metadata.strip import strip_sidecar

    removed = []
    for sidecar in sidecars_beside(path):
        try:
            content = read_file(sidecar.path)
            if sidecar.kind == "xmp":
                changed, names = strip_sidecar(content, exiftool)
            else:
                changed, names = remove_takeout_location(content)
        except MetadataError as error:
            raise DataError(f"{sidecar.path}: {error}; look at it yourself") from error
        removed += [f"{name} ({sidecar.path.name})" for name in names]
        if names and write:
            replace_file(sidecar.path, changed, keep_times=False)
    return removed


def _table(records: list[dict[str, Any]]) -> str:
    lines = []
    for record in records:
        if "error" in record:
            continue
        what = ", ".join(record["removed"]) or "no place found"
        lines.append(f"{record['image']}: {what}")
        lines += [f"  may contain a place, cannot be read: {reason}" for reason in record["unreadable"]]
        lines += [f"  not sure: {reason}" for reason in record["unsure"]]
        lines += [
            f"  {word} {record[key]}"
            for key, word in (("written", "written to"), ("kept", "original in"))
            if record.get(key)
        ]
    return "".join(f"{line}\n" for line in lines)
