"""Broken requests and broken images, the same ones for the same seed."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

__all__ = [
    "Asked",
    "damaged_image",
    "expensive_areas",
    "expensive_images",
    "images",
    "rendered",
    "requests_broken",
    "streams",
]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF", "MPO", "PCX")
SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".tif", ".heic", ".txt", ".svg", "", ".exe", ".jpg.png")
NAMES = ("a", "../../etc/passwd", "a" * 1500, "ü\U0001f30d", "", "a\x00b", 'q"uote', "C:\\con", "%s%n", "<b>")
ODD_NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, -1e308, 1e-320)
ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "é" * 3000,
    "\U0001f30d" * 700,
    "NaN",
    "-0,0",
    "90,180",
    "90.0000001,0",
    "1e400,1",
    "0x10,3",
    "٣,٤",
    "48.86,2.29,50km",
    "48.86,2.29,-5km",
    "0,0,1e9km",
    "-90,-180,90,180",
    "10,170,20,-170",
    "FR",
    "France",
    "Kiribati",
    "Antarctica",
    "data:image/png;base64,",
    "data:,x",
    "data:image/jpeg;base64,/9j/4AAQ",
    "../../../etc/passwd",
    "{}",
    "[" * 900,
    "' OR 1=1 --",
    "true",
    "kml",
)
AREAS = (
    {"type": "Polygon", "coordinates": [[[0, 0], [60, 0], [0, 60], [0, 0]]]},
    {"type": "Polygon", "coordinates": [[[170, -10], [190, -10], [190, 10], [170, 10], [170, -10]]]},
    {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [0, 10], [10, 0], [0, 0]]]},
    {"type": "Polygon", "coordinates": [[[-180, 80], [180, 80], [180, 90], [-180, 90], [-180, 80]]]},
    {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": None, "properties": {}}]},
    {"type": "MultiPolygon", "coordinates": []},
    {"type": "Point", "coordinates": [0, 0]},
)


@dataclass(frozen=True)
class Asked:
    """A request as it is sent."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


# Images


def _views(rng: Random) -> Any:
    """A small image of large squares, in any mode."""
    from PIL import Image

    side = rng.choice((1, 2, 8, 33, 64))
    size = (side, rng.choice((side, 1, 300)))
    small = Image.frombytes("RGB", (2, 2), rng.randbytes(12))
    return small.resize(size, Image.Resampling.NEAREST).convert(
        rng.choice(("RGB", "L", "P", "1", "CMYK", "RGBA", "I;16"))
    )


def rendered(rng: Random, format_: str) -> bytes:
    """A good image's file; it names a place, an odd one perhaps, where the format can."""
    from PIL import Image

    exif = Image.Exif()
    if rng.random() < 0.5:
        lat = rng.choice((41.9, 90.0, 91.0, -0.0, 1e9))
        exif[0x8825] = {
            1: rng.choice("NSX"),
            2: (lat, 0.0, 0.0),
            3: "E",
            4: (rng.choice((12.5, 180.0, 361.0)), 0.0, 0.0),
        }
        exif[0x8769] = {0x9003: rng.choice(("2024:05:06 07:08:09", "0000:00:00 00:00:00", "\xff\xfe"))}
        exif[0x0112] = rng.choice((1, 3, 6, 8, 99))
    file = io.BytesIO()
    image = _views(rng)
    for mode in (image.mode, "RGB", "L"):
        try:
            settings = {"exif": exif} if format_ in ("JPEG", "PNG", "WEBP", "MPO", "AVIF") else {}
            image.convert(mode).save(file, format_, **settings)
        except (OSError, ValueError, KeyError):  # the format has no such mode, or this Pillow cannot write it
            file = io.BytesIO()
            continue
        break
    return file.getvalue()


