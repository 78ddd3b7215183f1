"""The locator: photos in, answers out."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_geoclip import pretrained
from open_geoclip._version import __version__
from open_geoclip.errors import GalleryError, ImageError, SettingsError
from open_geoclip.images import MAX_PIXELS, ImageSource, image_name, load_image
from open_geoclip.model.two_towers import DType, Engine, TwoTowers, prepared
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex, Progress

__all__ = ["Answer", "Candidate", "Locator"]


@dataclass(frozen=True)
class Candidate:
    """A place where a photo may have been taken.

    Attributes:
        lat: degrees north.
        lon: degrees east.
        score: cosine of the picture's and the place's vector, from -1 to 1.
        probability: the place's share of a softmax over the gallery. It compares places of one gallery; it is
            not the chance of being right.
    """

    lat: float
    lon: float
    score: float
    probability: float


@dataclass(frozen=True)
class Answer:
    """What was found for one picture or text, and by what. An estimate, not evidence.

    Attributes:
        image: the picture's name; empty for a text alone.
        model: the weights' name and version.
        gallery: the gallery's name, size and fingerprint.
        version: of this package.
        candidates: best first; empty when there is an error.
        error: why the picture could not be read, or None.
        text: what was asked for in words, alone or beside the picture, or None.
    """

    image: str
    model: str
    gallery: str
    version: str
    candidates: tuple[Candidate, ...] = ()
    error: str | None = None
    text: str | None = None

    @property
    def name(self) -> str:
        """The picture's name, or the text when there is no picture."""
        return self.image or self.text or ""

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready values; ``{"image", "error"}`` alone when the picture could not be read."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        asked = {"image": self.image, "text": self.text}
        return {
            **{kind: asked[kind] for kind in asked if asked[kind]},
            "model": self.model,
            "gallery": self.gallery,
            "version": self.version,
            "candidates": [vars(candidate) for candidate in self.candidates],
        }


