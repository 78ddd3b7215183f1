"""How much longer one photo takes, warm, beside busy processes: ``python benchmarks/busy.py``.

A process locates one Earth view with ``earth`` again and again, first alone, then beside one busy process per core. It
runs as torch and its OpenMP library (libgomp) do by default, and as ``geoclip`` runs them, with ``GOMP_SPINCOUNT``.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from report import seconds

SPINNING = {"torch's default": None, "as geoclip runs": "3000"}


class Worker:
    """A process that locates a photo, warm."""

    def __init__(self, photo: Path, spins: str | None) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(photo)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=kept | ({} if spins is None else {"GOMP_SPINCOUNT": spins}),
        )

    def measure(self, times: int) -> float:
        """Return the median seconds of a photo."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        runs = []
        for _ in range(times):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            runs.append(float(self._process.stdout.readline()))
        return median(runs)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def work(photo: str) -> None:
    """Locate a photo once for each line of stdin, and print the seconds."""
    from open_geoclip.search.locator import Locator

    locator = Locator.from_pretrained("earth")
    for _ in range(3):
        locator.locate(photo)
    for _ in sys.stdin:
        start = time.perf_counter()
        locator.locate(photo)
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=25)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker)
    from open_geoclip.cli.render import render

    cores = len(os.sched_getaffinity(0))
    print(f"load before the run: {os.getloadavg()[0]:.1f}\n")
    print(f"| one photo, warm, {cores} cores | alone | beside {cores} busy processes | ratio |")
    print("| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "view.png"
        with contextlib.redirect_stdout(sys.stderr):
            render("46,10", output=photo)
        for name, spins in SPINNING.items():
            worker = Worker(photo, spins)
            alone = worker.measure(options.times)
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
            try:
                beside = worker.measure(options.times)
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
            worker.close()
            print(f"| {name} | {seconds(alone)} | {seconds(beside)} | {beside / alone:.1f} |", flush=True)
    return None


if __name__ == "__main__":
    main()
