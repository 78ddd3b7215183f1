"""What token merging gains on a CPU: ``python benchmarks/token_merging.py``.

CLIP ViT-L/14 with random weights encodes images of noise, in float32, with several numbers of tokens merged per layer;
the runs take turns. Times do not depend on the weights. Agreement does: cosines with the features of the whole network
say nothing about trained weights, and none of a vision transformer are at hand here.
"""

import argparse
import os
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from gpu import VIT_L_14, random_tower
from open_geoclip.model.backbones.runtime import prepare_backbone
from report import seconds


@torch.inference_mode()
def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merge-tokens", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--engines", nargs="+", choices=("torch", "openvino"), default=["torch", "openvino"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--times", type=int, default=9)
    options = parser.parse_args()
    pixels = torch.randn(options.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    print(f"load before the run: {os.getloadavg()[0]:.1f}; batch of {options.batch}, seed 0\n")
    print(
        "| engine | merged per layer | a photo | times faster | processor time: times less | cosine, random weights |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for engine in options.engines:
        towers: dict[int, nn.Module] = {}
        for merged in (0, *options.merge_tokens):
            network = random_tower(VIT_L_14)
            network.merge_tokens = merged
            towers[merged] = prepare_backbone(network, engine, "float32")
        features = {merged: tower(pixels) for merged, tower in towers.items()}
        wall: dict[int, list[float]] = {merged: [] for merged in towers}
        work: dict[int, list[float]] = {merged: [] for merged in towers}
        for _ in range(options.times):
            for merged, tower in towers.items():
                start, used = time.perf_counter(), time.process_time()
                tower(pixels)
                wall[merged].append((time.perf_counter() - start) / options.batch)
                work[merged].append(time.process_time() - used)
        for merged in towers:
            faster, less = (median(runs[0]) / median(runs[merged]) for runs in (wall, work))
            cosine = float(F.cosine_similarity(features[merged], features[0]).mean())
            time_of = seconds(median(wall[merged]))
            print(f"| {engine} | {merged} | {time_of} | {faster:.2f} | {less:.2f} | {cosine:.4f} |", flush=True)


if __name__ == "__main__":
    main()
