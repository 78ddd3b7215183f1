"""A job that is killed again and again: ``python benchmarks/jobs.py --photos 20000``.

The job runs once undisturbed, and once killed with SIGKILL at random moments: the whole process, or one that decodes.
Each time it is continued with ``--resume``, the last time to the end. Then the rows are compared. The peak of memory is
that of the largest process, for a twentieth of the photos and for all. The machine need not be quiet.

With ``--ray`` the job runs plainly, on Ray with as many cores, on Ray with an actor killed, and on a cluster of two
nodes, one of which is removed meanwhile. The overhead of Ray is the difference of the first two, without what both
take for a single photo. With ``--cost`` the costs in docs/guides/cluster.md are worked out from rates.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from open_geoclip.data.earth_views import views
from open_geoclip.scale.results import Results

ROOT = Path(__file__).parent
# Photos per second of ViT-L/14 at 224 pixels, measured elsewhere: timm's result files, one GPU, compiled.
GPUS = {"RTX 4090": 805, "RTX Pro 6000, bfloat16": 1191}

KILLS = 5
DECODER = "open_geoclip.scale.decoding"


def write_photos(folder: Path, count: int) -> None:
    """Write views of the Earth as JPEGs, and a file in a hundred that is none."""
    folder.mkdir()
    images = (view for batch in views("test", min(count, 4096)) for view in batch.images)
    kept = [Image.fromarray(view) for view in images]
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number % 100 == 99:
            path.write_bytes(b"no image")
        else:
            kept[number % len(kept)].rotate(90 * (number // len(kept) % 4)).save(path, quality=90)


def run(photos: Path, results: Path, *options: str, kill_after_s: float | None = None, kill: str = "job") -> int:
    """Run the command; kill it, or one of its decoders, after some seconds. Returns the exit status."""
    command = [sys.executable, "-m", "open_geoclip.cli", "locate", str(photos), "-o", str(results), "--part-size", "50"]
    command += options
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        if kill_after_s is not None:
            try:
                return process.wait(kill_after_s)
            except subprocess.TimeoutExpired:
                if kill == "job":
                    process.kill()
                else:
                    ps = ["ps", "--ppid", str(process.pid), "-o", "pid=,args="]
                    for child in subprocess.run(ps, capture_output=True, text=True, check=True).stdout.splitlines():
                        if DECODER in child:
                            os.kill(int(child.split()[0]), signal.SIGKILL)
                            break
        return process.wait()


def rows(results: Path) -> dict[str, Any]:
    """Return the answers by photo; refuse two of one."""
    found = Results(results)
    assert found.summary().duplicates == 0
    return {row["photo"]: json.loads(row["answer"]) for row in found.rows(["answer"])}


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference between numbers of candidates, in degrees or as a probability."""
    assert one.keys() == other.keys()
    largest = 0.0
    for photo, answer in one.items():
        twin = other[photo]
        assert answer.get("error") == twin.get("error"), photo
        for a, b in zip(answer.get("candidates", ()), twin.get("candidates", ()), strict=True):
            largest = max(largest, *(abs(a[key] - b[key]) for key in ("lat", "lon", "probability")))
    return largest


