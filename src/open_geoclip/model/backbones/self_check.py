"""The self-check of a backbone: whether a cheaper precision, or another engine, gives the features of torch in float32.

Rounding costs some networks more than others: bfloat16 leaves the features of CLIP as they are, and moves one in seven
answers of EfficientNet-Lite0. So each combination of weights, engine, precision and processor is compared once, on 32
images that are made here, and the result is kept in the cache folder.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.files import atomic_write, cache_dir

__all__ = ["AUTO_COSINE", "LEAST_COSINE", "TOLD_COSINE", "agreement", "centred_cosine", "check_images"]

logger = logging.getLogger(__name__)

LEAST_COSINE = 0.9
"""Below this agreement a precision is refused."""
TOLD_COSINE = 0.98
"""Below this agreement a precision that was asked for is used with a warning."""
AUTO_COSINE = 0.999
"""Below this agreement ``auto`` does not choose a precision."""

_VERSION = 1  # raise it when the images, or what is compared, change
_IMAGES, _BATCH = 32, 8
_CONTRASTS = (0.1, 0.2, 0.35, 0.5)  # views from orbit have little


def check_images(side: int) -> Float[Tensor, "32 3 side side"]:
    """Return coloured noise with the spectrum of natural images, the same on every machine, from -1 to 1.

    Grids of 2, 4, 8... random cells are enlarged and added; a grid's share is that of its scale, as amplitudes of
    natural images fall with frequency (Field, 1987).

    Args:
        side: of the square images, in pixels.
    """
    generator = np.random.default_rng(0)
    images = torch.zeros(_IMAGES, 3, side, side)
    cells = 2
    while cells <= side // 2:
        drawn = generator.integers(0, 256, (_IMAGES, 3, cells, cells)).astype(np.float32)
        grid = torch.from_numpy(drawn) / 127.5 - 1
        grid = grid[:, :1] + 0.5 * grid  # more light than colour
        images += F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False) / cells**0.5
        cells *= 2
    contrast = torch.tensor(_CONTRASTS).repeat(_IMAGES // len(_CONTRASTS))
    brightness = torch.from_numpy(generator.uniform(-0.5, 0.5, _IMAGES).astype(np.float32))
    images *= (contrast / images.flatten(1).std(dim=1))[:, None, None, None]
    return (images + brightness[:, None, None, None]).clamp(-1, 1)


def centred_cosine(features: Float[Tensor, "n k"], reference: Float[Tensor, "n k"]) -> float:
    """Return the mean cosine of features and their reference, after the reference's mean over images is subtracted.

    What all images have in common would make any two features alike; a head reads the rest.
    """
    mean = reference.mean(dim=0)
    return float(F.cosine_similarity(features - mean, reference - mean).mean())


def agreement(
    name: str,
    fingerprint: str,
    side: int,
    reference: nn.Module,
    candidate: Callable[[], nn.Module],
    device: torch.device,
) -> float:
    """Return the agreement of a candidate with its reference on :func:`check_images`, from the cache if it is there.

    Args:
        name: of engine and precision.
        fingerprint: of the backbone.
        side: of the images, in pixels.
        reference: the backbone in float32.
        candidate: returns the backbone to check; called only if it was not checked before.
        device: where both compute; the reference is moved to it.

    Returns:
        :func:`centred_cosine`; 0 if a feature is not finite.
    """
    key = hashlib.sha256(json.dumps([_VERSION, name, fingerprint, side, _processor(device)]).encode()).hexdigest()
    path = cache_dir() / "self-check" / f"{key[:32]}.json"
    cached = _read(path)
    if cached is not None:
        return cached
    logger.info("checking %s of %s on %d images, once", name, type(reference).__name__, _IMAGES)
    images = check_images(side)
    if name.startswith("float32"):  # no rounding to measure, only whether the engine works
        images = images[:_BATCH]
    expected, found = (_features(network, images, device) for network in (reference, candidate()))
    cosine = centred_cosine(found, expected) if found.isfinite().all() else 0.0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"check": name, "cosine": cosine}) + "\n")
    except OSError as error:
        logger.warning("the cache %s cannot be used (%s): %s is checked anew each time", path, error, name)
    return cosine


@torch.inference_mode()
def _features(network: nn.Module, images: Float[Tensor, "n 3 h w"], device: torch.device) -> Float[Tensor, "n k"]:
    network = network.to(device)
    return torch.cat([network(part.to(device)).float().cpu() for part in images.split(_BATCH)])


def _read(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["cosine"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s): checking again", path, error)
        return None


def _processor(device: torch.device) -> list[object]:
    """Return what decides which instructions compute: the processor's kind and flags, or the GPU's name."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device)]
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # before torch 2.10
    flags = sorted(name for name, value in has.items() if value is True)
    return [has.get("cpu_name"), torch.backends.cpu.get_cpu_capability(), flags]
