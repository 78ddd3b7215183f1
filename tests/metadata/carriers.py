"""Files that hold a place where ExifTool finds it, made byte by byte: one function for each kind of file."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

LAT, LON = -22.9519, -43.2105
CITY = "Rio de Janeiro"
ISO6709 = b"-22.9519-043.2105/"


# --- pieces ---------------------------------------------------------------------------------------


def picture(kind: str = "JPEG", **options: object) -> bytes:
    """A small image without metadata."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    out = io.BytesIO()
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(Image.fromarray(pixels)).save(out, **options)
    else:
        Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def tiff(order: str = "<", *, lat: float = LAT, lon: float = LON) -> bytes:
    """EXIF data with a GPS record alone."""

    def angle(degrees: float) -> bytes:
        seconds = round(abs(degrees) * 3600 * 10_000)
        return struct.pack(
            f"{order}6I", seconds // 36_000_000, 1, seconds // 600_000 % 60, 1, seconds % 600_000, 10_000
        )

    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    ifd0 = struct.pack(f"{order}HHHIII", 1, 0x8825, 4, 1, 26, 0)
    at = 26 + 2 + 4 * 12 + 4
    rows = [
        (1, 2, 2, b"S\0\0\0" if lat < 0 else b"N\0\0\0"),
        (2, 5, 3, struct.pack(f"{order}I", at)),
        (3, 2, 2, b"W\0\0\0" if lon < 0 else b"E\0\0\0"),
        (4, 5, 3, struct.pack(f"{order}I", at + 24)),
    ]
    record = b"".join(struct.pack(f"{order}HHI", *row[:3]) + row[3] for row in rows)
    return head + ifd0 + struct.pack(f"{order}H", 4) + record + bytes(4) + angle(lat) + angle(lon)


def packet(properties: str | None = None, *, attributes: str = "") -> bytes:
    """An XMP packet with a place, a rating and whatever is given."""
    inside = "<exif:GPSLatitude>22,57.114S</exif:GPSLatitude><exif:GPSLongitude>43,12.63W</exif:GPSLongitude>"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
        f'xmlns:x1="http://example.org/unknown/" xmp:Rating="4" {attributes}>'
        f"{inside if properties is None else properties}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
    ).encode()


def app(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def resource(number: int, body: bytes) -> bytes:
    """A resource of Photoshop."""
    return b"8BIM" + struct.pack(">H", number) + b"\0\0" + struct.pack(">I", len(body)) + body + bytes(len(body) % 2)


def iptc(caption: bytes = b"A caption") -> bytes:
    """IPTC records with a city and a caption."""

    def record(number: int, text: bytes) -> bytes:
        return b"\x1c\x02" + bytes((number,)) + struct.pack(">H", len(text)) + text

    return record(120, caption) + record(90, CITY.encode()) + record(101, b"Brazil")


def jpeg(*segments: bytes, data: bytes | None = None) -> bytes:
    """A JPEG with segments before its own."""
    data = picture() if data is None else data
    return data[:2] + b"".join(segments) + data[2:]


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, late: bool = False) -> bytes:
    """A PNG with chunks behind its header, or behind its pixels."""
    data = picture("PNG")
    at = len(data) - 12 if late else 33
    return data[:at] + b"".join(chunks) + data[at:]


def text(key: str, value: str) -> bytes:
    """A text of a PNG."""
    return chunk(b"tEXt", key.encode() + b"\0" + value.encode("latin1"))


def profile(name: str, raw: bytes) -> bytes:
    """A raw profile of ImageMagick in a PNG."""
    body = f"\n{name}\n{len(raw):8d}\n{raw.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type " + name.encode() + b"\0\0" + zlib.compress(body))


