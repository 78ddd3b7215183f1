"""A job that is interrupted again and again: ``python benchmarks/jobs.py --photos 20000``.

The job runs once undisturbed and once interrupted five times, each at a random moment in its fifth of the photos: a
process that decodes and the command are killed with SIGKILL, the disk is full (a tmpfs of its own, so this needs root),
and, then on Ray, an actor and the command are killed. Each time it is continued with ``--resume``. Then the rows are
compared. The peak of memory is that of the largest process, for a twentieth of the photos and for all. The machine need
not be quiet.

With ``--ray`` the job runs plainly, in three shards, on Ray with as many cores, and on a cluster of two nodes, one of
which is removed meanwhile. The overhead of Ray is the difference to the plain run, without what both take for a single
photo. With ``--cost`` the costs in docs/guides/cluster.md are worked out from rates. With ``--write`` what was found is
written to results/jobs.json.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from open_geoclip.data.earth_views import views
from open_geoclip.files import atomic_write
from open_geoclip.scale.results import PARTS, Results

RESULTS = Path(__file__).parent / "results"
# Photos per second of ViT-L/14 at 224 pixels, measured elsewhere: timm's result files, one GPU, compiled.
GPUS = {"RTX 4090": 805, "RTX Pro 6000, bfloat16": 1191}

ON_RAY = ("--ray", "auto")
# What is interrupted, and the options of the command meanwhile; "command" and "disk" end it.
INTERRUPTIONS = (("decoder", ()), ("command", ()), ("disk", ()), ("actor", ON_RAY), ("command", ON_RAY))
PROCESSES = {"decoder": "open_geoclip.scale.decoding", "actor": "ray::MapWorker"}  # what their commands contain


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


class Job:
    """The command that locates photos into a folder.

    Args:
        photos: the folder of photos.
        results: the folder of results.
        options: of the command.
        part_size: photos per part.
    """

    def __init__(self, photos: Path, results: Path, *options: str, part_size: int = 50) -> None:
        command = [sys.executable, "-m", "open_geoclip.cli", "locate", str(photos), "-o", str(results)]
        self.results, self.part_size = results, part_size
        self.log = photos.with_name(f"{results.name}.log")  # not on a disk that is full
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, "--part-size", str(part_size), *options], stderr=log)

    def wait(self) -> str:
        """Wait for the end; return the exit status and the last line that was printed."""
        status = self.process.wait()
        printed = self.log.read_text().replace(str(self.results), "RESULTS").splitlines() or ["nothing was printed"]
        return f"status {status}: {printed[-1]}"

    def wait_for(self, count: int) -> None:
        """Wait until so many photos are done."""
        while self.part_size * sum(1 for _ in self.results.glob(PARTS)) < count:
            if self.process.poll() is not None:
                raise SystemExit(f"the job ended too early, {self.wait()}; give more --photos")
            time.sleep(0.05)

    def descendants(self, text: str) -> list[int]:
        """Return the processes below the command, also those of Ray, whose commands contain a text."""
        below, found = [self.process.pid], []
        ps = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        lines = [line.split(maxsplit=2) for line in ps.splitlines()]
        for parent in below:
            children = [line for line in lines if int(line[1]) == parent]
            below += [int(line[0]) for line in children]
            found += [int(line[0]) for line in children if text in line[2]]
        return found


def run(photos: Path, results: Path, *options: str) -> float:
    """Run a job to its end; return how many seconds it took."""
    start = time.monotonic()
    Job(photos, results, *options).process.wait()
    return time.monotonic() - start


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of a size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write a file that leaves no byte."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(2**16)):
                pass
        except OSError as error:
            print(f"filled the disk: {error.strerror}")
    return path


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


def interrupt(photos: Path, count: int, disk: Path, rng: random.Random) -> list[str]:
    """Run a job on a small disk, interrupted five times; return what happened, each as a line."""
    results, job, happened = disk / "results", None, []
    for number, (what, options) in enumerate(INTERRUPTIONS):
        moment = int((number + rng.uniform(0.1, 0.9)) / len(INTERRUPTIONS) * count)
        job = job or Job(photos, results, "--resume", *options, part_size=max(1, count // 400))
        job.wait_for(moment)
        time.sleep(rng.random())
        ended = "the job went on"
        if what == "disk":
            filler = fill(disk)
            ended, job = job.wait(), None
            filler.unlink()
        elif what == "command":
            job.process.kill()
            ended, job = job.wait(), None
        else:
            os.kill(rng.choice(job.descendants(PROCESSES[what])), signal.SIGKILL)
        done = sum(map(len, Results(results).keys()))
        on = " on Ray" if options else ""
        happened.append(f"{what}{on}, {done:,} photos done: {ended}")
        print(happened[-1], flush=True)
    assert job is None
    run(photos, results, "--resume")
    return happened


def compare_interrupted(photos: Path, count: int, folder: Path, seed: int) -> dict[str, Any]:
    """Run the job undisturbed and interrupted; compare rows and memory."""
    few = folder / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[: count // 20]:
        (few / path.name).hardlink_to(path)
    largest_mb = []
    for source in (few, photos):
        took = run(source, folder / f"{source.name}-results")
        largest_mb.append(round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024))
    print(f"{count:,} photos in {took:.0f} s; largest process {largest_mb[1]} MB, {largest_mb[0]} MB for a 20th")
    with small_disk(folder / "disk", 64 + count // 100) as disk:
        happened = interrupt(photos, count, disk, random.Random(seed))
        whole, interrupted = rows(folder / "photos-results"), rows(disk / "results")
    found = {
        "photos": count,
        "seed": seed,
        "interrupted": happened,
        "rows, each photo once": len(interrupted),
        "of these with an error": sum("error" in answer for answer in whole.values()),
        "largest difference to the undisturbed run": largest_difference(whole, interrupted),
        "largest process of the undisturbed run, MB": largest_mb[1],
        "the same with a 20th of the photos, MB": largest_mb[0],
    }
    assert len(interrupted) == count
    return found


def compare_engines(photos: Path, count: int, folder: Path) -> dict[str, Any]:
    """Run the job plainly, in shards, on Ray, and on two nodes of which one is removed."""
    one = folder / "one"
    one.mkdir()
    (one / "000000.jpg").hardlink_to(photos / "000000.jpg")
    found: dict[str, Any] = {"photos": count, "cores": len(os.sched_getaffinity(0))}
    per_photo = []
    for name, options in (("plain", ()), ("ray", ON_RAY)):
        seconds = [run(one, folder / f"{name}-one", *options), run(photos, folder / name, *options)]
        per_photo.append(1000 * (seconds[1] - seconds[0]) / (count - 1))
        found[f"{name}, ms per photo"] = round(per_photo[-1], 2)
        found[f"{name}, s for a single photo"] = round(seconds[0], 1)
    found["overhead of Ray, %"] = round(100 * (per_photo[1] / per_photo[0] - 1), 1)
    for number in (1, 2, 3):
        run(photos, folder / "shards", "--shard", f"{number}/3")
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # nodes listen to 127.0.0.1 alone
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    node = cluster.add_node(num_cpus=3)  # one is left to decode with after both actors moved
    try:
        on_cluster = ("--ray", cluster.address, "--ray-actors", "2:2")
        job = Job(photos, folder / "nodes", *on_cluster, part_size=max(1, count // 20))
        job.wait_for(1)
        done = sum(map(len, Results(job.results).keys()))
        cluster.remove_node(node, allow_graceful=False)
        found["removed one of two nodes"] = f"{done:,} photos done: {job.wait()}"
    finally:
        cluster.shutdown()
    plain = rows(folder / "plain")
    assert len(plain) == count
    for name in ("shards", "ray", "nodes"):
        found[f"largest difference, plain and {name}"] = largest_difference(plain, rows(folder / name))
    return found


def print_costs() -> None:
    """Print how long a million and a billion photos take, from the rates of results/ and from those of GPUs."""
    result = json.loads((RESULTS / "released_package.json").read_text())
    row = "A photo in batches of 8, `Locator.locate`, bfloat16"
    rates = {f"{result['machine']['machine']}, bfloat16": 1 / statistics.median(result["rows"][row]["ours"]), **GPUS}
    print("| machine | photos per second | 1,000,000 photos | 1,000,000,000 photos |\n| --- | --- | --- | --- |")
    for name, rate in rates.items():
        hours = 1e6 / rate / 3600
        texts = [f"{value:,.{0 if value > 100 else 2}f}" for value in (rate, hours)]
        print(f"| {name} | {texts[0]} | {texts[1]} hours | {1000 * hours:,.0f} hours |")


def main() -> None:
    """Run the jobs and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.cost:
        print_costs()
        return
    folder = Path(tempfile.mkdtemp())
    try:
        photos = folder / "photos"
        write_photos(photos, arguments.photos)
        if arguments.ray:
            found = {"engines": compare_engines(photos, arguments.photos, folder)}
        else:
            found = {"interruptions": compare_interrupted(photos, arguments.photos, folder, arguments.seed)}
    finally:
        shutil.rmtree(folder)
    print(json.dumps(found, indent=2))
    if arguments.write:
        path = RESULTS / "jobs.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        atomic_write(path, json.dumps(before | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
