"""``geoclip locate -o FOLDER`` and ``geoclip results``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
from PIL import Image

from open_geoclip.data.earth_views import views

N = 12
Command = Callable[..., Any]


def test_a_job_and_its_results(command: Command, tmp_path: Path) -> None:
    photos, results = tmp_path / "photos", tmp_path / "results"
    photos.mkdir()
    images = [view for batch in views("test", N - 2) for view in batch.images]
    for number, view in enumerate(images):
        Image.fromarray(view).save(photos / f"{number}.png")
    for name in ("empty.png", "junk.png"):
        (photos / name).write_text(name[:4] * (name != "empty.png"))
    ended = command("locate", photos, "-o", results, "--part-size", 9, status=1)
    last = f"geoclip: geoclip results {results} says why photos failed\n"
    assert ended.err.endswith(f"geoclip: {results}: {N - 2} located, 2 failed\n{last}")
    assert "continue with --resume" in command("locate", photos, "-o", results, status=1).err
    assert f"0 located, 0 failed; {N} were done before" in command("locate", photos, "-o", results, "--resume").err
    refused = command("locate", photos, "-o", results, "--resume", "--dtype", "float32", status=1).err
    assert "results of another job (dtype None, now 'float32')" in refused
    table = tmp_path / "photos.csv"
    table.write_text("image\nphotos/0.png\nphotos/1.png\nphotos/junk.png\n")
    few = command("locate", table, "-o", tmp_path / "int8", "--dtype", "int8", status=2).err
    assert "at least 32 photos like those to locate, and there are 2" in few
    assert not (tmp_path / "int8").exists()
    assert command("results", results).out.startswith(f"{N} photos: {N - 2} located, 2 failed\nsure: ")
    summary = json.loads(command("results", results, "--format", "json").out)
    assert (summary["photos"], summary["located"]) == (N, N - 2)
    assert summary["settings"]["top_k"] == 5
    for suffix in ("json", "csv", "geojson", "kml", "kmz", "parquet", "gpkg", "html"):
        command("results", results, "-o", tmp_path / f"out.{suffix}")
        assert (tmp_path / f"out.{suffix}").stat().st_size > 1000
    assert len(json.loads((tmp_path / "out.json").read_text())) == N
    found = geopandas.read_parquet(tmp_path / "out.parquet")
    assert (found.geometry.dropna().y == found["lat"].dropna()).all()
    for words in (
        ("locate", photos, "-o", tmp_path / "x", "--map", "a.png"),
        ("locate", photos, "--resume"),
        ("locate", photos, photos, "-o", tmp_path / "x"),
        ("locate", photos, "-o", tmp_path / "x", "--shard", "1of3"),
    ):
        assert "Traceback" not in command(*words, status=2).err
    for given in ([photos, photos], [photos / "0.png"]):
        ended = command("locate", *given, "-o", tmp_path / "x", status=2)
        assert "Add an ending, or name the folder of the photos" in ended.err
    assert not (tmp_path / "x").exists()
    assert "holds no results" in command("results", tmp_path, status=1).err
