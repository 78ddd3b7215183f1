"""``geoclip verify``: compare photos with the places in their metadata."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.cli._options import ImageModelOptions, Photos, photo_files
from open_geoclip.cli._output import MAP_FORMATS, DetailOutput, collect, exit_if_failed, print_errors, write_output

if TYPE_CHECKING:
    from open_geoclip.verification import Verification

__all__ = ["verify"]

_COLUMNS = {
    **dict.fromkeys(("image", "verdict"), "string"),
    **dict.fromkeys(("p_value", "hpd_level", "outside_km", "distance_km"), "float64"),
    **dict.fromkeys((f"within_{km}_km" for km in (25, 200, 750, 2500)), "float64"),
    **dict.fromkeys(("exif_lat", "exif_lon", "exif_accuracy_m"), "float64"),
    **dict.fromkeys(("exif_time", "exif_source"), "string"),
    **dict.fromkeys(("best_lat", "best_lon"), "float64"),
    "sure": "bool",
    "remarks": "strings",
    **dict.fromkeys(("reason", "model", "gallery", "version", "error"), "string"),
}


def verify(
    photos: Photos,
    /,
    *,
    options: ImageModelOptions = ImageModelOptions(),
    output: DetailOutput = DetailOutput(),
    top_k: int = 5,
) -> None:
    """Compare photos with the places in their EXIF data, XMP or sidecars.

    A verdict is a reason to look closer, never a proof. Exit status 1 if a photo cannot be read, whatever the verdicts.

    Args:
        top_k: Candidates per photo, in JSON and in files for maps.
    """
    from open_geoclip.verification import verify as verified

    files, failed = photo_files(photos)
    locator = options.load()
    verifications = verified(locator, files, top_k, detail=output.has_detail)
    found, interrupted = collect(verifications, len(files), "verifying")
    records = failed + [one.to_dict() for one in found]
    print_errors(records)
    if output.format in MAP_FORMATS:
        from open_geoclip.export.formats import render

        max_pixels = locator.encoding.max_pixels
        drawn = [_map_record(one, path, output.format, max_pixels) for one, path in zip(found, files, strict=False)]
        write_output(render(failed + drawn, output.format), output.path)
    else:
        lines = [line for one in found for line in _lines(one)]
        if lines:
            lines.append(f"estimates by {locator.model_name}; a verdict is a reason to look closer, no proof")
        rows = failed + [one.to_dict() if one.answer.error else _row(one) for one in found]
        output.write(records, table="".join(f"{line}\n" for line in lines), rows=rows, columns=_COLUMNS)
    exit_if_failed(records, interrupted=interrupted)


def _map_record(found: "Verification", path: Path, format_: str, max_pixels: int) -> dict[str, Any]:
    """Return a record for maps and reports: a place that is not on Earth is not drawn, but is in the remarks."""
    from open_geoclip.errors import ImageError
    from open_geoclip.export.thumbnails import thumbnail

    record, place = found.to_dict(), found.exif
    if place is not None and not place.is_on_earth:
        record["exif"] = None
    if format_ in ("html", "kmz") and found.answer.error is None:
        with suppress(ImageError):  # the file went away since it was read: the answer is shown without it
            record["thumbnail"] = thumbnail(path, max_pixels=max_pixels)
    return record


def _row(found: "Verification") -> dict[str, Any]:
    place, of, best = found.exif, found.comparison, found.answer.candidates[0]
    return {
        "image": found.answer.image,
        "verdict": found.verdict,
        "p_value": of and of.p_value,
        "hpd_level": of and round(of.hpd_level, 6),
        "outside_km": of and round(of.outside_km, 3),
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
        outside = "inside" if of.outside_km == 0 else f"{of.outside_km:,.0f} km outside"
        lines.append(f"  of the place it names: {chances}; {outside} the region of 90 %")
    return [*lines, *(f"  note: {remark.text}" for remark in found.remarks)]
