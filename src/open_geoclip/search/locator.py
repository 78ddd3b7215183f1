"""The locator: photos in, answers out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from open_geoclip._version import __version__
from open_geoclip.errors import GalleryError, SettingsError
from open_geoclip.geo.areas import Area
from open_geoclip.images import MAX_PIXELS, ImageSource, image_name
from open_geoclip.model.backbones.runtime import DType, Engine
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.search.answer import Answer, Candidate
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.decode import DecodeMethod
from open_geoclip.search.describe import AnswerSettings, describe
from open_geoclip.search.encode import EncodeSettings, as_list, encode_batches, encode_images
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex, Progress
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.search_space import SearchSpace
from open_geoclip.search.trips import pool_embeddings, trip_posterior
from open_geoclip.weights.load import load_model, load_release

__all__ = ["Answer", "AnswerSettings", "Candidate", "Locator"]


class Locator:
    """A model and a gallery, ready for any number of photos.

    Args:
        model: two trained towers.
        gallery: the places to choose from, or a search space that was made of them before.
        model_name: what an answer calls the model.
        weights_sha256: of the model's weights, for its answers.
        batch_size: photos the model sees at once; the next ones are decoded meanwhile.
        max_pixels: larger pictures are refused before they are decoded; see :mod:`open_geoclip.images`.
        crops: 1, or 10 as in the published evaluation: corners and middle, mirrored too, their logits averaged. Takes
            ten times as long.
        cache: folder of the location vectors; the user's cache folder when not given.
        progress: called while location vectors are computed, which happens once for a model and a gallery.
        answers: how answers are made of probabilities.
        calibration: of the model; not calibrated when not given.
        refine: look for answers between the places of the gallery too; see :mod:`open_geoclip.search.refine`.

    Attributes:
        search_space: the gallery with what is computed of it, and the limits that :meth:`within` has set.
    """

    def __init__(
        self,
        model: GeoCLIP,
        gallery: Gallery | SearchSpace,
        *,
        model_name: str = "custom",
        weights_sha256: str | None = None,
        batch_size: int = 8,
        max_pixels: int = MAX_PIXELS,
        crops: int = 1,
        cache: Path | None = None,
        progress: Progress | None = None,
        answers: AnswerSettings | None = None,
        calibration: Calibration | None = None,
        refine: bool = False,
    ) -> None:
        self.model = model.eval()
        self.model_name, self.weights_sha256 = model_name, weights_sha256
        self.encoding = EncodeSettings(batch_size, max_pixels, crops)
        self.answers = answers or AnswerSettings()
        self.calibration = calibration or Calibration()
        self.refine = refine
        if refine and self.answers.decode == "max":
            raise SettingsError("decode max answers with the gallery's places, refine looks between them")
        if self.answers.decode is None:
            known = refine or self.calibration != Calibration()
            self.answers = replace(self.answers, decode="mass" if known else "max")
        if crops != 1 or self.answers.prior != "gallery":  # it was measured without these
            self.calibration = replace(self.calibration, fitted_on=None)
        if isinstance(gallery, Gallery):
            index = GalleryIndex.build(model.location_encoder, gallery, folder=cache, progress=progress)
            gallery = SearchSpace.from_index(index, self.answers.prior)
        self.search_space = gallery

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
        refine: bool = False,
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
            refine: see the class.

        Raises:
            ModelNameError: a name does not follow the grammar.
            WeightsError: weights are missing or damaged; the message says what to do.
            GalleryError: the gallery cannot be used, or the weights have none and none was given.
        """
        release = load_release(name)
        calibration = Calibration.from_dict(release.calibration)
        if gallery is not None:  # the temperature is still the best there is, but nothing was measured with this one
            calibration = replace(calibration, fitted_on=None)
        if gallery is None:
            if release.gallery is None:
                raise GalleryError(f"{name} has no gallery of its own: give one (CSV, GeoJSON or Parquet)")
            gallery = Gallery.from_file(release.gallery, name=f"{name}/{release.gallery.name}")
        elif not isinstance(gallery, Gallery):
            gallery = Gallery.from_file(gallery)
        model = load_model(release, backbone=backbone, engine=engine, dtype=dtype, device=device)
        return cls(
            model,
            gallery,
            model_name=f"{name} {release.version}",
            weights_sha256=release.fingerprint,
            batch_size=batch_size,
            max_pixels=max_pixels,
            crops=crops,
            cache=cache,
            progress=progress,
            answers=answers,
            calibration=calibration,
            refine=refine,
        )

    def within(self, area: Area, *, keep: bool = True) -> "Locator":
        """A locator of the same towers whose answers lie inside an area.

        Places of the gallery outside have no mass, and probabilities are shares of what is inside. Where the gallery
        has no place inside, even places on land in the area stand in for it, their prior even unless it is a density;
        their vectors are kept on disk too. Nothing was calibrated within limits: ``sure`` is None.

        Args:
            area: the limits.
            keep: whether such vectors may be written; a server whose clients name the areas does not.

        Raises:
            AreaError: the area lies wholly in the sea, or nothing is left of it.
            SettingsError: this locator has limits already.
        """
        if not area.is_limited:
            return self
        calibration = replace(self.calibration, fitted_on=None)
        return self._replace(gallery=self.search_space.within(area, keep=keep), calibration=calibration)

    def with_decode(self, decode: DecodeMethod) -> "Locator":
        """A locator of the same model and search space whose answers are decoded in another way.

        Raises:
            SettingsError: it cannot be combined with refinement.
        """
        return self._replace(answers=replace(self.answers, decode=decode))

    def _replace(self, **changes: Any) -> "Locator":
        """A locator with other arguments, past no check of the constructor."""
        arguments: dict[str, Any] = {
            "gallery": self.search_space,
            "model_name": self.model_name,
            "weights_sha256": self.weights_sha256,
            "batch_size": self.batch_size,
            "max_pixels": self.max_pixels,
            "crops": self.crops,
            "answers": self.answers,
            "calibration": self.calibration,
            "refine": self.refine,
        }
        return Locator(self.model, **(arguments | changes))

    @property
    def index(self) -> GalleryIndex:
        """Location vectors of the gallery."""
        return self.search_space.index

    @property
    def gallery(self) -> Gallery:
        """The places that answers are chosen from."""
        return self.search_space.gallery

    @property
    def batch_size(self) -> int:
        """Pictures that the model sees at once."""
        return self.encoding.batch_size

    @property
    def max_pixels(self) -> int:
        """Larger pictures are refused."""
        return self.encoding.max_pixels

    @property
    def crops(self) -> int:
        """How many of each picture the model sees."""
        return self.encoding.crops

    @property
    def cells(self) -> GalleryCells:
        """What the gallery's places stand for."""
        return self.search_space.cells

    @property
    def merge_km(self) -> float:
        """How far candidates are apart."""
        return self.search_space.merge_km if self.answers.merge_km is None else self.answers.merge_km

    def locate(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = 5,
        *,
        text: str | None = None,
        text_weight: float = 0.5,
        detail: bool = False,
    ) -> list[Answer]:
        """The most likely places of each picture, in the order they were given.

        Args:
            images: pictures: paths, bytes, binary files, PIL images or arrays (h, w, 3) of uint8; one or many.
            top_k: candidates a picture.
            text: what is known beside the pictures, in words. Logits become the weighted mean of the picture's and the
                text's: the picture's times ``1 - text_weight`` plus the text's times ``text_weight``.
            text_weight: from 0, the pictures alone, to 1, the text alone.
            detail: say the regions and the heat too, which maps are drawn of; see
                :mod:`open_geoclip.search.regions`.

        Returns:
            One answer a picture. One that cannot be read has ``error`` set, and the rest is done all the same.

        Raises:
            SettingsError: top_k is below 1 or above the gallery's size, or text_weight is not within 0 and 1.
            TextError: the text is empty or too long.
            WeightsError: a text, and the model has no text side.
            MissingExtraError: detail, and the extra ``places`` is not installed.
        """
        return list(self.stream(images, top_k, text=text, text_weight=text_weight, detail=detail))

    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = 5,
        *,
        text: str | None = None,
        text_weight: float = 0.5,
        detail: bool = False,
    ) -> Iterator[Answer]:
        """As :meth:`locate`, answer by answer: for more pictures than fit into memory."""
        self._check_top_k(top_k)
        if not 0 <= text_weight <= 1:
            raise SettingsError(f"text_weight: from 0 to 1, not {text_weight}")
        beside = None if text is None else _Beside(text, self.encode_text([text])[0], text_weight)
        return self._answers(as_list(images), top_k, beside, detail)

    def locate_text(self, texts: Sequence[str], top_k: int = 5, *, detail: bool = False) -> list[Answer]:
        """The most likely places of each text, such as "a hot desert", in the order they were given.

        ``detail`` is that of :meth:`locate`.

        Raises:
            SettingsError: top_k is below 1 or above the gallery's size.
            TextError: a text is empty or too long.
            WeightsError: the model has no text side.
            MissingExtraError: the extra ``text`` is not installed.
        """
        self._check_top_k(top_k)
        found = self._search(self.encode_text(texts), top_k, Calibration(), detail)
        return [self._answer("", text=text, **told) for text, told in zip(texts, found, strict=True)]

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n k"]:
        """Vectors of texts, of length 1, float32; errors are those of :meth:`locate_text`."""
        return self.model.encode_text(texts)

    def locate_together(self, images: Iterable[ImageSource], top_k: int = 5, *, detail: bool = False) -> Answer:
        """Where several pictures of one place were taken.

        Their evidence is multiplied, each picture's to the power of a weight that is smaller the more pictures are like
        it: see :func:`open_geoclip.search.trips.together`. Nothing was calibrated of several: ``sure`` is None.
        ``detail`` is that of :meth:`locate`.

        Raises:
            ImageError: a picture cannot be read.
            SettingsError: there is no picture, or top_k is out of range.
        """
        self._check_top_k(top_k)
        images = list(images)
        if not images:
            raise SettingsError("locate_together: at least one picture")
        name = ", ".join(image_name(source, number) for number, source in enumerate(images))
        several = replace(self.calibration, fitted_on=None) if len(images) > 1 else self.calibration
        [found] = self._search(pool_embeddings(self.encode(images)).float()[None], top_k, several, detail)
        return self._answer(name, **found)

    def locate_trip(
        self,
        images: Iterable[ImageSource],
        times_h: Sequence[float] | Float[np.ndarray, " n"],
        top_k: int = 5,
        *,
        speed_kmh: float = 900.0,
        detail: bool = False,
    ) -> list[Answer]:
        """Where pictures of one trip were taken, one answer each: nobody moves faster than the speed limit.

        Each picture counts with the model's temperature, without the background share. Of trips nothing was
        calibrated: ``sure`` is None.

        Args:
            images: pictures, in any order.
            times_h: of each, hours from any moment.
            top_k: candidates a picture; fewer where fewer are possible.
            speed_kmh: the most that is travelled, along great circles; 900 is an airliner.
            detail: that of :meth:`locate`.

        Returns:
            One answer a picture; with ``error`` set when no trip keeps to the limit.

        Raises:
            ImageError: a picture cannot be read.
            SettingsError: a time is missing or no number, a speed is below 0, or top_k is out of range.
        """
        self._check_top_k(top_k)
        images, hours = list(images), np.asarray(times_h, np.float64)
        if len(images) == 0 or hours.shape != (len(images),):
            raise SettingsError(
                f"a trip is one picture or more and a time for each, not {hours.size} for {len(images)}"
            )
        names = [image_name(source, number) for number, source in enumerate(images)]
        vectors = self.encode(images)
        calibration = replace(self.calibration, background=0.0, fitted_on=None)
        alone = self.posterior(vectors, calibration).log_mass
        gap = float(np.median(self.search_space.cells.spacing_km))
        trip = trip_posterior(alone, self.gallery.coordinates, hours, speed_kmh=speed_kmh, slack_km=gap)
        if trip.log_evidence == -np.inf:
            error = f"no trip of these pictures keeps to {speed_kmh:g} km/h"
            return [self._answer(name, error=error) for name in names]
        if self.refine:
            parts = self.search_space.refined_posteriors(vectors, self.model.scale, calibration, trip.log_mass)
            found = [self._told(part, vectors[n : n + 1], top_k, detail)[0] for n, part in enumerate(parts)]
        else:
            posterior = Posterior.from_log_mass(trip.log_mass, self.search_space.cells, calibration)
            found = self._told(posterior, vectors, top_k, detail=detail)
        return [self._answer(name, **told) for name, told in zip(names, found, strict=True)]

    def encode(self, images: Iterable[ImageSource]) -> Float[Tensor, "n k"]:
        """Vectors of pictures, float32: of length 1, or the mean of ten such.

        Raises:
            ImageError: a picture cannot be read.
        """
        return encode_images(self.model, images, self.encoding)

    def tell(
        self,
        vectors: Float[Tensor, "n k"],
        top_k: int = 5,
        *,
        text: str | None = None,
        text_weight: float = 0.5,
        detail: bool = False,
    ) -> list[Answer]:
        """Answers for pictures that were encoded before, without a name; arguments and errors as of :meth:`locate`.

        Args:
            vectors: of pictures, as :meth:`encode` gives them.
            top_k: candidates a picture.
            text: what is known beside the pictures.
            text_weight: how much the text counts.
            detail: say the regions and the heat too.
        """
        self._check_top_k(top_k)
        if not 0 <= text_weight <= 1:
            raise SettingsError(f"text_weight: from 0 to 1, not {text_weight}")
        if text is not None:
            vectors = _Beside(text, self.encode_text([text])[0], text_weight).mixed(vectors)
        found = self._search(vectors, top_k, self.calibration if text is None else Calibration(), detail)
        return [self._answer("", text=text, **told) for told in found]

    def _check_top_k(self, top_k: int) -> None:
        most = (
            top_k if self.search_space.area.is_limited else len(self.gallery)
        )  # an area may hold fewer: then it is fewer
        if not 1 <= top_k <= most:
            raise SettingsError(f"top_k: from 1 to the gallery's {len(self.gallery):,} places, not {top_k}")

    def _answers(
        self, sources: Iterable[ImageSource], top_k: int, beside: "_Beside | None", detail: bool
    ) -> Iterator[Answer]:
        text = None if beside is None else beside.text
        for batch in encode_batches(self.model, sources, self.encoding):
            found: Iterator[dict[str, Any]] = iter(())
            if len(batch.embeddings):
                vectors = batch.embeddings if beside is None else beside.mixed(batch.embeddings)
                calibration = self.calibration if beside is None else Calibration()
                found = iter(self._search(vectors, top_k, calibration, detail))
            for name, error in zip(batch.names, batch.errors, strict=True):
                told = {"error": error.reason} if error is not None else {"text": text, **next(found)}
                yield self._answer(name, **told)

    def _answer(self, name: str, **told: Any) -> Answer:
        """What was found for a picture or text, and what made it."""
        gallery = self.search_space.name + (", refined" if self.refine else "")
        weights = {} if self.weights_sha256 is None else {"weights": self.weights_sha256}
        sha256 = {**weights, "gallery": self.gallery.fingerprint}
        return Answer(name, self.model_name, gallery, __version__, sha256=sha256, **told)

    def posterior(self, vectors: Float[Tensor, "n k"], calibration: Calibration | None = None) -> Posterior:
        """Probabilities over the gallery's ground.

        Args:
            vectors: of pictures, as :meth:`encode` gives them, or of texts.
            calibration: the model's own for pictures when not given; texts have none (``Calibration()``).
        """
        return self.search_space.posterior(vectors, self.model.scale, calibration or self.calibration)

    def refined_posterior(self, vector: Float[Tensor, " k"], calibration: Calibration | None = None) -> Posterior:
        """As :meth:`posterior`, of one picture, on a ground that is refined where its vector points at."""
        return self.search_space.refined_posteriors(vector[None], self.model.scale, calibration or self.calibration)[0]

    def _search(
        self, vectors: Float[Tensor, "n k"], top_k: int, calibration: Calibration, detail: bool
    ) -> list[dict[str, Any]]:
        """What each answer says, beside its name."""
        if not self.refine:
            return self._told(self.posterior(vectors, calibration), vectors, top_k, detail=detail)
        parts = self.search_space.refined_posteriors(vectors, self.model.scale, calibration)
        return [self._told(part, vectors[n : n + 1], top_k, detail)[0] for n, part in enumerate(parts)]

    def _told(
        self,
        posterior: Posterior,
        vectors: Float[Tensor, "n k"],
        top_k: int,
        detail: bool = False,
    ) -> list[dict[str, Any]]:
        labels, origins = self.search_space.countries, posterior.cells.origins
        return describe(
            posterior,
            self.answers,
            min(top_k, len(self.gallery)),
            merge_km=self.merge_km,
            scores=partial(self._scores, vectors),
            labels=labels if labels is None or origins is None else labels[origins],
            allowed=self.search_space.allowed,
            detail=detail,
        )

    @torch.inference_mode()
    def _scores(self, vectors: Float[Tensor, "n d"], places: Float64[np.ndarray, "n k 2"]) -> Float[np.ndarray, "n k"]:
        """Cosines of pictures with their own candidates, which need not be places of the gallery."""
        coordinates = torch.from_numpy(np.nan_to_num(places).reshape(-1, 2)).float()
        located = self.model.location_encoder.encode(coordinates.to(self.model.logit_scale.device)).cpu().float()
        return torch.einsum("nd,nkd->nk", vectors, located.view(*places.shape[:2], -1)).numpy()


@dataclass(frozen=True)
class _Beside:
    """A text that pictures are located with."""

    text: str
    vector: Float[Tensor, " k"]
    weight: float

    def mixed(self, pictures: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Vectors whose products with a place's are the weighted means of the picture's and the text's."""
        return torch.lerp(pictures, self.vector.expand_as(pictures), self.weight)
