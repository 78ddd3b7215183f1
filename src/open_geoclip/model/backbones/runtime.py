"""What runs a frozen backbone: torch, torch.compile or OpenVINO, in float32, bfloat16, float16 or int8.

OpenVINO lays fixed weights out for the processor once, which torch does anew in each product, and fuses a convolution
with what follows it. Converting a network takes a second for EfficientNet-Lite0 and ten for ViT-L/14, and quantising
one takes minutes, so both are kept in the cache folder.
"""

import contextlib
import copy
import functools
import hashlib
import inspect
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError, SettingsError, WeightsError
from open_geoclip.files import atomic_folder, cache_dir
from open_geoclip.model.backbones.self_check import (
    AUTO_COSINE,
    LEAST_COSINE,
    TOLD_COSINE,
    Agreement,
    Progress,
    Reference,
    agreement,
)

__all__ = [
    "MIN_CALIBRATION",
    "CompiledBackbone",
    "DType",
    "Engine",
    "Precision",
    "backbone_fingerprint",
    "copy_to_device",
    "precision_of",
    "prepare_backbone",
    "resolve_dtype",
]

logger = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]
Engine = Literal["auto", "torch", "compile", "openvino"]

MIN_CALIBRATION = 32
"""Images that quantisation needs at least."""
_HINTS = {"float32": "f32", "bfloat16": "bf16"}  # of OpenVINO


def resolve_dtype(name: DType, device: torch.device | str = "cpu") -> torch.dtype:
    """Return what networks compute in by torch.

    ``auto`` is bfloat16 where the processor multiplies it natively (AVX-512 BF16, AMX, a GPU that has it), and
    float32 elsewhere. Without such instructions bfloat16 is a hundred times slower than float32, not faster, so asking
    for it gives float32 and a logged warning.

    Raises:
        SettingsError: the name is not known, or is int8, which OpenVINO computes in.
    """
    if name not in get_args(DType):
        raise SettingsError(f"dtype: auto, float32, bfloat16, float16 or int8, not {name!r}")
    if name == "int8":
        raise SettingsError("dtype int8 is for image backbones that OpenVINO runs on a CPU")
    if name == "float32":
        return torch.float32
    if name == "float16":
        if torch.device(device).type != "cpu":
            return torch.float16
        logger.warning("float16 is for a GPU: computing in float32")
        return torch.float32
    if _has_bfloat16(torch.device(device)):
        return torch.bfloat16
    if name == "bfloat16":
        logger.warning("%s has no bfloat16 instructions, which makes it far slower: computing in float32", device)
    return torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _has_instructions("avx512_bf16", "amx_bf16")


