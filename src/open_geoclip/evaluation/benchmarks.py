"""Labelled photos: any table and folder, and the published benchmarks.

Nothing is downloaded. docs/evaluation.md says which published layouts were read, and which are known from papers only.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int

from open_geoclip.data.columns import LATITUDE, LONGITUDE, Column
from open_geoclip.data.photo_tables import PHOTO_COLUMNS
from open_geoclip.data.tables import Table, read_table
from open_geoclip.errors import BenchmarkError, DataError, ImageError
from open_geoclip.evaluation.labelled import Labelled, places_fingerprint
from open_geoclip.files import sha256
from open_geoclip.geo.sphere import MAX_LONGITUDE_DEG, check_coordinates
from open_geoclip.images import find_images

__all__ = ["BENCHMARKS", "Benchmark", "describe_counts", "label_tables", "read_labelled"]


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark.

    Attributes:
        title: as papers write it.
        labelled: number of photos with a place in its table.
        tables: names of its table, the published one first.
        photo_folder: below the data folder, where photos are looked for first.
        places_sha256: :func:`places_fingerprint` of its places, if it is certain.
        published: percent within 1, 25, 200, 750 and 2500 km of the released GeoCLIP, by the number of crops.
        note: for reports.
    """

    title: str
    labelled: int
    tables: tuple[str, ...]
    photo_folder: str = "."
    places_sha256: str | None = None
    published: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    note: str = ""


BENCHMARKS: dict[str, Benchmark] = {
    "im2gps": Benchmark("Im2GPS", 237, ("im2gps_places365.csv",)),
    "im2gps3k": Benchmark(
        "Im2GPS3k",
        2997,
        ("im2gps3k_places365.csv",),
        # Of the 2,997 true places that published per-photo predictions carry, in the order of the public table.
        places_sha256="e1e8d382eb43a79e8e78630ac96b3e6f8a00b80ca7561618fdf209ce1e4444c1",
        published={1: (13.01, 32.10, 47.91, 66.57, 82.42), 10: (14.11, 34.47, 50.65, 69.67, 83.82)},
        note="3,000 photos were published, and 2,997 of them have a place",
    ),
    "yfcc4k": Benchmark("YFCC4k", 4536, ("yfcc4k_places365.csv",)),
    "yfcc26k": Benchmark(
        "YFCC26k", 25_600, ("yfcc25600_places365.csv",), note="Flickr has lost photos: 22,042 are left"
    ),
    "gws15k": Benchmark(
        "GWS15k",
        14_955,
        ("gws15k.csv", "GWS15k.csv", "metadata.csv"),
        note="coordinates were published, the photos never: whoever fetches them again has other photos",
    ),
    "osv5m": Benchmark("OSV-5M", 210_122, ("test.csv",), photo_folder="images/test"),
}

_COLUMNS = {
    "id": Column(("IMG_ID", "IMG_FILE", "id", "image", "path", "image_id", *PHOTO_COLUMNS["file"].names, "name")),
    "lat": Column(("LAT", *LATITUDE, "true_lat"), "degrees"),
    "lon": Column(("LON", *LONGITUDE, "true_lon"), "degrees"),
}
_GROUPS = ("AUTHOR", "creator_id", "user", "sequence")
_NAMED_ROWS = 3  # damaged rows that the notes name
_FLICKR_USER = re.compile(r"\d+@N\d+$")