def webp(*chunks: tuple[bytes, bytes], flags: int | None = None) -> bytes:
    """A WebP with chunks behind its image."""
    data = picture("WEBP", exif=tiff()) if not chunks else picture("WEBP", lossless=True)
    added = b"".join(kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for kind, body in chunks)
    if chunks and flags is not None:
        vp8x = struct.pack("<B3x", flags) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
        data = data[:12] + b"VP8X" + struct.pack("<I", 10) + vp8x + data[12:]
    data += added
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box of ISO 14496-12."""
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def xyz() -> bytes:
    """A place as phones write it into a video."""
    return box(b"\xa9xyz", struct.pack(">HH", len(ISO6709), 0x15C7), ISO6709)


def loci() -> bytes:
    """A place as 3GPP has it."""
    fixed = struct.pack(">iii", round(LON * 65536), round(LAT * 65536), 0)
    return box(b"loci", bytes(4), b"\x15\xc7", b"Rio\0", b"\0", fixed, b"earth\0", b"\0")


def keys(*, version: bytes = b"") -> bytes:
    """A place as Apple writes it into a video; ISO's box has a version, Apple's has none."""
    key = b"com.apple.quicktime.location.ISO6709"
    handler = box(b"hdlr", bytes(8), b"mdta", bytes(13))
    table = box(b"keys", struct.pack(">II", 0, 1), box(b"mdta", key))
    value = box(b"ilst", box(struct.pack(">I", 1), box(b"data", struct.pack(">II", 1, 0), ISO6709)))
    return box(b"meta", version, handler, table, value)


XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def movie(*parts: bytes) -> bytes:
    """The movie box of a video, with a header."""
    return box(b"moov", box(b"mvhd", bytes(100)), *parts)


def video(*parts: bytes, media: bytes = b"frames" * 20) -> bytes:
    """A small video."""
    return box(b"ftyp", b"mp42", bytes(4), b"mp42isom") + box(b"mdat", media) + movie(*(parts or [box(b"udta", xyz())]))


def heic(**options: object) -> bytes:
    """A HEIC."""
    return picture("HEIF", **options)


def extended_xmp() -> bytes:
    """XMP in two parts, as Adobe's programs write what is longer than a segment: a place and a note in the second."""
    note = "n" * 70_000
    more = packet(
        f"<x1:Note>{note}</x1:Note><dc:format>image/jpeg</dc:format>"
        "<exif:GPSLatitude>22,57.114S</exif:GPSLatitude><exif:GPSLongitude>43,12.63W</exif:GPSLongitude>"
    )
    digest = b"0123456789ABCDEF0123456789ABCDEF"
    import hashlib

    digest = hashlib.md5(more).hexdigest().upper().encode()
    main = packet("", attributes=f'xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="{digest.decode()}"')
    head = b"http://ns.adobe.com/xmp/extension/\0" + digest
    parts = [more[at : at + 60_000] for at in range(0, len(more), 60_000)]
    segments = [
        app(0xE1, head + struct.pack(">II", len(more), 60_000 * number) + part) for number, part in enumerate(parts)
    ]
    return jpeg(app(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + main), *segments)


def geotiff() -> bytes:
    """A TIFF with georeferencing, and a place in its second page."""
    out = io.BytesIO()
    first, second = Image.new("L", (20, 20), 90), Image.new("L", (20, 20), 30)
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    info = ImageFileDirectory_v2()
    info[33922] = (0.0, 0.0, 0.0, LON, LAT, 0.0)
    info.tagtype[33922] = 12
    info[33550] = (0.001, 0.001, 0.0)
    info.tagtype[33550] = 12
    info[34735] = (1, 1, 0, 1, 2048, 0, 1, 4326)
    info.tagtype[34735] = 3
    first.save(out, "TIFF", save_all=True, append_images=[second], tiffinfo=info)
    return out.getvalue()


XMP = b"http://ns.adobe.com/xap/1.0/\0"
EXIF = b"Exif\0\0"
PHOTOSHOP = b"Photoshop 3.0\0"


def mpf() -> bytes:
    """Two images in one file, as phones write them, with a list that says where the second is; both have places."""
    one, two = jpeg(app(0xE1, EXIF + tiff())), jpeg(app(0xE1, EXIF + tiff(">")), app(0xE1, XMP + packet()))
    entries = struct.pack("<IIIHH", 0x030000, 0, 0, 0, 0) * 2
    rows = struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, 2)
    rows += struct.pack("<HHII", 0xB002, 7, 32, 50)
    head = b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", 3) + rows + bytes(4) + entries
    data = bytearray(jpeg(app(0xE2, head), data=one) + two)
    base = 2 + 4 + 4
    struct.pack_into("<I", data, base + 50 + 4, len(data) - len(two))
    struct.pack_into("<II", data, base + 50 + 16 + 4, len(two), len(data) - len(two) - base)
    return bytes(data)


_LOCATION_CREATED = (
    '<e:LocationCreated xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><rdf:Bag>'
    f'<rdf:li rdf:parseType="Resource"><e:City>{CITY}</e:City></rdf:li></rdf:Bag></e:LocationCreated>'
)