def _has_instructions(*names: str) -> bool:
    """Return whether the processor has any of these."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.10
        return False
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in names)


def prepare_backbone(
    backbone: nn.Module,
    engine: Engine,
    dtype: DType,
    device: torch.device | str = "cpu",
    *,
    side: int | None = None,
    calibration: Callable[[], Sequence[Float[Tensor, "3 h w"]]] | None = None,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a frozen backbone ready to run.

    What it gives is compared, once per machine, with what a release was saved with, or else, unless it is torch in
    float32 itself, with torch in float32; see :mod:`~open_geoclip.model.backbones.self_check`. On a GPU, TF32 is
    switched off for this process: float32 is float32 there too.

    Args:
        backbone: as loaded, in float32.
        engine: ``torch``; ``compile``, by ``torch.compile``: a minute or more of work while loading, and again for
            another batch size; ``openvino``, on a CPU; ``auto`` is openvino where it can be used, or else torch.
        dtype: what it computes in. ``auto`` is bfloat16 where the device has instructions for it and features have a
            centred cosine of 0.999 with those of float32; float32 elsewhere; never int8.
        device: where to compute.
        side: of the square images that it reads, in pixels; default: its ``image_size``. Where it is not known nothing
            can be compared, and ``auto`` is float32.
        calibration: returns preprocessed images, for int8; see :class:`CompiledBackbone`.
        reference: what the backbone should give; default: what it gives by torch in float32.
        progress: called while images are compared.

    Raises:
        SettingsError: OpenVINO, compilation or int8 is asked for where it cannot be used, or features have a centred
            cosine below 0.9 with those of float32.
        WeightsError: torch in float32 does not give what the reference says.
        MissingExtraError: OpenVINO or int8 is asked for, and its extra is not installed.
    """
    if engine not in get_args(Engine):
        raise SettingsError(f"engine: auto, torch, compile or openvino, not {engine!r}")
    device = torch.device(device)
    if device.type == "cuda":  # 10 bits of mantissa, in convolutions by default: no float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    fits = hasattr(backbone, "image_size") and device.type == "cpu"
    if dtype == "int8":
        if not fits or engine in ("torch", "compile"):
            raise SettingsError("dtype int8 is for CLIP and other named backbones on a CPU, by the engine openvino")
        engine = "openvino"
        if not _has_instructions("avx512_vnni", "avx_vnni", "amx_int8"):
            logger.warning("this processor has no instructions for int8 (VNNI, AMX): float32 is as fast")
    if engine == "openvino" and not fits:
        raise SettingsError("the engine openvino runs CLIP and other named backbones on a CPU: use torch for others")
    in_openvino = engine == "openvino" or (engine == "auto" and fits and find_spec("openvino") is not None)
    side = getattr(backbone, "image_size", None) if side is None else side
    precisions = _precisions(dtype, device, can_check=side is not None)
    is_reference = not in_openvino and precisions == ["float32"] and reference is None
    fingerprint, different = "" if is_reference else backbone_fingerprint(backbone), ""

    def check(name: str, build: Callable[[], nn.Module], made: str = "") -> tuple[Agreement, str]:
        against = reference or Reference.from_backbone(backbone, cast(int, side), device, progress)
        found = agreement(name, fingerprint + made, against, build, device, progress)
        return found, found.error or f"{name}: the centred cosine with {against.source} is {found.cosine:.4f}"

    def check_torch() -> nn.Module:
        """Return the backbone in float32 by torch: what is expected, unless a reference says otherwise."""
        if reference is not None:
            found, said = check("float32 by torch", lambda: backbone.to(device))
            if found.cosine < AUTO_COSINE:
                raise WeightsError(
                    f"{said}. The image backbone or its preprocessing is not what the model was saved with: name the "
                    "backbone that it was trained with, or get it again"
                )
        return backbone.to(device)

    for precision in precisions:

        @functools.cache
        def build(precision: Precision = precision) -> nn.Module:
            if in_openvino:
                return CompiledBackbone(
                    backbone, precision, side=side, calibration=calibration, fingerprint=fingerprint
                )
            return copy.deepcopy(backbone).to(device, getattr(torch, precision))

        if not in_openvino and precision == "float32":
            break  # that is what others are compared with
        if side is None:
            return build()
        made = cast(CompiledBackbone, build()).made if precision == "int8" else ""
        found, different = check(f"{precision} by {'openvino' if in_openvino else 'torch'}", build, made)
        is_asked_for = dtype == precision != "float32"
        if found.cosine >= (LEAST_COSINE if is_asked_for else AUTO_COSINE):
            if is_asked_for and found.cosine < TOLD_COSINE:
                logger.warning("dtype %s: %s, so that some answers differ", dtype, different)
            prepared = build()
            return _compile(prepared, device) if engine == "compile" else prepared
        if is_asked_for:
            check_torch()
            limit = "" if found.error else f", below {LEAST_COSINE}"
            raise SettingsError(f"dtype {dtype}: {different}{limit}: use float32, or auto")
        logger.info("%s: not chosen", different)
    backbone = check_torch()
    if engine == "openvino":
        raise SettingsError(f"engine openvino: {different}: use torch")
    if in_openvino:
        logger.warning("torch runs the image backbone, not OpenVINO: %s", different)
    return _compile(backbone, device) if engine == "compile" else backbone


