"""Batches of a job: photos that are decoded, and the rows that are made of them, in this process or in one of Ray."""

from collections.abc import Generator, Iterator, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from open_geoclip.data.decoding import map_photos
from open_geoclip.data.photos import Photo, PhotoSource, SkippedRecord
from open_geoclip.errors import ImageError
from open_geoclip.export.tables import escape
from open_geoclip.scale.decoding import DecodedImage, Decoder, DecodeSettings
from open_geoclip.scale.results import Row, result_row
from open_geoclip.search.encode import EncodedBatch, encode_images
from open_geoclip.search.locator import Locator

__all__ = ["BatchLocator", "Decoded", "QuerySettings", "decode_new", "decode_settings"]

Decoded = DecodedImage | SkippedRecord


@dataclass(frozen=True)
class QuerySettings:
    """What is asked of each photo; arguments of :meth:`open_geoclip.search.locator.Locator.locate`."""

    top_k: int = 5
    text: str | None = None
    text_weight: float = 0.5
    detail: bool = False


def decode_settings(locator: Locator, timeout_s: float) -> DecodeSettings:
    """Return how images are decoded for a locator; ten crops are cut from a larger image."""
    preprocessing, encoding = locator.model.image_encoder.preprocessing, locator.encoding
    resize = preprocessing.shortest_edge(encoding.crops)
    squash = preprocessing.squash and encoding.crops == 1
    return DecodeSettings(resize, preprocessing.resample, encoding.max_pixels, timeout_s, encoding.fast_decode, squash)


def decode_new(
    source: PhotoSource, done: Set[str], decoder: Decoder, *, workers: int = 0
) -> Generator[tuple[str, Decoded | None], None, None]:
    """Decode the photos of a source; yield names and images, or why there is none, or None for photos that are done."""

    def work(photo: Photo) -> DecodedImage | None:
        name = escape(photo.key)
        return None if name in done else decoder(photo.image, name)

    for result in map_photos(source, work, workers=workers):
        if isinstance(result, SkippedRecord):
            key = escape(result.key)
            yield key, None if key in done else result
        else:
            yield escape(result[0].key), result[1]


class BatchLocator:
    """Locates batches of decoded images.

    Args:
        locator: with which to locate.
        settings: what is asked.
    """

    def __init__(self, locator: Locator, settings: QuerySettings) -> None:
        self.locator, self.settings = locator, settings
        self._text = None if settings.text is None else locator.encode_text([settings.text])[0]

    def __call__(self, batch: Sequence[tuple[str, Decoded]]) -> Iterator[Row]:
        """Yield one row per photo, in order; ``batch`` has no more than the locator's batch size."""
        asked = self.settings
        query = self.locator.query_encoded(self._encode(batch))
        if asked.text is not None and self._text is not None:
            query = query.with_text(asked.text, self._text, asked.text_weight)
        answers = self.locator.answer([query], asked.top_k, detail=asked.detail)
        for (key, _), (answer, _) in zip(batch, answers, strict=False):
            yield result_row(key, answer.to_dict())

    def _encode(self, batch: Sequence[tuple[str, Decoded]]) -> EncodedBatch:
        """Return the embeddings of images that were decoded, and the errors of those that were not.

        Blank images fill the batch, for matrix products round by their size: so an answer does not depend on what else
        is in its batch, and a job that was interrupted gives the same answers as one that was not.
        """
        images = [decoded.pixels for _, decoded in batch if isinstance(decoded, DecodedImage)]
        blanks = self.locator.encoding.batch_size - len(images) if images else 0
        return replace(
            encode_images(self.locator.model, images + [np.zeros((1, 1, 3), np.uint8)] * blanks, self.locator.encoding),
            names=[key for key, _ in batch] + [""] * blanks,
            errors=[
                ImageError(key, decoded.reason) if isinstance(decoded, SkippedRecord) else None
                for key, decoded in batch
            ]
            + [None] * blanks,
            sha256=[decoded.sha256 if isinstance(decoded, DecodedImage) else None for _, decoded in batch]
            + [None] * blanks,
        )
