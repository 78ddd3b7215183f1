"""`geoclip models` and `geoclip pull` without a network. Downloads are in tests/weights/test_pull.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from cyclopts import App

from open_geoclip.cli._output import TextOutput
from open_geoclip.cli.models import models
from open_geoclip.cli.pull import pull
from open_geoclip.errors import MissingWeightsError, ModelNameError
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.weights import folders
from open_geoclip.weights.registry import CLIP_BACKBONE, RECORDS
from open_geoclip.weights.save import save_model

LOCATION = LocationSettings(sigmas=(4.0,), features=2, width=3, depth=1, output=2, projection="sphere")


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing that is in the caches of this machine be seen, and no earlier training."""
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(folders, "EMBEDDED", tmp_path / "earth")


def make_earth(tmp_path: Path) -> Path:
    model = GeoCLIP(ImageEncoder(None, None, ImageSettings("earth", (2, 2))), LocationEncoder(LOCATION))
    card = {"trained_on": "48,000 [views]", "accuracy": {"test views": {"200 km": 91.2, "750 km": 97.5}}}
    return save_model(tmp_path / "earth", model, card=card)


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    models(output=TextOutput(format_="json"))
    captured = capsys.readouterr()
    assert captured.err == ""
    return {one["name"]: one for one in json.loads(captured.out)}


def test_json_tells_what_is_not_here_and_what_it_would_cost(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys)
    assert list(found) == ["earth", "geoclip", CLIP_BACKBONE]
    clip = found[CLIP_BACKBONE]
    assert (clip["here"], clip["folder"], clip["bytes"]) == (False, None, 0)
    assert clip["bytes_to_get"] == 1_710_540_580
    assert clip["command"] == f"geoclip pull {CLIP_BACKBONE}"
    assert (clip["licence"], clip["version"]) == ("MIT", CLIP_BACKBONE.partition("@")[2])
    assert found["earth"]["command"] == "make earth-model"
    assert found["geoclip"]["bytes_to_get"] >= clip["bytes_to_get"], "its backbone is counted"
    assert found["geoclip"]["command"] == "geoclip pull geoclip"
    [one_crop, ten_crops] = found["geoclip"]["accuracy"].values()
    assert list(one_crop.values()) == [13.01, 32.10, 47.91, 66.57, 82.42]
    assert list(ten_crops.values()) == [14.11, 34.47, 50.65, 69.67, 83.82]
    assert all(one["licence"] and one["trained_on"] and one["source"] for one in found.values())


def test_what_is_here_is_listed_with_its_place_size_and_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    earth = make_earth(tmp_path)
    monkeypatch.setattr(folders, "EMBEDDED_BACKBONE", "a_package_that_nobody_has")
    found = listed(capsys)["earth"]
    assert (found["here"], found["folder"]) == (True, str(earth))
    assert found["bytes"] == sum(file.stat().st_size for file in earth.iterdir())
    assert found["command"] == "pip install 'open-geoclip[earth]'"
    assert found["trained_on"] == "48,000 [views]"
    assert found["accuracy"] == {"test views": {"200 km": 91.2, "750 km": 97.5}}
    monkeypatch.setattr(folders, "EMBEDDED_BACKBONE", "json")  # any package that is installed
    assert listed(capsys)["earth"]["command"] is None


def test_the_table_shows_all_of_it_with_its_brackets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_earth(tmp_path)
    monkeypatch.setattr(folders, "EMBEDDED_BACKBONE", "a_package_that_nobody_has")
    models()
    captured = capsys.readouterr()
    assert captured.err == ""
    for said in ("geoclip pull geoclip", "pip install 'open-geoclip[earth]'", "48,000 [views]", "1.7 GB", "MIT"):
        assert said in captured.out, said
    assert "91.2 / 97.5 %" in captured.out
    assert "13.01 / 32.1" in captured.out


def test_listing_waits_neither_for_torch_nor_for_a_hub(tmp_path: Path) -> None:
    code = (
        "import sys; from open_geoclip.cli.models import models; models(); "
        "print(sorted({'torch', 'httpx', 'httpx2', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "geoclip" in done.stdout


def test_earth_needs_no_pull(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earth = make_earth(tmp_path)
    pull("earth")
    captured = capsys.readouterr()
    assert captured.out == f"{earth}\n"
    assert "embedded" in captured.err
    assert "pip install 'open-geoclip[earth]'" in captured.err


def test_without_the_embedded_model_the_way_to_make_it_is_told() -> None:
    with pytest.raises(MissingWeightsError, match="make earth-model"):
        pull("earth")


def test_carried_files_are_printed_as_folders_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_earth(tmp_path)
    pull("hub:org/mine@v1", from_=tmp_path / "earth")
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'ours' / 'hub' / 'org--mine' / 'v1'}\n"
    assert "no hash is on record; checked that it is a GeoCLIP" in captured.err


@pytest.mark.parametrize("name", ["geoclp", "org/repo", "dir:/x"])
def test_errors_are_left_to_the_program(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelNameError):
        pull(name)
    assert capsys.readouterr().out == ""


def test_the_command_line_is_read_as_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(result_action="return_value")
    app.command(models)
    app.command(pull)
    app(["models", "--format", "json"])
    assert len(json.loads(capsys.readouterr().out)) == len(RECORDS)
    make_earth(tmp_path)
    app(["pull", "hub:org/mine", "--from", str(tmp_path / "earth")])
    assert capsys.readouterr().out.endswith("main\n")
    app(["pull", "--help"])
    assert "--from" in capsys.readouterr().out


def test_every_record_is_complete() -> None:
    for record in RECORDS.values():
        assert record.title
        assert record.licence
        assert all(len(sha256) == 64 for sha256 in record.sha256.values())
