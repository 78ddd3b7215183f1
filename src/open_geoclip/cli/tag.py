"""``geoclip tag``: estimated places written beside photos, or into them."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._output import Kind, choose
from open_geoclip.cli._photos import ROW_FORMATS, RowFormat, finish, photo_files, report, tell_errors
from open_geoclip.cli._shared import load_locator, progress_bar, show_log, write_output
from open_geoclip.errors import DataError, ImageError

if TYPE_CHECKING:
    from open_geoclip.metadata.tagging import Estimate
    from open_geoclip.search.answer import Answer

__all__ = ["tag"]

_COLUMNS: dict[str, Kind] = {
    "image": "text",
    "lat": "number",
    "lon": "number",
    "probability": "number",
    "sure": "flag",
    "radius_km": "number",
    "written": "text",
    "kept": "text",
    "would_write": "text",
    "left": "text",
    "error": "text",
}


def tag(
    photos: list[Path],
    /,
    *,
    into: Literal["sidecar", "exif"] = "sidecar",
    model: str = "earth",
    backbone: str | None = None,
    gallery: Path | None = None,
    overwrite: bool = False,
    unsure: bool = False,
    dry_run: bool = False,
    format_: Annotated[RowFormat | None, Parameter(name="--format")] = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    engine: Literal["auto", "torch", "openvino"] = "auto",
    batch_size: int = 8,
    max_pixels: int | None = None,
) -> None:
    """Write estimated places into XMP sidecars, or into EXIF, marked as estimates. Pixels are not touched.

    A photo that has a place already, whose answer is not sure, or that is unlike the pictures the model was calibrated
    on, is left alone and told. Exit status 1 if a photo could not be done.

    Args:
        photos: Photos, or folders that are searched for them.
        into: sidecar (photo.jpg.xmp; the photo is not touched), or exif (JPEG, PNG, WebP and TIFF; the photo is kept as
            it was as photo.jpg.original).
        model: earth (embedded, for views from orbit), geoclip (released, for photos), hub:org/repo@revision or
            dir:/folder.
        backbone: Where the image backbone is, such as dir:/clip; the one that the model names when not given.
        gallery: Places to choose from: CSV, GeoJSON or Parquet; the model's own when not given.
        overwrite: Replace a place that is there.
        unsure: Write answers that are not sure too, or of a model that is not calibrated for the picture.
        dry_run: Write nothing; say what would be done.
        format_: What was done, as a table to read, JSON, CSV or Parquet. When not given, what the name of --output ends
            in, else a table.
        output: A file for that, instead of stdout.
        dtype: What the backbone computes in; auto is bfloat16 where the processor has it.
        engine: What runs the image backbone; auto is openvino where the extra fast is installed.
        batch_size: Pictures the model sees at once.
        max_pixels: Larger pictures are refused before they are decoded.
    """
    show_log()
    chosen = choose(format_, output, ROW_FORMATS)

    files, records = photo_files(photos)
    locator = load_locator(
        model,
        backbone=backbone,
        gallery=gallery,
        dtype=dtype,
        engine=engine,
        batch_size=batch_size,
        max_pixels=max_pixels,
    )
    interrupted = False
    try:
        with progress_bar("tagging") as progress:
            for done, (path, answer) in enumerate(zip(files, locator.stream(files, 1), strict=True), 1):
                try:
                    familiar = answer.error or answer.candidates[0].score >= locator.calibration.least_score
                    told = answer if familiar else replace(answer, sure=None)
                    records.append(_tagged(path, told, into, overwrite, unsure, dry_run))
                except (ImageError, DataError) as error:
                    reason = error.reason if isinstance(error, ImageError) else str(error)
                    records.append({"image": str(path), "error": reason})
                progress(done, len(files))
    except KeyboardInterrupt:
        interrupted = True
        print(f"geoclip: interrupted after {len(records):,} of {len(files):,} photos", file=sys.stderr)
    tell_errors(records)
    write_output(report(chosen, records, _COLUMNS, _table(records)), output)
    finish(records, interrupted=interrupted)


def _tagged(path: Path, answer: "Answer", into: str, overwrite: bool, unsure: bool, dry_run: bool) -> dict[str, Any]:
    from open_geoclip.metadata.place import read_facts
    from open_geoclip.metadata.tagging import Estimate

    if answer.error is not None:
        return {"image": str(path), "error": answer.error}
    best = answer.candidates[0]
    told = {"image": str(path), "lat": best.lat, "lon": best.lon, "probability": best.probability, "sure": answer.sure}
    facts = read_facts(path)
    there = facts.places[0] if facts.places else None
    if there is not None and not overwrite:
        what = "an estimate" if there.estimated else "a place"
        return {
            **told,
            "left": f"it has {what} already, {there.lat:.5f}, {there.lon:.5f} ({there.source}): --overwrite",
        }
    if not answer.sure and not unsure:
        why = (
            "the answer is not sure" if answer.sure is False else "nothing is known of the model on pictures like this"
        )
        return {**told, "left": f"{why}: --unsure"}
    radius = None if answer.sure is None else answer.credible_radius_km["90"]
    about = (answer.model, answer.gallery, answer.version)
    estimate = Estimate(best.lat, best.lon, *about, radius, best.probability, answer.sure)
    goal = _into_exif(path, estimate, dry_run) if into == "exif" else _beside(path, estimate, dry_run)
    return {**told, "radius_km": radius, **goal}


def _into_exif(path: Path, estimate: "Estimate", dry_run: bool) -> dict[str, str]:
    from open_geoclip.metadata.files import keep_original, write_bytes
    from open_geoclip.metadata.place import read_bytes
    from open_geoclip.metadata.tagging import with_exif_place

    changed = with_exif_place(read_bytes(path), estimate, str(path))
    if dry_run:
        return {"would_write": str(path)}
    real = path.resolve()
    kept = keep_original(real)
    write_bytes(real, changed, like=real)
    return {"written": str(path), "kept": str(kept)}


def _beside(path: Path, estimate: "Estimate", dry_run: bool) -> dict[str, str]:
    from open_geoclip.metadata.files import keep_original, write_bytes
    from open_geoclip.metadata.tagging import sidecar_of, with_xmp_place

    sidecar = sidecar_of(path)
    there = sidecar.exists()
    try:
        before = sidecar.read_bytes() if there else None
    except OSError as error:
        raise DataError(f"{sidecar} cannot be read: {error.strerror or error}") from error
    changed = with_xmp_place(before, estimate)
    if dry_run:
        return {"would_write": str(sidecar)}
    kept = {"kept": str(keep_original(sidecar.resolve()))} if there else {}
    write_bytes(sidecar.resolve() if there else sidecar, changed, like=sidecar if there else None, new=not there)
    return {"written": str(sidecar), **kept}


def _table(records: list[dict[str, Any]]) -> str:
    lines = []
    for record in records:
        if "error" in record:
            continue
        place = f"{record['lat']:.5f}, {record['lon']:.5f}"
        if "left" in record:
            lines.append(f"{record['image']}: left alone; {record['left']} (estimate {place})")
            continue
        radius = "" if record["radius_km"] is None else f", 90 % within {record['radius_km']:,.0f} km"
        goal = f"would go into {record['would_write']}" if "would_write" in record else f"in {record['written']}"
        lines.append(f"{record['image']}: {place}{radius}, {goal}")
        lines += [f"  original in {record['kept']}"] if "kept" in record else []
    return "".join(f"{line}\n" for line in lines)
