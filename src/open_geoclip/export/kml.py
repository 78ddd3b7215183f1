"""Answers as KML (OGC 12-007r2), which Google Earth opens: a folder per answer, styles by probability, regions.

Google Earth shows images from files beside the document only: a KMZ is the same document, zipped with them.
"""

import io
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Mapping, Sequence
from html import escape  # a description is HTML, and a file may have any name
from typing import Any

from open_geoclip.export.thumbnails import decode_thumbnail

__all__ = ["confidence", "to_kml", "to_kmz", "verdict_values"]

_NAMESPACE = "http://www.opengis.net/kml/2.2"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STYLES = (  # from which probability, its colour (KML writes alpha, blue, green, red) and size
    ("likely", 0.5, "ff26329d", 1.3),
    ("possible", 0.1, "ff3e8be0", 1.1),
    ("unlikely", 0.0, "ff9a9a9a", 0.9),
)
_REGIONS = {"50": ("ff26329d", "4026329d"), "90": ("ff3e8be0", "263e8be0")}
_OTHER_REGION = ("ff9a9a9a", "209a9a9a")


def to_kml(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """Write a document without images."""
    return _document(records, about, {})


def to_kmz(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """Write a zip of the document and its images."""
    images = {
        number: (f"files/{number + 1}.jpg", decode_thumbnail(record["thumbnail"]))
        for number, record in enumerate(records)
        if record.get("thumbnail")
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        # A fixed time: the same answers give the same bytes.
        archive.writestr(_entry("doc.kml"), _document(records, about, {n: name for n, (name, _) in images.items()}))
        for name, image in images.values():
            archive.writestr(_entry(name), image)
    return file.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _document(records: Sequence[Mapping[str, Any]], about: dict[str, str], images: Mapping[int, str]) -> bytes:
    root = ET.Element("kml", xmlns=_NAMESPACE)
    document = ET.SubElement(root, "Document")
    _text(document, "name", "Where photos were taken")
    _text(document, "description", f"{about['caution']}. {about['software']}, {about['created']}.")
    for name, _, colour, scale in _STYLES:
        style = ET.SubElement(document, "Style", id=name)
        icon = ET.SubElement(style, "IconStyle")
        _text(icon, "color", colour)
        _text(icon, "scale", f"{scale}")
    for share, (line, fill) in {**_REGIONS, "other": _OTHER_REGION}.items():
        style = ET.SubElement(document, "Style", id=f"region-{share}")
        outline = ET.SubElement(style, "LineStyle")
        _text(outline, "color", line)
        _text(outline, "width", "2")
        _text(ET.SubElement(style, "PolyStyle"), "color", fill)
    for number, record in enumerate(records):
        _folder(document, number, record, about, images.get(number))
    ET.indent(root, " ")
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _folder(
    document: ET.Element, number: int, record: Mapping[str, Any], about: dict[str, str], image: str | None
) -> None:
    folder = ET.SubElement(document, "Folder", id=f"answer-{number + 1}")
    _text(folder, "name", record.get("image") or record.get("text") or f"answer {number + 1}")
    decision = (record.get("decision") or "").capitalize()
    review = "".join(f"{text}. " for text in (decision, record.get("note")) if text)
    if "error" in record:
        _text(folder, "description", f"{review}It could not be read: {record['error']}")
        return
    marks = "".join(f"; sha256 of the {what}: {mark}" for what, mark in record.get("sha256", {}).items())
    made = f"{record['model']}; {record['gallery']}; open-geoclip {record['version']}{marks}; {about['caution']}"
    verdict, sure = verdict_values(record), confidence(record)
    judged = f"{verdict['verdict'].capitalize()}: {verdict['reason']}. " if verdict else ""
    measured = f"; {record['reliability']['text']}" if record.get("reliability") else ""
    warning = f"{record['warning']} " if record.get("warning") else ""
    _text(folder, "description", f"{warning}{review}{judged}{sure[0].upper()}{sure[1:]}{measured}. {made}")
    for rank, candidate in enumerate(record["candidates"], 1):
        share = candidate["probability"]
        mark = ET.SubElement(folder, "Placemark")
        _text(mark, "name", f"{rank}. {candidate.get('place') or _degrees(candidate)}")
        lines = [
            f"{_degrees(candidate)}",
            warning.strip()
            or f"probability {100 * share:.1f} %, nine tenths of it within {candidate['radius_km']:,.0f} km",
            made,
        ]
        shown = [f'<img src="{image}" width="320"/>'] if image and rank == 1 else []
        _text(mark, "description", "<br/>".join([*shown, *map(escape, lines)]))
        _text(mark, "styleUrl", "#" + next(name for name, least, _, _ in _STYLES if share >= least))
        _data(mark, {"rank": rank, **{k: v for k, v in candidate.items() if v is not None}})
        _text(ET.SubElement(mark, "Point"), "coordinates", f"{candidate['lon']},{candidate['lat']}")
    exif = record.get("exif")
    if exif:
        mark = ET.SubElement(folder, "Placemark")
        _text(mark, "name", "where the photo itself says it was taken")
        if verdict:
            lines = [judged, *([verdict["remarks"]] if verdict["remarks"] else []), made]
            _text(mark, "description", "<br/>".join(map(escape, lines)))
            _data(mark, {name: value for name, value in verdict.items() if value is not None})
        _text(ET.SubElement(mark, "Point"), "coordinates", f"{exif['lon']},{exif['lat']}")
    for share, region in record.get("regions", {}).items():
        if region["coordinates"]:
            _region(folder, share, region["coordinates"])


def _region(folder: ET.Element, share: str, polygons: Sequence[Any]) -> None:
    mark = ET.SubElement(folder, "Placemark")
    _text(mark, "name", f"smallest region that holds {share} %")
    _text(mark, "styleUrl", f"#region-{share if share in _REGIONS else 'other'}")
    several = ET.SubElement(mark, "MultiGeometry")
    for rings in polygons:
        polygon = ET.SubElement(several, "Polygon")
        _text(polygon, "tessellate", "1")
        for i, ring in enumerate(rings):
            side = ET.SubElement(polygon, "innerBoundaryIs" if i else "outerBoundaryIs")
            line = ET.SubElement(side, "LinearRing")
            _text(line, "coordinates", " ".join(f"{lon},{lat}" for lon, lat, *_ in ring))


def _data(mark: ET.Element, values: Mapping[str, Any]) -> None:
    data = ET.SubElement(mark, "ExtendedData")
    for name, value in values.items():
        _text(ET.SubElement(data, "Data", name=name), "value", str(value))


def _text(parent: ET.Element, tag: str, text: str) -> None:
    """An element with a text; characters that XML does not have become question marks."""
    ET.SubElement(parent, tag).text = _NOT_XML.sub("?", text)


def _degrees(candidate: Mapping[str, Any]) -> str:
    return f"{candidate['lat']:.4f}, {candidate['lon']:.4f}"


def format_km(km: float) -> str:
    """Return a distance in as many digits as matter."""
    return f"{1000 * km:,.0f} m" if km < 1 else f"{km:,.1f} km" if km < 10 else f"{km:,.0f} km"


def confidence(record: Mapping[str, Any]) -> str:
    """Return how sure an answer is, in a line."""
    if record.get("in_distribution") is False:
        return "not sure: unlike the images that the model was calibrated on; candidates mean nothing"
    if record.get("sure") is None:
        return "not calibrated for this: percentages compare places, they are not chances of being right"
    radii = ", ".join(f"{share} % within {format_km(km)}" for share, km in record["credible_radius_km"].items())
    return f"{'sure' if record['sure'] else 'not sure'}; {radii}"


def verdict_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdict on the place in the metadata as text and numbers; empty where there is none."""
    if not record.get("verdict"):
        return {}
    comparison = record.get("comparison") or {}
    return {
        "verdict": record["verdict"],
        "reason": record.get("reason"),
        "p_value": comparison.get("p_value"),
        "distance_km": comparison.get("distance_km"),
        "remarks": "; ".join(remark["text"] for remark in record.get("remarks") or ()) or None,
    }