@lru_cache(maxsize=1)
def _bombs() -> list[bytes]:
    """Small files of images that nobody wants to decode, and files that are none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width: int, height: int, data: bytes, *more: bytes) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    zeros = zlib.compress(bytes(30_000_000), 9)
    return [
        png(100_000, 100_000, zeros),
        png(6000, 5000, zeros),  # less than it says
        png(2**31 - 1, 1, b""),
        png(0, 0, b""),
        png(64, 64, zlib.compress(bytes(64 * 193)), chunk(b"zTXt", b"a\x00\x00" + zeros)),
        png(64, 64, zlib.compress(bytes(64 * 193)), chunk(b"iCCP", b"a\x00\x00" + zeros)),
        png(64, 64, zlib.compress(bytes(64 * 193)), chunk(b"eXIf", b"MM\x00*\x00\x00\x00\x08" + b"\xff" * 60_000)),
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b";",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0),
        b"II*\x00\x08\x00\x00\x00" + b"\xff\xff" + b"\x00\x01\x03\x00\x01\x00\x00\x00\xff\xff\x00\x00" * 5000,
        b"\xff\xd8\xff\xe1\xff\xffExif\x00\x00II*\x00\x08\x00\x00\x00",
        b"\xff\xd8" + b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01" + b"\xff\xd9",
        b"P6\n99999 99999\n255\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"PK\x03\x04" + bytes(100),
        b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic" + bytes(200),
        b"RIFF\xff\xff\xff\xffWEBPVP8X" + bytes(30),
        b"",
        b"\x00" * 5000,
    ]


def damaged_image(rng: Random) -> bytes:
    """An image's file that somebody has broken, or that was never one."""
    if rng.random() < 0.06:
        return rng.choice(_bombs())
    data = bytearray(rendered(rng, rng.choice(FORMATS)))
    for _ in range(rng.choice((0, 1, 1, 2))):
        if not data:
            break
        way = rng.randrange(6)
        if way == 0:
            for _ in range(rng.choice((1, 4, 50))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way == 1:  # where the header is
            data[rng.randrange(min(200, len(data)))] = rng.randrange(256)
        elif way == 2:
            del data[rng.randrange(len(data)) :]
        elif way == 3:
            at = rng.randrange(len(data))
            data[at:at] = rng.randbytes(rng.choice((1, 4, 300)))
        elif way == 4:
            data += rendered(rng, rng.choice(FORMATS))
        else:
            at = rng.randrange(len(data))
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"))
    return bytes(data)


def images(rng: Random, count: int) -> Iterator[Asked]:
    """Requests with so many broken images, one to four in each, that ask for all there is to ask for."""
    while count > 0:
        several = min(count, rng.randint(1, 4))
        count -= several
        files = [damaged_image(rng) for _ in range(several)]
        if rng.random() < 0.15:
            uris = ["data:image/jpeg;base64," + base64.b64encode(data).decode() for data in files]
            yield _json("/v1/embeddings", {"model": "earth", "input": uris})
            continue
        fields = [("exif", "true")]
        if rng.random() < 0.2:
            fields.append(("detail", "true"))
        if rng.random() < 0.15:
            fields.append(("together", "true"))
        if rng.random() < 0.2:
            fields.append(("format", rng.choice(("csv", "geojson", "kml", "kmz", "parquet", "html"))))
        yield _form(rng, [(f"{rng.choice(NAMES)}{rng.choice(SUFFIXES)}", data) for data in files], fields)


# Requests


def _json(path: str, content: Any) -> Asked:
    body = json.dumps(content).encode()
    return Asked("POST", path, [(b"Content-Type", b"application/json")], body)


def _form(rng: Random, files: list[tuple[str, bytes]], fields: list[tuple[str, str]]) -> Asked:
    mark = f"{rng.getrandbits(64):x}".encode()
    parts = []
    for name, value in fields:
        head = b'Content-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n'
        parts.append(head + value.encode("utf-8", "surrogatepass"))
    for name, data in files:
        given = name.replace('"', "%22").replace("\x00", "%00").encode()
        head = b'Content-Disposition: form-data; name="images"; filename="' + given + b'"\r\n\r\n'
        parts.append(head + data)
    body = b"".join(b"--" + mark + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + mark + b"--\r\n"
    return Asked("POST", "/v1/locate", [(b"Content-Type", b"multipart/form-data; boundary=" + mark)], body)


def _odd(rng: Random, depth: int = 0) -> Any:
    """A value that nobody expects."""
    way = rng.randrange(7)
    if way == 0:
        return rng.choice(ODD_NUMBERS)
    if way <= 2:
        return rng.choice(ODD_TEXTS)
    if way == 3:
        return rng.choice((None, True, False, [], {}))
    if way == 4:
        return rng.choice(AREAS) if rng.random() < 0.5 else json.dumps(rng.choice(AREAS))
    if depth > 3:
        return "deep"
    if way == 5:
        return [_odd(rng, depth + 1) for _ in range(rng.randint(1, 4))]
    return {rng.choice(("lat", "type", "coordinates", "x", "")): _odd(rng, depth + 1) for _ in range(rng.randint(1, 4))}


def _record(rng: Random) -> dict[str, Any]:
    candidate = {
        "lat": 1.5,
        "lon": 2.5,
        "score": 0.1,
        "probability": 0.5,
        "radius_km": 10.0,
        "country": "FR",
        "place": "x",
    }
    return {
        "image": rng.choice(NAMES),
        "model": "m",
        "gallery": "g",
        "version": "1",
        "candidates": [candidate],
        "credible_radius_km": {"50": 10.0, "90": 20.0},
        "within_km": {"1": 0.1, "25": 0.2, "200": 0.5, "750": 0.7, "2500": 1.0},
        "countries": {"FR": 1.0},
        "sure": None,
        "exif": {"lat": 1.0, "lon": 2.0},
        "thumbnail": None,
        "regions": {"50": {"type": "MultiPolygon", "coordinates": [[[[0, 0], [1, 0], [0, 1], [0, 0]]]]}},
        "heat": {"cell_km": 10.0, "cells": [[1.0, 2.0, 0.5]]},
    }


def _right(rng: Random) -> Asked:
    """A request that is nearly right: of most values one is odd."""
    way = rng.randrange(5)
    limits = {"within": [rng.choice((*ODD_TEXTS, json.dumps(rng.choice(AREAS))))]} if rng.random() < 0.1 else {}
    if way == 0:
        content: dict[str, Any] = {"texts": ["a desert"], "top_k": 3, "format": "json", "detail": False, **limits}
        path = "/v1/text"
    elif way == 1:
        content = {"model": "earth", "input": ["10,20", "a desert"], "encoding_format": "float", "user": "me"}
        path = "/v1/embeddings"
    elif way == 2:
        formats = ("csv", "geojson", "kml", "kmz", "parquet", "html", "json")
        content = {"format": rng.choice(formats), "records": [_record(rng) for _ in range(rng.randint(0, 3))]}
        path = "/v1/export"
    elif way == 3:
        fields = [
            ("top_k", "3"),
            ("decode", "max"),
            ("text_weight", "0.5"),
            *(("within", one) for one in limits.get("within", [])),
        ]
        for at in range(len(fields)):
            if rng.random() < 0.4:
                fields[at] = (fields[at][0], str(rng.choice((*ODD_NUMBERS, *ODD_TEXTS))))
        return _form(rng, [("a.png", damaged_image(rng))], rng.sample(fields, rng.randint(0, len(fields))))
    else:
        paths = ("/", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/countries", "/v1/page", "/openapi.json")
        more = ("", "?a=%00", "/..", "%2e%2e", "//", "/assets/../../etc/passwd", "?" + "a" * 4000)
        return Asked(
            rng.choice(("GET", "POST", "HEAD", "DELETE", "OPTIONS", "PATCH")), rng.choice(paths) + rng.choice(more)
        )
    if rng.random() < 0.8:
        _make_odd(rng, content)
    return _json(path, content)


def _make_odd(rng: Random, content: Any) -> None:
    """Change one value somewhere inside."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.7:
            content = content[key]
            continue
        if isinstance(content, dict) and rng.random() < 0.15:
            del content[key]
        else:
            content[key] = _odd(rng)
        return


HEADERS = (
    (b"Content-Type", b"application/json; charset=utf-16"),
    (b"Content-Type", b"multipart/form-data; boundary="),
    (b"Content-Type", b"multipart/form-data; boundary=" + b"x" * 500),
    (b"Content-Type", b'multipart/form-data; boundary="\xff\xfe"'),
    (b"Content-Type", b"multipart/form-data"),
    (b"Content-Type", b";;;=\xff"),
    (b"Content-Type", b""),
    (b"Content-Encoding", b"gzip"),
    (b"Authorization", b"Bearer \xff\xfe"),
    (b"Origin", b"null"),
    (b"Sec-Fetch-Site", b"cross-site"),
    (b"X-Request-ID", b"\xe9" * 70),
    (b"Accept", b"text/\x80"),
    (b"Range", b"bytes=0-1,5-,-3"),
    (b"If-None-Match", b"*"),
    (b"If-Modified-Since", b"never"),
    (b"Expect", b"100-continue"),
    (b"Cookie", b"a=" + b"b" * 3000),
)


def requests_broken(rng: Random, count: int) -> Iterator[Asked]:
    """Requests of which something is broken: a value, a header, a byte, the length."""
    for _ in range(count):
        asked = _right(rng)
        headers, body = list(asked.headers), bytearray(asked.body)
        if rng.random() < 0.25:
            name, value = rng.choice(HEADERS)
            headers = [one for one in headers if one[0] != name or rng.random() < 0.1] + [(name, value)]
        if body and rng.random() < 0.3:
            for _ in range(rng.choice((1, 1, 5))):
                at = rng.randrange(len(body))
                way = rng.randrange(4)
                if way == 0:
                    body[at] = rng.randrange(256)
                elif way == 1:
                    del body[at : at + rng.choice((1, 3, 40))]
                elif way == 2:
                    body[at:at] = rng.choice(
                        (b"\r\n", b"--", b"\x00", b'"', b"{" * 2000, b"\\ud800", b"1e999", b"\xff")
                    )
                else:
                    del body[at:]
                if not body:
                    break
        yield Asked(asked.method, asked.path, headers, bytes(body))


def streams(rng: Random, count: int) -> Iterator[bytes]:
    """What is sent to the port as it is: requests with wrong lengths, cut off, joined, or no HTTP at all."""
    for _ in range(count):
        asked = _right(rng)
        length = rng.choice((len(asked.body), len(asked.body), 0, 7, 10**12, -1, "x", "1, 1"))
        lines = [
            f"{asked.method} {asked.path} HTTP/1.1".encode(),
            b"Host: localhost",
            f"Content-Length: {length}".encode(),
        ]
        lines += [name + b": " + value for name, value in asked.headers]
        if rng.random() < 0.3:
            lines.append(
                rng.choice((b"Transfer-Encoding: chunked", b"Host: evil", b"Connection: close", b": x", b"A" * 70_000))
            )
        data = bytearray(b"\r\n".join(lines) + b"\r\n\r\n" + asked.body)
        way = rng.randrange(4)
        if way == 0:
            del data[rng.randrange(len(data)) :]
        elif way == 1:
            data[rng.randrange(min(120, len(data)))] = rng.randrange(256)
        elif way == 2 and rng.random() < 0.3:
            data = bytearray(rng.randbytes(rng.choice((1, 50, 5000))))
        yield bytes(data)


# What once held up a server: small to send, and much work


@lru_cache(maxsize=1)
def expensive_images() -> dict[str, bytes]:
    """Image files that took readers seconds or minutes, by name."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    jpeg, png = rendered(Random(3), "JPEG"), rendered(Random(3), "PNG")
    segment = b"\xff\xe1\x00\x08Exif\x00\x00"
    text = chunk(b"tEXt", b"k\x00v")
    itxt = chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00<x/>")
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + b"<a>" * 300_000
    return {
        "app1.jpg": jpeg[:2] + segment * 1_500_000 + jpeg[2:],
        "app13.jpg": jpeg[:2] + b"\xff\xed\x00\x10Photoshop 3.0\x00" * 900_000 + jpeg[2:],
        "fill.jpg": b"\xff\xd8" + b"\xff" * 20_000_000,
        "fill-between.jpg": jpeg[:2] + b"\xff" * 20_000_000 + jpeg[2:],
        "text.png": png[:33] + text * 1_000_000 + png[33:],
        "xmp.png": png[:33] + itxt * 300_000 + png[33:],
        "nested.jpg": jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 65533) + b"http://ns.adobe.com/xap/1.0/\x00"
        + xmp[:65502] + jpeg[2:],
        "zeros.png": png[:33] + bytes(20_000_000),
        "boxes.heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00\x00\x00\x08free" * 2_000_000,
        "chunks.webp": b"RIFF\xff\xff\xff\x7fWEBP" + b"EXIF\x00\x00\x00\x00" * 2_000_000,
        "frames.gif": b"GIF89a\x01\x00\x01\x00\x00\x00\x00"
        + b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02L\x01\x00" * 1_000_000,
    }  # fmt: skip


def expensive_areas(rng: Random) -> dict[str, str]:
    """Areas that took a server seconds or minutes, or made it fail, by name."""

    def polygon(corners: int, shape: str = "Polygon", rings: int = 1) -> str:
        ring = [[[rng.uniform(-180, 180), rng.uniform(-90, 90)] for _ in range(corners)] for _ in range(rings)]
        closed = [[*one, one[0]] for one in ring]
        return json.dumps({"type": shape, "coordinates": closed if shape == "Polygon" else [[one] for one in closed]})

    comb = [[x / 10 % 170, 80 if x % 2 else -80] for x in range(2000)]
    return {
        "1,000 random corners": polygon(1000),
        "10,000 random corners": polygon(10_000),
        "100 polygons of 90 random corners": polygon(90, "MultiPolygon", 100),
        "a polygon with 1,000 random holes": polygon(8, rings=1000),
        "a comb": json.dumps({"type": "Polygon", "coordinates": [[*comb, [170, 85], comb[0]]]}),
        "a circle of nothing": "48.85,2.35,1e-300km",
        "a circle of less": "48.85,2.35,5e-324m",
        "a circle of too much": "48.85,2.35,1e308km",
        "a box of nothing": "10,20,10.0000000000001,20.0000000000001",
        "a box without height": "10,20,10,30",
        "a thin triangle": json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [1e-9, 0], [0, 1e-9], [0, 0]]]}),
        "huge numbers": json.dumps({"type": "Polygon", "coordinates": [[[1e308, 0], [0, 1e308], [1, 1], [1e308, 0]]]}),
    }