CARRIERS: dict[str, Callable[[], bytes]] = {
    "exif.jpg": lambda: jpeg(app(0xE1, EXIF + tiff())),
    "exif_ff.jpg": lambda: jpeg(app(0xE1, b"Exif\0\xff" + tiff())),
    "exif_lower.jpg": lambda: jpeg(app(0xE1, b"exif\0\0" + tiff(">"))),
    "exif_upper.jpg": lambda: jpeg(app(0xE1, b"EXIF\0\0" + tiff(">"))),
    "exif_junk.jpg": lambda: jpeg(app(0xE1, b"jnk" + EXIF + tiff())),
    "exif_junk_nul.jpg": lambda: jpeg(app(0xE1, b"\0\0" + EXIF + tiff())),
    "exif_double.jpg": lambda: jpeg(app(0xE1, EXIF + EXIF + tiff())),
    "exif_two.jpg": lambda: jpeg(app(0xE1, EXIF + tiff()), app(0xE1, EXIF + tiff(">", lat=64.1466, lon=-21.9426))),
    "exif_two_odd.jpg": lambda: jpeg(app(0xE1, EXIF + tiff()), app(0xE1, b"exif\0\xff" + tiff(">"))),
    "exif_behind_scan.jpg": lambda: picture()[:-2] + app(0xE1, EXIF + tiff()) + b"\xff\xd9",
    "xmp.jpg": lambda: jpeg(app(0xE1, XMP + packet())),
    "xmp_two.jpg": lambda: jpeg(app(0xE1, XMP + packet("")), app(0xE1, XMP + packet())),
    "xmp_unknown.jpg": lambda: jpeg(
        app(0xE1, XMP + packet("<x1:GpsLatitude>-22.95</x1:GpsLatitude><x1:Lon>1</x1:Lon>"))
    ),
    "xmp_unknown_struct.jpg": lambda: jpeg(
        app(
            0xE1,
            XMP
            + packet(
                '<x1:Place rdf:parseType="Resource"><x1:Latitude>-22.95</x1:Latitude><x1:Longitude>-43.2</x1:Longitude>'
                "</x1:Place>"
            ),
        )
    ),
    "xmp_latin1.jpg": lambda: jpeg(
        app(0xE1, XMP + packet("<photoshop:City>São</photoshop:City>").decode().encode("latin1", "replace"))
    ),
    "xmp_extended.jpg": extended_xmp,
    "iptc.jpg": lambda: jpeg(app(0xED, PHOTOSHOP + resource(0x0404, iptc()))),
    "iptc_split.jpg": lambda: jpeg(
        *[app(0xED, PHOTOSHOP + part) for part in _split(resource(0x0404, iptc(b"c" * 90)))]
    ),
    "app13_exif.jpg": lambda: jpeg(app(0xED, PHOTOSHOP + resource(0x0422, tiff()))),
    "app13_exif_prefix.jpg": lambda: jpeg(app(0xED, PHOTOSHOP + resource(0x0422, EXIF + tiff()))),
    "app13_xmp.jpg": lambda: jpeg(app(0xED, PHOTOSHOP + resource(0x0424, packet()) + resource(0x0404, iptc()))),
    "app13_bare_exif.jpg": lambda: jpeg(app(0xED, EXIF + tiff())),
    "app13_bare_xmp.jpg": lambda: jpeg(app(0xED, XMP + packet())),
    "app13_split_xmp.jpg": lambda: jpeg(*[app(0xED, PHOTOSHOP + part) for part in _split(resource(0x0424, packet()))]),
    "app13_named_exif.jpg": lambda: jpeg(
        app(0xED, PHOTOSHOP + b"8BIM\x04\x22\x04EXIF\0" + struct.pack(">I", len(tiff())) + tiff())
    ),
    "exif_app3.jpg": lambda: jpeg(app(0xE3, b"Meta\0\0" + tiff())),
    "xmp_utf16.jpg": lambda: jpeg(app(0xE1, XMP + packet().decode().encode("utf-16"))),
    "xmp_location_created.jpg": lambda: jpeg(app(0xE1, XMP + packet(_LOCATION_CREATED))),
    "preview.jpg": lambda: jpeg(app(0xE1, EXIF + _with_preview(jpeg(app(0xE1, EXIF + tiff()))))),
    "credentials.jpg": lambda: jpeg(app(0xEB, b"JP\0\x01\0\0\0\x01" + _credentials())),
    "credentials.png": lambda: png(chunk(b"caBX", _credentials())),
    "two_exif.png": lambda: png(chunk(b"eXIf", tiff()), chunk(b"eXIf", tiff(">", lat=64.1, lon=-21.9))),
    "words.png": lambda: png(text("photoshop:City", CITY), text("GPS Position", "1 2"), text("Exif.GPSInfo.X", "1/1")),
    "motion_list.jpg": lambda: picture() + video(_item_list()),
    "list.heic": lambda: heic() + movie(_item_list()),
    "padded_video.heic": lambda: heic() + b"\0\0" + video(),
    "jpeg_behind.heic": lambda: heic() + jpeg(app(0xE1, EXIF + tiff())),
    "mpvd.avif": lambda: picture("AVIF") + box(b"mpvd", video()),
    "video.bmp": lambda: picture("BMP") + video(),
    "resource.tif": lambda: _tiff_with({34377: resource(0x0422, tiff())}),
    "iptc.tif": lambda: _tiff_with({33723: iptc(), 34377: resource(0x0404, iptc()) + resource(0x0424, packet())}),
    "motion.jpg": lambda: jpeg(app(0xE1, EXIF + tiff())) + video(),
    "motion_only.jpg": lambda: picture() + video(box(b"udta", loci())),
    "motion_keys.jpg": lambda: picture() + video(keys()),
    "motion_keys_iso.jpg": lambda: picture() + video(keys(version=bytes(4))),
    "motion_track.jpg": lambda: picture() + video(box(b"trak", box(b"udta", xyz()))),
    "motion_xmp.jpg": lambda: picture() + video(box(b"udta", box(b"XMP_", packet()))),
    "motion_uuid.jpg": lambda: picture() + video() + box(b"uuid", XMP_UUID, packet()),
    "motion_gap.jpg": lambda: picture() + b"SomeMaker\0" + video(),
    "second.jpg": lambda: picture() + jpeg(app(0xE1, EXIF + tiff())),
    "mpf.jpg": mpf,
    "exif.png": lambda: png(chunk(b"eXIf", tiff())),
    "exif_late.png": lambda: png(chunk(b"eXIf", tiff()), late=True),
    "exif_prefix.png": lambda: png(chunk(b"eXIf", EXIF + tiff())),
    "zxif.png": lambda: png(chunk(b"zxIf", b"\0" + struct.pack(">I", len(tiff())) + zlib.compress(tiff()))),
    "exif_and_profile.png": lambda: png(chunk(b"eXIf", tiff()), profile("exif", EXIF + tiff(lat=64.1, lon=-21.9))),
    "profile_app1.png": lambda: png(profile("APP1", EXIF + tiff())),
    "profile_app1_xmp.png": lambda: png(profile("APP1", XMP + packet())),
    "profile_xmp.png": lambda: png(profile("xmp", packet())),
    "profile_iptc.png": lambda: png(profile("iptc", resource(0x0404, iptc()))),
    "profile_8bim.png": lambda: png(profile("8bim", resource(0x0404, iptc()))),
    "xmp.png": lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet())),
    "xmp_packed.png": lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet()))),
    "xmp_text.png": lambda: png(chunk(b"tEXt", b"XML:com.adobe.xmp\0" + packet())),
    "city.png": lambda: png(text("City", CITY)),
    "geo.png": lambda: png(text("geo:lat", "-22.95"), text("geo:long", "-43.21")),
    "lat.png": lambda: png(text("lat", "-22.95"), text("lon", "-43.21")),
    "location_late.png": lambda: png(text("Location", CITY), late=True),
    "gps_itxt.png": lambda: png(chunk(b"iTXt", b"GPSLatitude\0\0\0\0\0" + b"-22.95")),
    "gps_ztxt.png": lambda: png(chunk(b"zTXt", b"exif:GPSLatitude\0\0" + zlib.compress(b"22/1, 57/1, 6/1"))),
    "trailer.png": lambda: png() + video(),
    "trailer_jpeg.png": lambda: png() + jpeg(app(0xE1, EXIF + tiff())),
    "exif.webp": webp,
    "exif_prefix.webp": lambda: webp((b"EXIF", EXIF + tiff()), flags=8),
    "exif_no_vp8x.webp": lambda: webp((b"EXIF", tiff())),
    "exif_two.webp": lambda: webp((b"EXIF", tiff()), (b"EXIF", tiff(">", lat=64.1, lon=-21.9)), flags=8),
    "xmp.webp": lambda: webp((b"XMP ", packet()), flags=4),
    "xmp_bad_name.webp": lambda: webp((b"XMP\0", packet()), flags=4),
    "trailer_newline.webp": lambda: webp((b"EXIF", tiff()), flags=8) + b"\n",
    "trailer_video.webp": lambda: webp((b"EXIF", tiff()), flags=8) + video(),
    "geotiff.tif": geotiff,
    "exif.heic": lambda: heic(exif=EXIF + tiff()),
    "xmp.heic": lambda: heic(xmp=packet()),
    "udta.heic": lambda: heic() + movie(box(b"udta", xyz())),
    "loci.heic": lambda: heic() + movie(box(b"udta", loci())),
    "keys.heic": lambda: heic() + movie(keys(version=bytes(4))),
    "uuid_xmp.heic": lambda: heic() + box(b"uuid", XMP_UUID, packet()),
    "mpvd.heic": lambda: heic() + box(b"mpvd", video()),
    "appended.heic": lambda: heic(exif=EXIF + tiff()) + video(),
    "appended_keys.heic": lambda: heic() + video(keys(version=bytes(4))),
    "appended.avif": lambda: picture("AVIF") + video(),
    "exif.avif": lambda: picture("AVIF", exif=EXIF + tiff()),
    "uuid_xmp.avif": lambda: picture("AVIF") + box(b"uuid", XMP_UUID, packet()),
    "xmp.gif": lambda: _gif(),
    "xmp_region.jpg": lambda: jpeg(app(0xE1, XMP + packet(_RATING))),
    "xmp_cell.jpg": lambda: jpeg(app(0xE1, XMP + packet(_CELL))),
    "xmp_empty_element.jpg": lambda: jpeg(app(0xE1, XMP + packet('<x1:Shot x1:City="Rio" x1:lat="-22.9" />'))),
    "xmp_equal_text.jpg": lambda: jpeg(
        app(0xE1, XMP + packet(attributes="""x1:Note=" exif:GPSLatitude='1'" exif:GPSLatitude='1,2N' """))
    ),
    "xmp_utf16.webp": lambda: webp((b"XMP ", packet().decode().encode("utf-16")), flags=4),
    "iptc_in_exif.jpg": lambda: jpeg(app(0xE1, EXIF + _ifd(33723, iptc(b"words")))),
    "preview_with_resources.jpg": lambda: jpeg(
        app(
            0xE1,
            EXIF + _with_preview(jpeg(app(0xE1, XMP + packet()), app(0xED, PHOTOSHOP + resource(0x0404, iptc())))),
        )
    ),
    "media_jukebox.jpg": lambda: jpeg(
        app(0xE9, b"Media Jukebox\0\0\0\0\0<MJMD><Album>a</Album><Places>Rio de Janeiro</Places></MJMD>")
    ),
    "gopro.jpg": lambda: jpeg(app(0xE6, b"GoPro\0" + _gopro())),
    "samsung_country.jpg": lambda: picture() + _samsung((0x0AA1, b"MCC_Data", b"724")),
    "samsung_motion.jpg": lambda: (
        picture() + _samsung((0x0A30, b"MotionPhoto_Data", video()), (0x0AA1, b"MCC_Data", b"724"))
    ),
    "xtra.jpg": lambda: picture() + video(box(b"udta", _xtra())),
    "xtra.heic": lambda: heic() + box(b"mpvd", video(box(b"udta", _xtra()))),
    "freeform.jpg": lambda: picture() + video(_item_list(_freeform())),
    "geo_position.png": lambda: png(text("GeoPosition", "-22 -43"), text("Place", CITY)),
    "exif_and_zxif.png": lambda: png(
        chunk(b"eXIf", tiff()), chunk(b"zxIf", b"\0" + struct.pack(">I", len(tiff())) + zlib.compress(tiff()))
    ),
    "behind_end.png": lambda: png() + chunk(b"eXIf", tiff()),
    "text_behind_end.png": lambda: png() + text("GPSLatitude", "-22.95"),
}


