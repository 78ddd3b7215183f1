"""Install a wheel without extras and with each extra alone, and run a command of each.

Without its extra, the command must fail and name the extra; with it, it must succeed. The model is a small one with
random weights, which the wheel itself trains first; nothing of the checkout is importable.

    python benchmarks/extras.py dist/open_geoclip-0.1.0-py3-none-any.whl
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

from PIL import Image

from container import check_server

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "extras"
FOR_CHECKOUTS = {"dev", "docs", "timm"}  # only make targets use them; torchvision cannot be imported beside this torch

CONFIG = """
output = "runs/first"
[data]
train = "places.csv"
validation = 0.0
views = 2
[model]
backbone = "dir:clip"
sigmas = [4.0]
width = 32
hidden = [32]
gallery = "train"
[train]
epochs = 1
batch_size = 2
queue_size = 4
"""

MODEL = "dir:runs/first/model"
WITHOUT_EXTRAS = [
    "geoclip --version",
    "geoclip models",
    "geoclip data check places.csv",
    "geoclip train run.toml",
    f"geoclip locate a.png --model {MODEL} --top-k 2 --format kml",
    f"geoclip locate a.png --model {MODEL} --top-k 2 --output report.html",
    f"geoclip embed 48.8584,2.2945 --model {MODEL}",
    "geoclip score predictions.csv",
]
# Commands are shell lines; PYTHON runs a statement.
COMMANDS = {
    "earth": "geoclip render 41.9,12.5 --output rome.png && geoclip locate rome.png --map map.png",
    "efficientnet": 'PYTHON "from open_geoclip.weights.backbones import load_image_backbone; '
    "print(load_image_backbone('efficientnet-lite2')[0].dim)\"",
    "faiss": 'PYTHON "import torch; from pathlib import Path; from open_geoclip.search.feature_search import '
    "write_inverted_file; write_inverted_file(Path('a.faiss'), {'a': torch.randn(300, 8)})\"",
    "fast": f"geoclip locate a.png --engine openvino --model {MODEL} --top-k 2",
    "features": 'PYTHON "from open_geoclip.features import LocationFeatures; '
    f"print(LocationFeatures('{MODEL}').fit_transform([[48.9, 2.3]]).shape)\"",
    "gis": f"geoclip locate a.png --model {MODEL} --top-k 2 --output answers.gpkg",
    "heic": "geoclip data check heic.csv",
    "hf": "geoclip data check hf:photos",
    "int8": 'PYTHON "from open_geoclip.model.backbones.runtime import CompiledBackbone; '
    "from open_geoclip.model.backbones.self_check import check_images; "
    "from open_geoclip.weights.backbones import load_image_backbone; "
    "clip = load_image_backbone('dir:clip')[0]; "
    "print(CompiledBackbone(clip, 'int8', calibration=lambda: [*check_images(56)]).dim)\"",
    "lora": "geoclip train run.toml --set 'output=\"runs/third\"' --set data.pixels=true --set train.lora_rank=2",
    "mcp": f"geoclip mcp --model {MODEL} < initialize.json | grep serverInfo",
    "onnx": f"PYTHON \"from open_geoclip.features import export_onnx; export_onnx('{MODEL}', 'tower.onnx')\"",
    "parquet": f"geoclip locate a.png --model {MODEL} --top-k 2 --output answers.parquet",
    "places": "geoclip where 48.8584,2.2945",
    # No database is there: it fails where psycopg connects.
    "postgis": f"geoclip locate a.png --model {MODEL} --output postgresql://127.0.0.1:1/none 2>&1 | tee /dev/stderr "
    "| grep refused",
    "ray": f"mkdir -p one && cp a.png one && geoclip locate one -o ray-results --ray auto --model {MODEL} --top-k 2",
    "server": f"geoclip serve --model {MODEL}",
    "tensorboard": "geoclip train run.toml --set 'output=\"runs/second\"' --tensorboard runs/log",
    "text": "geoclip text 'a hot desert' --model earth --top-k 2",
    "transformers": 'PYTHON "from open_geoclip.weights.backbones import load_image_backbone; '
    "print(load_image_backbone('dir:vit')[0].dim)\"",
}


def main() -> None:
    """Check the wheel and print a line per extra; exit status 1 if one is wrong."""
    wheel = Path(sys.argv[1]).resolve()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(COMMANDS) == set(extras) - FOR_CHECKOUTS, "each extra has a command here"
    shutil.rmtree(WORK, ignore_errors=True)
    data = WORK / "data"
    data.mkdir(parents=True)
    _write_inputs(data)
    base = _create_environment(WORK / "base", str(wheel))
    failures = [line for line in WITHOUT_EXTRAS if not _check("none", line, _run(line, base, data))]
    for extra, line in COMMANDS.items():
        without = _run(line, base, data)
        named = without.returncode != 0 and f"open-geoclip[{extra}]" in without.stdout + without.stderr
        environment = _create_environment(WORK / extra, f"{wheel}[{extra}]", base)
        done = _serve(environment, data) if extra == "server" else _run(line, environment, data)
        if not (_check(f"without {extra}", line, without, as_wanted=named) & _check(extra, line, done)):
            failures.append(line)
        shutil.rmtree(environment)
    sys.exit("\n".join(["failed:", *failures]) if failures else 0)


def _write_inputs(folder: Path) -> None:
    """Write two images, tables, a HEIC file, a data set and a small CLIP with random weights."""
    from datasets import Dataset
    from pillow_heif import from_pillow

    for name, colour in (("a.png", "peru"), ("b.png", "teal")):
        Image.new("RGB", (64, 64), colour).save(folder / name)
    (folder / "places.csv").write_text("file,lat,lon\na.png,41.9,12.5\nb.png,64.1,-21.9\n")
    from_pillow(Image.new("RGB", (64, 64), "peru")).save(folder / "a.heic")
    (folder / "heic.csv").write_text("file,lat,lon\na.heic,41.9,12.5\n")
    (folder / "predictions.csv").write_text("true_lat,true_lon,pred_lat,pred_lon\n48,2,48.1,2\n0,0,1,1\n")
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "check", "version": "1"}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client}
    (folder / "initialize.json").write_text(json.dumps(request) + "\n")
    (folder / "run.toml").write_text(CONFIG)
    rows = {"image": [{"bytes": (folder / "a.png").read_bytes(), "path": "a.png"}], "lat": [41.9], "lon": [12.5]}
    (folder / "photos").mkdir()
    Dataset.from_dict(rows).to_parquet(folder / "photos" / "train.parquet")
    with warnings.catch_warnings(action="ignore"):
        from transformers import (
            CLIPImageProcessor,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
            ViTConfig,
            ViTModel,
        )
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        settings = CLIPVisionConfig(image_size=56, patch_size=14, projection_dim=64, **size)
        CLIPVisionModelWithProjection(settings).save_pretrained(folder / "clip")
        CLIPImageProcessor(crop_size=56, size=56).save_pretrained(folder / "clip")
        ViTModel(ViTConfig(image_size=32, patch_size=16, **size)).save_pretrained(folder / "vit")
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")


def _create_environment(folder: Path, requirement: str, base: Path | None = None) -> Path:
    """Create a virtual environment with the wheel; what a base environment contains is not installed again."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    if base is not None:
        (packages / "base.pth").write_text(f"{base / packages.relative_to(folder)}\n")
    install = ["install", "--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([folder / "bin" / "python", "-m", "pip", *install, requirement], check=True)
    if base is not None:  # the package again, so that its command is that of this environment
        again = ["--no-deps", "--ignore-installed", requirement.partition("[")[0]]
        subprocess.run([folder / "bin" / "python", "-m", "pip", *install, *again], check=True)
    return folder


def _run(line: str, environment: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a shell line with an environment's commands, an empty home and no cache of weights."""
    variables = {
        "PATH": f"{environment / 'bin'}:{os.defpath}",
        "HOME": str(WORK / "home"),
        "OPEN_GEOCLIP_CACHE": str(WORK / "cache"),
        "COLUMNS": "80",
    }
    line = line.replace("PYTHON", "python -P -c")
    return subprocess.run(line, shell=True, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def _serve(environment: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Start the server, which does not end by itself, and check its page and API."""
    try:
        found = check_server(environment / "bin" / "geoclip", ["--model", f"dir:{folder / 'runs/first/model'}"])
    except RuntimeError as error:
        return subprocess.CompletedProcess("geoclip serve", 1, "", str(error))
    return subprocess.CompletedProcess("geoclip serve", 0, found, "")


def _check(extra: str, line: str, done: "subprocess.CompletedProcess[str]", *, as_wanted: bool | None = None) -> bool:
    """Print one line, and the output if it is wrong; return whether it is right."""
    right = done.returncode == 0 if as_wanted is None else as_wanted
    print(f"{'ok' if right else 'FAILED':<7} {extra:<20} {line}", flush=True)
    if not right:
        print(f"exit status {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return right


if __name__ == "__main__":
    main()
