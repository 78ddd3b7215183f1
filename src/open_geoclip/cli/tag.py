"""``geoclip tag``: write estimated places beside photos or into them."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._options import ImageModelOptions, photo_files
from open_geoclip.cli._output import RowOutput, attempt, collect, exit_if_failed, print_errors, write_output
from open_geoclip.cli._trips import TripOptions
from open_geoclip.errors import ImageError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.metadata.exiftool import ExifTool
    from open_geoclip.metadata.tag import Estimate
    from open_geoclip.search.answer import Answer

__all__ = ["tag"]

_COLUMNS = {
    "image": "string",
    **dict.fromkeys(("lat", "lon", "probability"), "float64"),
    "sure": "bool",
    "radius_km": "float64",
    **dict.fromkeys(("written", "kept", "would_write", "left", "error"), "string"),
}


def tag(
    photos: Annotated[list[Path] | None, Parameter(help="Photos, or folders of photos.")] = None,
    /,
    *,
    into: Literal["sidecar", "exif"] = "sidecar",
    options: ImageModelOptions = ImageModelOptions(),
    trip: TripOptions = TripOptions(),
    overwrite: bool = False,
    unsure: bool = False,
    dry_run: bool = False,
    plan: Path | None = None,
    apply: Path | None = None,
    output: RowOutput = RowOutput(),
) -> None:
    """Write estimated places into XMP sidecars, or into EXIF, marked as estimates. Pixels are not touched.

    A photo that has a place already, whose answer is not sure, or that is unlike the images the model was calibrated on
    is left unchanged and reported. Exit status 1 if a photo failed. With --trip, --track and --use-gps places are
    interpolated between known ones.

    Args:
        into: sidecar (photo.jpg.xmp; the photo stays unchanged), or exif (JPEG, PNG, WebP and TIFF; needs ExifTool; the
            original is kept as photo.jpg.original).
        overwrite: Replace all coordinates that the photo has.
        unsure: Also write answers that are not sure, or of a model that is not calibrated for the image.
        dry_run: Write nothing; report what would be done.
        plan: Write nothing but this CSV file, for a person to review: yes or no in the column write, corrected places.
        apply: Write what a reviewed plan says; no model is run. Photos that were changed since are refused.
    """
    from open_geoclip.cli._plan import PlanRow, format_plan, read_plan
    from open_geoclip.files import sha256
    from open_geoclip.images import read_bytes
    from open_geoclip.metadata.exiftool import ExifTool

    if (photos is None) == (apply is None) or (plan is not None and apply is not None):
        raise SettingsError("give photos, to estimate their places, or --apply PLAN, to write those of a plan")
    if trip != TripOptions():
        trip.check()
    if trip.trip and apply is not None:
        raise SettingsError("--trip is for photos, not for --apply")
    if plan is not None and not plan.parent.is_dir():
        raise SettingsError(f"--plan {plan}: there is no folder {plan.parent}")
    reviewed = [] if apply is None else read_plan(apply)
    rows = {row.path: row for row in reviewed if row.write}
    if apply is not None:
        print(f"geoclip: {apply}: photos to write: {len(rows):,} of {len(reviewed):,}", file=sys.stderr)
    files, failed = (list(rows), []) if photos is None else photo_files(photos)
    exiftool = ExifTool() if into == "exif" else None
    planned: list[PlanRow] = []
    if photos is not None:
        locator = options.load()
        queries = [trip.query(locator, files)] if trip.trip and files else locator.query_images(files)
        answers = locator.answer(queries, 1)

    def estimate(path: Path) -> dict[str, Any]:
        answer, _ = next(answers)
        if answer.error is not None:
            return {"image": str(path), "error": answer.error}
        place, reason = _estimate(answer), _reason(path, answer, exiftool, overwrite, unsure)
        planned.append(PlanRow(path, answer.sha256["image"], reason is None, place, reason))
        record = _record(path, place)
        if reason is not None:
            return {**record, "left": reason}
        return {**record, **_write(path, place, exiftool, dry_run or plan is not None)}

    def follow(path: Path) -> dict[str, Any]:
        row = rows[path]
        if sha256(read_bytes(path, str(path))) != row.sha256:
            raise ImageError(str(path), "it was changed since the plan was made: make a new plan for it")
        record = _record(path, row.estimate)
        if not overwrite and (existing := _existing_place(path, exiftool)):
            return {**record, "left": f"it has {existing}: --overwrite"}
        return {**record, **_write(path, row.estimate, exiftool, dry_run)}

    tagged = (attempt(path, follow if photos is None else estimate) for path in files)
    with exiftool or nullcontext():
        done, interrupted = collect(tagged, len(files), "tagging")
    records = failed + done
    print_errors(records)
    if plan is not None:
        write_output(format_plan(planned, plan), plan)
    output.write(records, table=_table(records), rows=records, columns=_COLUMNS)
    exit_if_failed(records, interrupted=interrupted)


def _estimate(answer: "Answer") -> "Estimate":
    from open_geoclip.metadata.tag import Estimate

    best, sure = answer.candidates[0], None if answer.in_distribution is False else answer.sure
    radius = None if sure is None else answer.credible_radius_km["90"]
    anchors = ", ".join(dict.fromkeys(anchor.source for anchor in answer.anchors))
    made_by = (answer.model, answer.gallery, answer.version)
    return Estimate(best.lat, best.lon, *made_by, radius, best.probability, sure, anchors=anchors)


def _record(path: Path, place: "Estimate") -> dict[str, Any]:
    names = ("lat", "lon", "probability", "sure", "radius_km")
    return {"image": str(path), **{name: getattr(place, name) for name in names}}


def _reason(path: Path, answer: "Answer", exiftool: "ExifTool | None", overwrite: bool, unsure: bool) -> str | None:
    """Return why a photo is left unchanged; None if it is not."""
    if not overwrite and (existing := _existing_place(path, exiftool)):
        return f"it has {existing}: --overwrite"
    sure = _estimate(answer).sure
    if sure or unsure:
        return None
    return (
        f"{'nothing is known of the model on images like this' if sure is None else 'the answer is not sure'}: --unsure"
    )


def _write(path: Path, place: "Estimate", exiftool: "ExifTool | None", dry_run: bool) -> dict[str, str]:
    if exiftool is None:
        return _write_sidecar(path, place, dry_run)
    return _write_exif(path, place, exiftool, dry_run)


def _existing_place(path: Path, exiftool: "ExifTool | None") -> str | None:
    """Return a description of the place that a photo has already."""
    from open_geoclip.images import read_bytes
    from open_geoclip.metadata.inspection import inspect
    from open_geoclip.metadata.read import read_metadata

    for place in read_metadata(path).places:
        kind = "an estimate" if place.estimated else "a place"
        return f"{kind} already, {place.lat:.5f}, {place.lon:.5f} ({place.source})"
    if exiftool is None:
        return None
    found = inspect(read_bytes(path, str(path)), str(path), exiftool, names=False).places
    return f"a place already ({', '.join(found)})" if found else None


def _write_exif(path: Path, estimate: "Estimate", exiftool: "ExifTool", dry_run: bool) -> dict[str, str]:
    from open_geoclip.images import read_bytes
    from open_geoclip.metadata.files import replace_file
    from open_geoclip.metadata.tag import write_place

    changed = write_place(read_bytes(path, str(path)), estimate, str(path), exiftool)
    if dry_run:
        return {"would_write": str(path)}
    return {"written": str(path), "kept": str(replace_file(path, changed))}


def _write_sidecar(path: Path, estimate: "Estimate", dry_run: bool) -> dict[str, str]:
    from open_geoclip.metadata.files import create_file, read_file, replace_file
    from open_geoclip.metadata.sidecars import writable_sidecar
    from open_geoclip.metadata.tag import sidecar_packet

    sidecar = writable_sidecar(path)
    exists = sidecar.exists()
    changed = sidecar_packet(read_file(sidecar) if exists else None, estimate)
    if dry_run:
        return {"would_write": str(sidecar)}
    if exists:
        return {"written": str(sidecar), "kept": str(replace_file(sidecar, changed, keep_times=False))}
    create_file(sidecar, changed)
    return {"written": str(sidecar)}


def _table(records: list[dict[str, Any]]) -> str:
    from open_geoclip.export.kml import format_km

    lines = []
    for record in records:
        if "error" in record:
            continue
        place = f"{record['lat']:.5f}, {record['lon']:.5f}"
        if "left" in record:
            lines.append(f"{record['image']}: unchanged; {record['left']} (estimate {place})")
            continue
        radius = "" if record["radius_km"] is None else f", 90 % within {format_km(record['radius_km'])}"
        goal = f"would go into {record['would_write']}" if "would_write" in record else f"in {record['written']}"
        lines.append(f"{record['image']}: {place}{radius}, {goal}")
        lines += [f"  original in {record['kept']}"] if "kept" in record else []
    return "".join(f"{line}\n" for line in lines)