def read_labelled(
    data: str | Path, *, benchmark: str | None = None, table: str | Path | None = None, group: str | None = None
) -> Labelled:
    """Read a table of labels and find its photos.

    Args:
        data: the folder of the photos.
        benchmark: a name in :data:`BENCHMARKS`; default: any data.
        table: CSV, Parquet or GeoJSON; default: that of the folder.
        group: the column of groups; default: ``AUTHOR``, ``creator_id``, ``user`` or ``sequence``.

    Raises:
        BenchmarkError: the name is not known, the table cannot be used, no photo is found.
    """
    folder = Path(data)
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise BenchmarkError(f"no benchmark is called {benchmark!r}; known are {', '.join(BENCHMARKS)}")
    record = None if benchmark is None else BENCHMARKS[benchmark]
    if not folder.is_dir():
        raise BenchmarkError(f"{folder}: there is no such folder; --data is the folder that holds the photos")
    path = _table_in(folder, record) if table is None else Path(table)
    groups = Column((group,)) if group else Column(_GROUPS, required=False)
    try:
        labels = read_table(path, _COLUMNS | {"group": groups}, strict=False)
    except DataError as error:
        raise BenchmarkError(f"labels {error}") from error
    if not len(labels):
        raise BenchmarkError(f"labels {path}: it holds no labels, only the names of columns")
    notes = [f"{path.name}, {labels.where(row)}: {text}" for row, text in list(labels.invalid.items())[:_NAMED_ROWS]]
    if len(labels.invalid) > _NAMED_ROWS:
        notes.append(f"{len(labels.invalid):,} rows of {path.name} are damaged; the first {_NAMED_ROWS} are named")
    places = _places(labels, record, notes)
    keep, counts = _sound(labels, places)
    photos, missing, shared, unlabelled = _found(folder, record, labels, keep)
    counts |= {"photos_missing": len(missing), "photos_shared": shared, "photos_unlabelled": unlabelled}
    rows = np.array(sorted(photos), np.int64)
    counts["photos"] = len(rows)
    fingerprint = places_fingerprint(places[np.isfinite(places).all(axis=1)])
    notes += _remarks(record, labels, keep, fingerprint)
    ids = list(labels.texts["id"])
    return Labelled(
        name=folder.name or str(folder.resolve().name) if record is None else record.title,
        benchmark=record,
        rows=rows,
        ids=[ids[row] for row in rows],
        photos=[photos[row] for row in rows],
        images=[photos[row].relative_to(folder).as_posix() for row in rows],
        truth=places[rows],
        groups=_groups(labels, rows, ids),
        group_column=labels.names.get("group"),
        table=path,
        table_sha256=sha256(path),
        places_sha256=fingerprint,
        counts=counts,
        missing=missing,
        notes=notes,
    )


def _table_in(folder: Path, record: Benchmark | None) -> Path:
    """The table of labels in a folder, or beside it."""
    names = () if record is None else record.tables
    for name in names:
        for place in (folder, folder / "metadata", folder / "meta", folder.parent):
            if (place / name).is_file():
                return place / name
    tables = label_tables(folder)
    if record is None and len(tables) == 1:
        return tables[0]
    wanted = f"{' or '.join(names)} is not there" if names else "which table holds the labels is not clear"
    held = ", ".join(path.name for path in tables[:5]) or "no CSV, Parquet or GeoJSON file"
    raise BenchmarkError(f"{folder}: {wanted} (it holds {held}): say which it is with --table FILE")


