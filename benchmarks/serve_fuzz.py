"""Broken requests and broken images for ``geoclip serve``: nothing may fail inside, hang, or make it grow.

A quarter of the requests are made from the server's own OpenAPI description, right and wrong ones; the rest are right
ones of which bytes, fields, headers or lengths were broken, and bytes that are hardly HTTP. Images are of all formats
with bytes flipped, cut off, joined, under other names, or with sizes in their headers that nobody can decode. Last come
requests that once held up a server: images and areas that took a minute, exports of 230 MB, requests of which half is
sent; a good image has to be answered quickly beside each. It fails
where an answer is 5xx, a request takes longer than its deadline, a worker died, an error was logged, memory grew, or a
good image is not answered afterwards as it was before. Traffic stays on loopback.

    python benchmarks/serve_fuzz.py [REQUESTS [IMAGES [SEED]]]
"""

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx2

from fuzzing import Asked, expensive_areas, expensive_images, images, rendered, requests_broken, streams
from serve_load import processes

DEADLINE_S = 30  # of a request
GROWTH_MB = 64  # between the first fifth of the requests and the end
AT_ONCE = 8
QUICK_S = 10  # for a good image beside an expensive request, on a busy machine
HALVES = 300


@dataclass
class Tally:
    """What came of it."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def count(self, what: str, seconds: float, asked: str) -> None:
        """Note an answer's status, or how a connection ended; complain where it is a fault."""
        self.statuses[what] += 1
        self.slowest = max(self.slowest, seconds)
        if what.startswith("5") or seconds > DEADLINE_S:
            self.faults.append(f"{what} after {seconds:.1f} s: {asked[:600]}")


def send(client: httpx2.Client, asked: Asked, tally: Tally) -> httpx2.Response | None:
    """Send one request and note what came of it."""
    start = time.perf_counter()
    try:
        answer = client.request(asked.method, asked.path, headers=asked.headers, content=asked.body)
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        # What the client's own library refuses, or a connection that the server closed: a hang is neither.
        what = "deadline" if isinstance(error, httpx2.TimeoutException) else type(error).__name__
        tally.count(what, time.perf_counter() - start, str(asked))
        if what == "deadline":
            tally.faults.append(f"no answer: {str(asked)[:600]}")
        return None
    tally.count(str(answer.status_code), time.perf_counter() - start, str(asked))
    return answer


