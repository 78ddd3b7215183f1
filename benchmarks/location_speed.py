"""Embedding many coordinates with the released weights: time beside the released package, memory of `geoclip embed`.

    python benchmarks/location_speed.py --write

Times are of the same coordinates in one process, one side after the other, several times over, so that what else the
machine does falls on all. Memory is the kernel's peak of a process that runs `geoclip embed` on
a file of --places rows.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch

from open_geoclip.features.onnx import export_onnx
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import even_points
from open_geoclip.model.backbones.runtime import resolve_dtype
from open_geoclip.model.location_encoder import LocationEncoder
from report import parse_status

RESULTS = Path(__file__).resolve().parent / "results" / "location_speed.json"
_EMBED = (
    "import sys; from open_geoclip.cli import app; app(sys.argv[1:], result_action='return_value'); "
    "print(open('/proc/self/status').read(), file=sys.stderr)"
)


def released() -> torch.nn.Module:
    """The released package's location encoder, without the transformers that its own import brings along."""
    package = ModuleType("released_geoclip")
    package.__path__ = [str(distribution("geoclip").locate_file("geoclip/model"))]
    sys.modules["released_geoclip"] = package
    with warnings.catch_warnings(action="ignore"):
        module = import_module("released_geoclip.location_encoder")
    encoder: torch.nn.Module = module.LocationEncoder()
    return encoder.eval()


def timed(places: int, times: int, folder: Path) -> dict[str, Any]:
    """Seconds of each side for the same coordinates, and how far their embeddings are from the released ones."""
    import onnxruntime

    theirs, ours = released(), LocationEncoder.from_pretrained("geoclip")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    tower = onnxruntime.InferenceSession(
        export_onnx("geoclip", folder / "tower.onnx"), options, providers=["CPUExecutionProvider"]
    )
    coordinates = torch.from_numpy(even_points(places)[np.random.default_rng(0).permutation(places)])
    single = coordinates.float()
    sides: dict[str, Any] = {
        "released package, float32": lambda: torch.cat([theirs(part) for part in single.split(1024)]),
        "this package, torch, float32": lambda: ours.encode(single, chunk=1024, normalize=False),
        "this package, ONNX, float32": lambda: torch.from_numpy(
            np.concatenate([tower.run(None, {"coordinates": part.numpy()})[0] for part in coordinates.split(1024)])
        ),
    }
    if resolve_dtype("auto") == torch.bfloat16:
        half = LocationEncoder.from_pretrained("geoclip").to(torch.bfloat16)
        sides["this package, torch, bfloat16"] = lambda: half.encode(single, chunk=1024, normalize=False)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    embeddings: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for turn in range(times + 1):
            for name, run in sides.items():
                began = time.perf_counter()
                embeddings[name] = run()
                if turn:  # the first is to warm up
                    seconds[name].append(round(time.perf_counter() - began, 4))
    truth = embeddings["released package, float32"]
    base = median(seconds["released package, float32"])
    return {
        name: {
            "seconds": taken,
            "places a second": round(places / median(taken)),
            "times as fast": round(base / median(taken), 3),
            "least cosine": round(float(torch.cosine_similarity(embeddings[name], truth).min()), 7),
        }
        for name, taken in seconds.items()
    }


def embedded(places: int, folder: Path) -> dict[str, Any]:
    """Peak memory and time of `geoclip embed` on a file of so many rows."""
    source, output = folder / "places.csv", folder / "embeddings.npy"
    with source.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lat", "lon"])
        writer.writerows(even_points(places).tolist())
    began = time.perf_counter()
    command = [sys.executable, "-c", _EMBED, "embed", "--csv", str(source), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = parse_status(done.stderr).peak
    assert np.load(output, mmap_mode="r").shape == (places, 512)
    output.unlink()
    return {"places": places, "seconds": round(time.perf_counter() - began, 1), "peak MB": round(peak / 1e6)}


def main() -> None:
    """Run both and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=4096, help="coordinates that both sides encode")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--places", type=int, nargs="+", default=[4096, 1_000_000], help="rows for geoclip embed")
    parser.add_argument("--memory", action="store_true", help="measure geoclip embed only; times are as committed")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/location_speed.json too")
    options = parser.parse_args()
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    command = " ".join(["python benchmarks/location_speed.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as name:
        if options.memory:
            report = json.loads(RESULTS.read_text())
        else:
            report = {
                "command": command,
                "instructions": sorted(key for key, has in capabilities.items() if has is True),
                "bfloat16": "timed" if resolve_dtype("auto") == torch.bfloat16 else "no instructions here: not timed",
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 1),
                "sample": options.sample,
                "time": timed(options.sample, options.times, Path(name)),
            }
        report["embed command"] = command
        report["embed"] = [embedded(places, Path(name)) for places in options.places]
    text = json.dumps(report, indent=1) + "\n"
    print(text, end="")
    if options.write:
        atomic_write(RESULTS, text)


if __name__ == "__main__":
    main()
