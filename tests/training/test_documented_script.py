"""The scripts of docs/training.md: from NumPy arrays to a model that is evaluated and saved; a loss of one's own."""

import re
from pathlib import Path

import pytest

from open_geoclip.weights.load import load_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_the_script_trains_evaluates_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    script, own_loss = blocks
    assert len([line for line in script.splitlines() if line.strip()]) <= 30
    assert "LocEnc" not in script, "no key of the state dict is named"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(script, names)
    found = re.fullmatch(r"epoch \d+: median (\d+) km, (\d+) % within 750 km\n", capsys.readouterr().out)
    assert found is not None
    assert int(found[1]) < 400, "chance is 10,000 km"
    assert int(found[2]) > 80
    model = load_model("dir:runs/notebook/model", towers=())
    assert model.location_encoder.settings.sigmas == (1.0, 4.0)
    exec(own_loss, names)
    found = re.fullmatch(r"triplet loss: median (\d+) km\n", capsys.readouterr().out)
    assert found is not None
    assert int(found[1]) < 800