class Locator:
    """A model and a gallery, ready for any number of photos.

    Args:
        model: two trained towers.
        gallery: the places to choose from.
        model_name: what an answer calls the model.
        batch_size: photos the model sees at once; the next ones are decoded meanwhile.
        max_pixels: larger pictures are refused before they are decoded; see :mod:`open_geoclip.images`.
        crops: 1, or 10 as in the published evaluation: corners and middle, mirrored too, their logits averaged. Takes
            ten times as long.
        cache: folder of the location vectors; the user's cache folder when not given.
        progress: called while location vectors are computed, which happens once for a model and a gallery.
    """

    def __init__(
        self,
        model: TwoTowers,
        gallery: Gallery,
        *,
        model_name: str = "custom",
        batch_size: int = 8,
        max_pixels: int = MAX_PIXELS,
        crops: int = 1,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if batch_size < 1:
            raise SettingsError(f"batch_size: 1 or more, not {batch_size}")
        if crops not in (1, 10):
            raise SettingsError(f"crops: 1 or 10, not {crops}")
        self.model = model.eval()
        self.model_name = model_name
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.crops = crops
        self.index = GalleryIndex.build(model.location_encoder, gallery, folder=cache, progress=progress)

    @classmethod
    def from_pretrained(
        cls,
        name: str = "earth",
        *,
        backbone: str | None = None,
        gallery: Gallery | str | Path | None = None,
        dtype: DType = "auto",
        engine: Engine = "auto",
        device: str = "cpu",
        batch_size: int = 8,
        max_pixels: int = MAX_PIXELS,
        crops: int = 1,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> "Locator":
        """A locator with trained weights.

        Args:
            name: ``earth`` (embedded), ``geoclip`` (released), ``hub:org/repo@revision`` or ``dir:/folder``.
            backbone: where the image backbone is, by the same grammar; the one that the weights name when not given.
            gallery: places to choose from, or a file of them; the gallery of the weights when not given.
            dtype: what the image backbone computes in; ``auto`` is bfloat16 where the processor has it.
            engine: what runs the image backbone: ``torch``, or ``openvino`` on a CPU, which ``auto`` takes
                when the extra ``fast`` is installed.
            device: where to compute, such as ``cpu`` or ``cuda``.
            batch_size: see the class.
            max_pixels: see the class.
            crops: see the class.
            cache: see the class.
            progress: see the class.

        Raises:
            ModelNameError: a name does not follow the grammar.
            WeightsError: weights are missing or damaged; the message says what to do.
            GalleryError: the gallery cannot be used, or the weights have none and none was given.
        """
        release = pretrained.load(name)
        if gallery is None:
            if release.gallery is None:
                raise GalleryError(f"{name} has no gallery of its own: give one (CSV, GeoJSON or Parquet)")
            gallery = Gallery.from_file(release.gallery, name=f"{name}/{release.gallery.name}")
        elif not isinstance(gallery, Gallery):
            gallery = Gallery.from_file(gallery)
        model = TwoTowers.from_release(release, backbone=backbone)
        model.to(device)
        model.image_encoder.backbone = prepared(model.image_encoder.backbone, engine, dtype, device)
        return cls(
            model,
            gallery,
            model_name=f"{name} {release.version}",
            batch_size=batch_size,
            max_pixels=max_pixels,
            crops=crops,
            cache=cache,
            progress=progress,
        )

    @property
    def gallery(self) -> Gallery:
        """The places that answers are chosen from."""
        return self.index.gallery

    def locate(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = 5,
        *,
        text: str | None = None,
        text_weight: float = 0.5,
    ) -> list[Answer]:
        """The most likely places of each picture, in the order they were given.

        Args:
            images: pictures: paths, bytes, binary files, PIL images or arrays (h, w, 3) of uint8; one or many.
            top_k: candidates a picture.
            text: what is known beside the pictures, in words. Logits become the weighted mean of the picture's and the
                text's: the picture's times ``1 - text_weight`` plus the text's times ``text_weight``.
            text_weight: from 0, the pictures alone, to 1, the text alone.

        Returns:
            One answer a picture. One that cannot be read has ``error`` set, and the rest is done all the same.

        Raises:
            SettingsError: top_k is below 1 or above the gallery's size, or text_weight is not within 0 and 1.
            TextError: the text is empty or too long.
            WeightsError: a text, and the model has no text side.
        """
        return list(self.stream(images, top_k, text=text, text_weight=text_weight))

    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = 5,
        *,
        text: str | None = None,
        text_weight: float = 0.5,
    ) -> Iterator[Answer]:
        """As :meth:`locate`, answer by answer: for more pictures than fit into memory."""
        self._check_top_k(top_k)
        if not 0 <= text_weight <= 1:
            raise SettingsError(f"text_weight: from 0 to 1, not {text_weight}")
        beside = None if text is None else _Beside(text, self.encode_text([text])[0], text_weight)
        return self._answers(iter(_listed(images)), top_k, beside)

    def locate_text(self, texts: Sequence[str], top_k: int = 5) -> list[Answer]:
        """The most likely places of each text, such as "a hot desert", in the order they were given.

        Raises:
            SettingsError: top_k is below 1 or above the gallery's size.
            TextError: a text is empty or too long.
            WeightsError: the model has no text side.
            MissingExtraError: the extra ``text`` is not installed.
        """
        self._check_top_k(top_k)
        about = ("", self.model_name, self._gallery_name, __version__)
        found = self._search(self.encode_text(texts), top_k)
        return [Answer(*about, candidates, text=text) for text, candidates in zip(texts, found, strict=True)]

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n k"]:
        """Vectors of texts, of length 1, float32; errors are those of :meth:`locate_text`."""
        return self.model.encode_text(texts)

    def encode(self, images: Iterable[ImageSource]) -> Float[Tensor, "n k"]:
        """Vectors of pictures, float32: of length 1, or the mean of ten such.

        Raises:
            ImageError: a picture cannot be read.
        """
        pixels = [self._prepared(source, image_name(source, number)) for number, source in enumerate(images)]
        parts = [self._vectors(pixels[i : i + self.batch_size]) for i in range(0, len(pixels), self.batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, self.model.location_encoder.settings.output)

    def _check_top_k(self, top_k: int) -> None:
        if not 1 <= top_k <= len(self.gallery):
            raise SettingsError(f"top_k: from 1 to the gallery's {len(self.gallery):,} places, not {top_k}")

    def _prepared(self, source: ImageSource, name: str) -> Float[Tensor, "crops 3 h w"]:
        preprocessing = self.model.image_encoder.preprocessing
        image = load_image(source, name=name, max_pixels=self.max_pixels)
        return preprocessing(image)[None] if self.crops == 1 else preprocessing.ten_crops(image)

    @torch.inference_mode()
    def _vectors(self, pixels: list[Float[Tensor, "crops 3 h w"]]) -> Float[Tensor, "n k"]:
        """One vector a picture. The logits are linear in it, so the mean vector's are the mean of the crops' logits."""
        device = self.model.logit_scale.device
        vectors = [self.model.image_encoder(part.to(device)) for part in torch.cat(pixels).split(self.batch_size)]
        unit = F.normalize(torch.cat(vectors).float(), dim=1).cpu()
        return unit if self.crops == 1 else unit.view(len(pixels), self.crops, -1).mean(dim=1)

    def _answers(self, sources: Iterator[ImageSource], top_k: int, beside: "_Beside | None") -> Iterator[Answer]:
        """Decode a batch ahead while the model runs on the one before."""
        numbered = enumerate(sources)
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:

            def submit() -> list[tuple[str, Future[Float[Tensor, "crops 3 h w"]]]]:
                batch = []
                for number, source in itertools.islice(numbered, self.batch_size):
                    name = image_name(source, number)
                    batch.append((name, pool.submit(self._prepared, source, name)))
                return batch

            batch, ahead = submit(), submit()
            while batch:
                yield from self._batch(batch, top_k, beside)
                batch, ahead = ahead, submit()

    def _batch(
        self, batch: list[tuple[str, Future[Float[Tensor, "crops 3 h w"]]]], top_k: int, beside: "_Beside | None"
    ) -> Iterator[Answer]:
        errors: dict[int, str] = {}
        pixels = []
        for number, (_, future) in enumerate(batch):
            try:
                pixels.append(future.result())
            except ImageError as error:
                errors[number] = error.reason
        answers: Iterator[tuple[Candidate, ...]] = iter(())
        if pixels:
            vectors = self._vectors(pixels)
            answers = iter(self._search(vectors if beside is None else beside.mixed(vectors), top_k))
        text = None if beside is None else beside.text
        for number, (name, _) in enumerate(batch):
            about = (name, self.model_name, self._gallery_name, __version__)
            yield Answer(*about, error=errors[number]) if number in errors else Answer(*about, next(answers), text=text)

    @property
    def _gallery_name(self) -> str:
        gallery = self.gallery
        return f"{gallery.name}, {len(gallery):,} places, sha256 {gallery.fingerprint[:12]}"

    def _search(self, vectors: Float[Tensor, "n k"], top_k: int) -> list[tuple[Candidate, ...]]:
        found = self.index.search(vectors, self.model.scale, top_k)
        log_weights = torch.from_numpy(self.gallery.weights).log()[found.rows]
        probabilities = (found.logits + log_weights - found.log_total[:, None]).exp()
        scores = found.logits / self.model.scale
        return [
            tuple(
                Candidate(round(float(lat), 6), round(float(lon), 6), float(score), float(probability))
                for (lat, lon), score, probability in zip(self.gallery.coordinates[r], s, p, strict=True)
            )
            for r, s, p in zip(found.rows.numpy(), scores.tolist(), probabilities.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class _Beside:
    """A text that pictures are located with."""

    text: str
    vector: Float[Tensor, " k"]
    weight: float

    def mixed(self, pictures: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Vectors whose products with a place's are the weighted means of the picture's and the text's."""
        return torch.lerp(pictures, self.vector.expand_as(pictures), self.weight)


def _listed(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """One picture alone as a list of one."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray):
        return [images]
    if hasattr(images, "read"):
        return [cast(ImageSource, images)]
    return images