def from_description(url: str, count: int, tally: Tally) -> None:
    """Requests made from the OpenAPI description, half of them wrong; fewer where it has no more that differ."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found: Iterable[Any] = schema.get_all_operations()  # what is no operation has no `ok`: it fails
    operations = [one.ok() for one in found]
    weights = [8 if operation.method == "post" else 1 for operation in operations]
    for operation, weight in zip(operations, weights, strict=True):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @settings(
                max_examples=max(1, round(count * weight / sum(weights) / 2)),
                derandomize=True,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                start = time.perf_counter()
                try:
                    answer = case.call(timeout=DEADLINE_S + 5)
                    what = str(answer.status_code)
                except Exception as error:  # noqa: BLE001  # of the client: what it cannot send is no fault of the server
                    what = type(error).__name__
                    if "Timeout" in what:
                        tally.faults.append(f"no answer: {case.as_curl_command()[:600]}")
                tally.count(what, time.perf_counter() - start, f"{case.method} {case.path} {str(case.body)[:500]}")

            with suppress(Unsatisfiable):
                check()


def raw(port: int, data: bytes, tally: Tally) -> None:
    """Bytes that are hardly HTTP: the server answers or closes; where it waits for more, we go away."""
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        what = "raw: waits for more"
        with suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            got = b""
            while part := connection.recv(65536):
                got += part
            statuses = re.findall(rb"HTTP/1\.1 (\d{3})", got)
            what = statuses[-1].decode() if statuses else "raw: closed"
    tally.count(what, time.perf_counter() - start, repr(data[:300]))


def hold_up(client: httpx2.Client, port: int, rng: Random, canary: Callable[[], object], tally: Tally) -> None:
    """Requests that once held up others: each is sent while a good image is located again and again."""
    record = b'{"image":"a","error":"' + b"x" * 10_000 + b'"}'
    exports = (b",".join([record] * 23_000), b'{"image":"' + b"a" * 230_000_000 + b'"}', b"[" * 230_000_000)
    jobs: dict[str, Callable[[], httpx2.Response]] = {}
    for name, data in expensive_images().items():
        jobs[name] = partial(client.post, "/v1/locate", files={"images": (name, data)}, data={"exif": "true"})
    for name, area in expensive_areas(rng).items():
        jobs[name] = partial(client.post, "/v1/text", json={"texts": ["ice"], "within": [area]})
        jobs[f"not {name}"] = partial(client.post, "/v1/text", json={"texts": ["ice"], "not_within": [area]})
    for number, records in enumerate(exports):
        body = b'{"format":"csv","records":[' + records + b"]}"
        headers = {"Content-Type": "application/json"}
        jobs[f"export {number}"] = partial(client.post, "/v1/export", content=body, headers=headers)
    with ThreadPoolExecutor(1) as pool:
        for name, job in jobs.items():
            start = time.perf_counter()
            asked = pool.submit(job)
            while True:
                begun = time.perf_counter()
                canary()
                if (took := time.perf_counter() - begun) > QUICK_S:
                    tally.faults.append(f"a good image took {took:.1f} s beside {name}")
                if asked.done():
                    break
            tally.count(str(asked.result().status_code), time.perf_counter() - start, name)
    head = b"POST /v1/locate HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with ExitStack() as stack:
        for number in range(HALVES):
            half = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            half.sendall(head + (b"Content-Length: 1000\r\n\r\n--b" if number % 2 else b"Content-"))
        begun = time.perf_counter()
        canary()
        tally.count(f"beside {HALVES} half-sent requests", time.perf_counter() - begun, "a good image")


def ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 180
    while True:
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{url}/readyz", timeout=60).status_code == 200:
                return
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the server did not start: {log.read_text()[-2000:]}")
        time.sleep(0.2)


def main() -> None:
    """Run and print."""
    numbers = [int(one) for one in sys.argv[1:]]
    requests, photos, seed = [*numbers, *(10_000, 1_000, 0)[len(numbers) :]]
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "open_geoclip.cli", "serve", "--port", str(port)]
        limits = ["--timeout-s", str(DEADLINE_S), "--max-file-mb", "32", "--max-request-mb", "256"]
        with log.open("wb") as file:
            server = subprocess.Popen([*command, *limits], stderr=file)
        try:
            url = f"http://127.0.0.1:{port}"
            ready(server, url, log)
            faults = run(url, port, server.pid, (requests, photos, seed))
        finally:
            server.terminate()
            server.wait(DEADLINE_S + 10)
        lines = log.read_text(encoding="utf-8").splitlines()
        told = [
            line
            for line in lines
            if '"level": "error"' in line or "is replaced: " in line or not line.startswith(("{", "geoclip: http"))
        ]
        faults += [f"logged: {line[:500]}" for line in told[:20]]
    for fault in faults[:40]:
        print(fault)
    if faults:
        sys.exit(f"{len(faults)} faults")
    print("no fault")


def run(url: str, port: int, pid: int, numbers: tuple[int, int, int]) -> list[str]:
    """Send all, print figures, and return faults."""
    requests, photos, seed = numbers
    rng = Random(seed)
    tally = Tally()
    memory: list[tuple[int, dict[str, float]]] = []
    good = rendered(Random(1), "JPEG")
    begun = time.monotonic()

    with httpx2.Client(base_url=url, timeout=DEADLINE_S + 5) as client:

        def canary() -> Any:
            return client.post("/v1/locate", files={"images": ("good.jpg", good)}).raise_for_status().json()

        def note() -> None:
            done = sum(tally.statuses.values())
            memory.append((done, {name: now for name, (now, _, _) in processes(pid).items()}))
            passed = time.monotonic() - begun
            print(f"{done} sent in {passed:.0f} s, {memory[-1][1]}, faults {len(tally.faults)}", file=sys.stderr)

        def all_of(jobs: Iterator[Callable[[], object]], step: int = 500) -> None:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                waiting = []
                for number, job in enumerate(jobs, 1):
                    waiting.append(pool.submit(job))
                    if number % step == 0:
                        for one in waiting:
                            one.result()
                        waiting = []
                        note()
                for one in waiting:
                    one.result()

        before = canary()
        # A worker keeps a few of the areas that were asked for last: so many large ones are the most that this takes.
        for degrees in range(1, 6):
            asked = {"texts": ["a desert"], "not_within": [f"0,0,{degrees},{degrees}"]}
            client.post("/v1/text", json=asked).raise_for_status()

        def image(asked: Asked) -> None:
            answer = send(client, asked, tally)
            if answer is None or answer.headers["Content-Type"] != "application/json" or answer.status_code != 200:
                return
            for record in answer.json()["data"]:
                if not ("error" in record or "embedding" in record or record["candidates"]):
                    tally.faults.append(f"an answer of nothing: {str(asked)[:300]}")

        note()
        # Images first, some of each kind of request between them, so that memory is measured when all has been seen.
        all_of(partial(image, asked) for asked in images(rng, photos // 2))
        all_of(partial(send, client, asked, tally) for asked in requests_broken(rng, requests // 2))
        all_of(partial(raw, port, data, tally) for data in streams(rng, requests // 10))
        all_of(partial(image, asked) for asked in images(rng, photos - photos // 2))
        before_it = sum(tally.statuses.values())
        from_description(url, requests // 4, tally)
        note()
        made = sum(tally.statuses.values()) - before_it
        all_of(
            partial(send, client, asked, tally) for asked in requests_broken(rng, requests - 6 * requests // 10 - made)
        )
        hold_up(client, port, rng, canary, tally)
        note()
        after = canary()
        restarts = re.search(r"geoclip_worker_restarts_total\S* ([\d.]+)", client.get("/metrics").text)
    for status, count in sorted(tally.statuses.items()):
        print(f"{status}: {count}")
    print(f"{sum(tally.statuses.values())} in {time.monotonic() - begun:.0f} s; the slowest took {tally.slowest:.1f} s")
    early = next(told for done, told in memory if done >= 2 * (requests + photos) // 11 or told is memory[-1][1])
    faults = list(tally.faults)
    for name, mb in early.items():
        last = memory[-1][1].get(name, 0.0)
        print(f"memory of the {name}: {mb:.0f} MB after the first, {last:.0f} MB at the end")
        if last - mb > GROWTH_MB:
            faults.append(f"the {name} grew by {last - mb:.0f} MB")
    if restarts and float(restarts[1]):
        faults.append(f"{restarts[1]} workers died")
    if before != after:
        faults.append("a good image is answered otherwise than before")
    return faults


if __name__ == "__main__":
    main()
