"""``geoclip tag``: write estimated places beside photos or into them."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from open_geoclip.cli._options import ImageModelOptions, Photos, photo_files
from open_geoclip.cli._output import RowOutput, attempt, collect, exit_if_failed, print_errors

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
    photos: Photos,
    /,
    *,
    into: Literal["sidecar", "exif"] = "sidecar",
    options: ImageModelOptions = ImageModelOptions(),
    overwrite: bool = False,
    unsure: bool = False,
    dry_run: bool = False,
    output: RowOutput = RowOutput(),
) -> None:
    """Write estimated places into XMP sidecars, or into EXIF, marked as estimates. Pixels are not touched.

    A photo that has a place already, whose answer is not sure, or that is unlike the images the model was calibrated on
    is left unchanged and reported. Exit status 1 if a photo failed.

    Args:
        into: sidecar (photo.jpg.xmp; the photo stays unchanged), or exif (JPEG, PNG, WebP and TIFF; needs ExifTool; the
            original is kept as photo.jpg.original).
        overwrite: Replace all coordinates that the photo has.
        unsure: Also write answers that are not sure, or of a model that is not calibrated for the image.
        dry_run: Write nothing; report what would be done.
    """
    from open_geoclip.metadata.exiftool import ExifTool

    files, failed = photo_files(photos)
    exiftool = ExifTool() if into == "exif" else None
    locator = options.load()

    answers = locator.stream(files, 1)

    def work(path: Path) -> dict[str, Any]:
        return _tag(path, next(answers), exiftool, overwrite, unsure, dry_run)

    tagged = (attempt(path, work) for path in files)
    with exiftool or nullcontext():
        done, interrupted = collect(tagged, len(files), "tagging")
    records = failed + done
    print_errors(records)
    output.write(records, table=_table(records), rows=records, columns=_COLUMNS)
    exit_if_failed(records, interrupted=interrupted)


def _tag(
    path: Path, answer: "Answer", exiftool: "ExifTool | None", overwrite: bool, unsure: bool, dry_run: bool
) -> dict[str, Any]:
    from open_geoclip.metadata.tag import Estimate

    if answer.error is not None:
        return {"image": str(path), "error": answer.error}
    best = answer.candidates[0]
    record = {"image": str(path), "lat": best.lat, "lon": best.lon}
    sure = None if answer.in_distribution is False else answer.sure
    record |= {"probability": best.probability, "sure": sure}
    if not overwrite and (existing := _existing_place(path, exiftool)):
        return {**record, "left": f"it has {existing}: --overwrite"}
    if not sure and not unsure:
        unknown = "nothing is known of the model on images like this"
        return {**record, "left": f"{unknown if sure is None else 'the answer is not sure'}: --unsure"}
    radius = None if sure is None else answer.credible_radius_km["90"]
    source = (answer.model, answer.gallery, answer.version)
    estimate = Estimate(best.lat, best.lon, *source, radius, best.probability, sure)
    if exiftool is None:
        return {**record, "radius_km": radius, **_write_sidecar(path, estimate, dry_run)}
    return {**record, "radius_km": radius, **_write_exif(path, estimate, exiftool, dry_run)}


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
    lines = []
    for record in records:
        if "error" in record:
            continue
        place = f"{record['lat']:.5f}, {record['lon']:.5f}"
        if "left" in record:
            lines.append(f"{record['image']}: unchanged; {record['left']} (estimate {place})")
            continue
        radius = "" if record["radius_km"] is None else f", 90 % within {record['radius_km']:,.0f} km"
        goal = f"would go into {record['would_write']}" if "would_write" in record else f"in {record['written']}"
        lines.append(f"{record['image']}: {place}{radius}, {goal}")
        lines += [f"  original in {record['kept']}"] if "kept" in record else []
    return "".join(f"{line}\n" for line in lines)