def _precisions(dtype: DType, device: torch.device, *, can_check: bool) -> list[Precision]:
    """Return what to compute in, the fastest first: one, or for ``auto`` what the device has instructions for."""
    if dtype == "int8":
        return ["int8"]
    if dtype != "auto":
        return [cast(Precision, str(resolve_dtype(dtype, device)).removeprefix("torch."))]
    return ["bfloat16", "float32"] if can_check and _has_bfloat16(device) else ["float32"]


def _compile(backbone: nn.Module, device: torch.device | str) -> nn.Module:
    """Return a backbone compiled by torch, which encodes two blank images: what does not work is an error now."""
    side = getattr(backbone, "image_size", None)
    if side is None:
        raise SettingsError("the engine compile needs a backbone with an image_size: use torch")
    compiled = cast(nn.Module, torch.compile(backbone))
    try:
        with torch.inference_mode():
            compiled(torch.zeros(2, 3, side, side, device=device))
    except Exception as error:  # of a compiler that is missing or fails, in whatever way
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SettingsError(
            f"the engine compile does not work here ({reason}): it needs a C++ compiler on a CPU, Triton on a GPU; "
            "use torch"
        ) from error
    return compiled


def precision_of(backbone: nn.Module) -> str:
    """Return what a prepared backbone computes in: ``float32``, ``bfloat16``, ``float16`` or ``int8``."""
    if isinstance(backbone, CompiledBackbone):
        return backbone.precision
    parameter = next(backbone.parameters(), None)
    return "float32" if parameter is None else str(parameter.dtype).removeprefix("torch.")


def copy_to_device(pixels: Tensor, device: torch.device | str) -> Tensor:
    """Return pixels on a device. To a GPU they are copied from pinned memory, while it computes and the caller goes on.

    Pinned memory is kept by torch until the copy is done.
    """
    if torch.device(device).type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


class CompiledBackbone(nn.Module):
    """A backbone compiled by OpenVINO for this processor.

    Args:
        model: loaded weights, float32.
        precision: float32, bfloat16 or int8: post-training quantisation by NNCF of weights, per channel, and
            activations, per tensor. What is not quantised computes in bfloat16 where the processor has it.
        side: of the square images that it takes, in pixels; default: the ``image_size`` of the model.
        fingerprint: of the model, where it is known; see :func:`backbone_fingerprint`.
        calibration: returns preprocessed images (3, side, side), by whose activations int8 is scaled; called once for a
            model, whose quantised network is in the cache then.

    Attributes:
        dim: length of a feature.
        feature: which one it is; "" where the model has only one.
        precision: as given.
        made: when the network was quantised, in nanoseconds; "" if it is not.

    Raises:
        MissingExtraError: OpenVINO is not installed; or NNCF is not, and has to quantise the model.
        SettingsError: the model has to be quantised, with fewer than 32 images.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Precision = "float32",
        *,
        side: int | None = None,
        fingerprint: str | None = None,
        calibration: Callable[[], Sequence[Float[Tensor, "3 h w"]]] | None = None,
    ) -> None:
        super().__init__()
        # OpenVINO and NNCF would import its telemetry; they go on without, and nothing here may report anything.
        sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
        try:
            import openvino
        except ImportError as error:
            what = ("dtype int8", "int8") if precision == "int8" else ("The engine openvino", "fast")
            raise MissingExtraError(*what) from error
        side = cast(int, model.image_size) if side is None else side
        fingerprint = fingerprint or backbone_fingerprint(model)
        network, made = _cached("openvino", fingerprint, lambda: _convert(model, side))
        if precision == "int8":  # what was quantised once is used, whatever the images
            network, made = _cached("int8", fingerprint, lambda: _quantize(model, network, calibration))
        self.feature: str = getattr(model, "feature", "")
        self.precision, self.made = precision, made if precision == "int8" else ""
        hint = {} if precision == "int8" else {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
        self._compiled = openvino.compile_model(network, "CPU", hint)
        self.dim = int(self._compiled.output(0).get_partial_shape()[1].get_length())

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return features of preprocessed images, as the torch module gives them."""
        found = self._compiled.create_infer_request().infer([pixels.detach().float().cpu().numpy()])
        return torch.from_numpy(np.array(found[0])).to(pixels.device)


