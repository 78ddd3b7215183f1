"""The self-check of a backbone: whether a precision and an engine give the features that they should.

Rounding costs some networks more than others: bfloat16 leaves the features of CLIP as they are, and moves one in seven
answers of EfficientNet-Lite0. So each combination of weights, engine, precision and processor is compared once, on 32
images that are made here, and the result is kept in the cache folder. A release has the embeddings of these images, by
torch in float32, with which another backbone, other preprocessing and a broken engine are recognised too; without them
the backbone is compared with itself, run by torch in float32 on this machine.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from PIL import __version__ as PILLOW_VERSION
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.files import atomic_write, cache_dir
from open_geoclip.model.preprocessing import Preprocessing

__all__ = [
    "AUTO_COSINE",
    "LEAST_COSINE",
    "PICTURES_VERSION",
    "TOLD_COSINE",
    "Agreement",
    "Progress",
    "Reference",
    "agreement",
    "centred_cosine",
    "check_images",
    "check_pictures",
    "embed_pictures",
]

logger = logging.getLogger(__name__)

LEAST_COSINE = 0.9
"""Below this agreement a precision is refused."""
TOLD_COSINE = 0.98
"""Below this agreement a precision that was asked for is used with a warning."""
AUTO_COSINE = 0.999
"""Below this agreement ``auto`` does not choose a precision."""

PICTURES_VERSION = 1
"""Of :func:`check_pictures`; embeddings of others are not compared."""

Progress = Callable[[int, int], None]
"""Called with how many images are done, and of how many."""

_VERSION = 2  # raise it when the images, or what is compared, change
_IMAGES, _BATCH = 32, 8
_ROUNDED_COSINE = 0.99999  # embeddings that are all alike would lose what tells them apart
_CONTRASTS = (0.1, 0.2, 0.35, 0.5)  # views from orbit have little
_HEIGHT, _WIDTH = 240, 320  # of the pictures: resizing, cropping and squashing all change them


def check_images(side: int) -> Float[Tensor, "32 3 side side"]:
    """Return coloured noise with the spectrum of natural images, the same on every machine, from -1 to 1.

    Grids of 2, 4, 8... random cells are enlarged and added; a grid's share is that of its scale, as amplitudes of
    natural images fall with frequency (Field, 1987).

    Args:
        side: of the square images, in pixels.
    """
    generator = np.random.default_rng(0)
    images = _enlarge(lambda cells: generator.integers(0, 256, (_IMAGES, 3, cells, cells)), side, side)
    brightness = torch.from_numpy(generator.uniform(-0.5, 0.5, _IMAGES).astype(np.float32))
    return (images + brightness[:, None, None, None]).clamp(-1, 1)


def check_pictures(n: int = _IMAGES) -> UInt8[np.ndarray, "n 240 320 3"]:
    """Return the same kind of noise as pictures that are still to be preprocessed, RGB: the first n of 32.

    Random cells are bytes of SHAKE-256: those of numpy's generators may be others in another version, and what is
    computed of these pictures is stored in releases.
    """

    def draw(cells: int) -> UInt8[np.ndarray, "n 3 c c"]:
        drawn = hashlib.shake_256(f"{cells}".encode()).digest(n * 3 * cells * cells)
        return np.frombuffer(drawn, np.uint8).reshape(n, 3, cells, cells)

    images = _enlarge(draw, _HEIGHT, _WIDTH) + torch.linspace(-0.5, 0.5, _IMAGES)[:n, None, None, None]
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _enlarge(draw: Callable[[int], np.ndarray], height: int, width: int) -> Float[Tensor, "n 3 h w"]:
    """Return the sum of enlarged grids of random cells from 0 to 255, with four contrasts in turn."""
    cells, images = 2, torch.zeros(())
    while cells <= height // 2:
        grid = torch.from_numpy(draw(cells).astype(np.float32)) / 127.5 - 1
        grid = grid[:, :1] + 0.5 * grid  # more light than colour
        images = images + F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False) / cells**0.5
        cells *= 2
    contrast = torch.tensor(_CONTRASTS).repeat(_IMAGES // len(_CONTRASTS))[: len(images)]
    return images * (contrast / images.flatten(1).std(dim=1))[:, None, None, None]


def centred_cosine(features: Float[Tensor, "n k"], reference: Float[Tensor, "n k"]) -> float:
    """Return the mean cosine of features and their reference, after the reference's mean over images is subtracted.

    What all images have in common would make any two features alike; a head reads the rest.
    """
    mean = reference.mean(dim=0)
    return float(F.cosine_similarity(features - mean, reference - mean).mean())


@dataclass(frozen=True, eq=False)
class Reference:
    """What is compared, and with what.

    Attributes:
        key: of what it depends on, beside the backbone.
        source: whose features or embeddings they are, in words.
        images: returns the first n images, preprocessed.
        expected: returns what is expected for these.
        encode: makes of features what is compared.
    """

    key: str
    source: str
    images: Callable[[int], Float[Tensor, "n 3 h w"]]
    expected: Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n k"]]
    encode: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n k"]] = lambda features: features

    @classmethod
    def from_backbone(
        cls, backbone: nn.Module, side: int, device: torch.device, progress: Progress | None = None
    ) -> "Reference":
        """Expect the features of a backbone in float32, computed by torch on this machine."""
        return cls(
            f"{side}",
            "features of torch in float32",
            lambda n: check_images(side)[:n],
            lambda images: _run(backbone.to(device), images, device, progress),
        )

    @classmethod
    def from_release(
        cls,
        embeddings: Float[Tensor, "32 k"],
        preprocessing: Preprocessing,
        encode: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n k"]],
        name: str,
        fingerprint: str,
    ) -> "Reference":
        """Expect the embeddings that a release was saved with.

        Args:
            embeddings: of :func:`check_pictures`; see :func:`embed_pictures`.
            preprocessing: of the backbone that is loaded.
            encode: from features to embeddings.
            name: of the release.
            fingerprint: of the release.
        """
        about = f"{fingerprint} {preprocessing} {PILLOW_VERSION}"  # which resizes the pictures
        digest = hashlib.sha256(about.encode() + embeddings.numpy().tobytes())
        return cls(
            digest.hexdigest(),
            f"embeddings that {name} was saved with",
            lambda n: _preprocess(preprocessing, n),
            lambda images: embeddings[: len(images)].float(),
            encode,
        )


@dataclass(frozen=True)
class Agreement:
    """What a check found.

    Attributes:
        cosine: :func:`centred_cosine`; 0 where a number is not finite, or nothing could be computed.
        error: why nothing could be computed, or "".
    """

    cosine: float
    error: str = ""


def agreement(
    name: str,
    fingerprint: str,
    reference: Reference,
    candidate: Callable[[], nn.Module],
    device: torch.device,
    progress: Progress | None = None,
) -> Agreement:
    """Return the agreement of a candidate with its reference, from the cache if it is there.

    Args:
        name: of precision and engine; float32, where no rounding is measured, is checked on 8 images.
        fingerprint: of the backbone.
        reference: what is expected.
        candidate: returns the backbone to check; called only if it was not checked before.
        device: where it computes.
        progress: called while images are encoded.
    """
    key = hashlib.sha256(json.dumps([_VERSION, name, fingerprint, reference.key, _processor(device)]).encode())
    path = cache_dir() / "self-check" / f"{key.hexdigest()[:32]}.json"
    cached = _read(path)
    if cached is not None:
        return cached
    logger.info("checking %s of the image backbone, once", name)
    images = reference.images(_BATCH if name.startswith("float32") else _IMAGES)
    expected = reference.expected(images)
    try:
        with torch.inference_mode():
            found = reference.encode(_run(candidate(), images, device, progress).to(device)).float().cpu()
        cosine = centred_cosine(found, expected) if found.isfinite().all() else 0.0
        checked = Agreement(cosine)
    except SettingsError as error:  # it cannot be converted
        checked = Agreement(0.0, str(error))
    except (MissingExtraError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:  # of an engine that cannot run this network
        reason = next(reversed(str(error).strip().splitlines()), "")
        checked = Agreement(0.0, f"{name} ends in {type(error).__name__}: {reason.strip()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"check": name, **vars(checked)}) + "\n")
    except OSError as error:
        logger.warning("the cache %s cannot be used (%s): %s is checked anew each time", path, error, name)
    return checked


@torch.inference_mode()
def embed_pictures(
    backbone: nn.Module,
    preprocessing: Preprocessing,
    encode: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n k"]],
    device: torch.device,
    progress: Progress | None = None,
) -> Float[Tensor, "32 k"]:
    """Return embeddings of :func:`check_pictures`, as a release stores them: float16 where that is exact enough."""
    features = _run(backbone, _preprocess(preprocessing, _IMAGES), device, progress)
    embeddings = encode(features.to(device)).float().cpu()
    rounded = embeddings.half()
    return rounded if centred_cosine(rounded.float(), embeddings) > _ROUNDED_COSINE else embeddings


def _preprocess(preprocessing: Preprocessing, n: int) -> Float[Tensor, "n 3 h w"]:
    return torch.stack([preprocessing(Image.fromarray(picture)) for picture in check_pictures(n)])


@torch.inference_mode()
def _run(
    network: nn.Module, images: Float[Tensor, "n 3 h w"], device: torch.device, progress: Progress | None = None
) -> Float[Tensor, "n d"]:
    """Return features as float32 on the CPU."""
    found = []
    for part in images.split(_BATCH):
        found.append(network(part.to(device)).float().cpu())
        if progress is not None:
            progress(sum(map(len, found)), len(images))
    return torch.cat(found)


def _read(path: Path) -> Agreement | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Agreement(float(stored["cosine"]), str(stored["error"]))
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
