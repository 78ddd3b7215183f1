"""Writing an estimated place beside a photo or into it, marked as an estimate."""

import math
from dataclasses import dataclass
from io import BytesIO

from open_geoclip.errors import ImageError, MetadataError
from open_geoclip.images import sniff
from open_geoclip.metadata import containers, gps, xmp
from open_geoclip.metadata.exiftool import ExifTool
from open_geoclip.metadata.inspection import inspect
from open_geoclip.metadata.read import ESTIMATED, read_metadata
from open_geoclip.metadata.strip import check_pixels, remove_locations, write_tags

__all__ = ["Estimate", "sidecar_packet", "write_place"]

_WRITABLE = ("JPEG", "PNG", "WEBP", "TIFF")
_TOLERANCE_DEG = 1e-6
_MANUAL = "MANUAL"  # a value of GPSProcessingMethod in the standard: a person chose the place


@dataclass(frozen=True)
class Estimate:
    """A place that a model estimated, or a person corrected.

    Attributes:
        lat: degrees north.
        lon: degrees east.
        model: name and version of the weights.
        gallery: what the place was chosen from.
        version: of this package.
        radius_km: contains the true place with a probability of 90 %; None when the model is not calibrated.
        probability: of the place; None when a person corrected it.
        sure: as answers say it.
        is_corrected: a person chose another place than the model.
        anchors: names of the tracks and photos whose known places it is interpolated from.
    """

    lat: float
    lon: float
    model: str
    gallery: str
    version: str
    radius_km: float | None
    probability: float | None
    sure: bool | None
    is_corrected: bool = False
    anchors: str = ""

    @property
    def method(self) -> str:
        """The GPSProcessingMethod: a word for programs, and what made the estimate for people."""
        if self.is_corrected:
            return f"{_MANUAL}: a person corrected the estimate of open-geoclip {self.version}"
        how = "90 % radius" if self.radius_km is not None else "not calibrated, no accuracy known"
        source = f"known places in time ({self.anchors}) and the picture" if self.anchors else "the picture"
        text = f"{ESTIMATED} from {source} by open-geoclip {self.version}, model {self.model}; {how}"
        return " ".join(text.encode("ascii", "replace").decode().split())

    @property
    def accuracy_m(self) -> float | None:
        """The 90 % radius in metres."""
        return None if self.radius_km is None else max(1.0, 1000 * self.radius_km)


def write_place(data: bytes, estimate: Estimate, name: str, exiftool: ExifTool) -> bytes:
    """A photo's file with the estimate as its EXIF GPS record, instead of all other coordinates in it.

    Raises:
        ImageError: it is not a JPEG, PNG, WebP or TIFF, its metadata are damaged, other coordinates cannot be removed,
            or its pixels would change.
    """
    kind = sniff(data, name)
    if kind not in _WRITABLE:
        article = "a HEIC" if kind == "HEIF" else f"a {kind}"
        raise ImageError(name, f"places are not written into {article}; use a sidecar")
    arguments = [
        "-n",
        f"-GPS:GPSLatitude={abs(estimate.lat):.9f}",
        f"-GPS:GPSLatitudeRef={'S' if estimate.lat < 0 else 'N'}",
        f"-GPS:GPSLongitude={abs(estimate.lon):.9f}",
        f"-GPS:GPSLongitudeRef={'W' if estimate.lon < 0 else 'E'}",
        "-GPS:GPSMapDatum=WGS-84",
        f"-GPS:GPSProcessingMethod={estimate.method}",
    ]
    if estimate.accuracy_m is not None:
        arguments.append(f"-GPS:GPSHPositioningError={round(estimate.accuracy_m)}")
    try:
        before = inspect(data, name, exiftool, names=False)
        changed = remove_locations(data, name, exiftool, before, names=False)[0] if before.places else data
        changed = containers.normalized_jpeg(changed) if kind == "JPEG" else changed
        changed = write_tags(changed, kind, exiftool, *arguments)
        changed = containers.with_moved_images(data, changed) if kind == "JPEG" else changed
        _check_places(changed, estimate, name, exiftool)
    except MetadataError as error:
        raise ImageError(name, f"{error}; use a sidecar") from error
    except ImageError as error:
        raise ImageError(name, f"{error.reason}; use a sidecar") from error
    check_pixels(data, changed, name)
    return changed


def _check_places(data: bytes, estimate: Estimate, name: str, exiftool: ExifTool) -> None:
    """Every reader finds the estimate and no other coordinates."""
    after = inspect(data, name, exiftool, names=False)
    others = [place for place in after.places if place != "EXIF GPS"]
    if others:
        raise ImageError(name, f"another place could not be removed: {', '.join(others)}")
    found = [(place.lat, place.lon) for place in read_metadata(BytesIO(data)).places]
    for tag in ("GPSLatitude", "GPSLongitude"):
        values = [abs(float(one.value)) for one in after.tags if one.name == tag]
        expected = abs(estimate.lat if tag == "GPSLatitude" else estimate.lon)
        if not all(math.isclose(value, expected, abs_tol=_TOLERANCE_DEG) for value in values):
            raise ImageError(name, "another place could not be removed")
    if len(found) != 1 or math.dist(found[0], (estimate.lat, estimate.lon)) > _TOLERANCE_DEG:
        raise ImageError(name, "the place that was written cannot be read again")


def sidecar_packet(packet: bytes | None, estimate: Estimate) -> bytes:
    """A sidecar with the estimate: a new one, or an existing one with its coordinates replaced and all else kept.

    Raises:
        MetadataError: the existing sidecar cannot be understood.
    """
    place = {
        "GPSVersionID": "2.3.0.0",
        "GPSLatitude": gps.format_angle(estimate.lat, "N", "S"),
        "GPSLongitude": gps.format_angle(estimate.lon, "E", "W"),
        "GPSMapDatum": "WGS-84",
        "GPSProcessingMethod": estimate.method,
    }
    if estimate.accuracy_m is not None:
        place["GPSHPositioningError"] = f"{round(estimate.accuracy_m)}/1"
    groups = [("exif", xmp.EXIF_NS, place)]
    if not estimate.is_corrected:
        source = {
            "Model": estimate.model,
            "Gallery": estimate.gallery,
            "Version": estimate.version,
            "Probability": f"{estimate.probability:.6g}",
            "Sure": {True: "True", False: "False", None: "not calibrated"}[estimate.sure],
        }
        if estimate.anchors:
            source["Anchors"] = estimate.anchors
        groups.append(("geoclip", xmp.ESTIMATE_NS, source))
    try:
        return xmp.add_properties(packet and xmp.remove_properties(packet, xmp.is_coordinate)[0], groups)
    except xmp.XmpError as error:
        raise MetadataError(f"the sidecar cannot be written to: {error}") from error
