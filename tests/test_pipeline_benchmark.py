"""The benchmark of decoding at small size: photos as four cameras write them, and a rate of each way of decoding."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from open_geoclip.images import load_image


def test_photos_of_four_cameras_have_a_rate(
    benchmark_module: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline = benchmark_module("pipeline")
    files = pipeline.write_photos(tmp_path, 4, 0.03)
    assert [load_image(file).size for file in files] == [(200, 150), (212, 141), (200, 150), (231, 130)]
    with Image.open(files[2]) as sideways:
        assert (sideways.size, sideways.getexif()[0x0112]) == ((150, 200), 6)
    monkeypatch.setattr(pipeline, "write_photos", lambda *_: files)
    monkeypatch.setattr(pipeline, "ProcessPoolExecutor", ThreadPoolExecutor)  # the tests' process has threads
    monkeypatch.setattr(pipeline, "decode_job", lambda *_: None)  # starts processes; tests/scale/test_jobs.py does, too
    pipeline.main(["--photos", "4", "--megapixels", "0.03", "--rounds", "1", "--models", "null"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| 4 photos of 0.03 megapixels")
    assert len([line for line in lines if " % |" in line]) == 9
    assert len([line for line in lines if line.endswith(" % |")]) == 3, "those at the reduced scale"
    assert any("| 100 % |" in line for line in lines)
