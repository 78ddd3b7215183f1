"""What Jupyter shows of an answer: complete, escaped, and loaded from nowhere."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_geoclip.errors import MissingExtraError
from open_geoclip.export import notebook
from open_geoclip.search.answer import Answer, Candidate, MultiPolygon, PlaceReliability

HOSTILE = "<script>alert('1')</script>&\"> .png"
RING = [(10.0, 40.0), (20.0, 40.0), (20.0, 50.0), (10.0, 50.0), (10.0, 40.0)]


def answer(image: str = "", *, text: str | None = None, detail: bool = False) -> Answer:
    candidates = (
        Candidate(41.9, 12.5, 0.5, 0.7, 12.3, "IT", HOSTILE),
        Candidate(-33.9, -18.6, 0.4, 0.2, 2345.6, ""),
    )
    regions: dict[str, MultiPolygon] = {
        "90": {"type": "MultiPolygon", "coordinates": [[RING, RING[::-1]]]},
        "50": {"type": "MultiPolygon", "coordinates": []},
    }
    return Answer(
        image, HOSTILE, "g", "1", candidates, text=text, regions=regions if detail else None,
        sure=True, credible_radius_km={"50": 1.0, "90": 12.3}, reliability=PlaceReliability(HOSTILE, {}, {}, ""),
    )  # fmt: skip


def images(html: str) -> list[Image.Image]:
    """Parse the element strictly; return its images, after checking that it loads nothing else."""
    root = ET.fromstring(re.sub(r"(<img [^>]*)>", r"\1/>", html.replace("<br>", "<br/>")))
    assert {element.tag for element in root.iter()} <= {"div", "b", "br", "img", "table", "tr", "td"}
    assert not any(name.startswith(("on", "href")) for element in root.iter() for name in element.attrib)
    assert "url(" not in html
    sources = [element.attrib["src"].partition(",") for element in root.iter("img")]
    assert all(re.fullmatch("data:image/(png|jpeg);base64", kind) for kind, _, _ in sources)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for _, _, data in sources]


def test_photo_map_and_candidates(tmp_path: Path) -> None:
    path = tmp_path / HOSTILE.replace("/", "|")
    Image.new("RGB", (600, 300), "red").save(path)
    html = answer(str(path))._repr_html_()
    photo, world = images(html)
    assert photo.size == (320, 160)
    colours = np.asarray(world.convert("RGBA")).reshape(-1, 4)
    assert (colours == (0xD5, 0x5E, 0x00, 255)).all(1).any()  # the first candidate
    for text in (
        "41.900° N, 12.500° E",
        "33.900° S, 18.600° W",
        "70.0 %",
        "2,346 km",
        "an estimate, not evidence",
        "sure; 50 %",
    ):
        assert text in html


@pytest.mark.parametrize("image", ["gone.jpg", "x" * 5000, "https://example.org/a.jpg", "/dev/zero", ""])
def test_a_photo_that_is_not_at_hand(image: str) -> None:
    [world] = images(answer(image, text="a <b>", detail=True)._repr_html_())
    assert len(world.getcolors(2**20) or ()) > 100


def test_an_error_and_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    html = Answer(HOSTILE, error="not <an> image")._repr_html_()
    assert images(html) == []
    assert "not &lt;an&gt; image" in html

    def missing(*_: object) -> None:
        raise MissingExtraError("Drawing a map", "earth")

    monkeypatch.setattr(notebook, "new_figure", missing)
    assert images(answer()._repr_html_()) == []
