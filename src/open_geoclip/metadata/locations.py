"""Which metadata say where a photo was taken, judged by their names."""

import re

from open_geoclip.metadata.exiftool import Tag

__all__ = ["has_coordinates", "has_value", "is_coordinate_name", "is_location_name", "label"]

_COORDINATES = re.compile(
    r"(?i)gps(?!versionid)|(?<!speed)latitude|long?t?itude|georss|6709|^geo(?!metr|logic|desy)|geo(tag|hash|location)"
    r"|^(lat|lon|long|lng|lat_?lon|lat_?long|lat_?lng)$|coordinates?$|^model(tiepoint|transform)|^pixelscale$"
    r"|^locationinformation$|^utm(easting|northing|zone|mapdatum)$|^cell(towerid|globalid)$"
)
_NAMES = re.compile(
    r"(?i)^(sub-?)?location|^contentlocation|^country|coverage$|^(shot|local)location(name)?$|^mobilecountrycode$|^mccdata$"
    r"|^(dc(verbatim)?|\w*region)?(city\d?|country(code|name)|(province|state)[-_]?(state|province)?|municipality|county"
    r"|continent|island(group)?|waterbody|locality|(higher)?geography|world_?region|sublocation|locationname|landmark"
    r"|places?(_?name|_?taken)?|(street_?)?address|town|village|suburb|street|postal_?code|zip_?code)$"
)
_TEXT = re.compile(
    r"(?i)\bgeo:(lat|lon)\w*=|\bgeo:-?\d|[+-]\d{2}(\.\d+)?[+-]\d{3}(\.\d+)?/|\b(lat|latitude)\W{0,3}[=:]\s*-?\d"
)
_IPTC = {
    "City": "city",
    "Sub-location": "sublocation",
    "Province-State": "province or state",
    "Country-PrimaryLocationCode": "country code",
    "Country-PrimaryLocationName": "country",
    "ContentLocationCode": "content location code",
    "ContentLocationName": "content location name",
}


def is_coordinate_name(name: str) -> bool:
    """Whether a tag, property or keyword of this name holds coordinates, or belongs to them."""
    return _COORDINATES.search(name) is not None


def is_location_name(name: str) -> bool:
    """Whether a tag, property or keyword of this name holds coordinates or the name of a place."""
    return is_coordinate_name(name) or _NAMES.search(name) is not None


def has_coordinates(text: str) -> bool:
    """Whether a text such as a comment holds coordinates: ``geo:48.85,2.29``, ``geo:lat=48.85``, ISO 6709."""
    return _TEXT.search(text) is not None


def has_value(value: object) -> bool:
    """Whether a value says something: cameras fill what they do not know with zeros, spaces or dashes."""
    return bool(re.sub(r"(?i)[\s0.,:/+\-]|\bn/?a\b|undef|unknown", "", str(value)))


def label(tag: Tag) -> str:
    """What reports call a tag."""
    if tag.group == "GPS":
        return "EXIF GPS"
    if tag.family == "GeoTiff" or re.match(r"GeoTiff|ModelT|PixelScale", tag.name):
        return "GeoTIFF georeferencing"
    if tag.family == "IPTC":
        return f"IPTC {_IPTC.get(tag.name, tag.name)}"
    return f"{tag.group if tag.family in ('QuickTime', 'MakerNotes') else tag.family} {tag.name}"
