"""``geoclip strip``: every place goes and nothing else does, as another program sees it; and what goes wrong."""

import csv
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

from open_geoclip.images import load_image
from open_geoclip.metadata.read import read_metadata

pytestmark = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="ExifTool is not installed (apt-get install libimage-exiftool-perl)"
)

Command = Callable[..., Any]
Placed = Callable[..., bytes]
PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b'xmlns:xmp="http://ns.adobe.com/xap/1.0/" exif:GPSLatitude="41,54.0N" '
    b'exif:GPSLongitude="12,30.0E" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>'
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everywhere(data: bytes) -> bytes:
    """A JPEG that names its place in XMP and IPTC too, beside a rating and a caption."""

    def record(number: int, text: bytes) -> bytes:
        return b"\x1c\x02" + bytes((number,)) + struct.pack(">H", len(text)) + text

    records = record(90, b"Rome") + record(101, b"Italy") + record(120, b"A caption")
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + records + bytes(len(records) % 2)
    xmp, iptc = b"http://ns.adobe.com/xap/1.0/\0" + PACKET, b"Photoshop 3.0\0" + resource
    segments = b"".join(
        b"\xff" + marker + struct.pack(">H", len(body) + 2) + body for marker, body in ((b"\xe1", xmp), (b"\xed", iptc))
    )
    at = 2 + 2 + struct.unpack_from(">H", data, 4)[0]  # behind the first segment, of JFIF or EXIF
    return data[:at] + segments + data[at:]


@pytest.fixture
def photo(tmp_path: Path, placed: Placed) -> Path:
    """A photo that names its place in three ways."""
    path = tmp_path / "in" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(everywhere(placed()))
    return path


def exiftool(path: Path) -> dict[str, Any]:
    """What ExifTool, a program that shares nothing with this package, finds in a file."""
    done = subprocess.run(["exiftool", "-json", "-n", "-a", "-u", "-G1", str(path)], capture_output=True, check=True)
    [found] = json.loads(done.stdout)
    return {key: value for key, value in found.items() if not key.startswith(("System:", "SourceFile", "ExifTool:"))}


def test_copies_without_a_place(command: Command, photo: Path, tmp_path: Path) -> None:
    (photo.parent / "sub").mkdir()
    shutil.copy(photo, photo.parent / "sub" / "b.jpg")
    (photo.parent / "a.jpg.xmp").write_bytes(PACKET)
    before = contents(photo.parent)
    done = command("strip", "in", "-o", "out", "--format", "json")
    assert set(contents(tmp_path / "out")) == {"a.jpg", "sub/b.jpg"}, "sidecars are not copied"
    assert contents(photo.parent) == before
    for record in json.loads(done.out):
        assert sorted(record["removed"]) == [
            *("EXIF GPS", "IPTC city", "IPTC country", "XMP GPSLatitude", "XMP GPSLongitude")
        ]
        assert read_metadata(Path(record["written"])).places == ()
    assert np.array_equal(np.asarray(load_image(photo)), np.asarray(load_image(tmp_path / "out" / "a.jpg")))


def test_another_program_finds_no_place_and_all_else(command: Command, photo: Path, tmp_path: Path) -> None:
    command("strip", "in/a.jpg", "-o", "out")
    before, after = exiftool(photo), exiftool(tmp_path / "out" / "a.jpg")
    gone = set(before) - set(after)
    assert {"GPS:GPSLatitude", "XMP-exif:GPSLatitude", "IPTC:City", "IPTC:Country-PrimaryLocationName"} <= gone
    assert all("GPS" in key or key.startswith("IPTC:C") for key in gone)
    assert not [key for key in after if "GPS" in key]
    assert after["XMP-xmp:Rating"] == 4
    assert after["IPTC:Caption-Abstract"] == "A caption"
    changed = {"File:FileSize", "File:CurrentIPTCDigest", "IPTC:ApplicationRecordVersion"}
    assert {key: after[key] for key in after.keys() - changed} == {key: before[key] for key in after.keys() - changed}


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "heic"])
def test_in_place_the_original_is_kept(kind: str, command: Command, placed: Placed, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(placed(kind))
    path.with_name("a.xmp").write_bytes(PACKET)
    before, pixels = contents(tmp_path), np.asarray(load_image(path))
    assert command("strip", ".", "--check", status=1).out.startswith(f"a.{kind}: EXIF GPS, XMP GPSLatitude (a.xmp)")
    assert contents(tmp_path) == before
    done = command("strip", ".", "--in-place")
    assert ".original files still contain the places" in done.err
    after = contents(tmp_path)
    assert (after[f"a.{kind}.original"], after["a.xmp.original"]) == (before[f"a.{kind}"], before["a.xmp"])
    assert set(after) == {*before, f"a.{kind}.original", "a.xmp.original"}
    assert np.array_equal(np.asarray(load_image(path)), pixels)
    assert read_metadata(path).places == ()
    assert b'xmp:Rating="4"' in after["a.xmp"]
    command("strip", ".", "--check")
    again = command("strip", ".", "--in-place", "--format", "json")
    assert [record["removed"] for record in json.loads(again.out)] == [[]]
    assert contents(tmp_path) == after, "what has no place is not written"


def test_a_report_in_any_format_of_rows(command: Command, photo: Path, tmp_path: Path) -> None:
    (photo.parent / "b.jpg").write_text("no picture")
    for name in ("r.csv", "r.parquet", "r.json"):
        assert command("strip", "in", "--check", "--report", name, status=1).out == ""
    [row, error] = csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text(), newline=""))
    assert row["removed"].split("; ") == json.loads((tmp_path / "r.json").read_text())[0]["removed"]
    assert "not an image" in error["error"]
    rows = polars.read_parquet(tmp_path / "r.parquet")
    assert rows["removed"].to_list() == [row["removed"].split("; "), None]
    assert rows.columns == list(row)
    assert "--report r.kml: this command writes" in command("strip", "in", "--check", "--report", "r.kml", status=2).err