def _ifd(tag: int, value: bytes) -> bytes:
    """EXIF data with one tag."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, tag, 7, len(value), 26, 0) + value


def _gopro() -> bytes:
    """A place as GoPro writes it: keys, types and lengths."""

    def item(key: bytes, kind: bytes, size: int, count: int, body: bytes) -> bytes:
        return key + kind + bytes((size,)) + struct.pack(">H", count) + body + bytes(-len(body) % 4)

    scale = item(b"SCAL", b"l", 4, 5, struct.pack(">5i", 10**7, 10**7, 1000, 1000, 100))
    place = item(b"GPS5", b"l", 20, 1, struct.pack(">5i", round(LAT * 1e7), round(LON * 1e7), 1000, 0, 0))
    stream = item(b"STRM", b"\0", 1, len(scale + place), scale + place)
    return item(b"DEVC", b"\0", 1, len(stream), stream)


def _samsung(*blocks: tuple[int, bytes, bytes]) -> bytes:
    """What Samsung's phones write behind a photo."""
    body, starts = b"", []
    for kind, name, data in blocks:
        starts.append((kind, len(body)))
        body += struct.pack("<HHI", 0, kind, len(name)) + name + data
    ends = [start for _, start in starts[1:]] + [len(body)]
    rows = b"".join(
        struct.pack("<HHII", 0, kind, len(body) - start, end - start)
        for (kind, start), end in zip(starts, ends, strict=True)
    )
    table = b"SEFH" + struct.pack("<II", 101, len(blocks)) + rows
    return body + table + struct.pack("<I", len(table)) + b"SEFT"


