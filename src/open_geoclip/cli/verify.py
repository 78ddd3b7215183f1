"""``geoclip verify``: whether pictures look like the places that their metadata name."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._answers import AnswerFormat, chosen, in_detail
from open_geoclip.cli._output import Kind
from open_geoclip.cli._photos import ROW_FORMATS, finish, photo_files, print_errors, report
from open_geoclip.cli._shared import load_locator, progress_bar, show_log, write_output

if TYPE_CHECKING:
    from open_geoclip.verification import Verification

__all__ = ["verify"]

_COLUMNS: dict[str, Kind] = {
    "image": "text",
    "verdict": "text",
    "p_value": "number",
    "hpd_level": "number",
    "distance_km": "number",
    "within_25_km": "number",
    "within_200_km": "number",
    "within_750_km": "number",
    "within_2500_km": "number",
    "exif_lat": "number",
    "exif_lon": "number",
    "exif_accuracy_m": "number",
    "exif_time": "text",
    "exif_source": "text",
    "best_lat": "number",
    "best_lon": "number",
    "sure": "flag",
    "remarks": "texts",
    "reason": "text",
    "model": "text",
    "gallery": "text",
    "version": "text",
    "error": "text",
}


def verify(
    photos: list[Path],
    /,
    *,
    model: str = "earth",
    backbone: str | None = None,
    gallery: Path | None = None,
    format_: Annotated[AnswerFormat | None, Parameter(name="--format")] = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    detail: bool | None = None,
    top_k: int = 5,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    engine: Literal["auto", "torch", "openvino"] = "auto",
    batch_size: int = 8,
    max_pixels: int | None = None,
) -> None:
    """Hold pictures against the places that their EXIF data, XMP or sidecars name.

    A verdict is a reason to look closer, never a proof. Exit status 1 if a photo cannot be read, whatever the verdicts.

    Args:
        photos: Photos, or folders that are searched for them.
        model: earth (embedded, for views from orbit), geoclip (released, for photos), hub:org/repo@revision or
            dir:/folder. Of a model that is not calibrated, the verdict is "cannot tell".
        backbone: Where the image backbone is, such as dir:/clip; the one that the model names when not given.
        gallery: Places to choose from; with another one than the model's own the verdict is "cannot tell".
        format_: A table to read, or a file: JSON, CSV or Parquet (a row a photo), GeoJSON, KML (or KMZ, with
            pictures), or HTML, a report that works from disk. When not given, what the name of --output ends in, else
            a table.
        output: A file to write instead of stdout.
        detail: Say the regions that hold 50 and 90 % and where the probability lies; when not given, in the files that
            show them on a map (GeoJSON, KML, KMZ, HTML).
        top_k: Candidates a picture, in JSON and in files for maps.
        dtype: What the backbone computes in; auto is bfloat16 where the processor has it.
        engine: What runs the image backbone; auto is openvino where the extra fast is installed.
        batch_size: Pictures the model sees at once.
        max_pixels: Larger pictures are refused before they are decoded.
    """
    show_log()
    format_ = chosen(format_, output)
    from open_geoclip.verification import verify as verified

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
    lines: list[str] = []
    interrupted, detail = False, in_detail(detail, format_)
    try:
        with progress_bar("verifying") as progress:
            for done, found in enumerate(verified(locator, files, top_k, detail=detail), 1):
                if format_ in ("csv", "parquet") and not found.answer.error:
                    records.append(_row(found))
                elif format_ in ROW_FORMATS:
                    records.append(found.to_dict())
                else:
                    records.append(_shown(found, files[done - 1], format_, locator.encoding.max_pixels))
                lines += _lines(found)
                progress(done, len(files))
    except KeyboardInterrupt:  # what was found so far is not thrown away
        interrupted = True
        print(f"geoclip: interrupted after {len(records):,} of {len(files):,} photos", file=sys.stderr)
    print_errors(records)
    if format_ in ROW_FORMATS:
        about = f"estimates by {locator.model_name}; a verdict is a reason to look closer, no proof"
        lines += [about] if lines else []
        write_output(report(format_, records, _COLUMNS, "".join(f"{line}\n" for line in lines)), output)
    else:
        from open_geoclip.export.formats import render

        write_output(render(records, format_), output)
    finish(records, interrupted=interrupted)


def _shown(found: "Verification", path: Path, format_: str, max_pixels: int) -> dict[str, Any]:
    """A record for maps and reports: a place that is not on Earth is not drawn, the remarks tell of it."""
    from open_geoclip.errors import ImageError
    from open_geoclip.export.thumbnails import thumbnail

    told, place = found.to_dict(), found.exif
    if place is not None and not place.is_on_earth:
        told["exif"] = None
    if format_ in ("html", "kmz") and found.answer.error is None:
        with suppress(ImageError):  # the file went away since it was read: the answer is shown without it
            told["thumbnail"] = thumbnail(path, max_pixels=max_pixels)
    return told


def _row(found: "Verification") -> dict[str, Any]:
    place, of, best = found.exif, found.comparison, found.answer.candidates[0]
    return {
        "image": found.answer.image,
        "verdict": found.verdict,
        "p_value": of and of.p_value,
        "hpd_level": of and round(of.hpd_level, 6),
        "distance_km": of and round(of.distance_km, 3),
        **{f"within_{km}_km": of and round(of.within_km[km], 6) for km in ("25", "200", "750", "2500")},
        "exif_lat": place and place.lat,
        "exif_lon": place and place.lon,
        "exif_accuracy_m": place and place.accuracy_m,
        "exif_time": place and place.time and place.time.isoformat(),
        "exif_source": place and place.source,
        "best_lat": best.lat,
        "best_lon": best.lon,
        "sure": found.answer.sure,
        "remarks": [remark.text for remark in found.remarks],
        "reason": found.reason,
        "model": found.answer.model,
        "gallery": found.answer.gallery,
        "version": found.answer.version,
    }


def _lines(found: "Verification") -> list[str]:
    if found.answer.error is not None:
        return []
    place, of, best = found.exif, found.comparison, found.answer.candidates[0]
    lines = [f"{found.answer.image}: {str(found.verdict).upper()}", f"  {found.reason}"]
    if place is not None:
        accuracy = "" if place.accuracy_m is None else f" +- {place.accuracy_m:,.0f} m"
        time = "" if place.time is None else f", {place.time.isoformat(' ')}"
        camera = "" if found.camera is None else f", {found.camera}"
        lines.append(f"  says   {place.lat:>10.5f} {place.lon:>11.5f}{accuracy}  ({place.source}{time}{camera})")
    sure = {True: "sure", False: "not sure", None: "not calibrated"}[found.answer.sure]
    apart = "" if of is None else f", {of.distance_km:,.0f} km away"
    lines.append(f"  looks  {best.lat:>10.5f} {best.lon:>11.5f}  ({sure}{apart})")
    if of is not None:
        chances = ", ".join(f"{100 * share:.1f} % within {int(km):,} km" for km, share in of.within_km.items())
        lines.append(f"  of the place it names: {chances}; {100 * of.hpd_level:.1f} % is more probable ground")
    return [*lines, *(f"  note: {remark.text}" for remark in found.remarks)]
