"""``geoclip compare``: compare two runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.cli._options import Bootstrap, Distance
from open_geoclip.cli._output import RowOutput, progress_bar

if TYPE_CHECKING:
    from open_geoclip.evaluation.compare import Comparison

__all__ = ["compare"]


def compare(
    a: Path,
    b: Path,
    /,
    *,
    output: RowOutput = RowOutput(),
    bootstrap: Bootstrap = 2000,
    distance: Distance = "haversine",
    group: str | None = None,
) -> None:
    """Compare two runs on the same photos, and test whether their differences are significant.

    Shares are tested by McNemar's exact test, averages by a paired bootstrap; "real" means significant at 5 % with
    Holm's correction for all eight figures.

    Args:
        a: Predictions of one run, as for geoclip score.
        b: Predictions of the other, on the same photos, paired by a column id, image, IMG_ID or idx, or by row.
        bootstrap: Resamples, 1000 or more.
        group: Column of A whose photos are resampled together, such as the author; all tests are then bootstraps.
    """
    from open_geoclip.evaluation.compare import compare as compared
    from open_geoclip.evaluation.predictions import read_predictions

    runs = read_predictions(a, group=group), read_predictions(b)
    with progress_bar("resampling") as progress:
        found = compared(*runs, distance=distance, resamples=bootstrap, progress=progress)
    output.write(found.to_dict(), table=_table(found), rows=_rows(found))


def _rows(found: "Comparison") -> list[dict[str, Any]]:
    """A figure a row, for files."""
    head = ["a", "b", "difference", "low", "high", "only_a", "only_b", "test", "p_value", "p_holm", "better"]
    rows = []
    for name, one in found.differences.items():
        cells = one.to_dict() | dict(zip(("low", "high"), one.interval, strict=True))
        rows.append({"figure": name, **{column: cells[column] for column in head}, "n": found.n})
    return rows


def _table(found: "Comparison") -> str:
    from open_geoclip.evaluation.report import figure_title

    by = "photos" if found.groups is None else f"{found.groups:,} groups"
    lines = [
        f"A  {found.a}",
        f"B  {found.b}",
        f"{found.n:,} photos, paired by {found.paired_by}",
        "",
        f"{'':16}{'A':>12}{'B':>12}{'B - A':>11}   {'95 % interval':^22}"
        f"{'only A':>8}{'only B':>8}{'p (Holm)':>10}   real",
    ]
    for name, one in found.differences.items():
        unit, digits = (" %", 2) if name.startswith("within") else (" km" if name.endswith("km") else "", 1)
        low, high = one.interval
        lone = ["" if count is None else f"{count:,}" for count in (one.only_a, one.only_b)]
        lines.append(
            f"{figure_title(name):<16}{f'{one.a:,.{digits}f}{unit}':>12}{f'{one.b:,.{digits}f}{unit}':>12}"
            f"{one.b - one.a:>+11,.{digits}f}   {f'{low:+,.{digits}f} to {high:+,.{digits}f}':^22}"
            f"{lone[0]:>8}{lone[1]:>8}{one.p_holm:>10.2g}   {f'{one.better} is better' if one.better else 'no'}"
        )
    real = [name for name, one in found.differences.items() if one.better]
    verdict = (
        f"real differences in {len(real)} of {len(found.differences)} figures"
        if real
        else ("no difference that is more than chance; that is no proof that there is none")
    )
    lines += ["", f"{verdict} (Holm, 5 %; {found.resamples:,} resamples of {by}; {found.distance})"]
    return "".join(f"{line.rstrip()}\n" for line in lines)
