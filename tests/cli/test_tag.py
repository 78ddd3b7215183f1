"""``geoclip tag``: only when asked, never over a place, the original kept, pixels untouched; and what goes wrong."""

import csv
import io
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from PIL import Image

from open_geoclip.images import load_image
from open_geoclip.metadata.read import read_metadata

needs_exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="ExifTool is not installed (apt-get install libimage-exiftool-perl)"
)

Command = Callable[..., Any]
Placed = Callable[..., bytes]
ROME, SYDNEY = (41.9, 12.5), (-33.87, 151.21)
WRITTEN = ("jpg", "png", "webp", "tif")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(done: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


@pytest.fixture
def photo(tmp_path: Path, placed: Placed) -> Path:
    """A photo that does not say where it was taken."""
    path = tmp_path / "a.jpg"
    path.write_bytes(placed(place=None))
    return path


@needs_exiftool
def test_nothing_is_written_unless_it_is_asked_for(command: Command, photo: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    for words in (
        ["locate", "."],
        ["verify", "."],
        ["tag", ".", "--dry-run"],
        ["tag", ".", "--into", "exif", "--dry-run"],
    ):
        command(*words)
        assert contents(tmp_path) == before, words
    [record] = told(command("tag", ".", "--dry-run", "--format", "json"))
    assert (record["would_write"], "written" in record) == ("a.jpg.xmp", False)


def test_a_sidecar_marked_as_an_estimate(command: Command, photo: Path, tmp_path: Path) -> None:
    before = photo.read_bytes()
    done = command("tag", "a.jpg")
    assert "a.jpg: 4" in done.out
    assert "in a.jpg.xmp" in done.out
    assert photo.read_bytes() == before
    assert set(contents(tmp_path)) == {"a.jpg", "a.jpg.xmp"}
    facts = read_metadata(photo)
    [place] = facts.places
    assert (place.lat, place.lon) == pytest.approx(ROME, abs=1)
    assert (place.source, place.estimated, facts.place) == ("sidecar", True, None)
    [answer] = told(command("locate", "a.jpg", "--format", "json"))
    assert place.accuracy_m == round(1000 * answer["credible_radius_km"]["90"])
    assert str(place.method).startswith("ESTIMATED from the picture by open-geoclip")
    assert answer["model"] in str(place.method)
    [verdict] = told(command("verify", "a.jpg", "--format", "json"))
    assert (verdict["verdict"], verdict["exif"]) == ("cannot tell", None), "an estimate does not confirm itself"
    assert "estimated" in {remark["check"] for remark in verdict["remarks"]}


@needs_exiftool
@pytest.mark.parametrize("kind", WRITTEN)
def test_into_the_photo_and_no_pixel_changes(kind: str, command: Command, placed: Placed, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(placed(kind, place=None))
    path.chmod(0o640)
    before, pixels = path.read_bytes(), np.asarray(load_image(path))
    [record] = told(command("tag", path.name, "--into", "exif", "--format", "json"))
    assert (record["written"], Path(record["kept"]).name) == (path.name, f"a.{kind}.original")
    assert contents(tmp_path)[f"a.{kind}.original"] == before
    assert set(contents(tmp_path)) == {f"a.{kind}", f"a.{kind}.original"}
    assert path.read_bytes() != before
    assert np.array_equal(np.asarray(load_image(path)), pixels)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    [place] = read_metadata(path).places
    assert (place.source, place.estimated) == ("exif", True)
    assert (place.lat, place.lon) == pytest.approx((record["lat"], record["lon"]), abs=1e-6)
    command("tag", path.name, "--into", "exif", "--overwrite")
    assert contents(tmp_path)[f"a.{kind}.original"] == before, "the first original is never written over"


@needs_exiftool
def test_another_program_sees_an_estimate(command: Command, photo: Path) -> None:
    command("tag", "a.jpg", "--into", "exif")
    done = subprocess.run(["exiftool", "-json", "-n", "-a", "-G1", str(photo)], capture_output=True, check=True)
    [found] = json.loads(done.stdout)
    assert found["GPS:GPSLatitude"] == pytest.approx(ROME[0], abs=1)
    assert found["GPS:GPSLongitude"] == pytest.approx(ROME[1], abs=1)
    assert found["GPS:GPSProcessingMethod"].startswith("ESTIMATED")
    assert found["GPS:GPSHPositioningError"] > 1000


@needs_exiftool
def test_heic_gets_a_sidecar_and_never_changes(command: Command, placed: Placed, tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(placed("heic", place=None))
    before = path.read_bytes()
    done = command("tag", "a.heic", "--into", "exif", status=1)
    assert "not written into a HEIC" in done.err
    assert "use a sidecar" in done.err
    command("tag", "a.heic")
    assert contents(tmp_path).keys() == {"a.heic", "a.heic.xmp"}
    assert path.read_bytes() == before


@needs_exiftool
@pytest.mark.parametrize("into", ["sidecar", "exif"])
def test_never_over_a_place_that_is_there(into: str, command: Command, placed: Placed, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(placed(place=SYDNEY))
    before = contents(tmp_path)
    [record] = told(command("tag", "a.jpg", "--into", into, "--format", "json"))
    assert record["left"].startswith("it has a place already, -33.87000, 151.21000 (exif): --overwrite")
    assert contents(tmp_path) == before
    command("tag", "a.jpg", "--into", into, "--overwrite")
    after = contents(tmp_path)
    if into == "exif":
        assert after["a.jpg.original"] == before["a.jpg"]
        assert [place.estimated for place in read_metadata(tmp_path / "a.jpg").places] == [True]
    else:
        assert after["a.jpg"] == before["a.jpg"]
        assert [place.estimated for place in read_metadata(tmp_path / "a.jpg").places] == [False, True]
    [again] = told(command("tag", "a.jpg", "--into", into, "--format", "json"))
    assert "already" in again["left"]


def test_what_another_program_wrote_beside_a_photo_stays(command: Command, photo: Path, tmp_path: Path) -> None:
    theirs = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>'
    )
    (tmp_path / "a.xmp").write_text(theirs)
    [record] = told(command("tag", "a.jpg", "--format", "json"))
    assert record["written"] == "a.xmp"
    assert Path(record["kept"]).read_text() == theirs
    assert 'xmp:Rating="4"' in (tmp_path / "a.xmp").read_text()
    assert read_metadata(photo).places[0].estimated


def test_what_is_unlike_the_models_images_is_left_out(command: Command, tmp_path: Path) -> None:
    """The model may be as sure of noise as of a view: its figures were measured on views alone."""
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    [record] = told(command("tag", "noise.png", "--format", "json"))
    assert record["left"] == "nothing is known of the model on images like this: --unsure"
    assert set(contents(tmp_path)) == {"noise.png"}
    assert "unchanged; nothing is known of the model" in command("tag", "noise.png").out
    [record] = told(command("tag", "noise.png", "--unsure", "--format", "json"))
    assert (record["written"], record["radius_km"]) == ("noise.png.xmp", None)
    [place] = read_metadata(tmp_path / "noise.png").places
    assert (place.accuracy_m, place.estimated) == (None, True)
    assert "no accuracy known" in str(place.method)


def test_a_report_in_any_format_of_rows(command: Command, placed: Placed, tmp_path: Path) -> None:
    (tmp_path / "=a.jpg").write_bytes(placed(place=None))
    (tmp_path / "b.jpg").write_bytes(placed())
    (tmp_path / "c.jpg").write_text("no picture")
    for name in ("r.csv", "r.parquet", "r.json"):
        assert command("tag", ".", "--dry-run", "-o", name, status=1).out == ""
    read = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text(), newline="")))
    assert [row["image"] for row in read] == ["'=a.jpg", "b.jpg", "c.jpg"]
    assert [row["would_write"] for row in read] == ["'=a.jpg.xmp", "", ""]
    rows = polars.read_parquet(tmp_path / "r.parquet")
    assert rows.columns == list(read[0])
    assert rows["lat"].dtype == rows["radius_km"].dtype == polars.Float64
    assert [bool(text) for text in rows["error"]] == [False, False, True]
    assert [list(one) for one in json.loads((tmp_path / "r.json").read_text())][2] == ["image", "error"]


# --- faults ---------------------------------------------------------------------------------------


def test_a_folder_where_the_sidecar_should_be(command: Command, photo: Path, placed: Placed, tmp_path: Path) -> None:
    """It stands for all that cannot be written, also where everything is allowed; the next photo is done."""
    (tmp_path / "a.jpg.xmp").mkdir()
    (tmp_path / "b.jpg").write_bytes(placed(place=None))
    before = photo.read_bytes()
    done = command("tag", "a.jpg", "b.jpg", "--format", "json", status=1)
    first, second = told(done)
    assert "a.jpg.xmp cannot be read: Is a directory" in first["error"]
    assert "a.jpg.xmp" in done.err
    assert second["written"] == "b.jpg.xmp"
    assert photo.read_bytes() == before
    assert not [name for name in contents(tmp_path) if "part" in name]


@needs_exiftool
def test_the_photo_that_a_link_leads_to_is_the_one_that_is_written(
    command: Command, placed: Placed, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "a.jpg"
    real.write_bytes(placed(place=None))
    before = real.read_bytes()
    (tmp_path / "link.jpg").symlink_to(real)
    done = command("tag", "link.jpg", "real/a.jpg", "--into", "exif", "--format", "json")
    assert len(told(done)) == 1
    assert "1 named twice" in done.err
    assert (tmp_path / "link.jpg").is_symlink()
    assert read_metadata(real).places[0].estimated
    assert (tmp_path / "real" / "a.jpg.original").read_bytes() == before
    assert set(contents(tmp_path)) == {"link.jpg", "real/a.jpg", "real/a.jpg.original"}


@needs_exiftool
def test_a_photo_that_disappears_before_it_is_written(
    command: Command, photo: Path, placed: Placed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was located, and is gone when the place is to be written; none is made in its stead."""
    (tmp_path / "b.jpg").write_bytes(placed(place=None))
    real = os.link

    def link(one: Path, other: Path) -> None:
        if photo.name == Path(one).name:
            photo.unlink(missing_ok=True)
        real(one, other)

    monkeypatch.setattr(os, "link", link)
    done = command("tag", "a.jpg", "b.jpg", "--into", "exif", "--format", "json", status=1)
    first, second = told(done)
    assert "a.jpg" in first["error"]
    assert "written" in second
    assert set(contents(tmp_path)) == {"b.jpg", "b.jpg.original"}


@needs_exiftool
def test_interrupted_between_writing_and_renaming(
    command: Command, photo: Path, placed: Placed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.jpg").write_bytes(placed(place=None))
    before = contents(tmp_path)
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == "b.jpg":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    done = command("tag", ".", "--into", "exif", "--format", "json", status=130)
    assert [one["written"] for one in told(done)] == ["a.jpg"], "what was done is told"
    assert "interrupted after 1 of 2" in done.err
    after = contents(tmp_path)
    assert after["b.jpg"] == before["b.jpg"]
    assert after["a.jpg.original"] == before["a.jpg"]
    assert not [name for name in after if name.endswith(".part")]
