"""Places that ExifTool writes, in every group and every kind of file: none is left, and all else stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_geoclip.metadata.exiftool import ExifTool
from open_geoclip.metadata.inspection import inspect
from open_geoclip.metadata.locations import is_location_name
from open_geoclip.metadata.strip import strip
from tests.metadata import carriers

PLACES = {
    "gps": ("-GPSLatitude=22.95", "-GPSLatitudeRef=S", "-GPSLongitude=43.2", "-GPSLongitudeRef=W", "-GPSAltitude=5"),
    "destination": ("-GPSDestLatitude=22.95", "-GPSDestLatitudeRef=S", "-GPSDestLongitude=43.2"),
    "area": ("-GPSAreaInformation=Rio",),
    "xmp": ("-XMP-exif:GPSLatitude=-22.95", "-XMP-exif:GPSLongitude=-43.2"),
    "names": ("-XMP-photoshop:City=Rio", "-XMP-iptcCore:Location=Corcovado", "-XMP-iptcCore:CountryCode=BRA"),
    "shown": ("-XMP-iptcExt:LocationShownWorldRegion=America", "-XMP-iptcExt:LocationCreatedGPSLatitude=-22.95"),
    "rating": ("-XMP-iptcExt:Rating={RatingValue=4,RatingRegion={City=Rio,CountryName=Brazil}}",),
    "cell": ("-XMP-prl:Geography=Rio", "-XMP-cell:CellTowerID=1234", "-XMP-cell:MobileCountryCode=724"),
    "coverage": ("-XMP-dc:Coverage=Rio",),
    "biology": ("-XMP-dwc:DCLocality=Corcovado", "-XMP-dwc:DCDecimalLatitude=-22.95", "-XMP-dwc:DCIsland=Ilha"),
    "drone": ("-XMP-drone-dji:GPSLatitude=-22.95", "-XMP-Device:EarthPosLatitude=-22.9"),
    "iptc": ("-IPTC:City=Rio", "-IPTC:Sub-location=Corcovado", "-IPTC:ContentLocationCode=BRA"),
    "mie": ("-MIE-GPS:GPSLatitude=-22.9", "-MIE-Geo:City=Rio"),
    "utm": ("-MIE-UTM:UTMEasting=683447", "-MIE-UTM:UTMNorthing=7460687", "-MIE-UTM:UTMZone=-23"),
    "mechanic": ("-PhotoMechanic:City=Rio",),
    "georeference": ("-PixelScale=1 1 0", "-ModelTiePoint=0 0 0 -43.2 -22.9 0", "-GeoTiffAsciiParams=WGS 84|Rio"),
}
KEPT = ("-m", "-n", "-XMP-xmp:Rating=4", "-XMP-dc:Title=a title", "-Artist=an artist")
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "heic": "HEIF", "avif": "AVIF", "gif": "GIF"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_place_that_exiftool_writes_is_left(
    kind: str, tool: ExifTool, tmp_path: Path, exiftool: Any, pixels: Any
) -> None:
    if kind == "heic":
        pytest.importorskip("pillow_heif")
    plain = tool.write(carriers.picture(KINDS[kind]), f".{kind}", *KEPT)
    written = {}
    for name, arguments in PLACES.items():
        data = tool.write(plain, f".{kind}", "-m", "-n", *arguments)
        if data != plain:  # not every kind of file has every group
            written[name] = data
    assert len(written) >= 8
    for name, data in written.items():
        done = strip(data, name, tool)
        assert done.removed, name
        assert done.unreadable == (), name
        assert inspect(done.data, name, tool).places == ()
        assert np.array_equal(pixels(done.data), pixels(data))
        path = tmp_path / f"{name}.{kind}"
        path.write_bytes(done.data)
        found = exiftool(path, "-a", "-ee")
        assert not [key for key in found if is_location_name(key.split(":")[-1])], name
        assert found["XMP-xmp:Rating"] == 4
        assert found["XMP-dc:Title"] == "a title"
