"""The photo index: photos with known places, searched for those that look like a query.

A folder holds what was computed of the photos once: projected features of the image backbone as float16, coordinates,
names, groups, hashes, and thumbnails if wanted. Files are immutable and read memory-mapped; ``manifest.json`` names
those that count and is replaced last, so a reader or a killed process never sees half of a change.

Features are projected to their principal components and whitened (Jégou and Chum, "Negative evidences and
co-occurrences in image retrieval", 2012): cosines of raw features are dominated by a few directions that all images
share. The projection is fitted on the first 2,048 photos and stays the same afterwards; until there are as many, an
index keeps the features as they came from the backbone, too, and each photo added fits it anew.
"""

import json
import logging
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from safetensors.torch import save_file
from torch import Tensor

from open_geoclip.errors import DataError, SettingsError
from open_geoclip.files import atomic_file, atomic_folder, atomic_write
from open_geoclip.model.image_encoder import ImageEncoder
from open_geoclip.search.feature_search import FeatureSearch, write_inverted_file
from open_geoclip.search.photo_records import (
    HASH_BYTES,
    IndexRecords,
    Neighbours,
    QueryPhotos,
    fit_projection,
    probe_feature,
    read_tensors,
)

__all__ = ["FIT_PHOTOS", "MAX_EXACT", "PhotoIndex"]

logger = logging.getLogger(__name__)

FIT_PHOTOS = 2048
"""The projection is fitted on so many photos."""

MAX_EXACT = 1_000_000
"""Indexes of more photos have an inverted file."""

_NEAR_BITS = 20  # perceptual hashes of near duplicates differ in at most so many of 256 bits; others in 128 +- 8
_MARGIN = 64  # candidates beyond those asked for, some of which are left out
_FORMAT, _VERSION = "open-geoclip-photo-index", 1
_MANIFEST = "manifest.json"
_MIN_AGREEMENT = 0.98  # cosine of the probe's features; precision and engine change it by less than 0.001


