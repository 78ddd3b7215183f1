"""Which files a client may name: only what lies inside the allowed folders, wherever links lead."""

import base64
import os
from pathlib import Path

import pytest

from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.server.mcp.folders import Asked, Folders

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


def folders(world: Path, *, max_bytes: int = 100, max_pictures: int = 10) -> Folders:
    return Folders([world / "photos", world / "more"], max_bytes=max_bytes, max_pictures=max_pictures)


def test_paths_are_absolute_or_from_any_of_the_folders(world: Path) -> None:
    gate = folders(world)
    assert gate.pictures(["a.jpg"]) == [Asked("a.jpg", world / "photos" / "a.jpg")]
    assert gate.pictures(["c.webp"]) == [Asked("c.webp", world / "more" / "c.webp")]
    whole = str(world / "more" / "c.webp")
    assert gate.pictures([whole]) == [Asked(whole, world / "more" / "c.webp")]
    assert gate.pictures(["holiday/../a.jpg"])[0].source == world / "photos" / "a.jpg"
    assert gate.pictures(["none.jpg"]) == [Asked("none.jpg", error="there is no such file")]


def test_a_folder_gives_its_pictures_and_says_so_if_there_is_none(world: Path) -> None:
    gate = folders(world)
    assert [one.name for one in gate.pictures(["."])] == ["a.jpg", "holiday/b.PNG"]
    assert [one.name for one in gate.pictures([str(world / "photos" / "holiday")])] == [
        str(world / "photos" / "holiday" / "b.PNG")
    ]
    [empty] = gate.pictures(["empty"])
    assert empty.source is None
    assert "holds no pictures" in str(empty.error)


def test_of_what_lies_outside_nothing_is_told(world: Path) -> None:
    gate = folders(world)
    there, absent = str(world / "secret" / "key.jpg"), str(world / "secret" / "none.jpg")
    found = gate.pictures([there, absent, "../secret/key.jpg", str(world / "secret"), "/", str(world / "photosX")])
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
        [one] = gate.pictures([name])
        assert OUTSIDE in str(one.error), name
    assert gate.pictures(["in.jpg"])[0].source == world / "more" / "c.webp"
    listed = {one.name: one for one in gate.pictures(["."])}
    assert set(listed) == {"a.jpg", "holiday/b.PNG", "in.jpg", "lost.jpg", "out.jpg", "way.jpg", "door"}
    assert [name for name, one in listed.items() if one.source is None] == ["door", "lost.jpg", "out.jpg", "way.jpg"]
    assert "link to a folder" in str(listed["door"].error)


def test_links_in_a_circle_and_pipes_do_not_hang(world: Path) -> None:
    (world / "photos" / "round.jpg").symlink_to(world / "photos" / "round.jpg")
    os.mkfifo(world / "photos" / "pipe.jpg")
    errors = {one.name: one.error for one in folders(world).pictures(["round.jpg", "pipe.jpg"])}
    assert errors["round.jpg"] is not None
    assert errors["pipe.jpg"] == "is not a regular file"


def test_sizes_are_bounded_before_anything_is_read(world: Path) -> None:
    gate = folders(world, max_bytes=4)
    fits, large = (base64.b64encode(bytes(size)).decode() for size in (4, 5))
    assert gate.pictures([f"data:image/png;base64,{fits}"])[0].source == bytes(4)
    for asked in ("a.jpg", "data:image/png;base64," + base64.b64encode(bytes(10)).decode()):
        assert "--max-mb" in str(gate.pictures([asked])[0].error)
    assert len(large) == len(fits)  # what padding hides is found after decoding
    assert "--max-mb" in str(gate.pictures([f"data:image/png;base64,{large}"])[0].error)


@pytest.mark.parametrize("kind", ["data:image/jpeg;base64,", "DATA:;base64,", "data:image/svg+xml;charset=x;base64,"])
def test_data_uris_become_bytes(world: Path, kind: str) -> None:
    found = folders(world).pictures(["a.jpg", kind + base64.b64encode(b"picture").decode()])
    assert found[1] == Asked("picture 2", b"picture")


def test_what_is_neither(world: Path) -> None:
    gate = folders(world)
    assert "not base64" in str(gate.pictures(["data:image/png;base64,?!"])[0].error)
    for wrong in ("", "x" * 5000, "a\0b"):
        [one] = gate.pictures([wrong])
        assert "neither a path nor a data URI" in str(one.error)
        assert len(one.name) < 50


def test_numbers_are_bounded(world: Path) -> None:
    for number in range(5):
        (world / "photos" / f"{number}.jpg").write_bytes(b"1")
    with pytest.raises(SettingsError, match="more than 3 pictures at once"):
        folders(world, max_pictures=3).pictures(["."])
    assert len(folders(world, max_pictures=7).pictures(["."])) == 7
    with pytest.raises(SettingsError, match="at least one picture"):
        folders(world).pictures([])


def test_a_folder_that_is_not_there(world: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such folder"):
        Folders([world / "none"], max_bytes=1, max_pictures=1)
    with pytest.raises(ImageError, match=OUTSIDE):
        folders(world).find(str(world))
