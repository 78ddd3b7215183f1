"""The scripts of docs/training.md: from NumPy arrays to a saved model, and each part replaced by one's own."""

import re
from pathlib import Path

import numpy as np
import pytest

from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.model.location_encoder import LOCATION_ENCODERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_the_scripts_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *parts = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len([line for line in script.splitlines() if line.strip()]) <= 15
    assert "LocEnc" not in script, "no key of the state dict is named"
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    places = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, 1500))), rng.uniform(-180, 180, 1500)], axis=1)
    np.save("coordinates.npy", places)
    np.save("features.npy", unit_vectors(places) @ rng.normal(size=(3, 64)) + 0.05 * rng.normal(size=(1500, 64)))
    names: dict[str, object] = {}
    try:
        for part in (script, *parts):
            exec(part, names)
    finally:
        LOCATION_ENCODERS.pop("points", None)
    printed = capsys.readouterr().out
    found = re.search(r"^epoch \d+: median (\d+) km, (\d+) % within 750 km$", printed, flags=re.M)
    assert found is not None
    assert int(found[1]) < 600, "chance is 10,000 km"
    assert int(found[2]) > 65
    answers = names["answers"]
    assert isinstance(answers, list)
    assert len(answers) == 500
    for what, most in (("triplet loss", 800), ("own location encoder", 800), ("own loop", 1500)):
        found = re.search(rf"^{what}: median (\d+) km$", printed, flags=re.M)
        assert found is not None
        assert int(found[1]) < most
    assert "accuracy_north" in printed
