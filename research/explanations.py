"""``python -m research.explanations``: how far explanations of the embedded model can be trusted.

Deletion and insertion (Petsiuk et al., "RISE", BMVC 2018): the cells of a view are covered with its mean colour in the
order of a map, the most important first or last, and the view is located again. A good map loses the place soon and
keeps it long. Baselines are cells in random order, a disc around a random cell, and one around the centre. Sanity check
(Adebayo et al., NeurIPS 2018): maps of a model whose weights are replaced by random ones, from the output down, must
differ from those of the model. Views are those of the test split; nothing was chosen on them.

Writes the tables of docs/explain.md between their markers and two pictures. ``--times`` measures the time per photo.
"""

import argparse
import copy
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn

from open_geoclip.data.earth_views import views
from open_geoclip.export.basemap import new_figure, save_png
from open_geoclip.export.explanations import draw_explanation
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import geodesic_km
from open_geoclip.model.backbones.clip import ClipVision, ClipVisionSettings
from open_geoclip.model.backbones.earth import EfficientNetLite
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search.explain import attribution, block_products, cover
from open_geoclip.search.explanation import WITHIN_KM
from open_geoclip.search.locator import Locator
from open_geoclip.weights.load import load_model

__all__ = ["covered_copies", "main", "measure", "rank_correlation", "replace_page", "sanity_check"]

CELLS = 14
"""Per side, of 16 pixels each."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the view that is covered."""
_GRID = 7
_BASELINES = ("random cells", "random disc", "disc around the centre")
_RESAMPLES = 2000
_EXAMPLE = 7  # the view of the picture

_Map = Float[np.ndarray, "14 14"]


def covered_copies(pixels: Float[Tensor, "3 h w"], order: Float[np.ndarray, "14 14"]) -> Float[Tensor, "n 3 h w"]:
    """Return an image with more and more of its most important cells covered, then with more and more of the others."""
    ranks = np.argsort(np.argsort(-order, axis=None, kind="stable")).reshape(order.shape)
    masks = np.stack([ranks < round(share * ranks.size) for share in SHARES])
    masks = np.concatenate([masks, ~masks[::-1]])
    mask = F.interpolate(torch.from_numpy(masks[:, None].astype(np.float32)), size=pixels.shape[1:], mode="nearest")
    return torch.lerp(pixels[None], pixels.mean(dim=(1, 2), keepdim=True)[None], mask)


def _discs(rng: np.random.Generator) -> tuple[_Map, _Map]:
    """Return orders by the distance to a random cell and to the centre."""
    y, x = np.mgrid[:CELLS, :CELLS]
    found = [-np.hypot(y - row, x - column) for row, column in (rng.uniform(0, CELLS - 1, 2), [(CELLS - 1) / 2] * 2)]
    return found[0], found[1]


def _block_maps(model: GeoCLIP, pixels: Float[Tensor, "3 h w"], target: Float[Tensor, " k"]) -> dict[str, _Map]:
    """Return two other maps of the same products of gradients and activations.

    HiResCAM (Draelos and Carin, 2020) sums them over channels, and keeps what is positive then: here of the last block,
    and the mean over all blocks, as LayerCAM is.
    """
    backbone = model.image_encoder.backbone
    assert isinstance(backbone, EfficientNetLite)
    maps = []
    for product in block_products(model, backbone, pixels[None], target):
        layer = product.sum(dim=1, keepdim=True).clamp_min(0)
        layer = F.interpolate(layer, size=(CELLS, CELLS), mode="bilinear" if layer.shape[3] < CELLS else "area")
        maps.append((layer / layer.sum().clamp_min(1e-12))[0, 0].numpy())
    return {"HiResCAM": np.mean(maps, axis=0), "HiResCAM, last block": maps[-1]}


