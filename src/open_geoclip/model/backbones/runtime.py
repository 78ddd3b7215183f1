"""What runs a frozen backbone: torch in float32, bfloat16 or float16, torch.compile, or OpenVINO on a CPU.

OpenVINO lays fixed weights out for the processor once, which torch does anew in each product, and fuses a convolution
with what follows it. Converting a network takes a second for EfficientNet-Lite0 and ten for ViT-L/14, so the converted
network is kept in the cache folder.
"""

import hashlib
import inspect
import logging
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.files import atomic_folder, cache_dir

__all__ = ["CompiledBackbone", "DType", "Engine", "copy_to_device", "prepare_backbone", "resolve_dtype"]

logger = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16"]
Engine = Literal["auto", "torch", "compile", "openvino"]


def resolve_dtype(name: DType, device: torch.device | str = "cpu") -> torch.dtype:
    """Return what a frozen backbone computes in.

    ``auto`` is bfloat16 where the processor multiplies it natively (AVX-512 BF16, AMX, a GPU that has it), and
    float32 elsewhere. Without such instructions bfloat16 is a hundred times slower than float32, not faster, so asking
    for it gives float32 and a logged warning.

    Raises:
        SettingsError: the name is not known.
    """
    if name not in get_args(DType):
        raise SettingsError(f"dtype: auto, float32, bfloat16 or float16, not {name!r}")
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
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.10
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def prepare_backbone(
    backbone: nn.Module, engine: Engine, dtype: DType, device: torch.device | str = "cpu"
) -> nn.Module:
    """Return a frozen backbone ready to run.

    Args:
        backbone: as loaded.
        engine: ``torch``; ``compile``, by ``torch.compile``: a minute or more of work while loading, and again for
            another batch size; ``openvino``, on a CPU; ``auto`` is openvino where it can be used, or else torch.
        dtype: see :func:`resolve_dtype`.
        device: where to compute.

    Raises:
        SettingsError: OpenVINO or compilation is asked for where it cannot be used.
        MissingExtraError: OpenVINO is asked for and not installed.
    """
    if engine not in get_args(Engine):
        raise SettingsError(f"engine: auto, torch, compile or openvino, not {engine!r}")
    precision = resolve_dtype(dtype, device)
    fits = hasattr(backbone, "image_size") and torch.device(device).type == "cpu"
    if engine == "openvino" and not fits:
        raise SettingsError("the engine openvino runs CLIP and EfficientNet-Lite on a CPU: use torch for others")
    if engine == "openvino" or (engine == "auto" and fits and find_spec("openvino") is not None):
        return CompiledBackbone(backbone, bfloat16=precision == torch.bfloat16)
    backbone = backbone.to(device, precision)
    return _compile(backbone, device) if engine == "compile" else backbone


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
        model: loaded weights, float32; a module with ``dim``, the length of a feature, and ``image_size``, the side of
            the square images that it takes, in pixels.
        bfloat16: compute in bfloat16, where the processor has it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(self, model: nn.Module, *, bfloat16: bool = False) -> None:
        super().__init__()
        # OpenVINO would import its telemetry; it goes on without, and nothing here may report anything.
        sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("The engine openvino", "fast") from error
        self.dim = model.dim
        network = _converted(model)
        precision = "bf16" if bfloat16 else "f32"
        self._compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return features of preprocessed images, as the torch module gives them."""
        found = self._compiled.create_infer_request().infer([pixels.detach().float().cpu().numpy()])
        return torch.from_numpy(np.array(found[0])).to(pixels.device)


def _converted(model: nn.Module) -> Any:
    """Return the network in OpenVINO's form, from the cache if it is there."""
    import openvino

    folder = cache_dir() / "openvino" / _fingerprint(model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # of several processes, one converts
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    openvino.save_model(_convert(model), temporary / "network.xml", compress_to_fp16=False)
        return openvino.Core().read_model(folder / "network.xml")
    except OSError as error:
        logger.warning("the cache %s cannot be used (%s): the backbone is converted anew each time", folder, error)
        return _convert(model)


def _convert(model: nn.Module) -> Any:
    import openvino

    side = int(model.image_size)  # type: ignore[arg-type]
    logger.info("converting %s for OpenVINO, once", type(model).__name__)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # sizes of images become constants, which is meant
        return openvino.convert_model(
            model, example_input=torch.zeros(2, 3, side, side), input=[openvino.PartialShape([-1, 3, side, side])]
        )


def _fingerprint(model: nn.Module) -> str:
    """Return a name for the converted network: code, version, plain attributes of all modules and weights decide.

    Tensors are told apart by a sum over their bits and their first numbers, which takes a fifth of a second for
    ViT-L/14 where a sha256 takes one. The cache is the user's own: nobody forges a sum here.
    """
    code = Path(inspect.getfile(type(model))).read_bytes()
    about: list[object] = [version("openvino"), torch.__version__, hashlib.sha256(code).hexdigest()]
    for module in model.modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str | tuple)}
        about.append([type(module).__name__, plain])
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in sorted(model.state_dict().items()):
        bits = tensor.detach().float().contiguous().view(torch.int32).reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
        digest.update(bits[:256].numpy().tobytes())
    return digest.hexdigest()[:32]