def _xtra() -> bytes:
    """A place as Windows writes it into a video."""
    name, value = b"WM/Location", CITY.encode("utf-16-le") + b"\0\0"
    entry = struct.pack(">I", len(name)) + name + struct.pack(">IIH", 1, len(value) + 6, 8) + value
    return box(b"Xtra", struct.pack(">I", len(entry) + 4) + entry)


def _freeform() -> bytes:
    data = box(b"data", struct.pack(">II", 1, 0), CITY.encode())
    return box(b"----", box(b"mean", bytes(4), b"com.apple.iTunes"), box(b"name", bytes(4), b"LOCATION"), data)


_RATING: str = (
    '<e:rating xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><rdf:Bag><rdf:li rdf:parseType="Resource">'
    f'<e:RatingRegion><rdf:Bag><rdf:li rdf:parseType="Resource"><e:City>{CITY}</e:City></rdf:li></rdf:Bag>'
    "</e:RatingRegion></rdf:li></rdf:Bag></e:rating>"
)
_CELL: str = (
    '<c:cellid xmlns:c="http://developer.sonyericsson.com/cell/1.0/">1234</c:cellid>'
    '<p:geography xmlns:p="http://prismstandard.org/namespaces/prismusagerights/2.1/">Rio de Janeiro</p:geography>'
)


