"""``geoclip compare``: whether one run is better than another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._output import choose, rows_as, to_json
from open_geoclip.cli._shared import progress_bar, write_output

if TYPE_CHECKING:
    from open_geoclip.evaluation.compare import Comparison

__all__ = ["compare"]


def compare(
    a: Path,
    b: Path,
    /,
    *,
    format_: Annotated[Literal["table", "json", "csv", "parquet"] | None, Parameter(name="--format")] = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    bootstrap: int = 2000,
    distance: Literal["haversine", "geodesic"] = "haversine",
    group: str | None = None,
) -> None:
    """Compare two runs on the same photos, and say whether the difference is real.

    Shares are tested by McNemar's exact test, averages by a paired bootstrap; "real" allows for all eight figures
    being looked at (Holm, 5 %).

    Args:
        a: Predictions of one run, as for geoclip score.
        b: Predictions of the other, on the same photos, paired by a column id, image, IMG_ID or idx, or by row.
        format_: A table to read, JSON, CSV or Parquet; percentages are 0 to 100. When not given, what the name of
            --output ends in, else a table.
        output: A file to write instead of stdout.
        bootstrap: Resamples, 1000 or more.
        distance: On a sphere of 6371.0088 km, as papers do, or on the WGS84 ellipsoid.
        group: A column of A, such as the author, whose photos belong together: all is then tested by resampling them.
    """
    chosen = choose(format_, output, ("table", "json", "csv", "parquet"))
    from open_geoclip.evaluation.compare import compare as compared
    from open_geoclip.evaluation.predictions import read_predictions

    runs = read_predictions(a, group=group), read_predictions(b)
    with progress_bar("resampling") as progress:
        found = compared(*runs, distance=distance, resamples=bootstrap, progress=progress)
    if chosen == "json":
        write_output(to_json(found.to_dict()), output)
    elif chosen == "table":
        write_output(_table(found), output)
    else:
        write_output(rows_as(chosen, _rows(found)), output)


def _rows(found: "Comparison") -> list[dict[str, Any]]:
    """A figure a row, for files."""
    head = ["a", "b", "difference", "low", "high", "only_a", "only_b", "test", "p_value", "p_holm", "better"]
    rows = []
    for name, one in found.differences.items():
        cells = one.to_dict() | dict(zip(("low", "high"), one.interval, strict=True))
        rows.append({"figure": name, **{column: cells[column] for column in head}, "n": found.n})
    return rows


def _table(found: "Comparison") -> str:
    from open_geoclip.evaluation.report import TITLES

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
        title = TITLES.get(name, name.replace("_", " "))
        low, high = one.interval
        lone = ["" if count is None else f"{count:,}" for count in (one.only_a, one.only_b)]
        lines.append(
            f"{title:<16}{f'{one.a:,.{digits}f}{unit}':>12}{f'{one.b:,.{digits}f}{unit}':>12}"
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
