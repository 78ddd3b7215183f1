"""``geoclip text``: what it prints, and what it says of texts that cannot be located."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from open_geoclip.cli import app
from open_geoclip.errors import TextError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, save_text_release: Callable[..., Path]) -> str:
    return f"dir:{save_text_release(tmp_path_factory.mktemp('model') / 'release')}"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(tmp_path))


def run(*arguments: str) -> None:
    app(["text", *arguments], result_action="return_value")


def test_formats(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run("a hot desert", "ice", "--model", model, "--top-k", "3", "--format", "json")
    desert, ice = json.loads(capsys.readouterr().out)
    assert (desert["text"], ice["text"]) == ("a hot desert", "ice")
    assert [len(answer["candidates"]) for answer in (desert, ice)] == [3, 3]
    run("ice", "--model", model, "--top-k", "2", "--format", "csv", "-o", str(tmp_path / "answers.csv"))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "answers.csv").read_text())))
    assert [(row["text"], row["rank"]) for row in rows] == [("ice", "1"), ("ice", "2")]
    run("ice", "--model", model, "--map", str(tmp_path / "ice.png"))
    assert capsys.readouterr().out.startswith("ice\n      not calibrated for this: ")
    with Image.open(tmp_path / "ice.png") as drawn:
        assert min(drawn.size) > 500


def test_an_empty_text_is_wrong_use(model: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "open_geoclip.cli", "text", "", "--model", model],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "geoclip: text 1 of 1 is empty: say in words where, such as 'a hot desert'\n"


def test_a_text_that_is_too_long_is_not_cut(model: str) -> None:
    with pytest.raises(TextError, match="has 302 tokens, the model reads 256 at most: shorten it"):
        run("word " * 300, "--model", model)
