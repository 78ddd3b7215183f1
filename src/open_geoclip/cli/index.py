"""``geoclip index``: photos with known places, to be found by photos that look like them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from open_geoclip.cli._options import ImageModelOptions, Images
from open_geoclip.cli._output import TextOutput, progress_bar
from open_geoclip.errors import DataError, MissingExtraError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.search.photo_index import PhotoIndex

__all__ = ["add", "app", "build", "info", "remove"]

app = App(name="index", help="Index photos with known places, for geoclip locate --index.")

Source = Annotated[
    str,
    Parameter(
        help="A table (CSV, Parquet), a folder of photos with GPS, tar shards (shards/{000..012}.tar or their folder), "
        "hf:NAME, earth-views:SPLIT:COUNT, or a safetensors file with features and coordinates of photos."
    ),
]
Folder = Annotated[Path, Parameter(name=["--output", "-o"], help="The folder of the index.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class IndexingOptions:
    """How photos are read into an index."""

    images: Images = None
    thumbnails: Annotated[
        int,
        Parameter(help="Longest side of the thumbnails that are kept for reports and the page, in pixels; 0: none."),
    ] = 0
    workers: Annotated[int | None, Parameter(help="Threads that decode; default: one per processor core.")] = None


@app.command
def build(
    source: Source,
    /,
    *,
    folder: Folder,
    indexing: IndexingOptions = IndexingOptions(),
    options: ImageModelOptions = ImageModelOptions(),
) -> None:
    """Make an index of photos whose places are known.

    It holds features, coordinates, names and groups of the photos, not the photos. If it is interrupted, geoclip index
    add continues. Beyond 1,000,000 photos it has an inverted file for fast search (extra faiss).
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} exists already; geoclip index add {source} -o {folder} continues or extends it")
    _index(source, folder, None, indexing, options)


@app.command
def add(
    source: Source,
    /,
    *,
    folder: Folder,
    indexing: IndexingOptions = IndexingOptions(),
    options: ImageModelOptions = ImageModelOptions(),
) -> None:
    """Add photos to an index, except those that it has: a photo is recognised by the SHA-256 of its file."""
    from open_geoclip.search.photo_index import PhotoIndex

    _index(source, folder, PhotoIndex.open(folder), indexing, options)


@app.command
def info(folder: Path, /, *, output: TextOutput = TextOutput()) -> None:
    """Describe an index.

    Args:
        folder: The folder of the index.
    """
    from open_geoclip.search.photo_index import PhotoIndex

    facts = _facts(PhotoIndex.open(folder))
    output.write(facts, table="".join(f"{key:>12}  {value}\n" for key, value in facts.items()))


@app.command
def remove(folder: Path, ids: list[str] | None = None, /, *, group: list[str] | None = None) -> None:
    """Remove photos from an index, by name or by group.

    Args:
        folder: The folder of the index.
        ids: Names of photos.
        group: All photos of this group; can be given several times.
    """
    from open_geoclip.search.photo_index import PhotoIndex

    if not ids and not group:
        raise SettingsError("name the photos to remove, or --group GROUP")
    index = PhotoIndex.open(folder)
    wanted, groups = set(ids or ()), set(group or ())
    absent = [*(wanted - set(index.ids)), *(groups - set(index.groups))]
    if absent:
        raise DataError(f"{folder} has no {absent[0]!r}; nothing is removed")
    rows = [row for row, name in enumerate(index.ids) if name in wanted or index.groups[row] in groups]
    left = _with_inverted_file(index.remove(rows))
    print(f"geoclip: photos removed: {len(rows):,}; {len(left):,} left in {folder}", file=sys.stderr)


def _index(
    source: str,
    folder: Path,
    index: "PhotoIndex | None",
    indexing: IndexingOptions,
    options: ImageModelOptions,
) -> None:
    from open_geoclip.data.sources import open_source
    from open_geoclip.images import MAX_PIXELS
    from open_geoclip.search.photo_index import PhotoIndex
    from open_geoclip.search.photo_indexing import IndexingSettings, index_photos
    from open_geoclip.search.photo_records import IndexRecords

    if source.endswith(".safetensors"):
        records = IndexRecords.from_file(Path(source))
        index = index.add(records) if index is not None else PhotoIndex.create(folder, records, backbone=options.name)
        _with_inverted_file(index)
        print(f"geoclip: photos added: {len(records):,}; {len(index):,} in {folder}", file=sys.stderr)
        return
    opened = open_source(source, images=indexing.images)
    encoder = options.load().model.image_encoder
    settings = IndexingSettings(
        options.batch_size, indexing.workers, options.max_pixels or MAX_PIXELS, indexing.thumbnails
    )
    try:
        with progress_bar("indexing", log_interval_s=30) as progress:
            done = index_photos(encoder, opened, folder, index, settings, progress=progress)
    except KeyboardInterrupt:
        if (folder / "manifest.json").exists():
            print(f"geoclip: interrupted; geoclip index add {source} -o {folder} continues", file=sys.stderr)
        raise
    parts = [f"photos added: {done.added:,}"]
    parts += [f"there already: {done.present:,}"] if done.present else []
    parts += [f"left out: {done.left_out:,}"] if done.left_out else []
    index = _with_inverted_file(PhotoIndex.open(folder))
    print(f"geoclip: {', '.join(parts)}; {len(index):,} in {folder}", file=sys.stderr)


def _with_inverted_file(index: "PhotoIndex") -> "PhotoIndex":
    try:
        return index.with_inverted_file()
    except MissingExtraError as error:
        print(f"geoclip: each search compares all {len(index):,} photos. {error}", file=sys.stderr)
        return index


def _facts(index: "PhotoIndex") -> dict[str, Any]:
    (south, west), (north, east) = index.coordinates.min(axis=0).tolist(), index.coordinates.max(axis=0).tolist()
    return {
        "photos": len(index),
        "groups": len({*index.groups} - {None}),
        "backbone": index.manifest["backbone"],
        "south": south,
        "north": north,
        "west": west,
        "east": east,
        "thumbnails": int(index.has_thumbnail.sum()),
        "search": "inverted file" if index.manifest.get("inverted_file") else "exact",
        "bytes": sum(file.stat().st_size for file in index.folder.iterdir()),
    }