def kill_actor(command: list[str], results: Path) -> None:
    """Run a command; kill an actor of Ray with SIGKILL when the first part of its results is written."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(results.glob("part-*.parquet")):
            time.sleep(0.1)
        # Ray renames its processes; they are children of the raylet, which is one of the command that starts Ray.
        below, actors = [process.pid], []
        ps = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        lines = [line.split(maxsplit=2) for line in ps.splitlines()]
        for parent in below:
            children = [line for line in lines if int(line[1]) == parent]
            below += [int(line[0]) for line in children]
            actors += [int(line[0]) for line in children if line[2].startswith("ray::MapWorker")]
        assert process.poll() is None, "the job ended before an actor was killed: give more --photos"
        assert actors, "no actor was found"
        os.kill(actors[0], signal.SIGKILL)
        print(f"killed an actor of Ray: status {process.wait()}")


def compare_ray(photos: Path, folder: Path) -> None:
    """Run the job plainly, on Ray, there with an actor killed, and on two nodes of which one is removed."""
    one = folder / "one"
    one.mkdir()
    (one / "000000.jpg").hardlink_to(photos / "000000.jpg")
    count, seconds = sum(1 for _ in photos.iterdir()), {}
    for name, options in (("plain", ()), ("ray", ("--ray", "auto"))):
        taken = []
        for source, results in ((one, folder / f"{name}-one"), (photos, folder / name)):
            start = time.monotonic()
            run(source, results, *options)
            taken.append(time.monotonic() - start)
        seconds[name] = (taken[1] - taken[0]) / (count - 1)
        print(f"{name}: {taken[1]:.1f} s, of which {taken[0]:.1f} s for a single photo")
    overhead = seconds["ray"] - seconds["plain"]
    cores = len(os.sched_getaffinity(0))
    print(
        f"per photo on {cores} cores: plain {1000 * seconds['plain']:.1f} ms, on Ray {1000 * seconds['ray']:.1f} ms, "
        f"overhead {1000 * overhead:+.1f} ms ({100 * overhead / seconds['plain']:+.0f} %)"
    )
    command = [sys.executable, "-m", "open_geoclip.cli", "locate", str(photos), "-o", str(folder / "actor")]
    kill_actor([*command, "--part-size", "20", "--ray", "auto"], folder / "actor")
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # nodes listen to 127.0.0.1 alone
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    node = cluster.add_node(num_cpus=3)  # one is left to decode with after both actors moved
    try:
        command = [sys.executable, "-m", "open_geoclip.cli", "locate", str(photos), "-o", str(folder / "nodes")]
        command += ["--part-size", "20", "--ray", cluster.address, "--ray-actors", "2:2"]
        with subprocess.Popen(command) as process:
            while process.poll() is None and not list((folder / "nodes").glob("part-*.parquet")):
                time.sleep(0.2)
            assert process.poll() is None, "the job ended before a node was removed: give more --photos"
            done = sum(map(len, Results(folder / "nodes").keys()))
            cluster.remove_node(node, allow_graceful=False)
            print(f"removed one of two nodes when {done:,} photos were done; status {process.wait()}")
    finally:
        cluster.shutdown()
    plain = rows(folder / "plain")
    for name in ("ray", "actor", "nodes"):
        difference = largest_difference(plain, rows(folder / name))
        print(f"{name}: {len(plain):,} rows, each photo once; largest difference {difference:.1e}")


def print_costs() -> None:
    """Print how long a million and a billion photos take, from the rates of results/ and from those of GPUs."""
    result = json.loads((ROOT / "results" / "released_package.json").read_text())
    row = "A photo in batches of 8, `Locator.locate`, bfloat16"
    rates = {f"{result['machine']['machine']}, bfloat16": 1 / statistics.median(result["rows"][row]["ours"]), **GPUS}
    print("| machine | photos per second | 1,000,000 photos | 1,000,000,000 photos |\n| --- | --- | --- | --- |")
    for name, rate in rates.items():
        hours = 1e6 / rate / 3600
        texts = [f"{value:,.{0 if value > 100 else 2}f}" for value in (rate, hours)]
        print(f"| {name} | {texts[0]} | {texts[1]} hours | {1000 * hours:,.0f} hours |")


def main() -> None:
    """Run both jobs and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    if arguments.cost:
        print_costs()
        return
    rng = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp())
    try:
        photos, few = folder / "photos", folder / "few"
        write_photos(photos, arguments.photos)
        if arguments.ray:
            compare_ray(photos, folder)
            return
        few.mkdir()
        for path in sorted(photos.iterdir())[: arguments.photos // 20]:
            (few / path.name).hardlink_to(path)
        run(few, folder / "few-results")
        small = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        start = time.monotonic()
        run(photos, folder / "whole")
        took = time.monotonic() - start
        large = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{arguments.photos:,} photos in {took:.0f} s; largest process {large:.0f} MB, {small:.0f} MB for a 20th")
        for number in range(KILLS):
            kill = "decoder" if number % 3 == 2 else "job"
            after_s = rng.uniform(0.15, 0.35) * took
            status = run(photos, folder / "killed", "--resume", kill_after_s=after_s, kill=kill)
            done = sum(map(len, Results(folder / "killed").keys()))
            print(f"killed a {kill} after {after_s:.0f} s: status {status}, {done:,} photos done")
        run(photos, folder / "killed", "--resume")
        whole, killed = rows(folder / "whole"), rows(folder / "killed")
        errors = sum("error" in answer for answer in whole.values())
        difference = largest_difference(whole, killed)
        print(f"{len(killed):,} rows, each photo once, {errors:,} with an error; largest difference {difference:.1e}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
