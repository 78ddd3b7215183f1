"""Two hundred uploads at once to ``geoclip serve``: none lost, none mixed up; latency, throughput and memory.

Images are views of the Earth, each its own. The bare model is :meth:`Locator.locate` over the same files, alone in a
process. Both are loaded and warm before anything is measured, and take turns, so that whatever else the machine does
meets both. The server shares the cores with the client that sends the images. Traffic stays on loopback.

It fails where an answer is lost or is not the bare model's, memory grows, or throughput is below 70 % of the bare
model's. On a machine that is busy otherwise it takes fewer turns, and says how many.
"""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

COUNT = 200
PAIRS = 3
ENOUGH_S = 80  # no further pair is begun after so long
LEAST = 0.70  # of the bare model's throughput
GROWTH_MB = 100  # that a process may gain between the first round and the last
PATIENCE_S = 300  # for one answer: a slow machine shows as slow, not as an error


def say(text: str) -> None:
    """What is being done, while it is."""
    print(text, file=sys.stderr, flush=True)


def images() -> list[bytes]:
    """Views of places all over the Earth, as JPEG files."""
    from PIL import Image

    from open_geoclip.data.earth import Earth

    generator = np.random.default_rng(0)
    centres = np.stack([generator.uniform(-60, 70, COUNT), generator.uniform(-180, 180, COUNT)], axis=1)
    files = []
    for view in Earth("bluemarble").render(centres, np.full(COUNT, 900.0), np.zeros(COUNT), size=512):
        file = io.BytesIO()
        Image.fromarray(view).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def bare(folder: Path) -> None:
    """Be the bare model: for each line on stdin, locate the files of a folder and tell how long it took, and what."""
    from open_geoclip.search.locator import Locator

    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    locator = Locator.from_pretrained("earth")
    locator.locate(files[:16])
    print("ready", flush=True)
    for _ in sys.stdin:
        start, worked = time.perf_counter(), time.process_time()
        answers = locator.locate(files)
        done = {"seconds": time.perf_counter() - start, "processor": time.process_time() - worked}
        print(json.dumps(done | {"answers": [answer.to_dict() for answer in answers]}), flush=True)


