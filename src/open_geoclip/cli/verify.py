"""``geoclip verify``: whether pictures look like the places that their metadata name."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._photos import as_csv, as_json, photo_files
from open_geoclip.cli._shared import progress_bar, show_log, write_output

if TYPE_CHECKING:
    from open_geoclip.search.verification import Verification

__all__ = ["verify"]


def verify(
    photos: list[Path],
    /,
    *,
    model: str = "earth",
    backbone: str | None = None,
    gallery: Path | None = None,
    format_: Annotated[Literal["table", "json", "csv"], Parameter(name="--format")] = "table",
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
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
        format_: A table to read, JSON or CSV.
        output: A file to write instead of stdout.
        top_k: Candidates a picture, in JSON.
        dtype: What the backbone computes in; auto is bfloat16 where the processor has it.
        engine: What runs the image backbone; auto is openvino where the extra fast is installed.
        batch_size: Pictures the model sees at once.
        max_pixels: Larger pictures are refused before they are decoded.
    """
    show_log()
    from open_geoclip.images import MAX_PIXELS
    from open_geoclip.search.locator import Locator
    from open_geoclip.search.verification import verify as verified

    files, failed = photo_files(photos)
    with progress_bar("encoding the gallery, once") as progress:
        locator = Locator.from_pretrained(
            model,
            backbone=backbone,
            gallery=gallery,
            dtype=dtype,
            engine=engine,
            batch_size=batch_size,
            max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
            progress=progress,
        )
    records, lines, interrupted = failed, [], False
    try:
        with progress_bar("verifying") as progress:
            for done, found in enumerate(verified(locator, files, top_k), 1):
                records.append(found.to_dict() if format_ == "json" or found.answer.error else _row(found))
                lines += _lines(found)
                progress(done, len(files))
    except KeyboardInterrupt:
        interrupted = True
        print(f"geoclip: interrupted after {len(records):,} of {len(files):,} photos", file=sys.stderr)
    for record in records:
        if "error" in record:
            print(f"geoclip: {record['image']}: {record['error']}", file=sys.stderr)
    about = f"estimates by {locator.model_name}; a verdict is a reason to look closer, no proof\n" if lines else ""
    table = "".join(f"{line}\n" for line in lines) + about
    write_output({"json": as_json, "csv": as_csv}.get(format_, lambda _: table)(records), output)
    if interrupted:
        sys.exit(130)
    if any("error" in record for record in records):
        sys.exit(1)


def _row(found: "Verification") -> dict[str, Any]:
    place, of, best = found.facts.place, found.comparison, found.answer.candidates[0]
    return {
        "image": found.answer.image,
        "verdict": found.verdict,
        "p_value": of and of.p_value,
        "region_level": of and round(of.region_level, 6),
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
    place, of, best = found.facts.place, found.comparison, found.answer.candidates[0]
    lines = [f"{found.answer.image}: {found.verdict.upper()}", f"  {found.reason}"]
    if place is not None:
        accuracy = "" if place.accuracy_m is None else f" +- {place.accuracy_m:,.0f} m"
        time = "" if place.time is None else f", {place.time.isoformat(' ')}"
        camera = "" if found.facts.camera is None else f", {found.facts.camera}"
        lines.append(f"  says   {place.lat:>10.5f} {place.lon:>11.5f}{accuracy}  ({place.source}{time}{camera})")
    sure = {True: "sure", False: "not sure", None: "not calibrated"}[found.answer.sure]
    apart = "" if of is None else f", {of.distance_km:,.0f} km away"
    lines.append(f"  looks  {best.lat:>10.5f} {best.lon:>11.5f}  ({sure}{apart})")
    if of is not None:
        chances = ", ".join(f"{100 * share:.1f} % within {int(km):,} km" for km, share in of.within_km.items())
        lines.append(f"  of the place it names: {chances}; {100 * of.region_level:.1f} % is more probable ground")
    return [*lines, *(f"  note: {remark.text}" for remark in found.remarks)]
