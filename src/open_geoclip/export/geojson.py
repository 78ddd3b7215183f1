"""Answers as GeoJSON (RFC 7946): candidates as points, credible regions as polygons. Longitude comes first here."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["features", "to_geojson", "verdict_of"]


def to_geojson(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """A FeatureCollection; what made it, and pictures that could not be read, are members beside the features."""
    found = [feature for number, record in enumerate(records) for feature in features(record, number)]
    collection: dict[str, Any] = {"type": "FeatureCollection", "about": about, "features": found}
    errors = [{"image": record["image"], "error": record["error"]} for record in records if "error" in record]
    if errors:
        collection["errors"] = errors
    return (json.dumps(collection, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def features(record: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """The features of one record: regions first, the widest at the bottom, then candidates, the best on top."""
    if "error" in record:
        return
    name = {kind: record[kind] for kind in ("image", "text") if record.get(kind)}
    made = {key: record[key] for key in ("model", "gallery", "version", "sha256") if key in record}
    common = {"answer": number, **name}
    for share, region in sorted(record.get("regions", {}).items(), key=lambda item: -float(item[0])):
        if region["coordinates"]:
            yield {
                "type": "Feature",
                "geometry": region,
                "properties": {**common, "kind": "credible region", "percent": float(share), **made},
            }
    exif, verdict = record.get("exif"), verdict_of(record)
    if exif:
        yield {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [exif["lon"], exif["lat"]]},
            "properties": {**common, "kind": "where the photo itself says it was taken", **verdict},
        }
    for rank, candidate in reversed(list(enumerate(record["candidates"], 1))):
        told = {key: value for key, value in candidate.items() if key not in ("lat", "lon")}
        best = {"credible_radius_km": record.get("credible_radius_km"), "within_km": record.get("within_km")}
        yield {
            "type": "Feature",
            "id": f"{number}-{rank}",
            "geometry": {"type": "Point", "coordinates": [candidate["lon"], candidate["lat"]]},
            "properties": {
                **common,
                "kind": "candidate",
                "rank": rank,
                **told,
                **({**best, **verdict} if rank == 1 else {}),
                "sure": record.get("sure"),
                **made,
            },
        }


def verdict_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """How the photo's own place was judged, in a few words and figures; empty when it was not held against anything."""
    if not record.get("verdict"):
        return {}
    compared = record.get("comparison") or {}
    return {
        "verdict": record["verdict"],
        "reason": record.get("reason"),
        "p_value": compared.get("p_value"),
        "distance_km": compared.get("distance_km"),
        "remarks": "; ".join(remark["text"] for remark in record.get("remarks") or ()) or None,
    }
