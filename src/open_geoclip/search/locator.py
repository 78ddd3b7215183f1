"""The locator: photos in, answers out."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip._version import __version__
from open_geoclip.data.clocks import Anchors
from open_geoclip.errors import GalleryError, SettingsError
from open_geoclip.geo.areas import Area
from open_geoclip.images import MAX_PIXELS, ImageSource
from open_geoclip.model.backbones.runtime import DType, Engine
from open_geoclip.model.geoclip import GeoCLIP, Tower
from open_geoclip.search.answer import Answer
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.decode import DecodeMethod
from open_geoclip.search.describe import AnswerSettings, describe_query
from open_geoclip.search.encode import EncodedBatch, EncodeSettings, encode_batches, encode_images
from open_geoclip.search.evidence import PhotoEvidence
from open_geoclip.search.explain import explain
from open_geoclip.search.explanation import Explanation, LatLon
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import Progress
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.query import Query
from open_geoclip.search.reliability import Reliability
from open_geoclip.search.search_space import SearchSpace
from open_geoclip.weights.calibrations import find_calibration
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.release import with_merged_tokens

__all__ = ["Locator"]

Located = tuple[Answer, Posterior | None]
"""An answer and the posterior that it describes; None where there is an error."""


class Locator:
    """A model and a gallery, ready for any number of queries. It does not change: areas and decodings make new ones.

    Args:
        model: with an image encoder, a text encoder or both.
        gallery: candidate places, or the search space of another locator of this model.
        model_name: the name of the model in answers.
        weights_sha256: hash of the weights, for answers.
        batch_size: images encoded at once; the next ones are decoded meanwhile.
        max_pixels: larger images are refused before they are decoded; see :mod:`open_geoclip.images`.
        crops: 1, or 10 as in the published evaluation, their logits averaged: ten times slower.
        fast_decode: decode JPEGs at a reduced scale; see :class:`~open_geoclip.search.encode.EncodeSettings`.
        cache: folder of the location embeddings. Default: the user's cache folder.
        progress: called while location embeddings are computed, and the image backbone is checked, for the first time.
        answers: how answers are made of posteriors.
        calibration: of the model. Default: none.
        refine: search between the places of the gallery too; see :mod:`open_geoclip.search.refine`.
        evidence: indexes to search for single images; see :meth:`with_photo_index`.
        reliability: how often answers were right, where it was measured. Used for single images without a text, while
            the model is not calibrated and answers are the most probable places of the gallery.

    Attributes:
        search_space: the gallery with its embeddings, cells, prior and area.
        gallery: the places of the search space.
        encoding: ``batch_size``, ``max_pixels``, ``crops`` and ``fast_decode``.
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
        fast_decode: bool = False,
        cache: Path | None = None,
        progress: Progress | None = None,
        answers: AnswerSettings | None = None,
        calibration: Calibration | None = None,
        refine: bool = False,
        reliability: Reliability | None = None,
        evidence: PhotoEvidence | None = None,
    ) -> None:
        self.model = model.eval()
        self.model_name, self.weights_sha256 = model_name, weights_sha256
        self.encoding = EncodeSettings(batch_size, max_pixels, crops, fast_decode)
        self.answers, self.calibration = answers or AnswerSettings(), calibration or Calibration()
        self.refine, self.reliability, self.evidence = refine, reliability, evidence
        if refine and self.answers.decode == "max":
            raise SettingsError("decode max answers with the gallery's places, refine looks between them")
        if self.answers.decode is None:
            is_known = refine or self.calibration != Calibration()
            self.answers = replace(self.answers, decode="mass" if is_known else "max")
        if crops != 1 or self.answers.prior != "gallery":  # it was fitted without these
            self.calibration = replace(self.calibration, fitted_on=None)
        if isinstance(gallery, Gallery):
            gallery = SearchSpace.build(model.location_encoder, gallery, self.answers.prior, cache, progress)
        self.search_space, self.gallery = gallery, gallery.gallery

    @classmethod
    def from_pretrained(
        cls,
        name: str = "earth",
        *,
        backbone: str | nn.Module | None = None,
        gallery: Gallery | str | Path | None = None,
        dtype: DType = "auto",
        engine: Engine = "auto",
        device: str = "cpu",
        towers: tuple[Tower, ...] = ("image", "text"),
        calibration: Calibration | None = None,
        **options: Any,
    ) -> "Locator":
        """Load a locator with trained weights.

        Args:
            name: ``earth`` (embedded), ``geoclip`` (released), ``hub:org/repo@revision`` or ``dir:/folder``.
            backbone: of images: its name, by the same grammar, or a module. Default: what the weights name.
            gallery: candidate places, or a file of them. Default: the gallery of the weights.
            dtype: what the image backbone computes in; see :func:`~open_geoclip.weights.load.load_model`.
            engine: what runs it, see the same function; ``auto`` is openvino where the extra ``fast`` is installed.
            device: where to compute, such as ``cpu`` or ``cuda``.
            towers: what to load beside the location encoder; ``("text",)`` for texts alone loads no image backbone.
            calibration: default: the user's own for weights and gallery (``geoclip calibrate``), or the weights'.
            options: of the class, such as ``batch_size``; and ``merge_tokens``, ``calibration_images`` of the function.

        Raises:
            ModelNameError: a name does not follow the grammar.
            WeightsError: weights are missing or damaged; the message says what to do.
            GalleryError: the gallery cannot be used, or the weights have none and none was given.
        """
        loading: dict[str, Any] = {"backbone": backbone, "towers": towers, "progress": options.get("progress")}
        loading |= {k: options.pop(k) for k in ("merge_tokens", "calibration_images") if k in options}
        loading |= {"engine": engine, "dtype": dtype, "device": device}
        release = with_merged_tokens(load_release(name), loading.get("merge_tokens", 0))
        shipped = Calibration.from_dict(release.calibration)
        if gallery is not None:  # its temperature is kept, but nothing was measured with this gallery
            shipped = replace(shipped, fitted_on=None)
            gallery = gallery if isinstance(gallery, Gallery) else Gallery.from_file(gallery)
        elif release.gallery is not None:
            gallery = Gallery.from_file(release.gallery, name=f"{name}/{release.gallery.name}", keep=True)
        else:
            raise GalleryError(f"{name} has no gallery of its own: give one (CSV, GeoJSON or Parquet)")
        if calibration is None:
            own = find_calibration(release.fingerprint, gallery.fingerprint)
            calibration = shipped if own is None else Calibration.from_dict(own.calibration)
        options |= {"model_name": f"{name} {release.version}", "weights_sha256": release.fingerprint}
        reliability = Reliability.find(release.fingerprint, gallery)
        return cls(load_model(release, **loading), gallery, calibration=calibration, reliability=reliability, **options)

    def within(self, area: Area, *, keep: bool = True) -> "Locator":
        """Return a locator of the same model whose answers lie inside an area.

        Places outside have no mass, and probabilities are shares of what is inside. Where the gallery has no place
        inside, an even lattice on the land of the area replaces it; its prior is even unless it is a density. Nothing
        was calibrated within areas: ``sure`` is None.

        Args:
            area: the area.
            keep: whether embeddings of a lattice may be written to the cache; not where clients name the areas.

        Raises:
            AreaError: the area lies wholly in the sea, or nothing is left of it.
            SettingsError: this locator has an area already.
        """
        if not area.is_limited:
            return self
        space = self.search_space.within(area, keep=keep)
        return self._replace(space, calibration=self.calibration.within(space.cells.area_km2), reliability=None)

    def with_decode(self, decode: DecodeMethod) -> "Locator":
        """Return a locator of the same model and search space with another decoding.

        Raises:
            SettingsError: it cannot be combined with refinement.
        """
        return self._replace(self.search_space, answers=replace(self.answers, decode=decode))

    def with_photo_index(self, *indexes: PhotoIndex, exclude_groups: Collection[str] = ()) -> "Locator":
        """Return a locator that finds photos like single images; see :meth:`PhotoEvidence.from_indexes`."""
        model = self.model.image_encoder, self.weights_sha256, self.gallery.fingerprint
        evidence = PhotoEvidence.from_indexes(indexes, exclude_groups, *model)
        return self._replace(self.search_space, evidence=evidence, reliability=None)

    def _replace(self, space: SearchSpace, **changes: Any) -> "Locator":
        names = ("model_name", "weights_sha256", "answers", "calibration", "refine", "reliability", "evidence")
        same = {name: getattr(self, name) for name in names} | vars(self.encoding)
        return Locator(self.model, space, **(same | changes))

    # --- answers ----------------------------------------------------------------------------------

    def locate(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = 5,
        *,
        text: str | None = None,
        text_weight: float = 0.5,
        detail: bool = False,
    ) -> list[Answer]:
        """Locate images: one answer each, in order.

        Args:
            images: paths, bytes, binary files, PIL images or uint8 arrays (h, w, 3); one or many.
            top_k: candidates per answer, or fewer if the gallery has fewer places.
            text: what is known about the images, in words. Logits are the weighted mean of those of image and text.
            text_weight: weight of the text, from 0 (images alone) to 1 (text alone).
            detail: whether answers have regions and heat, for maps; see :mod:`open_geoclip.search.regions`.

        Returns:
            One answer per image. An image that cannot be read has ``error`` set; the others are located.

        Raises:
            SettingsError: top_k is below 1, or text_weight is not within 0 and 1.
            TextError: the text is empty or too long.
            WeightsError: a text, and the model has no text encoder.
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
        """As :meth:`locate`, answer by answer: for more images than fit into memory."""
        queries = self.query_images(images, text=text, text_weight=text_weight)
        return (answer for answer, _ in self.answer(queries, top_k, detail=detail))

    def locate_text(self, texts: Sequence[str], top_k: int = 5, *, detail: bool = False) -> list[Answer]:
        """Locate texts, such as "a hot desert": one answer each, in order.

        Raises:
            SettingsError: top_k is below 1.
            TextError: a text is empty or too long.
            WeightsError: the model has no text encoder.
            MissingExtraError: the extra ``text`` is not installed.
        """
        return [answer for answer, _ in self.answer([self.query_texts(texts)], top_k, detail=detail)]

    def locate_together(self, images: Iterable[ImageSource], top_k: int = 5, *, detail: bool = False) -> Answer:
        """Locate several images of one place; see :meth:`query_together`."""
        [(answer, _)] = self.answer([self.query_together(images)], top_k, detail=detail)
        return answer

    def locate_trip(
        self,
        images: Iterable[ImageSource],
        times_h: Sequence[float] | Float[np.ndarray, " n"] | Anchors,
        top_k: int = 5,
        *,
        speed_kmh: float = 900.0,
        detail: bool = False,
    ) -> list[Answer]:
        """Locate the images of a trip; see :meth:`query_trip`. All have ``error`` set where no trip is possible."""
        trip = self.answer([self.query_trip(images, times_h, speed_kmh=speed_kmh)], top_k, detail=detail)
        return [answer for answer, _ in trip]

    def locate_embeddings(
        self,
        embeddings: Float[Tensor, "n k"] | EncodedBatch,
        top_k: int = 5,
        *,
        text: str | None = None,
        text_weight: float = 0.5,
        detail: bool = False,
    ) -> list[Answer]:
        """Locate images that were encoded before (:meth:`encode`); arguments and errors are those of :meth:`locate`."""
        batch = embeddings if isinstance(embeddings, EncodedBatch) else EncodedBatch.from_embeddings(embeddings)
        query = self.query_encoded(batch)
        if text is not None:
            query = query.with_text(text, self.encode_text([text])[0], text_weight)
        return [answer for answer, _ in self.answer([query], top_k, detail=detail)]

    def answer(self, queries: Iterable[Query], top_k: int = 5, *, detail: bool = False) -> Iterator[Located]:
        """Yield the answer to each query and the posterior that it describes, for maps and comparisons.

        All other methods are made of this one. A posterior has one row and belongs to the caller; it is None where the
        answer is an error.

        Args:
            queries: from the ``query_`` methods.
            top_k: candidates per answer, or fewer if the gallery has fewer places.
            detail: whether answers have regions and heat.

        Raises:
            SettingsError: top_k is below 1.
        """
        space, scale = self.search_space, self.model.scale
        if top_k < 1:
            raise SettingsError(f"top_k: at least 1, not {top_k}")
        top_k = min(top_k, len(self.gallery))
        gallery = space.name + (", refined" if self.refine else "")
        hashes = {"weights": self.weights_sha256, "gallery": self.gallery.fingerprint}

        def answers() -> Iterator[Located]:
            for query in queries:
                batch = query.encoded
                texts: Sequence[str | None] = query.text or [None] * len(batch.names)
                options: dict[str, Any] = {"model": self.model_name, "refine": self.refine, "detail": detail}
                found = describe_query(query, space, scale, self.answers, top_k, **options)
                for name, text, unread, sha256 in zip(batch.names, texts, batch.errors, batch.sha256, strict=True):
                    error = query.error if unread is None else unread.reason
                    known = {key: value for key, value in {"image": sha256, **hashes}.items() if value is not None}
                    answer = Answer(name, self.model_name, gallery, __version__, sha256=known, error=error)
                    if error is not None:
                        yield answer, None
                        continue
                    posterior, fields = next(found)
                    yield replace(answer, text=text, **fields), posterior

        return answers()

    # --- queries ----------------------------------------------------------------------------------

    def query_images(
        self, images: ImageSource | Iterable[ImageSource], *, text: str | None = None, text_weight: float = 0.5
    ) -> Iterator[Query]:
        """Encode images, batch by batch; arguments and errors are those of :meth:`locate`."""
        queries = map(self.query_encoded, encode_batches(self.model, images, self.encoding))
        if text is None:
            return queries
        [embedding] = self.encode_text([text])
        return (query.with_text(text, embedding, text_weight) for query in queries)

    def query_encoded(self, batch: EncodedBatch) -> Query:
        """Return a query of single images that are encoded already."""
        answers = self.answers
        is_measured = self.calibration.fitted_on is None and answers.decode == "max" and answers.prior == "gallery"
        found = self.evidence.search(batch) if self.evidence is not None else ()
        reliability = self.reliability if is_measured else None
        evidence = self.evidence if found else None
        return Query(batch, self.calibration, reliability=reliability, neighbours=found, evidence=evidence)

    def query_texts(self, texts: Sequence[str]) -> Query:
        """Encode texts; errors are those of :meth:`locate_text`."""
        return Query.from_texts(texts, self.encode_text(texts))

    def query_together(self, images: Iterable[ImageSource]) -> Query:
        """Encode several images of one place as one query.

        Their evidence is multiplied, each image's to the power of a weight that is smaller the more images are like it;
        see :func:`open_geoclip.search.trips.evidence_weights`. Nothing was calibrated for several: ``sure`` is None.

        Raises:
            ImageError: an image cannot be read.
            SettingsError: there is no image.
        """
        return Query.from_place(encode_images(self.model, images, self.encoding), self.calibration)

    def query_trip(
        self,
        images: Iterable[ImageSource],
        times_h: Sequence[float] | Float[np.ndarray, " n"] | Anchors,
        *,
        speed_kmh: float = 900.0,
    ) -> Query:
        """Encode images of one trip, along which nobody moves faster than a speed limit.

        Nothing was calibrated for trips: ``sure`` is None but where anchors leave no place farther than 200 km.

        Args:
            images: in any order.
            times_h: of each, hours from any moment; or known places in time, which answers are estimated from.
            speed_kmh: highest speed along great circles; 900 is an airliner's.

        Raises:
            ImageError: an image cannot be read.
            SettingsError: a time is missing or not a number, or a speed is below 0.
        """
        anchors = times_h if isinstance(times_h, Anchors) else None
        images, hours = list(images), np.asarray(anchors.times_s if anchors else times_h, np.float64)
        if len(images) == 0 or hours.shape != (len(images),):
            raise SettingsError(f"a trip is one image or more and a time for each, not {hours.size} for {len(images)}")
        batch = encode_images(self.model, images, self.encoding)
        model = batch, self.calibration, self.search_space, self.model.scale
        return Query.from_anchors(*model, anchors, speed_kmh) if anchors else Query.from_trip(*model, hours, speed_kmh)

    def explain(
        self, image: ImageSource, place: LatLon | None = None, versus: LatLon | None = None, *, grid: int = 7
    ) -> Explanation:
        """Return where in a photo the evidence for a place lies; see :func:`open_geoclip.search.explain.explain`."""

        def locate(batch: EncodedBatch) -> Iterator[Located]:
            return self.answer([self.query_encoded(batch)], 1)

        return explain(self.model, image, locate, place, versus, grid=grid, max_pixels=self.encoding.max_pixels)

    # --- embeddings and probabilities --------------------------------------------------------------

    def encode(self, images: Iterable[ImageSource]) -> Float[Tensor, "n k"]:
        """Return embeddings of images, float32: of length 1, or the mean of ten such.

        Raises:
            ImageError: an image cannot be read.
        """
        return encode_images(self.model, images, self.encoding).embeddings

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n k"]:
        """Return embeddings of texts, of length 1, float32; errors are those of :meth:`locate_text`."""
        return self.model.encode_text(texts)

    def posterior(self, embeddings: Float[Tensor, "n k"], calibration: Calibration | None = None) -> Posterior:
        """Return probabilities over the places of the gallery.

        Args:
            embeddings: of images, as :meth:`encode` returns them, or of texts.
            calibration: default: that of the model for images; for texts give ``Calibration()``, which is none.
        """
        return self.search_space.posterior(embeddings, self.model.scale, calibration or self.calibration)