def label_tables(folder: Path) -> list[Path]:
    """Return the files of a folder that may be its table of labels: no ``.txt`` or ``.json``, which may be notes."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tsv", ".parquet", ".geojson"))


def _places(labels: Table, record: Benchmark | None, notes: list[str]) -> Float64[np.ndarray, "n 2"]:
    """True places, NaN where a row has none.

    An early copy of Im2GPS3k's public table has latitudes under LON and longitudes under LAT.

    Raises:
        BenchmarkError: latitude and longitude are exchanged.
    """
    places = labels.coordinates()
    places[~np.isfinite(places)] = np.nan
    lat, lon = np.abs(places).T
    if np.count_nonzero(lat > 90) > np.count_nonzero(lon > 90):
        fault = f"{labels.names['lat']} holds longitudes and {labels.names['lon']} latitudes"
        if record is None or np.count_nonzero(lon > 90):
            raise BenchmarkError(
                f"labels {labels.path}: {fault}, as {np.count_nonzero(lat > 90):,} of {len(labels):,} rows show: "
                "exchange the names of the two columns"
            )
        notes.append(f"in {labels.path.name} {fault}; they were read that way round")
        places = np.ascontiguousarray(places[:, ::-1])
        lat, lon = np.abs(places).T
    off_earth = ~((lat <= 90) & (lon <= MAX_LONGITUDE_DEG))
    places[off_earth] = np.nan
    fine = ~off_earth
    if not fine.any():
        raise BenchmarkError(
            f"labels {labels.path}: none of its {len(labels):,} rows has a place on Earth in "
            f"{labels.names['lat']} and {labels.names['lon']}"
        )
    places[fine] = check_coordinates(places[fine])
    return places


def _sound(labels: Table, places: Float64[np.ndarray, "n 2"]) -> tuple[list[int], dict[str, int]]:
    """Rows that label one photo with one place, and the number of those that do not."""
    ids = list(labels.texts["id"])
    known = np.isfinite(places).all(axis=1)
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(known).tolist():
        if ids[row]:
            rows_of.setdefault(ids[row], []).append(row)
    keep, repeated, conflicting = [], 0, 0
    for rows in rows_of.values():
        if len(rows) > 1 and np.ptp(places[rows], axis=0).max() > 0:
            conflicting += len(rows)
        else:
            keep.append(rows[0])
            repeated += len(rows) - 1
    nameless = sum(not ids[row] for row in np.flatnonzero(known))
    return sorted(keep), {
        "rows": len(labels),
        "rows_without_place": int(np.count_nonzero(~known)),
        "rows_without_name": nameless,
        "rows_repeated": repeated,
        "rows_contradicting": conflicting,
    }


def _found(
    folder: Path, record: Benchmark | None, labels: Table, keep: Sequence[int]
) -> tuple[dict[int, Path], list[str], int, int]:
    """The photo of each row, ids without one, rows whose photo was another row's, photos without a row.

    By the name below the folder, by the last part of the name, or by the name without its suffix.

    Raises:
        BenchmarkError: no photo is found, or there is none in the folder.
    """
    root = folder
    if record is not None and (folder / record.photo_folder).is_dir():
        root = folder / record.photo_folder
    try:
        files = find_images([root])
    except ImageError as error:
        raise BenchmarkError(f"{error}: --data is the folder that holds the photos") from error
    exact: dict[str, Path] = {}
    by_name: dict[str, list[Path]] = {}
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        exact[path.relative_to(root).as_posix()] = path
        by_name.setdefault(path.name, []).append(path)
        by_stem.setdefault(path.stem, []).append(path)
    ids = list(labels.texts["id"])
    photos: dict[int, Path] = {}
    taken: set[Path] = set()
    missing, shared = [], 0
    for row in keep:
        photo = exact.get(ids[row].removeprefix("./"))
        if photo is None:
            name = ids[row].replace("\\", "/").rpartition("/")[2]
            held = by_name.get(name) or by_stem.get(name) or []
            photo = held[0] if len(held) == 1 else None
            if len(held) > 1:
                raise BenchmarkError(
                    f"{root}: {ids[row]} of {labels.path.name} may be {held[0].relative_to(root)} or "
                    f"{held[1].relative_to(root)}: give the folder of one of them as --data"
                )
        if photo is None:
            missing.append(ids[row])
        elif photo in taken:
            shared += 1
        else:
            taken.add(photo)
            photos[row] = photo
    if not photos:
        raise BenchmarkError(
            f"{root}: of the {len(keep):,} photos in {labels.path.name}, none is there. The first is {ids[keep[0]]}; "
            f"the folder's first photo is {files[0].relative_to(root)}: give the folder they lie in as --data"
            if keep
            else f"labels {labels.path}: no row names a photo and its place"
        )
    return photos, missing, shared, len(files) - len(taken)


def _groups(labels: Table, rows: Int[np.ndarray, " n"], ids: Sequence[str]) -> list[str] | None:
    """What each photo belongs to; a photo of nobody belongs to itself."""
    if "group" not in labels.texts:
        return None
    groups = list(labels.texts["group"])
    # Im2GPS's table has the Flickr user behind other parts of the file's name, in three quarters of its rows.
    users = [_FLICKR_USER.findall(group) for group in groups]
    return [(users[row] or [groups[row] or ids[row]])[0] for row in rows.tolist()]


def _remarks(record: Benchmark | None, labels: Table, keep: Sequence[int], fingerprint: str) -> list[str]:
    if record is None:
        return []
    remarks = [f"{record.title}: {record.note}"] if record.note else []
    if len(keep) != record.labelled:
        remarks.append(
            f"{labels.path.name} gives {len(keep):,} photos a place, and {record.title} has {record.labelled:,}: "
            "figures do not compare with published ones"
        )
    if record.places_sha256 is None:
        remarks.append(
            f"no hash of {record.title}'s labels is published: what was read is recorded, and not known to be right"
        )
    elif fingerprint == record.places_sha256:
        remarks.append(f"the labels are {record.title}'s: sha256 of its places {fingerprint[:12]}")
    else:
        remarks.append(
            f"the labels are not {record.title}'s: sha256 of the places is {fingerprint[:12]}, not "
            f"{record.places_sha256[:12]}"
        )
    return remarks


def describe_counts(counts: Mapping[str, int]) -> list[str]:
    """What was left out, in words, without what did not happen."""
    words = {
        "rows_without_place": "rows of the table have no place on Earth",
        "rows_without_name": "rows of the table name no photo",
        "rows_repeated": "rows repeat another",
        "rows_contradicting": "rows give one photo several places",
        "photos_missing": "photos are not in the folder",
        "photos_shared": "rows name a photo that another row has named",
        "photos_broken": "photos cannot be read",
        "photos_unlabelled": "photos in the folder have no label",
    }
    return [f"{counts[key]:,} {text}" for key, text in words.items() if counts.get(key)]
