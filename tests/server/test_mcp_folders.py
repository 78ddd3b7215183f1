"""Which files a client may name: only what lies inside the allowed folders, wherever links lead."""

import base64
import os
import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest

from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.server.mcp.folders import Folders, ImageFile

OUTSIDE = "is outside of the folders that may be read"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Two allowed folders, `photos` and `more`, and a secret beside them."""
    for name in ("photos/holiday", "photos/empty", "more", "secret"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("photos/a.jpg", "photos/holiday/b.PNG", "photos/notes.txt", "photos/.hidden.jpg", "more/c.webp"):
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "secret" / "key.jpg").write_bytes(b"a secret")
    return tmp_path


def folders(world: Path, *, max_bytes: int = 100, max_images: int = 10) -> Folders:
    return Folders([world / "photos", world / "more"], max_bytes=max_bytes, max_images=max_images)


def test_paths_are_absolute_or_from_any_of_the_folders(world: Path) -> None:
    gate = folders(world)
    assert gate.find_images(["a.jpg"]) == [ImageFile("a.jpg", world / "photos" / "a.jpg")]
    assert gate.find_images(["c.webp"]) == [ImageFile("c.webp", world / "more" / "c.webp")]
    whole = str(world / "more" / "c.webp")
    assert gate.find_images([whole]) == [ImageFile(whole, world / "more" / "c.webp")]
    assert gate.find_images(["holiday/../a.jpg"])[0].source == world / "photos" / "a.jpg"
    assert gate.find_images(["none.jpg"]) == [ImageFile("none.jpg", error="there is no such file")]


def test_a_folder_gives_its_images_and_says_so_if_there_is_none(world: Path) -> None:
    gate = folders(world)
    assert [one.name for one in gate.find_images(["."])] == ["a.jpg", "holiday/b.PNG"]
    assert [one.name for one in gate.find_images([str(world / "photos" / "holiday")])] == [
        str(world / "photos" / "holiday" / "b.PNG")
    ]
    [empty] = gate.find_images(["empty"])
    assert empty.source is None
    assert "holds no images" in str(empty.error)


def test_of_what_lies_outside_nothing_is_told(world: Path) -> None:
    gate = folders(world)
    there, absent = str(world / "secret" / "key.jpg"), str(world / "secret" / "none.jpg")
    found = gate.find_images([there, absent, "../secret/key.jpg", str(world / "secret"), "/", str(world / "photosX")])
    assert all(one.source is None for one in found)
    assert len({one.error for one in found}) == 1
    assert OUTSIDE in str(found[0].error)
    assert "--folder" in str(found[0].error)


def test_links_are_followed_before_it_is_decided(world: Path) -> None:
    photos = world / "photos"
    (photos / "out.jpg").symlink_to(world / "secret" / "key.jpg")
    (photos / "way.jpg").symlink_to(photos / "out.jpg")
    (photos / "lost.jpg").symlink_to(world / "secret" / "none.jpg")
    (photos / "in.jpg").symlink_to(world / "more" / "c.webp")
    (photos / "door").symlink_to(world / "secret")
    gate = folders(world)
    for name in ("out.jpg", "way.jpg", "lost.jpg", "door", "door/key.jpg"):
        [one] = gate.find_images([name])
        assert OUTSIDE in str(one.error), name
    assert gate.find_images(["in.jpg"])[0].source == world / "more" / "c.webp"
    listed = {one.name: one for one in gate.find_images(["."])}
    assert set(listed) == {"a.jpg", "holiday/b.PNG", "in.jpg", "lost.jpg", "out.jpg", "way.jpg", "door"}
    assert [name for name, one in listed.items() if one.source is None] == ["door", "lost.jpg", "out.jpg", "way.jpg"]
    assert "link to a folder" in str(listed["door"].error)


def test_links_in_a_circle_and_pipes_do_not_hang(world: Path) -> None:
    (world / "photos" / "round.jpg").symlink_to(world / "photos" / "round.jpg")
    os.mkfifo(world / "photos" / "pipe.jpg")
    errors = {one.name: one.error for one in folders(world).find_images(["round.jpg", "pipe.jpg"])}
    assert errors["round.jpg"] is not None
    assert errors["pipe.jpg"] == "is not a regular file"


def test_sizes_are_bounded_before_anything_is_read(world: Path) -> None:
    gate = folders(world, max_bytes=4)
    fits, large = (base64.b64encode(bytes(size)).decode() for size in (4, 5))
    assert gate.find_images([f"data:image/png;base64,{fits}"])[0].source == bytes(4)
    for asked in ("a.jpg", "data:image/png;base64," + base64.b64encode(bytes(10)).decode()):
        assert "--max-mb" in str(gate.find_images([asked])[0].error)
    assert len(large) == len(fits)  # what padding hides is found after decoding
    assert "--max-mb" in str(gate.find_images([f"data:image/png;base64,{large}"])[0].error)


@pytest.mark.parametrize("kind", ["data:image/jpeg;base64,", "DATA:;base64,", "data:image/svg+xml;charset=x;base64,"])
def test_data_uris_become_bytes(world: Path, kind: str) -> None:
    found = folders(world).find_images(["a.jpg", kind + base64.b64encode(b"image").decode()])
    assert found[1] == ImageFile("image 2", b"image")


def test_what_is_neither(world: Path) -> None:
    gate = folders(world)
    assert "not base64" in str(gate.find_images(["data:image/png;base64,?!"])[0].error)
    for wrong in ("", "x" * 5000, "a\0b"):
        [one] = gate.find_images([wrong])
        assert "neither a path nor a data URI" in str(one.error)
        assert len(one.name) < 50


def test_numbers_are_bounded(world: Path) -> None:
    for number in range(5):
        (world / "photos" / f"{number}.jpg").write_bytes(b"1")
    with pytest.raises(SettingsError, match="more than 3 images at once"):
        folders(world, max_images=3).find_images(["."])
    assert len(folders(world, max_images=7).find_images(["."])) == 7
    with pytest.raises(SettingsError, match="at least one image"):
        folders(world).find_images([])


def test_a_folder_that_is_not_there(world: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such folder"):
        Folders([world / "none"], max_bytes=1, max_images=1)
    with pytest.raises(ImageError, match=OUTSIDE):
        folders(world).resolve(str(world))


def test_paths_as_programs_write_them(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(world))
    gate = folders(world)
    (world / "photos" / "été 1.jpg").write_bytes(b"1")
    composed, decomposed = (unicodedata.normalize(form, "été 1.jpg") for form in ("NFC", "NFD"))
    [file] = [one for one in (world / "photos").iterdir() if one.name.endswith("1.jpg")]
    for text in (
        *(composed, decomposed, f"~/photos/{decomposed}", f"file://{file.parent}/{quote(decomposed)}"),
        *(f"file://{quote(str(file))}", f"FILE://localhost{quote(str(file))}"),
    ):
        assert gate.find_images([text])[0].source == file, text
    assert gate.find_images(["~/photos/a.jpg"])[0].source == world / "photos" / "a.jpg"
    for text in ("~/secret/key.jpg", f"file://{world}/secret/key.jpg", "file:///etc/passwd", f"{world}/photos/%2e%2e"):
        [one] = gate.find_images([text])
        assert one.source is None, text
    wrapped = base64.encodebytes(bytes(range(60))).decode()
    assert gate.find_images([f"data:image/png;base64,{wrapped}"])[0].source == bytes(range(60))


def test_a_decomposed_name_does_not_lead_outside(world: Path) -> None:
    (world / "photos" / unicodedata.normalize("NFD", "é.jpg")).symlink_to(world / "secret" / "key.jpg")
    [one] = folders(world).find_images([unicodedata.normalize("NFC", "é.jpg")])
    assert one.source is None