class PhotoIndex:
    """An index in a folder. Make one with :meth:`create` or :meth:`open`; it does not change while it is read.

    Args:
        folder: where it is.
        manifest: the content of ``manifest.json``.

    Raises:
        DataError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        projection, _ = read_tensors(folder / manifest["projection"])
        self._mean, self._components = projection["mean"], projection["components"]
        self._probe = projection.get("probe")
        self._parts = [read_tensors(folder / part["file"]) for part in manifest["parts"]]
        tensors = [part for part, _ in self._parts]
        self._features = {
            part["file"]: tensors["features"] for part, (tensors, _) in zip(manifest["parts"], self._parts, strict=True)
        }
        if [*map(len, self._features.values())] != [part["photos"] for part in manifest["parts"]]:
            raise DataError(f"{folder}: damaged: its parts do not have the {len(self):,} photos of {_MANIFEST}")
        inverted = manifest.get("inverted_file")
        known = (folder / inverted["file"], inverted["parts"]) if inverted else ()
        self._search = FeatureSearch(self._features, *known)

        def concatenate(name: str, width: int, kind: Any) -> np.ndarray:
            return np.concatenate([np.empty((0, width), kind), *(part[name].numpy() for part in tensors)])

        self.coordinates: Float64[np.ndarray, "n 2"] = concatenate("coordinates", 2, np.float64)
        self.sha256: UInt8[np.ndarray, "n 32"] = concatenate("sha256", HASH_BYTES, np.uint8)
        self.hashes: UInt8[np.ndarray, "n 32"] = concatenate("hashes", HASH_BYTES, np.uint8)
        self.ids: list[str] = [one for _, names in self._parts for one in names["ids"]]
        self.groups: list[str | None] = [one for _, names in self._parts for one in names["groups"]]

    def __len__(self) -> int:
        return sum(part["photos"] for part in self.manifest["parts"])

    @property
    def dim(self) -> int:
        """Length of a feature of the backbone."""
        return len(self._mean)

    # --- reading ----------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: Path) -> "PhotoIndex":
        """Open an index; features and thumbnails stay on disk until they are used.

        Raises:
            DataError: there is none, it is empty or damaged, or of another version.
        """
        index = cls(folder, _read_manifest(folder))
        if len(index) == 0:
            raise DataError(f"{folder}: the index is empty: geoclip index add SOURCE -o {folder}")
        return index

    def check_model(self, encoder: ImageEncoder) -> None:
        """Check that the features are those of a backbone, by computing the feature of one image anew.

        Raises:
            SettingsError: the index was made with another backbone or preprocessing.
        """
        own, made_with = encoder.settings, self.manifest["backbone"]
        other = f"{self.folder}: made with the backbone {made_with}, this model has {own.backbone}"
        if own.feature_dim != self.dim:
            raise SettingsError(f"{other}: features of {own.feature_dim} numbers instead of {self.dim}")
        if self._probe is not None and encoder.backbone is not None:
            agreement = float(F.cosine_similarity(probe_feature(encoder), self._probe, dim=0))
            if agreement < _MIN_AGREEMENT:
                raise SettingsError(f"{other}, which gives other features; build an index with this model")

    def project(self, features: Float[Tensor, "n d"]) -> Float32[Tensor, "n k"]:
        """Return projected features of length 1.

        Raises:
            SettingsError: features of another length.
        """
        if features.shape[1] != self.dim:
            raise SettingsError(f"{self.folder}: features of {self.dim} numbers, not {features.shape[1]}")
        return F.normalize((features.float() - self._mean) @ self._components, dim=1)

    @torch.inference_mode()
    def search(self, queries: QueryPhotos, k: int) -> list[Neighbours]:
        """Return the photos most like each query, without its duplicates and left-out groups.

        All photos are compared, or the candidates of the inverted file where the index has one; similarities are exact.
        A duplicate has the same SHA-256, or a perceptual hash that differs in at most 20 of 256 bits. The group of a
        duplicate is left out, too.

        Args:
            queries: the photos.
            k: photos a query; fewer where the index has fewer.
        """
        n, projected = len(queries.features), self.project(queries.features)
        found: dict[int, Neighbours] = {}
        count = k + _MARGIN
        while len(found) < n:
            open_rows = [row for row in range(n) if row not in found]
            similarity, rows = self._search.most_similar(projected[open_rows], min(count, len(self)))
            for query, own, at in zip(open_rows, similarity.double().numpy(), rows.numpy(), strict=True):
                kept = np.isfinite(own) & self._allowed(queries, query, at)
                if kept.sum() >= k or count >= len(self):
                    own, at = own[kept][:k], at[kept][:k]
                    found[query] = Neighbours([self.ids[i] for i in at], own, self.coordinates[at], at)
            count *= 8
        return [found[row] for row in range(n)]

    def _allowed(self, queries: QueryPhotos, query: int, rows: Int64[np.ndarray, " c"]) -> Bool[np.ndarray, " c"]:
        """Return which candidates are neither duplicates of a query nor of a group that is left out."""
        duplicate = np.zeros(len(rows), bool)
        own = queries.sha256[query] if queries.sha256 is not None else None
        if own is not None:
            duplicate |= (self.sha256[rows] == np.frombuffer(bytes.fromhex(own), np.uint8)).all(axis=1)
        if queries.hashes is not None and queries.hashes[query].any():
            hashes = self.hashes[rows]
            bits = np.bitwise_count(hashes ^ queries.hashes[query]).sum(axis=1, dtype=np.int64)
            duplicate |= (bits <= _NEAR_BITS) & hashes.any(axis=1)
        groups = {*queries.groups, *(self.groups[row] for row in rows[duplicate])} - {None}
        if groups:
            duplicate |= np.array([self.groups[row] in groups for row in rows])
        return ~duplicate

    @cached_property
    def has_thumbnail(self) -> Bool[np.ndarray, " n"]:
        """Of which photos the index has a thumbnail."""
        return np.concatenate([part["thumbnail_ends"].diff().numpy() > 0 for part, _ in self._parts])

    def read_fit(self, weights_sha256: str | None, gallery_sha256: str) -> dict[str, Any] | None:
        """Return how the photos count for a model, as :meth:`save_fit` wrote it; None if it was not fitted.

        Nor is it known any more when the number of photos has changed by a tenth since.
        """
        path = self.folder / _fit_name(weights_sha256, gallery_sha256)
        try:
            fit: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            photos = int(fit["photos"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: damaged ({error}); run geoclip calibrate again") from error
        if abs(len(self) - photos) <= 0.1 * photos:
            return fit
        logger.warning("%s: fitted for %d photos, there are %d: run geoclip calibrate again", path, photos, len(self))
        return None

    def save_fit(self, weights_sha256: str, gallery_sha256: str, fit: Mapping[str, Any]) -> None:
        """Store how the photos count for a model.

        Raises:
            DataError: the folder cannot be written.
        """
        with _changes(self.folder):
            content = json.dumps({**fit, "photos": len(self)}, indent=1) + "\n"
            atomic_write(self.folder / _fit_name(weights_sha256, gallery_sha256), content)

    def thumbnail(self, row: int) -> bytes | None:
        """Return the JPEG of a photo; None where the index has none of it."""
        for tensors, _ in self._parts:
            n = len(tensors["features"])
            if row < n:
                return _thumbnail(tensors, row) or None
            row -= n
        raise IndexError(row)

    # --- writing ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, folder: Path, records: IndexRecords, *, backbone: str = "custom", encoder: ImageEncoder | None = None
    ) -> "PhotoIndex":
        """Write a new index of some photos, on which its projection is fitted.

        Args:
            folder: must not exist, or be empty.
            records: of 2 photos or more.
            backbone: name of the backbone, for messages.
            encoder: that computed the features, by which :meth:`check_model` recognises it; None: only their length.

        Raises:
            DataError: too few photos, an id is given twice, or the folder cannot be written or holds something.
        """
        if len(records) < 2:
            raise DataError(f"an index is made of 2 photos or more, not {len(records)}")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} exists already: geoclip index add SOURCE -o {folder}, or name another folder")
        probe = None if encoder is None else probe_feature(encoder)
        manifest = {"format": _FORMAT, "version": _VERSION, "backbone": backbone, "parts": []}
        try:
            with atomic_folder(folder) as temporary:
                manifest["projection"] = _write_projection(temporary, records, probe)
                cls(temporary, manifest)._add(records)
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error
        return cls.open(folder)

    def add(self, records: IndexRecords) -> "PhotoIndex":
        """Add photos to the folder and return the index with them.

        Raises:
            DataError: an id is there already, or the folder cannot be written, or has changed since.
        """
        with self._exclusive():
            return self._add(records)

    def remove(self, rows: Collection[int]) -> "PhotoIndex":
        """Remove photos from the folder and return the index without them.

        Raises:
            DataError: nothing would be left, or the folder cannot be written, or has changed since.
        """
        gone = np.zeros(len(self), bool)
        gone[list(rows)] = True
        if gone.all():
            raise DataError(f"{self.folder}: no photo would be left; delete the folder instead")
        with self._exclusive():
            parts, start = [], 0
            for part, (tensors, names) in zip(self.manifest["parts"], self._parts, strict=True):
                keep = np.flatnonzero(~gone[start : start + part["photos"]])
                start += part["photos"]
                if len(keep) == part["photos"]:
                    parts.append(part)
                elif len(keep):
                    rest = {key: tensors[key][keep] for key in tensors.keys() - {"thumbnails", "thumbnail_ends"}}
                    pictures = [_thumbnail(tensors, row) for row in keep.tolist()]
                    kept = {key: [values[i] for i in keep] for key, values in names.items()}
                    parts.append(self._write_part(rest, kept["ids"], kept["groups"], pictures))
            return self._commit(parts)

    def with_inverted_file(self) -> "PhotoIndex":
        """Write an inverted file where there are more than 1,000,000 photos and a tenth of them are in none.

        Returns:
            The index with it, or this one.

        Raises:
            DataError: the folder cannot be written, or has changed since.
            MissingExtraError: the extra ``faiss`` is not installed.
        """
        parts = {part["file"]: part["photos"] for part in self.manifest["parts"]}
        known = (self.manifest.get("inverted_file") or {"parts": ()})["parts"]
        outside = sum(photos for name, photos in parts.items() if name not in known)
        if len(self) <= MAX_EXACT or 10 * outside <= len(self):
            return self
        name = f"inverted-{secrets.token_hex(8)}.faiss"
        with self._exclusive():
            write_inverted_file(self.folder / name, self._features)
            return self._commit(self.manifest["parts"], inverted_file={"file": name, "parts": parts})

    def _add(self, records: IndexRecords) -> "PhotoIndex":
        if len({*self.ids, *records.ids}) != len(self) + len(records):
            raise DataError(f"{self.folder}: an id is given twice; ids name photos")
        if 0 < len(self) < FIT_PHOTOS and all("raw_features" in tensors for tensors, _ in self._parts):
            records = self._records().concatenate(records)
            projection = _write_projection(self.folder, records, self._probe)
            return PhotoIndex(self.folder, {**self.manifest, "projection": projection, "parts": []})._add(records)
        tensors = {
            "features": self.project(records.features).half(),
            "coordinates": torch.from_numpy(records.coordinates),
            "sha256": torch.from_numpy(records.sha256),
            "hashes": torch.from_numpy(records.hashes),
        }
        if len(self) + len(records) < FIT_PHOTOS:
            tensors["raw_features"] = records.features.contiguous()
        part = self._write_part(tensors, records.ids, records.groups, records.thumbnails or [b""] * len(records))
        return self._commit([*self.manifest["parts"], part])

    def _records(self) -> IndexRecords:
        """Return all photos of an index that has their features as they came from the backbone."""
        tensors = [part for part, _ in self._parts]
        thumbnails = [_thumbnail(part, row) for part in tensors for row in range(len(part["features"]))]
        features = torch.cat([part["raw_features"] for part in tensors])
        return IndexRecords(self.ids, self.coordinates, features, self.groups, self.sha256, self.hashes, thumbnails)

    def _write_part(
        self, tensors: dict[str, Tensor], ids: Sequence[str], groups: Sequence[str | None], thumbnails: Sequence[bytes]
    ) -> dict[str, Any]:
        ends = torch.tensor([0, *map(len, thumbnails)]).cumsum(0)
        pictures = torch.frombuffer(bytearray(b"".join(thumbnails) or b"\0"), dtype=torch.uint8)
        name = f"photos-{secrets.token_hex(8)}.safetensors"
        tensors = tensors | {"thumbnail_ends": ends, "thumbnails": pictures}
        _write(self.folder / name, tensors, {"ids": list(ids), "groups": list(groups)})
        return {"file": name, "photos": len(ids)}

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with _changes(self.folder):
            if _read_manifest(self.folder) != self.manifest:
                raise DataError(f"{self.folder}: another process has changed the index; open it again")
            yield

    def _commit(self, parts: list[dict[str, Any]], **changes: object) -> "PhotoIndex":
        """Replace the manifest, then delete files that it no longer names."""
        manifest = {**self.manifest, "parts": parts, **changes}
        atomic_write(self.folder / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
        index = PhotoIndex(self.folder, manifest)
        named = {
            manifest["projection"],
            manifest.get("inverted_file", {}).get("file"),
            *(part["file"] for part in parts),
        }
        for file in self.folder.iterdir():
            if file.suffix in (".safetensors", ".faiss") and file.name not in named:
                file.unlink()
        return index


def _fit_name(weights_sha256: str | None, gallery_sha256: str) -> str:
    return f"evidence-{str(weights_sha256)[:16]}-{gallery_sha256[:16]}.json"


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: there is no photo index: geoclip index build SOURCE -o {folder}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / _MANIFEST}: damaged ({error}); build the index again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise DataError(f"{folder / _MANIFEST} is not that of a photo index")
    if manifest.get("version") != _VERSION:
        raise DataError(
            f"{folder}: version {manifest.get('version')} of the index, this reads {_VERSION}: build it again"
        )
    parts = manifest.get("parts")
    if not isinstance(parts, list) or not all(isinstance(manifest.get(key), str) for key in ("backbone", "projection")):
        raise DataError(f"{folder / _MANIFEST}: damaged; build the index again")
    return manifest


@contextmanager
def _changes(folder: Path) -> Iterator[None]:
    """Let one process at a time change an index; a file that cannot be written is a DataError."""
    try:
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error


def _thumbnail(tensors: Mapping[str, Tensor], row: int) -> bytes:
    start, end = tensors["thumbnail_ends"][row : row + 2].tolist()
    return tensors["thumbnails"][start:end].numpy().tobytes()


def _write_projection(folder: Path, records: IndexRecords, probe: Tensor | None) -> str:
    """Fit the projection, write it to a new file and return its name."""
    name = f"projection-{secrets.token_hex(4)}.safetensors"
    projection = fit_projection(records.features[:FIT_PHOTOS])
    _write(folder / name, projection if probe is None else projection | {"probe": probe})
    return name


def _write(path: Path, tensors: dict[str, Tensor], names: Mapping[str, object] | None = None) -> None:
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, {key: json.dumps(value) for key, value in (names or {}).items()})
