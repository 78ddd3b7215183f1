"""What people do on the page of `geoclip serve`: drop, see, click, limit, join, export, and go wrong."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.data.earth import Earth
from open_geoclip.data.sources import open_source
from open_geoclip.search.photo_indexing import IndexingSettings, index_photos
from open_geoclip.weights.load import load_model
from tests.page.actions import KEEP_FORMS, add, done, row, view
from tests.page.conftest import PLACES

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef0123456789abcdef"


def test_photos_are_located_compared_and_flown_to(
    page: Any, views: dict[str, Path], accessible: Callable[[Any], None]
) -> None:
    accessible(page)
    add(page, views["rome"], views["cairo"])
    done(page, 2)
    assert "Italy" in row(page, "rome.jpg").inner_text()
    assert "Egypt" in row(page, "cairo.jpg").inner_text()
    answer = page.locator(".answer")
    assert "Sure" in answer.inner_text()
    assert page.locator(".candidate").count() == 5
    assert page.locator(".marker").count() == 5
    foot = page.locator(".foot").inner_text()
    assert "An estimate, not evidence." in foot
    assert re.search(r"earth \w+ · earth/gallery.csv, .* · OpenGeoCLIP \d", foot)

    page.locator(".candidate").nth(1).click()
    place = page.locator(".candidate").nth(1).locator(".candidate-numbers").inner_text()
    told = re.match(r"([\d.]+)° (N|S)", place)
    assert told is not None, place
    lat, south = told.groups()
    assert abs(view(page)[0] - float(lat) * (-1 if south == "S" else 1)) < 0.01
    assert view(page)[2] > 3.5
    page.locator(".marker.first").dispatch_event("click")
    assert page.locator(".candidate").first.get_attribute("aria-pressed") == "true"
    for link in page.locator(".links a").all():
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert link.get_attribute("target") == "_blank"
    assert "learns the place" in page.locator(".links-note").inner_text()

    row(page, "cairo.jpg").locator(".row-main").click()
    assert abs(view(page)[0] - 30) < 4
    accessible(page)


def test_the_place_in_exif_is_compared(page: Any, views: dict[str, Path], accessible: Callable[[Any], None]) -> None:
    add(page, views["rome"])
    done(page, 1)
    assert re.search(r"1[0-9]{2} km from candidate 1", page.locator(".exif").inner_text())
    assert page.locator(".marker-exif").is_visible()
    accessible(page)


def test_what_is_no_image_fails_alone_and_can_be_tried_again(
    page: Any, views: dict[str, Path], tmp_path: Path, accessible: Callable[[Any], None]
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.jpg").write_bytes(views["rome"].read_bytes()[:900])
    add(page, tmp_path / "notes.txt", views["fiji"], tmp_path / "broken.jpg")
    done(page, 1)
    assert "Fiji" in row(page, "fiji.jpg").inner_text()
    page.locator(".row[data-status=failed]").nth(1).wait_for()
    row(page, "broken.jpg").locator(".row-main").click()
    assert page.locator(".answer [role=alert]").inner_text() != ""
    row(page, "notes.txt").locator(".row-main").click()
    assert page.locator(".answer-picture.blank").inner_text() == "", "the file is at fault, not the browser"
    page.get_by_role("button", name="Retry 2 failed").click()
    page.locator(".progress").wait_for(state="hidden")
    assert page.locator(".row[data-status=failed]").count() == 2
    accessible(page)
    page.get_by_role("button", name="Remove notes.txt").click()
    assert page.locator(".row").count() == 2


def test_many_are_dropped_at_once_and_one_is_pasted(page: Any, views: dict[str, Path]) -> None:
    data = list(views["rome"].read_bytes())
    page.evaluate(
        """(bytes) => {
            const transfer = new DataTransfer();
            for (let n = 0; n < 12; n++)
                transfer.items.add(new File([new Uint8Array(bytes)], `copy-${n}.jpg`, {type: "image/jpeg"}));
            for (const kind of ["dragenter", "dragover", "drop"])
                window.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        data,
    )
    done(page, 12)
    assert [name.inner_text() for name in page.locator(".row-name").all()] == [f"copy-{n}.jpg" for n in range(12)]
    assert page.locator("img.thumb").count() == 12
    page.evaluate(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
            window.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));
        }""",
        data,
    )
    done(page, 13)
    assert page.locator(".row-name").last.inner_text().startswith("pasted ")


def test_limits_change_the_answer(page: Any, views: dict[str, Path], accessible: Callable[[Any], None]) -> None:
    add(page, views["rome"])
    done(page, 1)
    page.get_by_text("What you know already").click()
    box = page.get_by_role("combobox", name=re.compile("Country, box"))
    box.fill("Atlantis")
    box.press("Enter")
    assert "no country" in page.locator(".limits [role=alert]").inner_text()
    box.fill("egyp")
    page.get_by_role("option", name="Egypt").wait_for()
    accessible(page)
    box.press("ArrowDown")
    box.press("Enter")
    assert page.locator(".chip").inner_text() == "in Egypt"
    assert "1 answer was made with other settings" in page.locator(".stale").inner_text()
    page.locator(".stale button").click()
    page.locator(".stale").wait_for(state="hidden")
    done(page, 1)
    assert all("Egypt" in each for each in page.locator(".candidate-place").all_inner_texts())
    assert "Not calibrated" in page.locator(".answer").inner_text()
    assert "EG" in page.locator(".foot").inner_text() or "Egypt" in page.locator(".foot").inner_text()

    page.get_by_role("button", name="Remove the limit Egypt").click()
    page.get_by_role("radio", name="Not inside").check()
    box.fill("41.9,12.5,900km")
    box.press("Enter")
    page.locator(".stale button").click()
    page.locator(".stale").wait_for(state="hidden")
    done(page, 1)
    assert "Italy" not in page.locator(".candidate-place").first.inner_text()


def test_several_photos_become_one_place(page: Any, views: dict[str, Path]) -> None:
    add(page, views["rome"], views["cairo"])
    done(page, 2)
    for name in ("rome.jpg", "cairo.jpg"):
        page.get_by_role("checkbox", name=f"Choose {name}").check()
    page.get_by_role("button", name="As one place").click()
    done(page, 3)
    assert "2 photos as one place" in page.locator(".answer-name").inner_text()
    assert "The photos disagree" in page.locator(".answer .warnings").inner_text()
    assert "Not calibrated" in page.locator(".answer").inner_text()


def test_work_survives_a_reload_and_can_be_undone_and_saved(page: Any, views: dict[str, Path], tmp_path: Path) -> None:
    add(page, views["rome"], views["cairo"])
    done(page, 2)
    page.get_by_text("What you know already").click()
    box = page.get_by_role("combobox", name=re.compile("Country, box"))
    box.fill("egypt")
    box.press("Enter")
    row(page, "cairo.jpg").locator(".row-main").click()
    page.wait_for_timeout(700)  # saved a moment after the last change
    page.reload()
    page.locator("body[data-ready]").wait_for()
    done(page, 2)
    assert page.locator(".answer-name").inner_text() == "cairo.jpg"
    assert page.locator(".chip").all_text_contents() == ["in Egypt"]
    assert page.locator("img.thumb").count() == 2

    page.get_by_role("button", name="Remove rome.jpg").click()
    assert page.locator(".row").count() == 1
    page.get_by_role("button", name="Undo: remove rome.jpg").click()
    assert page.locator(".row-name").all_inner_texts() == ["rome.jpg", "cairo.jpg"]
    page.locator("#map").focus()
    page.get_by_text("What you know already").click()
    page.locator(".stale button").click()  # the photos themselves are still there
    page.locator(".stale").wait_for(state="hidden")
    done(page, 2)
    assert "Egypt" in row(page, "rome.jpg").inner_text()

    with page.expect_download() as download:
        page.get_by_role("button", name="Save project").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    for name in ("rome.jpg", "cairo.jpg"):
        page.get_by_role("button", name=f"Remove {name}").click()
    assert page.locator(".row").count() == 0
    add(page, path)
    done(page, 2)
    assert page.locator(".row-name").all_inner_texts() == ["rome.jpg", "cairo.jpg"]
    page.keyboard.press("Control+z")
    page.locator(".row").first.wait_for(state="detached")


@pytest.fixture(scope="module")
def guarded(
    serve: Callable[..., AbstractContextManager[str]],
    views: dict[str, Path],
    built: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Return the address of a server with a token and an index of four views."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text(TOKEN + "\n")
    places = np.array([PLACES[name] for name in views])
    renders = Earth("bluemarble").render(places + 0.4, np.full(len(places), 800.0), np.full(len(places), 0.2), size=224)
    for name, pixels in zip(views, renders, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}-before.png")
    rows = [f"{name}-before.png,{lat},{lon}\n" for name, (lat, lon) in zip(views, places.tolist(), strict=True)]
    (folder / "photos.csv").write_text("file,lat,lon\n" + "".join(rows))
    encoder, photos = load_model("earth", towers=("image",)).image_encoder, open_source(folder / "photos.csv")
    index_photos(encoder, photos, folder / "index", settings=IndexingSettings(workers=0, thumbnail_side=96))
    with serve(folder, "--token-file", str(folder / "tokens"), "--index", str(folder / "index")) as address:
        yield address


def test_a_token_is_asked_for_until_it_is_right_and_kept_for_the_tab(opened: Callable[..., Any], guarded: str) -> None:
    page = opened(guarded, wait=False)
    page.locator("#token").fill("wrong")
    page.get_by_role("button", name="Continue").click()
    assert page.get_by_role("alert").inner_text() == "The server did not accept this token."
    page.locator("#token").fill(TOKEN)
    page.get_by_role("button", name="Continue").click()
    page.locator("body[data-ready]").wait_for()
    page.reload()
    page.locator("body[data-ready]").wait_for()


def test_photos_of_an_index_that_look_alike_stand_beside_the_answer(
    opened: Callable[..., Any], guarded: str, views: dict[str, Path], accessible: Callable[[Any], None]
) -> None:
    page = opened(guarded, wait=False)
    page.locator("#token").fill(TOKEN)
    page.get_by_role("button", name="Continue").click()
    add(page, views["rome"])
    done(page, 1)
    found = page.locator(".look-alikes li")
    assert found.count() == 4
    text = found.first.inner_text()
    assert "rome-before.png" in text
    assert "41.900" in text
    assert "from the first candidate; similarity" in text
    picture = found.first.locator("img")
    assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") == 96
    accessible(page)
    why = page.locator(".why-button")
    why.click()
    page.locator(".why canvas").wait_for()


def test_words_alone_and_beside_a_photo(page: Any, views: dict[str, Path]) -> None:
    page.get_by_label("or describe a place").fill("a hot desert")
    page.get_by_role("button", name="Find").click()
    done(page, 1)
    assert page.locator(".candidate").count() == 5
    page.get_by_text("What you know already").click()
    page.get_by_label("Words beside each photo").fill("a hot desert")
    page.get_by_label("Their weight").fill("0.9")
    page.evaluate(KEEP_FORMS)
    add(page, views["rome"])
    done(page, 2)
    sent = dict(page.evaluate("sent"))
    assert (sent["text"], sent["text_weight"]) == ("a hot desert", "0.9")


def test_every_format_that_the_server_makes_is_downloaded(page: Any, views: dict[str, Path], tmp_path: Path) -> None:
    add(page, views["rome"])
    done(page, 1)
    signs: dict[str, Callable[[bytes], bool]] = {
        "json": lambda body: json.loads(body)[0]["image"] == "rome.jpg",
        "csv": lambda body: b"rome.jpg" in body,
        "geojson": lambda body: json.loads(body)["type"] == "FeatureCollection",
        "kml": lambda body: b"<kml" in body,
        "kmz": lambda body: body.startswith(b"PK") and b".jpg" in body,
        "csv-bom": lambda body: body.startswith(b"\xef\xbb\xbf"),
        "parquet": lambda body: body.startswith(b"PAR1"),
        "gpkg": lambda body: body.startswith(b"SQLite format 3"),
        "html": lambda body: b'id="records"' in body,
        "plan": lambda body: b"rome.jpg" in body and b"sha256" in body,
    }
    page.locator(".menu summary").click()
    formats = [item.get_attribute("data-format") for item in page.locator(".menu-item").all()]
    assert set(formats) == set(signs)
    for name in formats:
        if not page.locator(".menu-body").is_visible():
            page.locator(".menu summary").click()
        with page.expect_download() as download:
            page.locator(f"[data-format={name}]").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.name == ("plan.csv" if name == "plan" else f"geoclip.{name.removesuffix('-bom')}")
        assert signs[name](path.read_bytes()), name


def test_a_busy_server_is_waited_for_and_a_long_wait_can_be_cancelled(page: Any, views: dict[str, Path]) -> None:
    refused: list[str] = []
    body = json.dumps({"error": {"message": "full", "type": "busy", "code": "busy"}})

    def busy(route: Any) -> None:
        refused.append(route.request.url)
        wait = "1" if len(refused) == 1 else "60"
        route.fulfill(status=429, headers={"Retry-After": wait}, content_type="application/json", body=body)

    page.route("**/v1/locate", busy, times=1)
    add(page, views["fiji"])
    page.get_by_text("The server is busy").first.wait_for()
    done(page, 1)
    assert len(refused) == 1

    page.route("**/v1/locate", busy)
    add(page, views["rome"])
    page.get_by_text("The server is busy").first.wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.locator(".progress").wait_for(state="hidden")
    assert "Cancelled" in row(page, "rome.jpg").inner_text()
    page.unroute("**/v1/locate")
    page.get_by_role("button", name="Retry the failed one").click()
    done(page, 2)


def test_an_image_that_the_browser_cannot_show_is_shown_by_the_server(page: Any, tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "phone.heic"
    pillow_heif.from_pillow(Image.effect_noise((96, 96), 60).convert("RGB")).save(str(path))
    add(page, path)
    done(page, 1)
    for image in (page.locator(".row img.thumb"), page.locator("img.answer-picture")):
        image.wait_for()
        page.wait_for_function("image => image.naturalWidth === 96", arg=image.element_handle())


def test_hundreds_of_photos_do_not_stop_the_page(page: Any, views: dict[str, Path]) -> None:
    """Real answers would take the server a minute: here all are that of the first photo."""
    with page.expect_response("**/v1/locate") as response:
        add(page, views["rome"])
    answer = response.value.json()["data"][0]
    done(page, 1)
    page.evaluate(
        """([bytes, answer]) => {
            window.fetch = async (_, {body}) => {
                await new Promise(requestAnimationFrame);
                return Response.json({data: body.getAll("images").map(({name}) => ({...answer, image: name}))});
            };
            const transfer = new DataTransfer();
            for (let n = 0; n < 500; n++)
                transfer.items.add(new File([new Uint8Array(bytes)], `many-${n}.jpg`, {type: "image/jpeg"}));
            window.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [list(views["rome"].read_bytes()), answer],
    )
    page.get_by_label("or describe a place").fill("still here")
    page.locator(".row[data-status=done]").nth(500).wait_for(timeout=60_000)
    assert page.locator(".row").count() == 501
    assert page.locator(".row-error").count() == 0
