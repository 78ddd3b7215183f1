"""``geoclip score``: measure predictions."""

import sys
from pathlib import Path
from typing import Any

from open_geoclip.cli._options import Bootstrap, Distance
from open_geoclip.cli._output import RowOutput, progress_bar

__all__ = ["score"]


def score(
    predictions: Path,
    /,
    *,
    output: RowOutput = RowOutput(),
    bootstrap: Bootstrap = 1000,
    distance: Distance = "haversine",
    group: str | None = None,
) -> None:
    """Score predictions of any model: share within 1, 25, 200, 750 and 2500 km, median, mean, GeoScore.

    Args:
        predictions: CSV or Parquet with the columns true_lat, true_lon, pred_lat and pred_lon, in degrees.
        group: A column, such as the author, whose photos belong together and are resampled together.
    """
    from open_geoclip.errors import SettingsError
    from open_geoclip.evaluation.metrics import score as measured
    from open_geoclip.evaluation.predictions import read_predictions

    if bootstrap < 0:
        raise SettingsError(f"--bootstrap is a number of resamples, 0 or more, not {bootstrap}")
    if group is not None and bootstrap == 0:
        raise SettingsError("--group is about resampling, which --bootstrap 0 turns off: leave out one")
    run = read_predictions(predictions, group=group)
    if len(run) == 1 and bootstrap:
        print("geoclip: one photo has no interval", file=sys.stderr)
        bootstrap = 0
    with progress_bar("resampling") as progress:
        found = measured(
            run.truth, run.predicted, distance=distance, resamples=bootstrap, groups=run.groups, progress=progress
        )
    output.write(found, table=_table(found, run.name), rows=_figures(found, run.name))


def _figures(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A figure a row, for files."""
    from open_geoclip.evaluation.report import figure_rows

    rows = []
    for figure, value, interval, constant in figure_rows(found, "best_constant"):
        low, high = interval or (None, None)
        ends = {"low": low, "high": high, "best_constant": constant}
        rows.append({"figure": figure, "value": value, **ends, "n": found["n"], "predictions": name})
    return rows


def _table(found: dict[str, Any], name: str) -> str:
    from open_geoclip.evaluation.report import text_rows

    lines = [f"{found['n']:,} photos of {name}", "", f"{'':16}{'':>13}   {'95 % interval':^25}{'best constant':>16}"]
    for title, value, interval, constant in text_rows(found, "best_constant"):
        lines.append(f"{title:<16}{value:>13}   {interval:^25}{constant:>16}")
    drawn = found["intervals"]
    by = "" if not drawn else f"; {drawn['resamples']:,} resamples of "
    by += "" if not drawn else "photos" if drawn["groups"] is None else f"{drawn['groups']:,} groups"
    lines += ["", f"distances: {found['distance']}{by}; best constant: the best of all answers that ignore the photo"]
    return "".join(f"{line.rstrip()}\n" for line in lines)