class _View:
    """A view, its first candidate, and what covered copies of it lose.

    Args:
        locator: of the embedded model.
        pixels: the preprocessed view.
    """

    def __init__(self, locator: Locator, pixels: Float[Tensor, "3 h w"]) -> None:
        self.locator, self.pixels = locator, pixels
        posterior = locator.posterior(self.encode(pixels[None]))
        found = posterior.candidates(2, merge_km=locator.search_space.merge_km).coordinates[0]
        self.place, self.second = found[:1], np.nan_to_num(found[1:])
        with torch.no_grad():
            self.targets = locator.model.encode_location(torch.from_numpy(np.concatenate([self.place, self.second])))

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        return torch.cat([self.locator.model.encode_image(part) for part in pixels.split(16)])

    def locate(self, pixels: Float[Tensor, "n 3 h w"]) -> Float64[np.ndarray, "n 3"]:
        """Return probability within 200 km of the place, km to the answer and score, of each copy."""
        embeddings = self.encode(pixels)
        posterior = self.locator.posterior(embeddings)
        answers = posterior.decode("mass", self.locator.search_space.merge_km)
        places = np.repeat(self.place, len(pixels), axis=0)
        probability = posterior.profile(places).within((WITHIN_KM,))[:, 0]
        scores = (embeddings @ self.targets[0]).double().numpy()
        return np.stack([probability, geodesic_km(places, answers), scores], axis=1)


