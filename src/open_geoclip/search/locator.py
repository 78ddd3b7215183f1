"""The locator: photos in, answers out."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from open_geoclip import pretrained
from open_geoclip._version import __version__
from open_geoclip.errors import GalleryError, ImageError, MissingExtraError, SettingsError
from open_geoclip.images import MAX_PIXELS, ImageSource, image_name, load_image
from open_geoclip.model.two_towers import DType, Engine, TwoTowers, prepared
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.ground import Ground, Prior, log_prior
from open_geoclip.search.index import GalleryIndex, Progress, beside
from open_geoclip.search.posterior import Calibration, Decode, Posterior

__all__ = ["Answer", "AnswerSettings", "Candidate", "Locator"]

logger = logging.getLogger(__name__)

_RADII_KM = (1, 25, 200, 750, 2500)
_SHARES = (0.5, 0.9)


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made of probabilities.

    Attributes:
        decode: what the best answer is best for; see :meth:`open_geoclip.search.posterior.Posterior.decode`.
        merge_km: candidates are further apart than this, and each has the mass of what is nearer to it. When not given,
            25 km, or three times the distance between places in an even gallery that is coarser.
        radius_km: of the decoding ``mass``; when not given, that of merging.
        prior: what is known before a picture is seen; see :func:`open_geoclip.search.ground.log_prior`.
    """

    decode: Decode = "mass"
    merge_km: float | None = None
    radius_km: float | None = None
    prior: Prior = "gallery"