def _credentials() -> bytes:
    """Content credentials (C2PA) with an assertion that holds a place."""
    kind = b"json\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71"
    assertion = b'{"exif:GPSLatitude":"22,57.114S","exif:GPSLongitude":"43,12.6W"}'
    return box(b"jumb", box(b"jumd", kind + b"\x03stds.exif\0"), box(b"json", assertion))


def _with_preview(preview: bytes) -> bytes:
    """EXIF data with a preview image."""
    ifd0 = struct.pack("<HHHIII", 1, 0x0112, 3, 1, 1, 26)
    ifd1 = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(preview), 0)
    return b"II*\0\x08\0\0\0" + ifd0 + ifd1 + preview


def _item_list(item: bytes | None = None) -> bytes:
    """A place as iTunes writes it into a video."""
    item = item or box(b"\xa9xyz", box(b"data", struct.pack(">II", 1, 0), ISO6709))
    return box(b"udta", box(b"meta", bytes(4), box(b"hdlr", bytes(8), b"mdirappl", bytes(9)), box(b"ilst", item)))


def _tiff_with(tags: dict[int, bytes]) -> bytes:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    info, out = ImageFileDirectory_v2(), io.BytesIO()
    for tag, value in tags.items():
        info[tag] = value
        info.tagtype[tag] = 7
    Image.new("RGB", (8, 8)).save(out, "TIFF", tiffinfo=info)
    return out.getvalue()


def _split(block: bytes) -> tuple[bytes, bytes]:
    return block[:60], block[60:]


def _gif() -> bytes:
    data = picture("GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    magic = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    return data[:at] + b"\x21\xff\x0bXMP DataXMP" + packet() + magic + data[at:]
