"""Photos into an index: hashed, decoded ahead, encoded batch by batch, and saved often enough to lose little."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from open_geoclip.data.decoding import map_photos
from open_geoclip.data.photos import Photo, PhotoSource, SkipLog, SkippedRecord
from open_geoclip.errors import DataError
from open_geoclip.images import MAX_PIXELS, load_image, read_bytes, small_jpeg
from open_geoclip.model.image_encoder import ImageEncoder
from open_geoclip.search.encode import perceptual_hash
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.photo_records import HASH_BYTES, IndexRecords

__all__ = ["IndexReport", "IndexingSettings", "index_photos"]

_PART = 8192  # photos
_SAVE_SECONDS = 60.0
_MIN_PHOTOS = 2  # of a new index


@dataclass(frozen=True)
class IndexingSettings:
    """How photos are read and encoded.

    Attributes:
        batch_size: photos encoded at once.
        workers: threads that decode; default: one per processor core.
        max_pixels: larger photos are left out.
        thumbnail_side: longest side of the thumbnails that are kept, in pixels; 0: none.
    """

    batch_size: int = 16
    workers: int | None = None
    max_pixels: int = MAX_PIXELS
    thumbnail_side: int = 0


@dataclass(frozen=True)
class IndexReport:
    """What :func:`index_photos` did: photos added, photos that were there, photos that cannot be used."""

    added: int
    present: int
    left_out: int


@dataclass(frozen=True)
class _Prepared:
    sha256: bytes
    pixels: Tensor
    thumbnail: bytes


def index_photos(
    encoder: ImageEncoder,
    source: PhotoSource,
    folder: Path,
    index: PhotoIndex | None = None,
    settings: IndexingSettings | None = None,
    *,
    progress: Callable[[int, int | None], None] = lambda *_: None,
) -> IndexReport:
    """Add the photos of a source to an index, those that it does not have yet; the same call resumes one that ended.

    A photo is recognised by the SHA-256 of its file. The index is written after each 8,192 photos, each minute, and
    when interrupted.

    Args:
        encoder: with its backbone.
        source: the photos. A new index reads them in random order, so that the first ones stand for all.
        folder: of the index.
        index: what is in the folder; None: a new one is made.
        settings: how.
        progress: called with entries done, and of how many.

    Raises:
        DataError: there is no photo to index, or the folder cannot be written.
        SettingsError: the index was made with another backbone.
    """
    settings = settings or IndexingSettings()
    known: set[bytes] = set()
    if index is not None:
        index.check_model(encoder)
        known = {row.tobytes() for row in index.sha256 if row.any()}
    ids = set() if index is None else set(index.ids)
    log, waiting, done = SkipLog(source.name), _Waiting(encoder), 0
    added = present = 0

    def prepare(photo: Photo) -> _Prepared | None:
        content = photo.image
        if isinstance(content, Image.Image | np.ndarray):
            digest = hashlib.sha256(np.asarray(content).tobytes()).digest()
        else:
            content = read_bytes(content, photo.key)
            digest = hashlib.sha256(content).digest()
        if digest in known:
            return None
        image = load_image(content, name=photo.key, max_pixels=settings.max_pixels)
        side = settings.thumbnail_side
        return _Prepared(digest, encoder.preprocessing(image), small_jpeg(image, side) if side else b"")

    def save() -> None:
        nonlocal index, added
        if waiting.photos:
            records = waiting.take()
            added += len(records)
            if index is None:
                index = PhotoIndex.create(folder, records, backbone=encoder.settings.backbone, encoder=encoder)
            else:
                index = index.add(records)

    saved = time.monotonic()
    shuffled = source if index is not None else source.shuffled(0)
    try:
        for result in map_photos(shuffled, prepare, workers=settings.workers):
            done += 1
            progress(done, source.count)
            if isinstance(result, SkippedRecord):
                log(result)
                continue
            photo, prepared = result
            if prepared is None or prepared.sha256 in known:
                present += 1
                continue
            known.add(prepared.sha256)
            name = photo.key if photo.key not in ids else f"{photo.key} ({prepared.sha256.hex()[:12]})"
            ids.add(name)
            waiting.append(name, photo, prepared)
            if len(waiting.pixels) >= settings.batch_size:
                waiting.encode()
            is_late = time.monotonic() - saved > _SAVE_SECONDS
            if len(waiting.photos) >= _PART or (is_late and (index is not None or len(waiting.photos) >= _MIN_PHOTOS)):
                save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        if index is not None or len(waiting.photos) >= _MIN_PHOTOS:
            save()
        raise
    finally:
        log.close()
    save()
    if index is None:
        raise DataError(f"{source.name}: there is no photo to index")
    return IndexReport(added, present, log.counts.total())


class _Waiting:
    """Photos that are decoded or encoded and not saved."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder = encoder
        self.photos: list[tuple[str, Photo, bytes, bytes]] = []
        self.pixels: list[Tensor] = []
        self.features: list[Tensor] = []
        self.hashes: list[np.ndarray] = []

    def append(self, name: str, photo: Photo, prepared: _Prepared) -> None:
        bare = Photo(photo.key, b"", photo.lat, photo.lon, photo.group)
        self.photos.append((name, bare, prepared.sha256, prepared.thumbnail))
        self.pixels.append(prepared.pixels)

    @torch.inference_mode()
    def encode(self) -> None:
        if self.pixels:
            pixels = torch.stack(self.pixels)
            device = next(self.encoder.mlp.parameters()).device
            self.features.append(self.encoder.forward_backbone(pixels.to(device)).half().cpu())
            self.hashes.append(perceptual_hash(pixels))
            self.pixels.clear()

    def take(self) -> IndexRecords:
        """Return all as records, and forget them."""
        self.encode()
        names, photos, digests, thumbnails = zip(*self.photos, strict=True)
        records = IndexRecords(
            names,
            np.array([(photo.lat, photo.lon) for photo in photos], np.float64),
            torch.cat(self.features),
            [photo.group for photo in photos],
            np.frombuffer(b"".join(digests), np.uint8).reshape(-1, HASH_BYTES).copy(),
            np.concatenate(self.hashes),
            thumbnails if any(thumbnails) else (),
        )
        self.photos, self.features, self.hashes = [], [], []
        return records
