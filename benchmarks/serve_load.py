"""Two hundred uploads at once to ``geoclip serve``: none lost, none mixed up; latency, throughput and memory.

Pictures are views of the Earth, each its own. The bare model is :meth:`Locator.locate` over the same files, alone in a
process, before the server starts. Traffic stays on loopback.
"""

import asyncio
import io
import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import numpy as np

COUNT = 200


def pictures() -> list[bytes]:
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


def bare(files: list[bytes]) -> tuple[float, list[tuple[float, float]]]:
    """Pictures a second without a server, and the first candidate of each."""
    from open_geoclip.search.locator import Locator

    locator = Locator.from_pretrained("earth")
    locator.locate(files[:8])
    start = time.perf_counter()
    answers = locator.locate(files)
    return COUNT / (time.perf_counter() - start), [(a.candidates[0].lat, a.candidates[0].lon) for a in answers]


async def upload(url: str, files: list[bytes]) -> tuple[float, list[float], list[tuple[float, float]]]:
    """Pictures a second, the seconds of each, and its first candidate."""
    limits = httpx2.Limits(max_connections=COUNT)

    async def one(client: httpx2.AsyncClient, number: int) -> tuple[float, tuple[float, float]]:
        begun = time.perf_counter()
        answer = await client.post(f"{url}/v1/locate", files={"images": (f"{number}.jpg", files[number])})
        [record] = answer.raise_for_status().json()["data"]
        assert record["image"] == f"{number}.jpg", "an answer of somebody else"
        first = record["candidates"][0]
        return time.perf_counter() - begun, (first["lat"], first["lon"])

    async with httpx2.AsyncClient(timeout=120, limits=limits) as client:
        start = time.perf_counter()
        done = await asyncio.gather(*(one(client, number) for number in range(COUNT)))
        return COUNT / (time.perf_counter() - start), [took for took, _ in done], [found for _, found in done]


def peak_mb(pid: int) -> dict[str, float]:
    """The most memory that a process and its children have had, in MB."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if pid not in (parent, int(folder.name)):
                continue
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
            found["server" if int(folder.name) == pid else "worker"] = int(status["VmHWM"].split()[0]) / 1000
        except OSError:  # it has ended
            continue
    return found


def main() -> None:
    """Run and print."""
    files = pictures()
    # In a process of its own, so that nothing of it is left beside the server.
    if sys.argv[1:] == ["bare"]:
        speed, found = bare(files)
        print(json.dumps({"speed": speed, "found": found}))
        return
    alone = json.loads(subprocess.run([sys.executable, __file__, "bare"], capture_output=True, check=True).stdout)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "open_geoclip.cli", "serve", "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and server.poll() is None:
            try:
                httpx2.get(f"{url}/readyz", timeout=60)
                break
            except httpx2.TransportError:
                time.sleep(0.2)
        asyncio.run(upload(url, files[:COUNT]))
        before = peak_mb(server.pid)
        speed, took, found = asyncio.run(upload(url, files))
        after = peak_mb(server.pid)
    finally:
        server.terminate()
        server.wait(90)
    same = sum(np.allclose(a, b, atol=1e-3) for a, b in zip(found, alone["found"], strict=True))
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{COUNT} uploads at once on {os.cpu_count()} cores: {len(found)} answered, {same} with the bare model's answer"
    )
    print(f"latency: p50 {np.percentile(took, 50):.2f} s, p99 {np.percentile(took, 99):.2f} s")
    print(f"throughput: {speed:.1f}/s; the bare model {alone['speed']:.1f}/s; {100 * speed / alone['speed']:.0f} %")
    print(f"peak memory (MB): first round {before}, second round {after}")
    print(f"the client itself took {own.ru_utime + own.ru_stime:.1f} s of processor, making the pictures included")


if __name__ == "__main__":
    main()
