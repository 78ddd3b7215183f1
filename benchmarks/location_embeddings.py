"""What location embeddings encode: every encoder and task, with three probes, on random and blocked splits.

    make location-benchmark          # or: python benchmarks/location_embeddings.py --write

Offline, from data that the package index carries (see research.location_tasks). What was computed is
kept in build/location-benchmark: interrupted, the same command goes on. The small encoders are trained here, all in the
same way: contrastively, on features of Earth views from places that are none of the benchmark's by more than chance.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import nn

from open_geoclip.files import atomic_file, atomic_write
from open_geoclip.geo.projections import equal_earth_inverse
from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.model.encodings import SphericalHarmonics
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from report import put_between
from research.location_tasks import CLASSES, NUMBERS, SPLIT_KINDS, Known, draw_places, split
from research.probes import PROBES, probe

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "location-benchmark"
KEPT = BUILD / "scores.jsonl"
RESULTS = ROOT / "benchmarks" / "results" / "location_embeddings.json"
PAGE = ROOT / "docs" / "location-embeddings.md"
MAPS = ROOT / "docs" / "location-embeddings.png"
LAND, SEA, SEEDS, VIEWS = 3000, 1000, 3, 4096

_SMALL: dict[str, Any] = {"width": 256, "depth": 2, "output": 256}
SMALL = {
    "Fourier, flat map": LocationSettings(sigmas=(4.0, 32.0), **_SMALL),
    "Fourier, sphere": LocationSettings(sigmas=(4.0, 32.0), projection="sphere", **_SMALL),
    "harmonics to 40, SIREN": LocationSettings(encoding="harmonics", network="siren", **_SMALL),
    "Space2Vec": LocationSettings(encoding="space2vec", **_SMALL),
    "Sphere2Vec": LocationSettings(encoding="sphere2vec", **_SMALL),
    "wrapped": LocationSettings(encoding="wrapped", **_SMALL),
    "unit vector, network": LocationSettings(encoding="unit", **_SMALL),
}
PUBLISHED = {"country": 0.81, "temperature": 0.92, "elevation": 0.61, "people": 0.69}
"""Probes of the released weights in one later paper; its biomes (.81) and ecoregions (.74) have no source here."""
MAPPED = ["released, sum", "released, level 0", "released, level 1", "earth, sum", "Fourier, sphere, trained"]
MAPPED += ["harmonics to 40, SIREN, trained"]


def trained(name: str, settings: LocationSettings) -> LocationEncoder:
    """A small encoder after a short contrastive training on Earth views; kept."""
    from safetensors.torch import load_file, save_file

    from open_geoclip.training.loop import Callbacks, train
    from open_geoclip.training.settings import TrainSettings
    from research.earth_model import new_model
    from research.view_features import earth_view_features

    torch.manual_seed(0)
    encoder = LocationEncoder(settings)
    place = BUILD / "encoders" / f"{key(name)}.safetensors"
    if not place.exists():
        data = earth_view_features(ROOT / "build" / "features", "train", VIEWS)
        model = new_model(data.features[:2048], (), settings)
        model.location_encoder = encoder
        run = TrainSettings(
            epochs=4, batch_size=256, queue_size=256, mask_km=100.0, noise_m=10_000, queue_noise_m=10_000
        )
        loss: list[float] = []
        place.parent.mkdir(parents=True, exist_ok=True)
        callbacks = Callbacks(epoch=lambda figures: loss.append(figures["loss"]))
        train(model, data, run, place.with_suffix(""), callbacks=callbacks, resume=True)
        say(f"trained {name}: loss {', '.join(f'{value:.2f}' for value in loss)}")
        with atomic_file(place) as temporary:
            save_file(encoder.state_dict(), temporary)
    encoder.load_state_dict(load_file(place))
    return encoder.eval()


def encoders() -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Yield each kind of embedding by its name in the table; encoders are loaded when they are used."""
    yield "raw coordinates", lambda places: places
    yield "unit vector", unit_vectors
    yield "spherical harmonics, degree 10", harmonics
    for name, settings in SMALL.items():
        torch.manual_seed(0)
        yield f"{name}, untrained", embeddings(LocationEncoder(settings).eval())
        yield f"{name}, trained", partial(trained_embeddings, name, settings)
    for title, model in (("released", "geoclip"), ("earth", "earth")):
        encoder = LocationEncoder.from_pretrained(model)
        yield f"{title}, sum", embeddings(encoder)
        for level in range(len(encoder.levels)):
            yield f"{title}, level {level}", embeddings(encoder, level)
    torch.manual_seed(0)
    yield "released's shape, untrained", embeddings(LocationEncoder(LocationSettings()).eval())


