"""What every test may count on: checked array shapes, fixed seeds, where things outside the package are."""

import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

os.environ["OPEN_GEOCLIP_MODEL"] = "earth"  # whatever has been pulled on this machine

# Every array in a signature is checked against its annotation while the tests run. The hook only sees modules
# that are imported after it, so nothing may have imported the package yet.
assert not any(name.split(".")[0] == "open_geoclip" for name in sys.modules), "open_geoclip came before its hook"
# An int is welcome where a float is asked for, as mypy sees it too.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_nested_checks: dict[Any, Any] = {}


def _check_once(function: Any) -> Any:
    """Compile the check of a function that stands in another one only once, not at each call of the outer one.

    What jaxtyping hands over has the signature of the function and no body, so equal ones are checked equally.
    """
    if "<locals>" not in function.__qualname__:
        return _check(function)
    key = (function.__module__, function.__qualname__, function.__code__, repr(function.__annotations__))
    if key not in _nested_checks:
        _nested_checks[key] = _check(function)
    return _nested_checks[key]


_checker = ModuleType("open_geoclip_checker")
vars(_checker)["check"] = _check_once
sys.modules[_checker.__name__] = _checker
install_import_hook(["open_geoclip", "research"], "open_geoclip_checker.check")

# Examples are the same in every run, and slow machines do not fail.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("fixed")

_RELEASED = "released_geoclip_model"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no process is left with one of them when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder for all tests in all processes that do not care what is in it already."""
    root = tmp_path_factory.getbasetemp()
    return (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared-cache"


@pytest.fixture(autouse=True, scope="session")
def _shared_caches(shared_cache: Path) -> Iterator[None]:
    """Let all tests share what was computed for galleries and converted for OpenVINO, and its checks.

    What is converted is shared by tests with caches of their own, too. Shapes are not checked while tracing.
    """
    from open_geoclip.model.backbones import runtime, self_check

    convert = runtime._convert

    def unchecked(model: torch.nn.Module, side: int) -> Any:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return convert(model, side)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_GEOCLIP_CACHE", str(shared_cache))
        patch.setattr(runtime, "cache_dir", lambda: shared_cache)
        patch.setattr(self_check, "cache_dir", lambda: shared_cache)
        patch.setattr(runtime, "_convert", unchecked)
        yield


@pytest.fixture(scope="session")
def earth(shared_cache: Path) -> Any:
    """Return a locator of the embedded model with its own gallery."""
    from open_geoclip.search.locator import Locator

    return Locator.from_pretrained("earth", cache=shared_cache)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return numpy's random numbers, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of facts and references beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder.name}/ folder beside the checkout")
    return folder


@pytest.fixture(scope="session")
def released() -> Path:
    """Return the package folder of the installed `geoclip` distribution, which is not imported."""
    try:
        folder = Path(str(distribution("geoclip").locate_file("geoclip")))
    except PackageNotFoundError:
        pytest.skip("the released package is not installed (pip install --no-deps geoclip==1.3.0)")
    if not folder.is_dir():
        pytest.skip(f"the installed geoclip distribution has no folder {folder.name}/")
    return folder


@pytest.fixture(scope="session")
def released_module(released: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports one module of the released `geoclip.model`, "location_encoder" for one.

    The released package's own `__init__` imports transformers; a package of another name on the same folder
    leaves that out.
    """
    package = ModuleType(_RELEASED)
    package.__path__ = [str(released / "model")]
    sys.modules[_RELEASED] = package

    def load(name: str) -> ModuleType:
        with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):  # of torch.jit.script
            return import_module(f"{_RELEASED}.{name}")

    yield load
    for name in [name for name in sys.modules if name.split(".")[0] == _RELEASED]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def save_clip() -> Callable[..., Path]:
    """Return a function that writes a small CLIP with random weights, in the layout that CLIP is published in."""
    return _save_clip


def _save_clip(
    folder: Path,
    *,
    projection: int = 768,
    image_size: int = 56,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    **vision: Any,
) -> Path:
    """Write config.json, preprocessor_config.json and model.safetensors, by transformers itself."""
    with warnings.catch_warnings(action="ignore"):
        from transformers import CLIPConfig, CLIPModel
        from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = CLIPConfig(
        projection_dim=projection,
        text_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "vocab_size": 50,
            **(text or {}),
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "patch_size": 14,
            "image_size": image_size,
            "initializer_factor": 6.0,  # weights far from zero, so that pictures differ
            **vision,
        },
    )
    CLIPModel(config).save_pretrained(folder)
    preprocessor = {
        "crop_size": image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": image_size,
        "image_processor_type": "CLIPImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="session")
def clip_tokenizer() -> Callable[[Path], dict[str, Any]]:
    """Return a function that writes a small tokenizer in CLIP's layout and gives the text settings that go with it."""
    return _save_tokenizer


def _save_tokenizer(folder: Path) -> dict[str, Any]:
    """Write vocab.json and merges.txt of a byte-level BPE that knows a few words."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = ["d e", "de s", "e r", "er t</w>", "des ert</w>", "h o", "ho t</w>"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return {
        "vocab_size": len(words),
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
        "initializer_factor": 6.0,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }


@pytest.fixture(scope="session")
def save_text_release() -> Callable[..., Path]:
    """Return a function that writes a model with a text side, small and random, in our own layout."""
    return _save_text_release


def _save_text_release(folder: Path, **changes: Any) -> Path:
    """Write a release and, beside it, its gallery of 300 places."""
    from open_geoclip.weights.save import save_release

    aligned, picture, sentence, output = 8, 3888, 384, 16
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "logit_scale": torch.tensor(3.0),
        "image_encoder.projection.weight": random(aligned, picture) / 60,
        "image_encoder.projection.bias": random(aligned) / 60,
        "text_encoder.projection.weight": random(aligned, sentence),
        "text_encoder.projection.bias": random(aligned) / 60,
        "text_encoder.picture": random(picture),
        "image_encoder.mlp.0.weight": random(output, aligned + picture)
        * torch.tensor([1.0] * aligned + [0.02] * picture),
        "image_encoder.mlp.0.bias": random(output),
        "location_encoder.LocEnc0.capsule.0.b": random(8, 3),
        "location_encoder.LocEnc0.capsule.1.weight": random(16, 16),
        "location_encoder.LocEnc0.capsule.1.bias": random(16),
        "location_encoder.LocEnc0.head.0.weight": random(output, 16),
        "location_encoder.LocEnc0.head.0.bias": random(output),
    }
    config = {
        "location_encoder": {
            "sigmas": [1.0],
            "features": 8,
            "width": 16,
            "depth": 1,
            "output": output,
            "projection": "sphere",
        },
        "image_encoder": {"backbone": "earth", "aligned": aligned, "widths": [aligned + picture, output]},
        "text_encoder": {"backbone": "minilm"},
        "preprocessing": None,
        "card": {},
    }
    gallery = folder.with_suffix(".csv")
    places = np.random.default_rng(0).uniform((-60, -180), (75, 180), (300, 2)).round(3)
    gallery.write_text("lat,lon\n" + "".join(f"{lat},{lon}\n" for lat, lon in places))
    return save_release(folder, tensors, config | changes, gallery=gallery, dtype="float32")


@pytest.fixture(scope="session")
def benchmark_module() -> Callable[[str], ModuleType]:
    """Imports a file of benchmarks/ by its name."""

    def imported(name: str) -> ModuleType:
        folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
        sys.path.insert(0, folder)  # they import one another
        try:
            return import_module(name)
        finally:
            sys.path.remove(folder)

    return imported
