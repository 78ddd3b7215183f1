"""``geoclip data``: photos with coordinates, checked, packed and split."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from open_geoclip.cli._options import Images
from open_geoclip.cli._output import TextOutput, progress_bar
from open_geoclip.errors import DataError

if TYPE_CHECKING:
    from open_geoclip.data.checking import Check

__all__ = ["app", "check", "pack", "split"]

app = App(name="data", help="Check, pack and split photos with coordinates.")

Source = Annotated[
    str,
    Parameter(
        help="A table (CSV, Parquet), a folder of photos with GPS, tar shards (shards/{000..012}.tar or their folder), "
        "hf:NAME or earth-views:SPLIT:COUNT."
    ),
]


@app.command
def check(
    source: Source,
    /,
    *,
    images: Images = None,
    decode: bool = True,
    workers: int | None = None,
    show: int = 10,
    output: TextOutput = TextOutput(),
) -> None:
    """Count the photos that can be used, and list those that cannot and why.

    Exit status 1 if some cannot be used.

    Args:
        decode: Decode each image; otherwise only the presence of files is checked, and duplicates are not found.
        workers: Threads that decode; default: one per processor core.
        show: Faults of each kind that the table lists; JSON lists all.
    """
    from open_geoclip.data.checking import check_source
    from open_geoclip.data.photos import check_swapped
    from open_geoclip.data.sources import open_source

    opened = open_source(source, images=images)
    with progress_bar("checking") as progress:
        found = check_source(opened, decode=decode, workers=workers, progress=progress)
    output.write(found.to_dict(), table=_table(found, show))
    try:
        check_swapped(found.faults, found.entries, found.source, override=", or train with [data] max_swapped = 1.0")
    except DataError as error:
        print(f"geoclip: {error}", file=sys.stderr)
    if images is None and Path(source).is_file() and found.counts.get("missing") == found.entries:
        print("geoclip: if the images are elsewhere, name their folder with --images", file=sys.stderr)
    if found.usable < found.entries:
        sys.exit(1)


def _table(found: "Check", show: int) -> str:
    lines = [f"{found.source}: {found.usable:,} of {found.entries:,} photos can be used"]
    if found.bounds is not None:
        south, west, north, east = found.bounds
        lines.append(f"  {found.places:,} places, {south:.4f} to {north:.4f} N, {west:.4f} to {east:.4f} E")
        lines.append(f"  {found.sharing_a_place:,} photos share their very coordinates with another")
        lines.append(f"  {found.groups:,} groups" if found.groups else "  no groups")
    if not found.decoded:
        lines.append("  images were not decoded")
    for kind, count in found.counts.items():
        lines += ["", f"{count:,} {kind}" + (", used all the same" if kind == "duplicate" else "")]
        of_kind = [fault for fault in found.faults if fault.kind == kind]
        lines += [f"  {_printable(str(fault))}" for fault in of_kind[:show]]
        if count > show:
            lines.append(f"  and {count - show:,} more (--show, or --format json)")
    return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@app.command
def pack(
    source: Source,
    folder: Path,
    /,
    *,
    images: Images = None,
    shard_mb: float = 256,
    resize: int | None = None,
    quality: int = 92,
    verify: bool = True,
    workers: int | None = None,
    output: TextOutput = TextOutput(),
) -> None:
    """Write photos as tar shards in WebDataset's format, with an index.json.

    The same command resumes an interrupted run. Photos that cannot be used are left out and listed in index.json.

    Args:
        folder: Where the shards go.
        shard_mb: Size of a shard, in MB.
        resize: Reduce larger photos to this many pixels on the shorter side, as JPEG; default: pack files unchanged.
        quality: Quality of those JPEGs.
        verify: Decode each photo first, so that only readable ones are packed.
        workers: Threads that read and decode; default: one per processor core.
    """
    from open_geoclip.data.packing import PackSettings
    from open_geoclip.data.packing import pack as write_shards
    from open_geoclip.data.sources import open_source

    settings = PackSettings(shard_mb=shard_mb, resize=resize, quality=quality, verify=verify)
    opened = open_source(source, images=images)
    with progress_bar("packing") as progress:
        done = write_shards(opened, folder, settings, workers=workers, progress=progress)
    if done.resumed_at:
        print(f"geoclip: resumed at entry {done.resumed_at:,}", file=sys.stderr)
    facts: dict[str, Any] = {
        "folder": str(done.folder),
        "shards": done.shards,
        "photos": done.photos,
        "bytes": done.bytes,
        "left_out": done.left_out,
    }
    size = f"{done.bytes / 1e6:,.1f} MB"
    table = f"{done.photos:,} photos in {done.shards:,} shards, {size}, in {done.folder}\n"
    output.write(facts, table=table)
    if done.left_out and output.format == "table":
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in done.left_out.items())
        print(f"geoclip: left out: {kinds}; which ones is in {done.folder / 'index.json'}", file=sys.stderr)


@app.command
def split(
    source: Source,
    folder: Path,
    /,
    *,
    images: Images = None,
    shares: str = "train=0.8,validation=0.1,test=0.1",
    buffer_km: float = 1.0,
    groups: bool = True,
    leave_out: bool = False,
    square_km: float = 50.0,
    seed: int = 0,
    output: TextOutput = TextOutput(),
) -> None:
    """Split photos into tables for training, validation and test that share no place and no group.

    Args:
        folder: Where train.csv, validation.csv and test.csv go.
        shares: Name and share of each side.
        buffer_km: Least distance between photos of different sides.
        groups: Keep the photos of a group (author, sequence) on one side.
        leave_out: Split by squares of the Earth and leave out photos near edges, where no other split is possible.
        square_km: Side of those squares.
        seed: Random seed; the same seed gives the same split.
    """
    from open_geoclip.data.photos import SkipLog
    from open_geoclip.data.sources import open_source
    from open_geoclip.data.splitting import SplitSettings, write_splits

    settings = SplitSettings(_shares(shares), buffer_km, groups, leave_out, square_km, seed)
    opened = open_source(source, images=images)
    log = SkipLog(opened.name)
    done = write_splits(opened, folder, settings, on_skip=log)
    log.close()
    sides = {name: {"file": str(path), "photos": done.counts[name]} for name, path in done.files.items()}
    facts = {"sides": sides, "left_out": done.left_out, "unusable": done.unusable}
    total = sum(done.counts.values())
    rows = [
        f"{done.counts[name]:>10,}  {done.counts[name] / total:6.1%}  {path}\n" for name, path in done.files.items()
    ]
    rows += [f"{done.left_out:>10,}  left out between them\n"] if done.left_out else []
    rows += [f"{done.unusable:>10,}  cannot be used (geoclip data check says why)\n"] if done.unusable else []
    output.write(facts, table="".join(rows))


def _shares(text: str) -> dict[str, float]:
    from open_geoclip.errors import SettingsError

    try:
        pairs = [part.split("=") for part in text.split(",")]
        shares = {name.strip(): float(share) for name, share in pairs}
    except ValueError as error:
        raise SettingsError(f"--shares {text}: write train=0.8,validation=0.1,test=0.1") from error
    if not all(name.isidentifier() for name in shares):
        raise SettingsError(f"--shares {text}: names are letters, digits and _, as they name files")
    return shares
