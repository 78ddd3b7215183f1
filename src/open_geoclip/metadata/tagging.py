"""Writing an estimated place beside a photo or into it, marked as what it is."""

from dataclasses import dataclass
from pathlib import Path

from open_geoclip.errors import DataError, ImageError
from open_geoclip.metadata import gps, xmp
from open_geoclip.metadata.blocks import WRITABLE, exif_of, split
from open_geoclip.metadata.place import ESTIMATED, find_sidecars
from open_geoclip.metadata.tiff import GPS, Field, TiffError, with_directory

__all__ = ["Estimate", "sidecar_of", "with_exif_place", "with_xmp_place"]

_EXIF_POINTER = 0x8769


@dataclass(frozen=True)
class Estimate:
    """A place that a model estimated.

    Attributes:
        lat: degrees north.
        lon: degrees east.
        model: the weights' name and version.
        gallery: what the place was chosen from.
        version: of this package.
        radius_km: within which the photo was taken with a probability of 90 %; None when that was not measured.
        probability: of the place.
        sure: as answers say it.
    """

    lat: float
    lon: float
    model: str
    gallery: str
    version: str
    radius_km: float | None
    probability: float
    sure: bool | None

    @property
    def method(self) -> str:
        """What stands as GPSProcessingMethod: a word for programs, and what made it for people."""
        how = "90 % radius" if self.radius_km is not None else "not calibrated, no accuracy known"
        return f"{ESTIMATED} from the picture by open-geoclip {self.version}, model {self.model}; {how}"

    @property
    def accuracy_m(self) -> float | None:
        """The 90 % radius in metres."""
        return None if self.radius_km is None else max(1.0, 1000 * self.radius_km)


def with_exif_place(data: bytes, estimate: Estimate, name: str) -> bytes:
    """A photo's file with the estimate as its EXIF GPS record, in the place of one that is there.

    Raises:
        ImageError: it is no JPEG, PNG, WebP or TIFF, or its EXIF data are damaged or full.
    """
    found = split(data, name)
    if found.format not in WRITABLE:
        kind = "a HEIC" if found.format == "HEIF" else f"a {found.format}"
        raise ImageError(name, f"places are not written into {kind}: its pixels would have to move; use a sidecar")
    blocks = [block for block in found.of("exif") if "picture" not in block.name]
    try:
        if not blocks:
            return found.added("exif", _new_exif(estimate))
        prefix = blocks[0].payload[: len(blocks[0].payload) - len(exif_of(blocks[0].payload))]
        tiff = exif_of(blocks[0].payload)
        order = "<" if tiff[:2] == b"II" else ">"
        return found.replaced({blocks[0]: prefix + with_directory(tiff, GPS, _fields(order, estimate))})
    except TiffError as error:
        raise ImageError(name, f"its EXIF data cannot be written to: {error}; use a sidecar") from error
    except ImageError as error:
        raise ImageError(name, f"{error.reason}; use a sidecar") from error


def _fields(order: str, estimate: Estimate) -> list[Field]:
    return gps.fields(order, estimate.lat, estimate.lon, method=estimate.method, accuracy_m=estimate.accuracy_m)


def _new_exif(estimate: Estimate) -> bytes:
    """EXIF data with a GPS record and a version alone."""
    data = b"MM\0*\0\0\0\x08\0\0\0\0\0\0"
    data = with_directory(data, _EXIF_POINTER, [Field(0x9000, 7, 4, b"0232")])
    return with_directory(data, GPS, _fields(">", estimate))


def sidecar_of(photo: Path) -> Path:
    """The sidecar that is written to: one that is there, or a new ``photo.jpg.xmp``, as each photo has its own."""
    return next(iter(find_sidecars(photo)), photo.with_name(photo.name + ".xmp"))


def with_xmp_place(packet: bytes | None, estimate: Estimate) -> bytes:
    """A sidecar with the estimate: a new one, or one that is there with its place replaced and all else kept.

    Raises:
        DataError: the sidecar that is there cannot be understood.
    """
    place = {
        "GPSVersionID": "2.3.0.0",
        "GPSLatitude": gps.xmp_text(estimate.lat, "N", "S"),
        "GPSLongitude": gps.xmp_text(estimate.lon, "E", "W"),
        "GPSMapDatum": "WGS-84",
        "GPSProcessingMethod": estimate.method,
    }
    if estimate.accuracy_m is not None:
        place["GPSHPositioningError"] = f"{round(estimate.accuracy_m)}/1"
    told = {
        "Model": estimate.model,
        "Gallery": estimate.gallery,
        "Version": estimate.version,
        "Probability": f"{estimate.probability:.6g}",
        "Sure": {True: "True", False: "False", None: "not calibrated"}[estimate.sure],
    }
    groups = [("exif", xmp.EXIF_NS, place), ("geoclip", xmp.ESTIMATE_NS, told)]
    if packet is None:
        return xmp.new_packet(groups)
    try:
        kept, _ = xmp.without(packet, _replaced)
        return xmp.with_properties(kept, groups)
    except xmp.XmpError as error:
        raise DataError(f"the sidecar cannot be written to: {error}") from error


def _replaced(found: xmp.Property) -> bool:
    ours = found.namespace == xmp.ESTIMATE_NS
    return ours or (found.namespace == xmp.EXIF_NS and found.name.startswith("GPS"))
