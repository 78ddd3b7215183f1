"""What test_ray.py looks at, in one process that starts Ray once: writes results and a JSON file.

It is a process of its own, for classes with the test suite's checks of array shapes cannot be sent to other processes.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from open_geoclip.data.sources import open_source
from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.scale import features
from open_geoclip.scale import ray as on_ray
from open_geoclip.scale.batches import QuerySettings
from open_geoclip.scale.jobs import JobReport, JobSettings, run_job
from open_geoclip.scale.ray import RaySettings, connect, locate_dataset
from open_geoclip.search.locator import Locator
from open_geoclip.training.cache import cache_features
from open_geoclip.training.features import FeatureExtractor


def descendants(pid: int, name: str) -> list[int]:
    """Return the processes below one whose command begins with a name."""
    ps = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in ps.splitlines()]
    below, found = [pid], []
    for parent in below:
        children = [line for line in lines if int(line[1]) == parent]
        below += [int(line[0]) for line in children]
        found += [int(line[0]) for line in children if line[2].startswith(name)]
    return found


def compare_features(folder: Path) -> dict[str, Any]:
    """Encode photos to train on in this process, and partly there and partly on Ray; return what is equal."""

    def stop(done: int, total: int | None) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    vars(features)["connect"] = lambda address: nullcontext()
    source, extractor = open_source(folder / "train.csv"), FeatureExtractor.load("earth", batch_size=4)
    plain = cache_features(source, extractor, folder / "features", shard=4)
    with suppress(KeyboardInterrupt):
        cache_features(source, extractor, folder / "features on Ray", shard=4, progress=stop)
    encode = partial(features.encode_on_ray, address="auto", actors=(1, 1))
    on_ray = cache_features(source, extractor, folder / "features on Ray", shard=4, encode=encode)
    return {
        "features": all(map(torch.equal, plain.features, on_ray.features)),
        "fingerprint": plain.fingerprint == on_ray.fingerprint,
        "faults": [str(fault) for fault in on_ray.faults] == [str(fault) for fault in plain.faults],
        "photos": len(on_ray.coordinates),
        "shards": [path.name for path in on_ray.paths],
    }


def listening() -> set[str]:
    """Return the addresses that processes of Ray listen to, with the processes."""
    found = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=False).stdout
    return {" ".join(line.split()[3:]) for line in found.splitlines() if "ray" in line or "gcs" in line}


def main(folder: Path) -> None:
    """Run everything."""
    load = partial(Locator.from_pretrained, "earth")
    locator, settings = load(), RaySettings(load, actors=(1, 1))
    found: dict[str, Any] = {"killed": 0}

    def run(source: Path | str, name: str, locator: Locator = locator, **options: Any) -> JobReport:
        shard, timeout_s = options.pop("shard", (1, 1)), options.pop("photo_timeout_s", 3)
        job = JobSettings(photo_timeout_s=timeout_s, resume=True, shard=shard)
        return run_job(locator, open_source(source, places=False), folder / name, job, **options)

    def kill_actors(done: int, total: int | None) -> None:
        assert total == 13
        if found["killed"] == 0:
            for pid in descendants(os.getpid(), "ray::MapWorker"):
                os.kill(pid, signal.SIGKILL)
                found["killed"] += 1

    table, shards = folder / "photos.csv", str(folder / "{0..1}.tar")
    run(table, "plain")
    run(shards, "plain-shards")
    with connect("auto"):
        found["job"] = vars(run(table, "ray", ray=settings, progress=kill_actors))
        found["resumed"] = vars(run(table, "ray", ray=settings))
        # More actors than a machine of two cores has room for must not take the core that decodes.
        run(shards, "ray-shards", ray=replace(settings, actors=(2, 2)), shard=(1, 2))
        run(shards, "ray-shards", shard=(2, 2))
        found["features"] = compare_features(folder)
        other = Locator(locator.model, locator.search_space, weights_sha256="0" * 64)
        try:
            run(table, "other", other, ray=settings)
        except OpenGeoCLIPError as error:
            found["other"] = [type(error).__name__, str(error)]

        on_ray.NO_PROGRESS_S = 0.5
        try:
            run(table, "no room", ray=replace(settings, num_gpus=1), photo_timeout_s=0.01)
        except OpenGeoCLIPError as error:
            found["no room"] = [type(error).__name__, str(error)]

        import ray.data

        rows = [
            {"file": str(folder / "0.jpg"), "owner": "a"},
            {"file": str(folder / "bad.jpg"), "owner": "b"},
            {"file": None, "owner": "c"},
        ]
        before = listening()  # a port that is open at both times, not one that is tried while a process starts
        dataset = ray.data.from_items(rows)
        located = locate_dataset(dataset, settings, image="file", query=QuerySettings(top_k=2))
        found["rows"] = sorted(located.take_all(), key=lambda row: str(row["owner"]))
        for name, other_rows in (("no column", [{"x": 1}]), ("same name", [{"image": "", "lat": 1.0}])):
            try:
                locate_dataset(ray.data.from_items(other_rows), settings)
            except OpenGeoCLIPError as error:
                found[name] = str(error)
        found["listening"] = sorted(before & listening())
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