@dataclass(frozen=True)
class Candidate:
    """A place where a photo may have been taken.

    Attributes:
        lat: degrees north.
        lon: degrees east.
        score: cosine of the picture's and the place's vector, from -1 to 1.
        probability: of all ground that was merged into this candidate. The chance of being right when the model is
            calibrated (``Answer.sure`` is not None); otherwise it only compares places of one gallery.
        radius_km: within which nine tenths of that probability lie.
    """

    lat: float
    lon: float
    score: float
    probability: float
    radius_km: float


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
        credible_radius_km: around the best candidate, holding 50 and 90 % of all probability.
        within_km: probability that the best candidate is right within 1, 25, 200, 750 and 2500 km.
        countries: probability of each country, the likeliest first; None where the extra ``places`` is not installed.
        sure: right within 200 km with a probability of 0.8 or more; None when the model is not calibrated.
    """

    image: str
    model: str
    gallery: str
    version: str
    candidates: tuple[Candidate, ...] = ()
    error: str | None = None
    text: str | None = None
    credible_radius_km: Mapping[str, float] = field(default_factory=dict)
    within_km: Mapping[str, float] = field(default_factory=dict)
    countries: Mapping[str, float] | None = None
    sure: bool | None = None

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
            "credible_radius_km": dict(self.credible_radius_km),
            "within_km": dict(self.within_km),
            "countries": None if self.countries is None else dict(self.countries),
            "sure": self.sure,
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
        answers: how answers are made of probabilities.
        calibration: of the model; not calibrated when not given.
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
        answers: AnswerSettings | None = None,
        calibration: Calibration | None = None,
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
        self.answers = answers or AnswerSettings()
        self.calibration = calibration or Calibration()
        if self.crops != 1 or self.answers.prior != "gallery":  # it was measured with one crop and the gallery's prior
            self.calibration = replace(self.calibration, fitted_on=None)
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
        answers: AnswerSettings | None = None,
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
            answers: see the class.

        Raises:
            ModelNameError: a name does not follow the grammar.
            WeightsError: weights are missing or damaged; the message says what to do.
            GalleryError: the gallery cannot be used, or the weights have none and none was given.
        """
        release = pretrained.load(name)
        calibration = Calibration.from_dict(release.calibration)
        if (
            gallery is not None
        ):  # the temperature is still the best there is, but nothing was measured with this gallery
            calibration = replace(calibration, fitted_on=None)
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
            answers=answers,
            calibration=calibration,
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
        found = self._search(self.encode_text(texts), top_k, Calibration())
        return [Answer(*about, text=text, **told) for text, told in zip(texts, found, strict=True)]

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
        answers: Iterator[dict[str, Any]] = iter(())
        if pixels:
            vectors = self._vectors(pixels)
            if beside is None:
                answers = iter(self._search(vectors, top_k, self.calibration))
            else:
                answers = iter(self._search(beside.mixed(vectors), top_k, Calibration()))
        text = None if beside is None else beside.text
        for number, (name, _) in enumerate(batch):
            about = (name, self.model_name, self._gallery_name, __version__)
            yield (
                Answer(*about, error=errors[number]) if number in errors else Answer(*about, text=text, **next(answers))
            )

    @property
    def _gallery_name(self) -> str:
        gallery = self.gallery
        return f"{gallery.name}, {len(gallery):,} places, sha256 {gallery.fingerprint[:12]}"

    @cached_property
    def ground(self) -> Ground:
        """What the gallery's places stand for."""
        return Ground.of(self.gallery)

    @cached_property
    def merge_km(self) -> float:
        """How far candidates are apart."""
        given = self.answers.merge_km
        return max(25.0, 3 * float(np.median(self.ground.cell_km2)) ** 0.5) if given is None else given

    @cached_property
    def _log_prior(self) -> Float[Tensor, " m"]:
        return log_prior(self.gallery, self.ground, self.answers.prior)

    def posterior(self, vectors: Float[Tensor, "n k"], calibration: Calibration | None = None) -> Posterior:
        """Probabilities over the gallery's ground.

        Args:
            vectors: of pictures, as :meth:`encode` gives them, or of texts.
            calibration: the model's own for pictures when not given; texts have none (``Calibration()``).
        """
        logits = self.index.logits(vectors, self.model.scale, exact=5)
        return Posterior.from_logits(logits, self._log_prior, self.ground, calibration or self.calibration)

    def _search(self, vectors: Float[Tensor, "n k"], top_k: int, calibration: Calibration) -> list[dict[str, Any]]:
        """What each answer says, beside its name."""
        posterior, how = self.posterior(vectors, calibration), self.answers
        found = posterior.candidates(top_k, merge_km=self.merge_km, how=how.decode, radius_km=how.radius_km)
        best = found.coordinates[:, 0]
        profile = posterior.profile(best)
        within, radii = profile.within(_RADII_KM), profile.radius_km(_SHARES)
        scores = self._scores(vectors, found.coordinates)
        labels = self._countries
        countries = [None] * len(best) if labels is None else posterior.shares(labels)
        sure = posterior.sure(profile)
        return [
            {
                "candidates": tuple(
                    Candidate(round(lat, 6), round(lon, 6), float(score), float(mass), round(float(km), 3))
                    for (lat, lon), score, mass, km in zip(
                        found.coordinates[n].tolist(), scores[n], found.mass[n], found.radius_km[n], strict=True
                    )
                    if mass > 0
                ),
                "credible_radius_km": {
                    f"{100 * share:.0f}": round(km, 3) for share, km in zip(_SHARES, radii[n].tolist(), strict=True)
                },
                "within_km": {str(km): share for km, share in zip(_RADII_KM, within[n].tolist(), strict=True)},
                "countries": countries[n],
                "sure": sure[n],
            }
            for n in range(len(best))
        ]

    @torch.inference_mode()
    def _scores(self, vectors: Float[Tensor, "n d"], places: Float64[np.ndarray, "n k 2"]) -> Float[np.ndarray, "n k"]:
        """Cosines of pictures with their own candidates, which need not be places of the gallery."""
        coordinates = torch.from_numpy(np.nan_to_num(places).reshape(-1, 2)).float()
        located = self.model.location_encoder.encode(coordinates.to(self.model.logit_scale.device)).cpu().float()
        return torch.einsum("nd,nkd->nk", vectors, located.view(*places.shape[:2], -1)).numpy()

    @cached_property
    def _countries(self) -> np.ndarray | None:
        """The country of each place of the gallery; None where the extra ``places`` is not installed."""
        from open_geoclip.places import Places

        file = None
        if self.index.path is not None:
            file = self.index.path.with_name(f"{self.gallery.fingerprint[:32]}.countries-1.npy")
            if (known := _read_labels(file, len(self.gallery))) is not None:
                return known
        try:
            codes = Places().countries(self.gallery.coordinates.astype(np.float64))
        except MissingExtraError:
            return None
        if file is not None:
            try:
                with beside(file) as temporary, temporary.open("wb") as stream:
                    np.save(stream, codes.astype("<U3"))
            except OSError as error:
                logger.warning("the cache %s cannot be used (%s): countries are found anew each time", file, error)
        return codes


def _read_labels(file: Path, count: int) -> np.ndarray | None:
    """Labels from a cache file; None when there is no such file or it is damaged."""
    try:
        labels: np.ndarray = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is damaged (%s) and is made again", file, error)
        return None
    return labels if labels.shape == (count,) and labels.dtype.kind == "U" else None


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