@pytest.mark.parametrize("words", [[], ["-o", "out", "--in-place"], ["--check", "--in-place"]])
def test_one_of_three_things_is_asked_for(words: list[str], command: Command, photo: Path) -> None:
    assert "give one of --output FOLDER" in command("strip", "in", *words, status=2).err


# --- faults ---------------------------------------------------------------------------------------


def test_copies_write_over_nothing(command: Command, photo: Path, placed: Placed, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jpg").write_text("mine")
    (photo.parent / "b.jpg").write_bytes(placed())
    done = command("strip", "in", "-o", "out", "--format", "json", status=1)
    assert "out/a.jpg exists already and is not written over" in done.err
    assert (tmp_path / "out" / "a.jpg").read_text() == "mine"
    assert json.loads(done.out)[1]["written"] == "out/b.jpg"
    (tmp_path / "other").mkdir()
    shutil.copy(photo, tmp_path / "other" / "a.jpg")
    assert "would both be" in command("strip", "in/a.jpg", "other/a.jpg", "-o", "both", status=2).err
    assert "is the photo itself" in command("strip", "in", "-o", "in", status=2).err
    assert not (tmp_path / "both").exists()


def test_a_file_where_the_folder_should_be(command: Command, photo: Path, tmp_path: Path) -> None:
    """It stands for a folder that may not be written to, also where everything is allowed."""
    (tmp_path / "out").write_text("mine")
    done = command("strip", "in", "-o", "out/deep", status=1)
    assert "out/deep cannot be made: Not a directory" in done.err
    assert (tmp_path / "out").read_text() == "mine"


def test_links_are_followed_and_stay(command: Command, photo: Path, tmp_path: Path) -> None:
    before = photo.read_bytes()
    (tmp_path / "link.jpg").symlink_to(photo)
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "none.jpg")
    done = command("strip", "link.jpg", "lost.jpg", "--in-place", status=1)
    assert "lost.jpg: there is no such file" in done.err
    assert (tmp_path / "link.jpg").is_symlink()
    assert read_metadata(photo).places == ()
    assert (photo.parent / "a.jpg.original").read_bytes() == before
    assert not (tmp_path / "link.jpg.original").exists()


def test_a_link_to_itself_is_one_error_and_the_others_are_done(command: Command, photo: Path) -> None:
    (photo.parent / "loop.jpg").symlink_to("loop.jpg")
    done = command("strip", "in", "--in-place", "--format", "json", status=1)
    assert "in/loop.jpg: cannot be read: Too many levels of symbolic links\n" in done.err
    assert [record["image"] for record in json.loads(done.out) if record.get("written")] == ["in/a.jpg"]


def test_interrupted_it_tells_what_was_done(
    command: Command, photo: Path, placed: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photo.parent / "b.jpg").write_bytes(placed())
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == "b.jpg":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    before = contents(photo.parent)
    done = command("strip", "in", "--in-place", "--format", "json", status=130)
    assert [record["written"] for record in json.loads(done.out)] == ["in/a.jpg"]
    assert contents(photo.parent)["b.jpg"] == before["b.jpg"]


@pytest.mark.parametrize("fault", ["killed", "full disk"])
def test_whatever_happens_the_photo_is_whole(fault: str, photo: Path) -> None:
    """Killed when the new file was written and has no name yet; the most a file may hold stands in for the disk."""
    before = photo.read_bytes()
    broken = {
        "killed": "import pathlib; pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
        "full disk": "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))",
    }
    code = f"import os, resource, signal, sys\nfrom open_geoclip.cli import main\n{broken[fault]}\nmain(sys.argv[1:])\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "strip", str(photo), "--in-place"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == (-signal.SIGKILL if fault == "killed" else 1)
    assert photo.read_bytes() == before
    if fault == "full disk":
        assert f"{photo} cannot be written: File too large" in done.stderr
        assert "Traceback" not in done.stderr
        assert [name for name in contents(photo.parent) if name.endswith(".part")] == []