@contextmanager
def bare_model(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that is the bare model, ready."""
    command = [sys.executable, __file__, "bare", str(folder)]
    # Threads wait as those of the server's worker do, so that only the server itself makes a difference.
    env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                sys.exit("the bare model did not start: see above")
            yield process
        finally:
            process.kill()


def bare_round(process: "subprocess.Popen[str]") -> tuple[float, float, list[Any]]:
    """Seconds for all images, those of processor, and the answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("again\n")
    process.stdin.flush()
    done = json.loads(process.stdout.readline())
    return done["seconds"], done["processor"], done["answers"]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """A server, ready: its address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    command = [sys.executable, "-m", "open_geoclip.cli", "serve", "--port", str(port), "--timeout-s", str(PATIENCE_S)]
    with log.open("w") as file:
        server = subprocess.Popen(command, stderr=file)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=60).raise_for_status()
                break
            except (httpx2.TransportError, httpx2.HTTPStatusError):
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"the server did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


async def upload(url: str, files: list[bytes]) -> tuple[float, list[float], list[Any]]:
    """Seconds for all images, those of each, and the answers; an answer that is not there is None."""
    limits = httpx2.Limits(max_connections=len(files))

    async def one(client: httpx2.AsyncClient, number: int) -> tuple[float, Any]:
        begun = time.perf_counter()
        try:
            answer = await client.post(f"{url}/v1/locate", files={"images": (f"{number}.jpg", files[number])})
        except httpx2.TransportError as error:
            say(f"image {number}: {type(error).__name__}")
            return time.perf_counter() - begun, None
        if answer.status_code != 200:
            say(f"image {number}: {answer.status_code} {answer.text[:200]}")
            return time.perf_counter() - begun, None
        [record] = answer.json()["data"]
        if record["image"] != f"{number}.jpg":
            say(f"image {number}: an answer of {record['image']}")
            return time.perf_counter() - begun, None
        return time.perf_counter() - begun, record

    async with httpx2.AsyncClient(timeout=PATIENCE_S + 30, limits=limits) as client:
        start = time.perf_counter()
        done = await asyncio.gather(*(one(client, number) for number in range(len(files))))
        return time.perf_counter() - start, [took for took, _ in done], [found for _, found in done]


def processes(pid: int) -> dict[str, tuple[float, float, float]]:
    """Of a server and its worker: memory now, the most it has had (MB), and seconds of processor."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "stat").read_text().rpartition(")")[2].split()
            if pid not in (int(told[1]), int(folder.name)):
                continue
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
            now, most = (int(status[name].split()[0]) / 1000 for name in ("VmRSS", "VmHWM"))
        except (OSError, KeyError):  # it has ended
            continue
        seconds = (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")
        found["server" if int(folder.name) == pid else "worker"] = (now, most, seconds)
    return found


def same(served: Any, alone: Any) -> bool:
    """Whether an answer of the server is the bare model's, but for rounding in another batch.

    That changes probabilities in the fifth digit or so, and may turn the order of candidates that hardly have any.
    """
    if served is None or len(served["candidates"]) != len(alone["candidates"]):
        return False
    for number, (one, other) in enumerate(zip(served["candidates"], alone["candidates"], strict=True)):
        if abs(one["probability"] - other["probability"]) > 1e-3:
            return False
        counts = number == 0 or one["probability"] > 1e-3
        if counts and max(abs(one["lat"] - other["lat"]), abs(one["lon"] - other["lon"])) > 1e-3:
            return False
    return True


def main() -> None:
    """Run and print."""
    if sys.argv[1:2] == ["bare"]:
        bare(Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        run(Path(name))


def run(folder: Path) -> None:
    """Take turns, print, and end with an error where something does not hold."""
    say(f"rendering {COUNT} views")
    files = images()
    (folder / "views").mkdir()
    for number, data in enumerate(files):
        (folder / "views" / f"{number:03}.jpg").write_bytes(data)
    say("loading the bare model and the server")
    pairs: list[tuple[float, float]] = []
    latencies: list[float] = []
    worked: list[float] = []
    wrong, sent = 0, 0.0
    with bare_model(folder / "views") as model, serving(folder) as (url, pid):
        asyncio.run(upload(url, files[:16]))
        usage: list[dict[str, tuple[float, float, float]]] = [processes(pid)]
        begun = time.monotonic()
        while len(pairs) < PAIRS and time.monotonic() - begun < ENOUGH_S:
            alone, own, expected = bare_round(model)
            worked.append(own)
            before = time.process_time()
            served, took, found = asyncio.run(upload(url, files))
            sent += time.process_time() - before
            usage.append(processes(pid))
            pairs.append((COUNT / alone, COUNT / served))
            latencies += took
            wrong += sum(not same(one, other) for one, other in zip(found, expected, strict=True))
            say(f"pair {len(pairs)} of {PAIRS}: bare {COUNT / alone:.1f}/s, served {COUNT / served:.1f}/s")
    ratio = float(np.median([served / alone for alone, served in pairs]))
    growth = max(usage[-1][name][1] - usage[1][name][1] for name in usage[1])
    first, last = usage[0], usage[-1]
    print(f"{len(pairs)} times {COUNT} uploads at once on {os.cpu_count()} cores")
    print(f"answers that are the bare model's: {len(latencies) - wrong} of {len(latencies)}")
    print(f"latency: p50 {np.percentile(latencies, 50):.2f} s, p99 {np.percentile(latencies, 99):.2f} s")
    for alone, served in pairs:
        print(f"throughput: {served:.1f}/s; the bare model {alone:.1f}/s; {100 * served / alone:.0f} %")
    print(f"throughput, median of the pairs: {100 * ratio:.0f} % of the bare model's")
    print(f"bare model: {1000 * sum(worked) / len(latencies):.1f} ms of processor an image")
    for name in ("server", "worker"):
        peaks = ", ".join(f"{round_[name][1]:.0f}" for round_ in usage[1:])
        seconds = (last[name][2] - first[name][2]) / len(latencies)
        print(
            f"{name}: {first[name][0]:.0f} MB before; peak after each round {peaks} MB; "
            f"{1000 * seconds:.1f} ms of processor an image"
        )
    print(f"client: {1000 * sent / len(latencies):.1f} ms of processor an image")
    faults = []
    if wrong:
        faults.append(f"{wrong} answers are lost or are not the bare model's")
    if growth > GROWTH_MB:
        faults.append(f"memory grew by {growth:.0f} MB")
    if ratio < LEAST:
        faults.append(f"throughput is below {100 * LEAST:.0f} % of the bare model's")
    if faults:
        sys.exit("; ".join(faults))


if __name__ == "__main__":
    main()
