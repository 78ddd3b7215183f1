"""What is shown beside an answer: the place that a photo names, which the estimate never sees, and the photo, small."""

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

Serve = Callable[..., TestClient]
Photo = Callable[..., bytes]


@pytest.fixture(scope="module")
def photo() -> Photo:
    """Return a function that makes a JPEG with coloured squares of its own and a GPS record."""

    def make(seed: int, lat: float | None = None, lon: float = 12.5, **settings: Any) -> bytes:
        exif = Image.Exif()
        if lat is not None:
            exif[0x8825] = {1: "N" if lat >= 0 else "S", 2: (abs(lat), 0.0, 0.0), 3: "E", 4: (lon, 0.0, 0.0), 31: 12.5}
            exif[0x8769] = {0x9003: "2024:05:06 07:08:09", 0x9011: "+02:00"}
        colours = np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype(np.uint8)
        file = io.BytesIO()
        image = Image.fromarray(colours).resize((400, 200), Image.Resampling.NEAREST)
        image.save(file, "JPEG", exif=exif, **settings)
        return file.getvalue()

    return make


def ask(client: TestClient, *photos: bytes, **fields: str) -> Any:
    files = [("images", (f"{n}.jpg", data)) for n, data in enumerate(photos)]
    answer = client.post("/v1/locate", files=files, data=fields)
    assert answer.status_code == 200, answer.text
    return answer


def test_the_place_in_a_photo_is_told_where_it_is_asked_for_and_changes_nothing(serving: Serve, photo: Photo) -> None:
    client = serving()
    photos = [photo(1, 41.5), photo(2), photo(3, -33.25, 151.0), b"no image"]
    asked = ask(client, *photos, exif="true").json()["data"]
    told = [record.pop("exif") for record in asked]
    assert [place and (place["lat"], place["lon"]) for place in told] == [(41.5, 12.5), None, (-33.25, 151.0), None]
    assert told[0]["accuracy_m"] == 12.5
    assert told[0]["time"] == "2024-05-06T07:08:09+02:00"
    assert told[0]["source"] == "exif"
    # Neither that it was asked for nor what it says makes an answer another one.
    assert asked == ask(client, *photos).json()["data"]
    others = ask(client, *(photo(seed, 10.0 * seed) for seed in (1, 2, 3))).json()["data"]
    for data, record, other in zip(photos, asked[:3], others, strict=False):
        assert record["sha256"].pop("image") == hashlib.sha256(data).hexdigest() != other["sha256"].pop("image")
    assert asked[:3] == others


@pytest.mark.parametrize("lat", [91.0, 500.0])
def test_a_place_that_is_not_on_earth_is_none(serving: Serve, photo: Photo, lat: float) -> None:
    [record] = ask(serving(), photo(1, lat), exif="true").json()["data"]
    assert record["exif"] is None


def test_an_image_that_is_cut_off_still_names_its_place(serving: Serve, photo: Photo) -> None:
    [record] = ask(serving(), photo(1, 41.5)[:900], exif="true").json()["data"]
    assert set(record) == {"image", "error", "exif"}
    assert record["exif"]["lat"] == 41.5


def test_of_several_as_one_place_the_first_that_names_one_counts(serving: Serve, photo: Photo) -> None:
    photos = [photo(1), photo(2, 41.5), photo(3, -33.25)]
    [record] = ask(serving(), *photos, exif="true", together="true").json()["data"]
    assert record["exif"]["lat"] == 41.5


def test_files_hold_the_place_and_the_image(serving: Serve, photo: Photo) -> None:
    client = serving()
    photos = [photo(1, 41.5), b"no image", photo(2)]
    features = ask(client, *photos, exif="true", format="geojson").json()["features"]
    assert [12.5, 41.5] in [feature["geometry"] and feature["geometry"]["coordinates"] for feature in features]
    with zipfile.ZipFile(io.BytesIO(ask(client, *photos, format="kmz").content)) as file:
        images = [name for name in file.namelist() if name.endswith(".jpg")]
        assert len(images) == 2
        small = Image.open(io.BytesIO(file.read(images[0])))
    assert small.size == (320, 160)
    assert not small.getexif()
    assert len(small.info.get("exif", b"")) == 0


def test_a_thumbnail_is_sent_where_it_is_asked_for(serving: Serve, photo: Photo) -> None:
    client = serving()
    [record] = ask(client, photo(1, 41.5), thumbnail="true").json()["data"]
    image = Image.open(io.BytesIO(base64.b64decode(record["thumbnail"].partition(",")[2])))
    assert (image.format, image.size) == ("JPEG", (320, 160))
    assert "thumbnail" not in ask(client, photo(1)).json()["data"][0]
    assert [model["shortest_edge"] for model in client.get("/v1/models").json()["data"]] == [224]


def test_the_report_shows_the_images(serving: Serve, photo: Photo) -> None:
    from open_geoclip.server.app import page_folder

    if not (page_folder() / "report.html").is_file():
        pytest.skip("the page is not built: make web")
    report = ask(serving(), photo(1, 41.5), photo(2), format="html", exif="true").text
    held = re.search(r'<script[^>]*id="records"[^>]*>(.*?)</script>', report, flags=re.DOTALL)
    assert held is not None
    records = json.loads(held[1])["records"]
    assert [record["exif"] and record["exif"]["lat"] for record in records] == [41.5, None]
    for record in records:
        image = base64.b64decode(record["thumbnail"].removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(image)).size == (320, 160)
