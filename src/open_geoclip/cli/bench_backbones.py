"""``geoclip bench-backbones``: compare image backbones under one recipe."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ["bench_backbones"]


def bench_backbones(
    source: str,
    /,
    *,
    backbones: Annotated[list[str], Parameter(consume_multiple=True)],
    test: str,
    output: Annotated[Path, Parameter(alias="-o")] = Path("runs/backbones"),
    seeds: int = 3,
    speed: bool = True,
    config: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
) -> None:
    """Train the same head on each of several image backbones, and compare accuracy and cost.

    Data, budget and seeds are the same for each. The table is printed on stdout and, with a plot of accuracy against
    cost, written to the output folder. An interrupted comparison continues with the same command.

    Args:
        source: Photos to train on, as in geoclip train: a folder, a table, tar shards, earth-views:train:4096.
        backbones: Names, such as efficientnet-lite2, hub:facebook/dinov2-base, timm:vit_base_patch16_224.
        test: Photos to test on, none of which may be among those trained on.
        output: Folder for features, runs and results.
        seeds: Runs per backbone.
        speed: Measure photos per second; --no-speed on a machine that does other work.
        config: Settings of the runs, a TOML file as for geoclip train; default: the recipe earth, one view per photo.
        set_: Change a key of the settings, such as --set train.epochs=3; may be given several times.
    """
    import json
    import sys

    from open_geoclip.cli._output import progress_bar
    from open_geoclip.export.figures import draw_backbones
    from open_geoclip.files import atomic_write
    from open_geoclip.training.bench_backbones import bench_backbones as bench
    from open_geoclip.training.bench_backbones import markdown_table
    from open_geoclip.training.loop import Callbacks
    from open_geoclip.training.settings import read_settings

    defaults = [] if config else ["train.recipe=earth", "data.augment=false", "data.views=1"]
    fixed = {"output": str(output), "data.train": source, "model.backbone": backbones[0], "data.validation": 0.0}
    given = [f"{key}={json.dumps(value)}" for key, value in fixed.items()]
    settings = read_settings(config, [*defaults, *(set_ or []), *given])
    with progress_bar("encoding photos", log_interval_s=30) as bar:
        callbacks = Callbacks(
            log=lambda text: print(f"geoclip: {text}", file=sys.stderr),
            encoding=lambda _, done, total: bar(done, total),
        )
        rows = bench(settings, backbones, test, seeds=seeds, speed=speed, callbacks=callbacks)
    table = markdown_table(rows)
    atomic_write(output / "backbones.json", json.dumps(rows, indent=2) + "\n")
    atomic_write(output / "backbones.md", table)
    draw_backbones(output / "backbones.png", rows)
    print(table, end="")
