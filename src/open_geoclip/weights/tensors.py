"""The tensors of a GeoCLIP: how they are called, which shapes fit together, and their fingerprint.

The names are those of the released weights, and stay ours::

    logit_scale                                                ()
    location_encoder.LocEnc{i}.capsule.0.b                     (features, 2 or 3)   of level i; Fourier only
    location_encoder.LocEnc{i}.capsule.{1,3,...}.weight, bias  (width, input_size), then (width, width)
    location_encoder.LocEnc{i}.head.0.weight, bias             (output, width)
    image_encoder.mlp.{0,2,...}.weight, bias                   (widths[1], widths[0]), ...

and in a model with a text side of its own::

    image_encoder.projection.weight, bias                      (aligned, widths[0] - aligned)
    text_encoder.projection.weight, bias                       (aligned, the sentence vector's length)
    text_encoder.picture                                       (widths[0] - aligned,)
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from open_geoclip.errors import WeightsError
from open_geoclip.weights.config import PROJECTIONS, TEXT_WIDTHS, LocationSettings, input_size

__all__ = ["check_tensors", "expected_shapes", "fingerprint", "infer_location", "infer_widths", "is_finite"]


def infer_location(tensors: Mapping[str, Tensor], sigmas: Sequence[float], what: str) -> LocationSettings:
    """Read the settings of a released location encoder off its tensors.

    Args:
        tensors: Tensors under their canonical names.
        sigmas: One a level.
        what: What is being read, for messages.

    Returns:
        The settings; that every tensor follows them is for :func:`check_tensors` to see.

    Raises:
        WeightsError: The first level is not there or has no such shape.
    """
    level = "location_encoder.LocEnc0."
    features = _shape(tensors, level + "capsule.0.b", 2, what)[0]
    width = _shape(tensors, level + "capsule.1.weight", 2, what)[0]
    output = _shape(tensors, level + "head.0.weight", 2, what)[0]
    hidden = re.compile(re.escape(level) + r"capsule\.\d*[13579]\.weight")
    return LocationSettings(
        sigmas=[float(sigma) for sigma in sigmas],
        features=features,
        width=width,
        depth=sum(bool(hidden.fullmatch(name)) for name in tensors),
        output=output,
        projection="equal_earth",
    )


def infer_widths(tensors: Mapping[str, Tensor], what: str) -> list[int] | None:
    """Read the widths of the image head off its tensors.

    Args:
        tensors: Tensors under their canonical names.
        what: What is being read, for messages.

    Returns:
        Input, hidden and output widths, such as [768, 768, 512]; None if there is no image head.

    Raises:
        WeightsError: A weight of the head is not a matrix.
    """
    layers = sorted(
        int(match[1]) for name in tensors if (match := re.fullmatch(r"image_encoder\.mlp\.(\d+)\.weight", name))
    )
    if not layers:
        return None
    shapes = [_shape(tensors, f"image_encoder.mlp.{layer}.weight", 2, what) for layer in layers]
    return [shapes[0][1], *(shape[0] for shape in shapes)]


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int, what: str) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(f"{what}: the tensor {name} is missing")
    if tensors[name].ndim != axes:
        raise WeightsError(f"{what}: {name} has {tensors[name].ndim} axes where {axes} are expected")
    return tuple(tensors[name].shape)


def expected_shapes(
    location: LocationSettings, widths: Sequence[int] | None, *, aligned: int = 0, text: str | None = None
) -> dict[str, tuple[int, ...]]:
    """Every tensor that belongs to these settings, and its shape. No widths: a location encoder alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    if widths is not None and text is not None:
        picture = widths[0] - aligned
        for side, entering in (("image", picture), ("text", TEXT_WIDTHS[text])):
            shapes[f"{side}_encoder.projection.weight"] = (aligned, entering)
            shapes[f"{side}_encoder.projection.bias"] = (aligned,)
        shapes["text_encoder.picture"] = (picture,)
    if widths is not None:
        shapes["logit_scale"] = ()
        for layer, (entering, leaving) in enumerate(itertools.pairwise(widths)):
            shapes[f"image_encoder.mlp.{2 * layer}.weight"] = (leaving, entering)
            shapes[f"image_encoder.mlp.{2 * layer}.bias"] = (leaving,)
    width, features = location["width"], location["features"]
    fourier = location.get("encoding", "fourier") == "fourier"
    for level in range(len(location["sigmas"]) if fourier else 1):
        start = f"location_encoder.LocEnc{level}."
        if fourier:
            shapes[start + "capsule.0.b"] = (features, PROJECTIONS[location["projection"]])
        for layer in range(location["depth"]):
            shapes[f"{start}capsule.{2 * layer + 1}.weight"] = (width, width if layer else input_size(location))
            shapes[f"{start}capsule.{2 * layer + 1}.bias"] = (width,)
        shapes[start + "head.0.weight"] = (location["output"], width)
        shapes[start + "head.0.bias"] = (location["output"],)
    return shapes


def check_tensors(
    tensors: Mapping[str, Tensor],
    location: LocationSettings,
    widths: Sequence[int] | None,
    what: str,
    *,
    aligned: int = 0,
    text: str | None = None,
) -> dict[str, Tensor]:
    """Return the tensors as float32 if they are exactly those that the settings ask for.

    Args:
        tensors: Tensors under their canonical names, of any floating dtype.
        location: Settings of the location encoder.
        widths: Widths of the image head, or None for a location encoder alone.
        what: What is being read, for messages.
        aligned: See :class:`HeadSettings`.
        text: The sentence encoder of the model's text side, if it has one.

    Returns:
        The same tensors in the order of their names, float32, contiguous, on the CPU.

    Raises:
        WeightsError: A tensor is missing, not expected, of another shape, not floating, or holds NaN or
            infinity; the message names it. Or the two sides end in vectors of different lengths.
    """
    if widths is not None and widths[-1] != location["output"]:
        ends = f"the image head ends in {widths[-1]} numbers, the location encoder in {location['output']}"
        raise WeightsError(f"{what}: {ends}")
    expected = expected_shapes(location, widths, aligned=aligned, text=text)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise WeightsError(f"{what}: {_some(missing)} missing")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise WeightsError(f"{what}: {_some(unknown)} not expected with these settings")
    checked = {}
    for name in sorted(expected):
        tensor = tensors[name].detach()
        if tuple(tensor.shape) != expected[name]:
            raise WeightsError(f"{what}: {name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
        if not tensor.is_floating_point():
            raise WeightsError(f"{what}: {name} holds {tensor.dtype}, expected floating-point numbers")
        checked[name] = tensor.to("cpu", torch.float32).contiguous()
        if not is_finite(checked[name]):
            raise WeightsError(f"{what}: {name} holds NaN or infinity")
    return checked


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of float32 or less holds neither NaN nor infinity."""
    # Such a sum cannot overflow in float64, and is 30 times faster than to ask each number.
    return math.isfinite(tensor.sum(dtype=torch.float64).item())


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"the tensor {shown} is" if len(names) == 1 else f"{len(names)} tensors ({shown}, ...) are"


def fingerprint(tensors: Mapping[str, Tensor], location: LocationSettings) -> str:
    """Tell these weights from all others.

    Args:
        tensors: Tensors as :func:`check_tensors` returns them.
        location: Settings of the location encoder, since they change its answers as weights do.

    Returns:
        A sha256 in hex. It changes with any number, name, shape or setting, not with the order of the
        tensors or the dtype that they had on disk.
    """
    digest = hashlib.sha256(json.dumps(location, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).numpy().data)
    return digest.hexdigest()
