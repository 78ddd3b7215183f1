"""``geoclip train``: train a model on photos of one's own."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from open_geoclip.cli._options import RayOptions

__all__ = ["train"]

_LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


def train(
    config: Path,
    /,
    *,
    resume: bool = False,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    tensorboard: Path | None = None,
    ray: RayOptions = RayOptions(),
) -> None:
    """Train a model on photos with coordinates: a folder, a table, tar shards, Earth views.

    Ctrl-C saves and stops; --resume continues. The folder of the finished model is printed on stdout. With --ray photos
    are decoded and encoded on Ray; the model is then trained here.

    Args:
        config: A TOML file; docs/training.md describes its keys.
        resume: Continue the run in the output folder, also after it was killed.
        set_: Change a key of the file, such as --set train.epochs=3; may be given several times.
        tensorboard: A folder to log to for TensorBoard as well.
    """
    import os
    import shlex
    import sys
    import time
    from contextlib import nullcontext, redirect_stdout
    from functools import partial

    # Processes that torchrun starts must not each take all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", 1)))))
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from open_geoclip.errors import MissingExtraError, SettingsError
    from open_geoclip.training.distributed import process_group
    from open_geoclip.training.loop import Callbacks
    from open_geoclip.training.run import run
    from open_geoclip.training.settings import read_settings

    settings = read_settings(config, set_ or [])
    encode, actors = None, ray.actors()
    if ray.ray is not None:
        from open_geoclip.scale.features import encode_on_ray

        if settings.data.pixels:
            raise SettingsError("--ray encodes photos once: set pixels = false in [data]")
        if "RANK" in os.environ:
            raise SettingsError(
                "--ray is for one process, not for torchrun: each of its processes has a cache of its own"
            )
        encode = partial(encode_on_ray, address=ray.ray, **actors)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)  # names of files stay as they are
    writer = None
    if tensorboard is not None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error
        writer = SummaryWriter(str(tensorboard))
    with process_group() as ranks, Live(console=console, transient=True, refresh_per_second=4) as live:
        since: tuple[str, float, float] = ("", 0.0, 0.0)  # what is done, when it began, how much was done then
        last_line = 0.0

        def show(text: str, *, is_last: bool) -> None:
            nonlocal last_line
            if console.is_terminal:
                live.update(Text(text))
            elif is_last or time.monotonic() - last_line > _LINE_SECONDS:
                last_line = time.monotonic()
                live.console.print(text, soft_wrap=True)

        def rate(what: str, done: float) -> float:
            nonlocal since
            now = time.monotonic()
            if since[0] != what:
                since = (what, now, done)
            return (done - since[2]) / max(now - since[1], 1e-6)

        def encoding(what: str, done: int, total: int | None) -> None:
            text = f"features of {what}: {done:,}" + (f" of {total:,}" if total else "")
            speed = rate(what, done)
            show(text + (f", {speed:.1f} per second" if speed else ""), is_last=done == total)

        def step(figures: dict[str, float]) -> None:
            epoch, number, steps = int(figures["epoch"]), int(figures["step"]), int(figures["steps"])
            speed = rate(f"epoch {epoch}", number) * settings.train.batch_size
            text = f"epoch {epoch + 1} of {settings.train.epochs}, step {number} of {steps}, loss {figures['loss']:.4f}"
            show(text + (f", {speed:,.0f} photos per second" if speed else ""), is_last=False)
            if writer is not None:
                writer.add_scalar("step/loss", figures["loss"], epoch * steps + number)

        def epoch(figures: dict[str, float]) -> None:
            live.console.print(", ".join(f"{name} {value:,.4g}" for name, value in figures.items()), soft_wrap=True)
            if writer is not None:
                for name, value in figures.items():
                    writer.add_scalar(f"epoch/{name}", value, int(figures["epoch"]))

        log = partial(live.console.print, soft_wrap=True) if ranks.is_main else lambda _: None
        try:
            callbacks = Callbacks(log, encoding, step, epoch)
            with nullcontext() if encode is None else redirect_stdout(sys.stderr):  # Ray prints warnings to stdout
                folder = run(settings, resume=resume, callbacks=callbacks, encode=encode)
        except KeyboardInterrupt:
            if ranks.is_main:
                live.console.print("what is done is saved: the same command with --resume continues", soft_wrap=True)
            raise
    if ranks.is_main:
        console.print(f"done: geoclip locate PHOTO --model {shlex.quote(f'dir:{folder}')}", soft_wrap=True)
        print(folder)
