"""``geoclip train`` as a user runs it: from photos with EXIF to a model, Ctrl-C, and going on."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from open_geoclip.cli.train import train
from open_geoclip.errors import SettingsError
from open_geoclip.weights.load import load_release


@pytest.fixture
def config(tmp_path: Path, save_clip: Callable[..., Path]) -> Path:
    """A configuration for twelve photos that carry their position."""
    clip, photos = save_clip(tmp_path / "clip"), tmp_path / "photos"
    photos.mkdir()
    for i in range(12):
        image, exif = Image.fromarray(np.full((60, 60, 3), 20 * i, np.uint8)), Image.Exif()
        exif.get_ifd(0x8825).update({1: "N", 2: (5.0 * i, 30.0, 0.0), 3: "W", 4: (10.0 * i, 0.0, 0.0)})
        image.save(photos / f"{i}.jpg", exif=exif)
    path = tmp_path / "run.toml"
    path.write_text(
        f'''output = "{tmp_path / "run"}"
[data]
train = "{photos}"
validation = 0.0
views = 2
[model]
backbone = "dir:{clip}"
sigmas = [1.0]
features = 8
width = 16
depth = 1
output = 8
hidden = [16]
[train]
recipe = "earth"
epochs = 2
batch_size = 4
queue_size = 8
'''
    )
    return path


def test_without_a_terminal_progress_is_lines(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_geoclip.cli.train._LINE_SECONDS", 0.0)
    (config.parent / "photos" / "[red] :car:.jpg").write_bytes(b"no image")
    train(config)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("skipped: [red] :car:.jpg: ") for line in lines)
    assert not any(" 0 photos per second" in line or " 0.0 per second" in line for line in lines)
    assert any(line.startswith("features of training photos: 13 of 13, ") for line in lines)
    assert any(line.startswith("epoch 2 of 2, step 3 of 3, loss ") for line in lines)


def test_the_folder_of_the_model_is_told_and_a_second_run_does_not_overwrite_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config)
    out, err = capsys.readouterr()
    assert out == f"{config.parent / 'run' / 'model'}\n"
    assert "epoch 2, loss" in err
    places = (Path(out.strip()) / "gallery.csv").read_text().splitlines()
    assert "5.500000,-10.000000" in places
    image = load_release(f"dir:{out.strip()}").image
    assert image is not None
    assert Path(image.backbone.removeprefix("dir:")).samefile(config.parent / "clip")
    with pytest.raises(SettingsError, match="holds a run already: --resume"):
        train(config)
    with pytest.raises(SettingsError, match="batch_size was 4, now 3"):
        train(config, resume=True, set_=["train.batch_size=3"])
    train(config, resume=True, set_=["train.epochs=3"])
    assert "the model is that of epoch 3 of 3" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_says_nothing_of_tracebacks_and_resume_goes_on(config: Path) -> None:
    command = [sys.executable, "-m", "open_geoclip.cli", "train", str(config), "--set", "train.epochs=300"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 3,"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("what is done is saved: the same command with --resume continues\ngeoclip: interrupted\n")
    metrics = config.parent / "run" / "metrics.jsonl"
    epochs = len(metrics.read_text().splitlines()) + 2
    done = subprocess.run(
        [*command, "--set", f"train.epochs={epochs}", "--resume"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("model")
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == list(range(1, epochs + 1))


def test_tensorboard_reads_what_was_trained(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    logs = config.parent / "logs"
    train(config, tensorboard=logs)
    capsys.readouterr()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs))
    events.Reload()
    metrics = [json.loads(line) for line in (config.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    told = {event.step: event.value for event in events.Scalars("epoch/loss")}
    assert told == pytest.approx({line["epoch"]: line["loss"] for line in metrics}, abs=1e-5)
    steps = events.Scalars("step/loss")
    assert [event.step for event in steps] == list(range(1, 7))
    assert np.mean([event.value for event in steps[:3]]) == pytest.approx(metrics[0]["loss"], abs=1e-5)


# With all photos in each batch, its order does not matter: each process reads shards of its own.
WHOLE_BATCHES = (
    "data.augment=false",
    "data.views=1",
    "train.batch_size=12",
    "train.queue_size=12",
    "train.epochs=4",
    "train.noise_m=0.0",
    "train.queue_noise_m=0.0",
    "train.mask_km=0.0",
    "train.checkpoint_every=1",
)


def by_torchrun(config: Path, output: Path, *options: str) -> list[str]:
    """The command of two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    changes = [f"--set={change}" for change in (f"output={output}", *WHOLE_BATCHES, *options)]
    return [*launcher, "-m", "open_geoclip.cli", "train", str(config), *changes]


def weights(output: Path) -> dict[str, torch.Tensor]:
    found = load_file(output / "checkpoint.safetensors")
    return {name: tensor for name, tensor in found.items() if not name.startswith(("optimizer.", "queue"))}


@pytest.mark.slow
def test_two_processes_of_torchrun_train_what_one_does(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = config.parent / "one", config.parent / "two"
    train(config, set_=[f"output={one}", *WHOLE_BATCHES])
    capsys.readouterr()
    done = subprocess.run(by_torchrun(config, two), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two / 'model'}\n", "one process speaks"
    losses = [
        [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
        for output in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[0][-1] < losses[0][0]
    found = weights(two)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert json.loads((two / "run.json").read_text())["processes"] == 2
