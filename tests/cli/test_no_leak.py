"""What a photo says of its place never reaches the estimate: the same pixels give the same answer, to the last bit.

Over HTTP the same is tested beside the server's other tests (``tests/server/test_beside.py``).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from open_geoclip.search.answer import Answer
from open_geoclip.search.locator import Locator

Command = Callable[..., Any]
SAID = {"none": None, "rome": (41.9, 12.5), "sydney": (-33.87, 151.21), "zero": (0.0, 0.0), "nowhere": (95.0, 200.0)}


@pytest.fixture
def photos(tmp_path: Path, placed: Callable[..., bytes]) -> list[Path]:
    """One view, byte for byte the same but for what it says; one more has a sidecar."""
    paths = []
    for name, place in SAID.items():
        paths.append(tmp_path / f"{name}.jpg")
        paths[-1].write_bytes(placed(place=place))
    paths.append(tmp_path / "sidecar.jpg")
    paths[-1].write_bytes(placed(place=None))
    (tmp_path / "sidecar.jpg.xmp").write_text(
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="33,52.2S" '
        'exif:GPSLongitude="151,12.6E"/></rdf:RDF></x:xmpmeta>'
    )
    return paths


def test_the_command_answers_the_same(command: Command, photos: list[Path], locators: dict[str, Locator]) -> None:
    # One by one: in a batch, matrix products round by where a row stands.
    answers = [json.loads(command("locate", path, "--format", "json", "--detail").out)[0] for path in photos]
    assert [answer.pop("image") for answer in answers] == [str(path) for path in photos]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in photos]
    assert [answer["sha256"].pop("image") for answer in answers] == hashes
    assert all(answer == answers[0] for answer in answers)


def without_file(answer: Answer) -> Answer:
    return replace(answer, image="", sha256={**answer.sha256, "image": ""})


def test_the_library_answers_the_same(command: Command, photos: list[Path], locators: dict[str, Locator]) -> None:
    command("locate", photos[0])  # which loads the model, if no other test has
    locator = locators["earth"]
    answers = [without_file(locator.locate(path, detail=True)[0]) for path in photos]
    assert all(answer == answers[0] for answer in answers)
    from_bytes = [without_file(locator.locate([path.read_bytes()])[0]) for path in photos]
    assert all(answer == from_bytes[0] for answer in from_bytes)
    vectors = [locator.encode([path]) for path in photos]
    assert all(torch.equal(vector, vectors[0]) for vector in vectors)
    masses = [locator.posterior(vector).mass for vector in vectors]
    assert all(torch.equal(mass, masses[0]) for mass in masses), "every place, not the best alone"