def _cached(kind: str, fingerprint: str, make: Callable[[], Any]) -> tuple[Any, str]:
    """Return a network in OpenVINO's form, from the cache if it is there, and when it was made."""
    import openvino

    folder = cache_dir() / kind / fingerprint
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # of several processes, one converts
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    openvino.save_model(make(), temporary / "network.xml", compress_to_fp16=False)
        return openvino.Core().read_model(folder / "network.xml"), str(folder.stat().st_mtime_ns)
    except OSError as error:
        logger.warning("the cache %s cannot be used (%s): the backbone is converted anew each time", folder, error)
        return make(), str(time.time_ns())


def _convert(model: nn.Module, side: int) -> Any:
    import openvino

    kind = type(getattr(model, "model", model)).__name__
    logger.info("converting %s for OpenVINO, once", kind)
    shape, root = openvino.PartialShape([-1, 3, side, side]), logging.getLogger()
    level, handlers, filters = root.level, root.handlers[:], root.filters[:]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # sizes of images become constants, which is meant
        try:
            return openvino.convert_model(model, example_input=torch.zeros(2, 3, side, side), input=[shape])
        except MemoryError:
            raise
        except Exception as error:  # of tracing or of converting, in whatever way
            reason = next(reversed(str(error).strip().splitlines()), type(error).__name__)
            raise SettingsError(f"OpenVINO cannot convert a {kind} ({reason.strip()})") from error
        finally:  # it changes the root logger, so that no warning of anybody would be seen any more
            root.setLevel(level)
            root.handlers[:], root.filters[:] = handlers, filters


def _quantize(
    model: nn.Module, network: Any, calibration: Callable[[], Sequence[Float[Tensor, "3 h w"]]] | None
) -> Any:
    images = calibration() if calibration else []
    if len(images) < MIN_CALIBRATION:
        raise SettingsError(
            f"dtype int8: this backbone has to be quantised once, with at least {MIN_CALIBRATION} photos like those to "
            f"locate, and there are {len(images)}: run geoclip locate FOLDER --dtype int8, or in Python give "
            "calibration_images"
        )
    os.environ.setdefault("NNCF_CI", "1")  # its switch for telemetry, should openvino_telemetry be imported already
    try:
        with warnings.catch_warnings(action="ignore"):
            import nncf
    except ImportError as error:
        raise MissingExtraError("dtype int8", "int8") from error
    logger.warning("quantising %s with %d images, once; this takes minutes", type(model).__name__, len(images))
    nncf.set_log_level(logging.ERROR)
    is_transformer = any(isinstance(module, nn.LayerNorm) for module in model.modules())
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            network,
            nncf.Dataset([image[None].numpy() for image in images]),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        )


def backbone_fingerprint(model: nn.Module) -> str:
    """Return a hash of what features depend on: code, versions, plain attributes of all modules, and weights.

    Tensors are told apart by a sum over their bits and their first numbers, which takes a fifth of a second for
    ViT-L/14 where a sha256 takes one. The cache is the user's own: nobody forges a sum here.
    """
    about: list[object] = [torch.__version__]
    with contextlib.suppress(PackageNotFoundError):
        about.append(version("openvino"))
    kinds = {type(module) for module in model.modules() if not type(module).__module__.startswith("torch.")}
    about += sorted({_code_sha256(kind) for kind in kinds})
    for module in model.modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str | tuple)}
        about.append([type(module).__name__, plain])
    about.append(repr(getattr(getattr(model, "model", None), "config", None)))  # of transformers
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in sorted(model.state_dict().items()):
        bits = tensor.detach().float().contiguous().view(torch.int32).reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
        digest.update(bits[:256].cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _code_sha256(kind: type[nn.Module]) -> str:
    """Return a hash of the file of a class."""
    try:
        code = Path(inspect.getfile(kind)).read_bytes()
    except (TypeError, OSError):  # of a class that was typed into a notebook
        forward = kind.forward.__code__
        code = repr((forward.co_code, forward.co_consts, forward.co_names)).encode()
    return hashlib.sha256(code).hexdigest()