def harmonics(places: np.ndarray) -> np.ndarray:
    """Return the 121 spherical harmonics up to degree 10, untrained, without a network."""
    return SphericalHarmonics(LocationSettings(encoding="harmonics", degree=10), 0)(torch.from_numpy(places)).numpy()


def embeddings(encoder: LocationEncoder, level: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function to embeddings of length 1, of the sum of the levels or of one level."""

    @torch.inference_mode()
    def of(places: np.ndarray) -> np.ndarray:
        if level is None:
            return encoder.encode(torch.from_numpy(places)).numpy()
        laid = torch.from_numpy(places).split(1024)
        out = torch.cat([encoder.levels[level](part).float() for part in laid])
        return nn.functional.normalize(out, dim=1).numpy()

    return of


def trained_embeddings(name: str, settings: LocationSettings, places: np.ndarray) -> np.ndarray:
    """Return embeddings by a small encoder, which is trained, or read from disk, only now."""
    return embeddings(trained(name, settings))(places)


def measured(places: Known, seeds: int, only: list[str]) -> dict[str, Any]:
    """Compute the scores of each embedding, split and seed, for each probe and task; continue where a run ended."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    mark = mark_of(places)
    tasks = places.labels | places.values
    for name, encode in encoders():
        if only and name not in only:
            continue
        done = kept_scores(mark)  # again, since two processes may share the work
        wanted = [(kind, seed) for kind in SPLIT_KINDS for seed in range(seeds)]
        left = [(kind, seed) for kind, seed in wanted if f"{name}|{kind}|{seed}" not in done]
        if not left:
            continue
        began = time.monotonic()
        table = np.asarray(encode(places.coordinates), np.float32)
        for kind, seed in left:
            rows = split(places.coordinates, kind, seed)
            scores = {which: probe(table, tasks, rows, which, seed=seed) for which in PROBES}
            with KEPT.open("a") as file:
                file.write(json.dumps({"places": mark, "run": f"{name}|{kind}|{seed}", "scores": scores}) + "\n")
        say(f"{name}: {time.monotonic() - began:.0f} s")
    return kept_scores(mark)


def mark_of(places: Known) -> str:
    """Return a fingerprint of the places."""
    return hashlib.sha256(places.coordinates.tobytes()).hexdigest()[:12]


def kept_scores(mark: str) -> dict[str, Any]:
    """Return the scores computed so far for these places."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    entries = [json.loads(line) for line in lines]
    return {entry["run"]: entry["scores"] for entry in entries if entry["places"] == mark}


def summary(done: dict[str, Any], seeds: int, committed: dict[str, Any]) -> dict[str, Any]:
    """Return mean and standard deviation over the seeds, by name, split, probe and task."""
    out: dict[str, Any] = {}
    for name, _ in encoders():
        if any(f"{name}|{kind}|{seed}" not in done for kind in SPLIT_KINDS for seed in range(seeds)):
            say(f"{name}: not computed here, {'as committed' if name in committed else 'left out'}")
            out |= {name: committed[name]} if name in committed else {}
            continue
        for kind in SPLIT_KINDS:
            runs = [done[f"{name}|{kind}|{seed}"] for seed in range(seeds)]
            for which in PROBES:
                for task in (*CLASSES, *NUMBERS):
                    scores = [run[which][task] for run in runs]
                    spread = stdev(scores) if seeds > 1 else 0.0
                    found = {"mean": round(mean(scores), 4), "sd": round(spread, 4)}
                    out.setdefault(name, {}).setdefault(kind, {}).setdefault(which, {})[task] = found
    return out


def markdown(report: dict[str, Any]) -> str:
    """Return the tables: the linear probe in full, the others as means."""
    tasks = [*CLASSES, *NUMBERS]
    lines = []
    for kind in SPLIT_KINDS:
        lines += [
            "",
            f"**{kind.capitalize()} split, linear probe**: accuracy, and R² from temperature on; "
            f"{report['seeds']} seeds.",
            "",
            f"| embeddings | {' | '.join(tasks)} | mean, linear | kNN | MLP |",
            f"| --- |{' ---: |' * (len(tasks) + 3)}",
        ]
        if kind == "random":
            chance = [f"{report['chance'][task]:.2f}" for task in CLASSES] + ["0.00"] * len(NUMBERS)
            lines.append(f"| *most frequent class* | {' | '.join(chance)} | | | |")
        for name, found in report["scores"].items():
            probes = found[kind]
            cells = [f"{probes['linear'][task]['mean']:.2f}" for task in tasks]
            cells += [f"{mean(max(probes[which][task]['mean'], -1) for task in tasks):.2f}" for which in PROBES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    ours = report["scores"]["released, sum"]["random"]
    lines += ["", "| released weights | " + " | ".join(PUBLISHED) + " |", "| --- |" + " ---: |" * len(PUBLISHED)]
    lines.append("| published | " + " | ".join(f"{value:.2f}" for value in PUBLISHED.values()) + " |")
    for which in PROBES:
        lines.append(
            f"| here, {which}, random | " + " | ".join(f"{ours[which][t]['mean']:.2f}" for t in PUBLISHED) + " |"
        )
    return "\n".join(lines) + "\n"


def draw_maps(path: Path, width: int) -> None:
    """Draw the first three principal components as red, green and blue, one world map per embedding."""
    from open_geoclip.export.basemap import EXTENT, MAP_RATIO, draw_coasts, new_figure, save_png

    height = round(width * MAP_RATIO)
    x, y = np.meshgrid(
        (np.arange(width) + 0.5) / width * 2 - 1, (0.5 - (np.arange(height) + 0.5) / height) * 2 * MAP_RATIO
    )
    places = equal_earth_inverse(np.stack([x, y], axis=-1).reshape(-1, 2))
    on = (np.abs(places[:, 1]) <= 180) & (np.abs(places[:, 0]) < 89.9)
    figure = new_figure(12, 9.6, 110)
    known = dict(encoders())
    for number, name in enumerate(MAPPED):
        table = known[name](np.ascontiguousarray(places[on]))
        centred = table - table.mean(axis=0)
        _, sizes, axes = np.linalg.svd(centred[:: max(1, len(centred) // 3000)], full_matrices=False)
        parts = centred @ axes[:3].T
        low, high = np.percentile(parts, [2, 98], axis=0)
        image = np.ones((len(places), 3))
        image[on] = np.clip((parts - low) / (high - low), 0, 1)
        axis = figure.add_subplot(3, 2, number + 1)
        axis.imshow(image.reshape(height, width, 3), extent=EXTENT, interpolation="nearest")
        draw_coasts(axis)
        axis.set_axis_off()
        share = (sizes[:3] ** 2).sum() / (sizes**2).sum()
        axis.set_title(f"{name} ({share:.0%} of the variance)", fontsize=9)
        say(f"mapped {name}")
    figure.tight_layout()
    save_png(figure, path)


def key(name: str) -> str:
    """Return a name as part of a file name."""
    return "".join(c if c.isalnum() else "-" for c in name)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Compute what is not cached, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--land", type=int, default=LAND, help="places on land")
    parser.add_argument("--sea", type=int, default=SEA, help="places at sea")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="splits of each kind")
    parser.add_argument("--write", action="store_true", help="write results, tables in docs/ and maps too")
    parser.add_argument("--report", action="store_true", help="print the cached scores, compute nothing")
    parser.add_argument("--only", nargs="+", help="compute these embeddings; the others are taken as committed")
    parser.add_argument("--maps", action="store_true", help="draw the maps only")
    parser.add_argument("--map-width", type=int, default=320, help="pixels")
    options = parser.parse_args()
    if options.maps:
        draw_maps(MAPS, options.map_width)
        return
    began = time.monotonic()
    places = draw_places(options.land, options.sea)
    say(f"{len(places)} places: {time.monotonic() - began:.0f} s")
    done = kept_scores(mark_of(places)) if options.report else measured(places, options.seeds, options.only or [])
    committed = json.loads(RESULTS.read_text()) if options.only else {}
    if options.only and any(committed[name] != getattr(options, name) for name in ("land", "sea", "seeds")):
        parser.error("--only: the committed results are of other places or seeds")
    report = {
        "command": "python benchmarks/location_embeddings.py --write",
        "land": options.land,
        "sea": options.sea,
        "seeds": options.seeds,
        "torch": torch.__version__,
        "processors": os.cpu_count(),
        "chance": {name: round(value, 4) for name, value in places.chance.items()},
        "scores": summary(done, options.seeds, committed.get("scores", {})),
    }
    tables = markdown(report)
    print(tables)
    if options.write:
        atomic_write(RESULTS, json.dumps(report, indent=1) + "\n")
        put_between(PAGE, "make location-benchmark", tables)
        if not options.report and not options.only:
            draw_maps(MAPS, options.map_width)


if __name__ == "__main__":
    main()
