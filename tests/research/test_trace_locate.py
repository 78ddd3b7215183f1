"""How many functions lie between photos and JSON. ``python -m research.trace_locate`` lists them."""

from pathlib import Path

import pytest

from research.trace_locate import trace_command, write_views

MAX_FUNCTIONS, MAX_FILES = 125, 33  # lower them whenever layers go


@pytest.mark.slow
def test_the_way_from_photos_to_json_gets_no_longer(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(shared_cache))
    photos = [str(path) for path in write_views(tmp_path, 12)]
    loading, locating = trace_command(["locate", *photos, "--format", "json"])
    assert ("weights/load.py", "load_release") in loading
    assert {("cli/locate.py", "locate"), ("images/decoding.py", "load_image")} < set(locating)
    assert not set(loading[:2]) & set(locating)
    assert len(locating) <= MAX_FUNCTIONS
    assert len({file for file, _ in locating}) <= MAX_FILES
