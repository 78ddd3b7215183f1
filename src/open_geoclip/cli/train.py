"""``geoclip train``: train a model on photos of one's own."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from open_geoclip.cli._shared import show_log

__all__ = ["train"]


def train(
    config: Path,
    /,
    *,
    resume: bool = False,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    tensorboard: Path | None = None,
) -> None:
    """Train a model on photos with coordinates: a folder, a table, tar shards, Earth views.

    Ctrl-C saves and stops; --resume goes on. The folder of the finished model is printed on stdout.

    Args:
        config: A TOML file; docs/training.md tells its keys.
        resume: Go on with the run in the output folder, also after it was killed.
        set_: Change a key of the file, such as --set train.epochs=3; may be given several times.
        tensorboard: A folder to log to for TensorBoard as well.
    """
    show_log()
    import os
    import time
    from functools import partial

    # Processes that torchrun starts must not each take all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", 1)))))
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from open_geoclip.errors import MissingExtraError
    from open_geoclip.training.configuration import read_settings
    from open_geoclip.training.distributed import joined
    from open_geoclip.training.run import Listener, run

    settings = read_settings(config, set_ or [])
    console = Console(stderr=True, highlight=False)
    writer = None
    if tensorboard is not None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error
        writer = SummaryWriter(str(tensorboard))
    with joined() as ranks, Live(console=console, transient=True, refresh_per_second=4) as live:
        began: tuple[str, float, float] = ("", 0.0, 0.0)  # what, when, how much was done

        def line(text: str) -> None:
            if console.is_terminal:
                live.update(Text(text))

        def rate(what: str, done: float) -> float:
            nonlocal began
            now = time.monotonic()
            if began[0] != what:
                began = (what, now, done)
            return (done - began[2]) / max(now - began[1], 1e-6)

        def cached(what: str, done: int, total: int | None) -> None:
            told = f"features of {what}: {done:,}" + (f" of {total:,}" if total else "")
            told += f", {rate(what, done):.1f} a second"
            line(told) if console.is_terminal else live.console.print(told, soft_wrap=True)

        def step(figures: dict[str, float]) -> None:
            epoch, at, steps = int(figures["epoch"]), int(figures["step"]), int(figures["steps"])
            speed = rate(f"epoch {epoch}", at) * settings.train.batch_size
            line(
                f"epoch {epoch + 1} of {settings.train.epochs}, step {at} of {steps}, loss {figures['loss']:.4f}, "
                f"{speed:,.0f} photos a second"
            )
            if writer is not None:
                writer.add_scalar("step/loss", figures["loss"], epoch * steps + at)

        def epoch(figures: dict[str, float]) -> None:
            live.console.print(", ".join(f"{name} {value:,.4g}" for name, value in figures.items()), soft_wrap=True)
            if writer is not None:
                for name, value in figures.items():
                    writer.add_scalar(f"epoch/{name}", value, int(figures["epoch"]))

        say = partial(live.console.print, soft_wrap=True) if ranks.leads else lambda _: None
        folder = run(settings, resume=resume, listener=Listener(say=say, cached=cached, step=step, epoch=epoch))
    if ranks.leads:
        console.print(f"done: geoclip locate PHOTO --model dir:{folder}")
        print(folder)