def measure(
    images: Float[Tensor, "n 3 h w"], processes: int = 1, seed: int = 0
) -> dict[str, Float64[np.ndarray, "n 2 5 2"]]:
    """Return, of each method and view, deletion and insertion at each share: probability and km.

    Args:
        images: preprocessed views.
        processes: that share the views.
        seed: of the random orders.
    """
    jobs = list(enumerate(images.split(-(-len(images) // processes))))
    size = len(jobs[0][1])
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(_measure_part, [(part, number * size, seed) for number, part in jobs]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure_part(
    job: tuple[Float[Tensor, "n 3 h w"], int, int],
) -> dict[str, Float64[np.ndarray, "n 2 5 2"]]:
    images, start, seed = job
    locator, torch_model = Locator.from_pretrained("earth"), load_model("earth", towers=("image",))
    found: dict[str, list[Float64[np.ndarray, "2 5 2"]]] = {}
    for number, pixels in enumerate(images, start):
        rng = np.random.default_rng([seed, number])
        view = _View(locator, pixels)
        first, second = view.targets
        loss = view.locate(cover(pixels, _GRID))
        cells = np.ones((CELLS // _GRID,) * 2)
        orders: dict[str, _Map] = {
            "LayerCAM": attribution(torch_model, pixels, first)[1].numpy(),
            "LayerCAM against the second candidate": attribution(torch_model, pixels, first - second)[1].numpy(),
            **_block_maps(torch_model, pixels, first),
            "occlusion by probability": np.kron(-loss[:, 0].reshape(_GRID, _GRID), cells),
            "occlusion by score": np.kron(-loss[:, 2].reshape(_GRID, _GRID), cells),
            **dict(zip(_BASELINES, (rng.random((CELLS, CELLS)), *_discs(rng)), strict=True)),
        }
        values = view.locate(torch.cat([covered_copies(pixels, order) for order in orders.values()]))
        parts = values[:, :2].reshape(len(orders), 2, len(SHARES), 2)
        for name, part in zip(orders, parts, strict=True):
            found.setdefault(name, []).append(part)
    return {name: np.stack(parts) for name, parts in found.items()}


def rank_correlation(a: Float[np.ndarray, "r c"], b: Float[np.ndarray, "r c"]) -> float:
    """Return Spearman's rank correlation of two maps; 0 where one of them is constant."""
    return float(np.nan_to_num(spearmanr(a, b, axis=None).statistic)) if np.ptp(a) and np.ptp(b) else 0.0


def sanity_check(
    model: GeoCLIP, images: Float[Tensor, "n 3 h w"], targets: Float[Tensor, "n k"]
) -> dict[str, tuple[float, float]]:
    """Return mean rank correlations with the maps of the model as weights become random, from the output down.

    Args:
        model: that gives gradients; it is copied.
        images: preprocessed views.
        targets: embedding of the place of each.

    Returns:
        Of LayerCAM and of HiResCAM, by what is random.
    """
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)

    def maps(of: GeoCLIP) -> list[tuple[_Map, _Map]]:
        pairs = zip(images, targets, strict=True)
        return [(attribution(of, *one)[1].numpy(), _block_maps(of, *one)["HiResCAM"]) for one in pairs]

    own, encoder = maps(model), changed.image_encoder
    assert isinstance(encoder.backbone, EfficientNetLite)
    blocks = list(encoder.backbone.blocks)
    stages: dict[str, list[nn.Module]] = {
        "head": [encoder.mlp, *([] if encoder.projection is None else [encoder.projection])],
        "and block 16": blocks[15:],
        "and blocks 12 to 15": blocks[11:15],
        "and blocks 6 to 11": blocks[5:11],
        "and blocks 1 to 5": blocks[:5],
    }
    found = {}
    for name, modules in stages.items():
        for weight in (weight for module in modules for weight in module.parameters()):
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * weight.std() + weight.mean())
        correlations = [
            [rank_correlation(a, b) for a, b in zip(one, other, strict=True)]
            for one, other in zip(own, maps(changed), strict=True)
        ]
        found[name] = tuple(np.mean(correlations, axis=0).tolist())
    return found


# --- the page -------------------------------------------------------------------------------------


def _interval(values: Float64[np.ndarray, " n"]) -> float:
    """Return half of the width of the bootstrap's 95 % interval of the mean."""
    rows = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    return float(np.ptp(np.percentile(values[rows].mean(axis=1), [2.5, 97.5])) / 2)


def deletion_table(results: dict[str, Float64[np.ndarray, "n 2 5 2"]]) -> list[str]:
    """Return lines of Markdown: means over shares and views, and the gain over each baseline with 95 % intervals."""
    gains = {name: (one[:, 1, :, 0] - one[:, 0, :, 0]).mean(axis=1) for name, one in results.items()}
    lines = [
        "| order | deletion | insertion | deletion, km | insertion, km | gain over random cells | over a random disc | "
        "over the centre |",
        "| --- " * 8 + "|",
    ]
    for name, one in results.items():
        mean = one.mean(axis=(0, 2))
        cells = [f"{100 * mean[0, 0]:.1f}", f"{100 * mean[1, 0]:.1f}", f"{mean[0, 1]:,.0f}", f"{mean[1, 1]:,.0f}"]
        for baseline in _BASELINES:
            difference = 100 * (gains[name] - gains[baseline])
            own = name == baseline
            cells.append("" if own else f"{difference.mean():+.1f} ± {_interval(difference):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _draw_curves(path: Path, results: dict[str, Float64[np.ndarray, "n 2 5 2"]]) -> None:
    figure = new_figure(9.5, 3.8, 130)
    colours = ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#000000", "#999999")  # Okabe and Ito
    shown = ("LayerCAM", "occlusion by score", "occlusion by probability", "HiResCAM", *_BASELINES[1:])
    for number, title in enumerate(("deletion: the most important first", "insertion: the least important first")):
        axes = figure.add_axes((0.07 + 0.48 * number, 0.14, 0.42, 0.76))
        for name, colour in zip(shown, colours, strict=True):
            share = np.array(SHARES) if number == 0 else 1 - np.array(SHARES)[::-1]
            style = "dashed" if name in _BASELINES else "solid"
            mean = 100 * results[name][:, number, :, 0].mean(axis=0)
            axes.plot(100 * share, mean, color=colour, linestyle=style, marker="o", markersize=3, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("% of the view covered", fontsize=8)
        axes.set_ylim(0, 100)
        axes.tick_params(labelsize=8)
        if number == 0:
            axes.set_ylabel(f"probability within {WITHIN_KM} km, %", fontsize=8)
            axes.legend(fontsize=7, frameon=False)
    save_png(figure, path)


def replace_page(text: str, name: str, lines: Sequence[str]) -> str:
    """Return a page with other lines between the two markers of a name."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    assert start in text, f"the page has a place for {name}"
    body = "\n".join(lines)
    return re.sub(f"(?<={re.escape(start)}).*?(?={re.escape(end)})", lambda _: f"\n{body}\n\n", text, flags=re.DOTALL)


# --- time -----------------------------------------------------------------------------------------


def _median_s(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))  # the first one warms up


def time_table(locator: Locator, image: Image.Image) -> list[str]:
    """Return lines of Markdown: seconds per photo of the map alone, and with occlusion."""
    vision = ClipVision(ClipVisionSettings(1024, 4096, 24, 16, projection_dim=768, patch_size=14))
    for parameter in vision.parameters():
        nn.init.normal_(parameter, std=0.02)
    clip = GeoCLIP(ImageEncoder(vision, None, ImageSettings()), LocationEncoder(LocationSettings())).eval()
    pixels, target = torch.randn(3, 224, 224), F.normalize(torch.randn(512), dim=0)

    def encode_grid() -> None:
        with torch.inference_mode():
            for part in cover(pixels, _GRID).split(8):
                clip.encode_image(part)

    rows = {
        "`earth`: answer alone": _median_s(lambda: locator.locate(image), 20),
        "`earth`: answer and map (LayerCAM)": _median_s(lambda: locator.explain(image, grid=0), 20),
        "`earth`: with 49 covered parts": _median_s(lambda: locator.explain(image, grid=_GRID), 10),
        "CLIP ViT-L/14 in torch: embedding alone": _median_s(lambda: clip.encode_image(pixels[None]), 3),
        "CLIP ViT-L/14 in torch: map (LeGrad)": _median_s(lambda: attribution(clip, pixels, target), 3),
        "CLIP ViT-L/14 in torch: 49 covered parts": _median_s(encode_grid, 1),
    }
    return [
        "| what | s per photo |",
        "| --- | --- |",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in rows.items()),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m research.explanations", description="Measure explanations.")
    parser.add_argument("--views", type=int, default=200, help="of the test split")
    parser.add_argument("--sanity-views", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--times", action="store_true", help="measure the time per photo instead")
    parser.add_argument("--page", type=Path, default=Path("docs/explain.md"))
    options = parser.parse_args(arguments)
    locator = Locator.from_pretrained("earth")
    page = options.page.read_text(encoding="utf-8")
    batch = next(views("test", options.views, batch_size=options.views))
    photos = [Image.fromarray(pixels) for pixels in batch.images]
    if options.times:
        lines = time_table(locator, photos[0])
        atomic_write(options.page, replace_page(page, "times", lines))
    else:
        model = load_model("earth", towers=("image",))
        images = torch.stack([model.image_encoder.preprocessing(photo) for photo in photos])
        results = measure(images, options.processes)
        few = images[: options.sanity_views]
        targets = torch.cat([_View(locator, one).targets[:1] for one in few])
        sanity = sanity_check(model, few, targets)
        lines = deletion_table(results)
        page = replace_page(page, "deletion and insertion", lines)
        rows = [f"| {name} | {one:.2f} | {other:.2f} |" for name, (one, other) in sanity.items()]
        rows = ["| random weights | LayerCAM | HiResCAM |", "| --- | --- | --- |", *rows]
        atomic_write(options.page, replace_page(page, "sanity check", rows))
        _draw_curves(options.page.with_name("explain-curves.png"), results)
        photo = photos[min(_EXAMPLE, len(photos) - 1)]
        example = replace(locator.explain(photo), image="a view of the test split")
        draw_explanation(options.page.with_name("explain.png"), example, photo)
        lines += rows
    print("\n".join(lines))


if __name__ == "__main__":
    main()
