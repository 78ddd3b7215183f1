"""A locator that answers jobs: the same for the HTTP API and for MCP."""

import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_geoclip.data.clocks import Anchors
from open_geoclip.data.tracks import Fix
from open_geoclip.errors import AreaError, DataError, MissingExtraError
from open_geoclip.geo.areas import Area, Polygon, Shape, parse_shape
from open_geoclip.search.encode import EncodedBatch, encode_images
from open_geoclip.search.locator import Locator
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.server.jobs import Job, Message, Options, Outcome, Pixels, decode_jobs
from open_geoclip.server.problems import problem_of

__all__ = ["Engine", "parse_area"]

_MAX_LOCATORS = 4  # locators with an area that are kept; each holds the embeddings of its places
_MAX_POLYGONS = 10  # GeoJSON areas per request
_MAX_GALLERIES = 2  # and together they may hold so many times the gallery


def parse_area(within: Sequence[str], not_within: Sequence[str], max_corners: int) -> Area:
    """An area as a client writes it: as on the command line, but GeoJSON itself instead of the name of its file.

    Raises:
        AreaError: a text cannot be understood or names a file, or there are too many polygons or corners.
    """
    texts = [tuple(dict.fromkeys(text.strip() for text in each)) for each in (within, not_within)]
    polygons = sum(text.startswith("{") for each in texts for text in each)
    if polygons > _MAX_POLYGONS:
        raise AreaError(f"at most {_MAX_POLYGONS} GeoJSON areas: unite them to a MultiPolygon")
    return Area(*(tuple(_parse_shape(text, max_corners) for text in each) for each in texts))


def _parse_shape(text: str, max_corners: int) -> Shape:
    if text.startswith("{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AreaError(f"an area is not GeoJSON: {error}") from error
        name = content.get("name")
        name = name[:256] if isinstance(name, str) and name else "polygon"
        return Polygon.from_geojson(content, name, max_corners=max_corners)
    if text.lower().endswith((".geojson", ".json")):
        raise AreaError("the name of a file is not an area here: send the GeoJSON itself")
    return _parse_short(text) if len(text) < 200 else parse_shape(text)


_parse_short = lru_cache(maxsize=256)(parse_shape)  # outlines of large countries take a second or two


class Engine:
    """Answers jobs with one locator; ``max_corners`` bounds GeoJSON areas."""

    def __init__(self, locator: Locator, *, max_corners: int = 10_000) -> None:
        self.locator = locator
        self._max_corners = max_corners
        self._within: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], Locator] = OrderedDict()

    @classmethod
    def load(cls, name: str, **settings: Any) -> "Engine":
        """An engine, ready to answer; arguments and errors are those of :meth:`Locator.from_pretrained`.

        ``index``, folders of photo indexes, is one more; see :meth:`Locator.with_photo_index`.
        """
        folders = settings.pop("index", None) or ()
        locator = Locator.from_pretrained(name, **settings)
        if folders:
            locator = locator.with_photo_index(*(PhotoIndex.open(Path(folder)) for folder in folders))
        engine = cls(locator)
        engine.warm_up()
        return engine

    def warm_up(self) -> None:
        """Do now what the first image would have to wait for: read names of places, compute the gallery cells."""
        self.locator.locate(np.full((64, 64, 3), 128, np.uint8))

    @property
    def image_options(self) -> dict[str, Any]:
        """Arguments of :func:`~open_geoclip.server.utility.prepare_image` for images of this model."""
        preprocessing = self.locator.model.image_encoder.preprocessing
        max_pixels = self.locator.encoding.max_pixels
        options = {name: getattr(preprocessing, name) for name in ("resize", "resample", "squash")}
        return {**options, "max_pixels": max_pixels}

    @property
    def dimensions(self) -> int:
        """Length of the embeddings."""
        return self.locator.model.location_encoder.settings.output

    @property
    def info(self) -> dict[str, Any]:
        """What the main process of the server has to know, JSON-ready."""
        return {"image_options": self.image_options, "dimensions": self.dimensions, "countries": _countries()}

    def handle(self, message: Message) -> Message:
        """Answer a message of :func:`~open_geoclip.server.jobs.encode_jobs`."""
        return [asdict(outcome) for outcome in self.run(decode_jobs(message))], []

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcome of each job, in order.

        Images of all jobs go through the image encoder together; those to locate with the same options are searched
        for together too.
        """
        alone = [() if job.options.together or job.kind in ("explain", "trip") else job.images for job in jobs]
        encoded = iter(self._encode([image for images in alone for image in images]))
        parts = [list(itertools.islice(encoded, len(images))) for images in alone]
        outcomes: dict[int, Outcome] = {}
        single = [n for n, job in enumerate(jobs) if job.kind == "locate" and not job.options.together]
        for options in dict.fromkeys(jobs[n].options for n in single):
            group = [n for n in single if jobs[n].options == options]
            found = _attempt(self._locate, options, [one for n in group for one in parts[n]])
            records = None if found.answers is None else iter(found.answers)
            for n in group:
                outcomes[n] = found if records is None else Outcome(list(itertools.islice(records, len(parts[n]))))
        return [outcomes[n] if n in outcomes else _attempt(self._answer, job, parts[n]) for n, job in enumerate(jobs)]

    def _encode(self, images: Sequence[Pixels]) -> list[EncodedBatch]:
        """Return one batch per image."""
        return encode_images(self.locator.model, map(_array, images), self.locator.encoding).split()

    def _locate(self, options: Options, singles: list[EncodedBatch]) -> list[Any]:
        answers = self._locator(options).locate_embeddings(
            EncodedBatch.concatenate(singles),
            options.top_k,
            text=options.text,
            text_weight=options.text_weight,
            detail=options.detail,
        )
        return [answer.to_dict() for answer in answers]

    def _answer(self, job: Job, singles: list[EncodedBatch]) -> list[Any]:
        options = job.options
        if job.kind == "text":
            found = self._locator(options).locate_text(job.texts, options.top_k, detail=options.detail)
            return [answer.to_dict() for answer in found]
        if job.kind == "explain":
            [image] = map(_array, job.images)
            locator = self._locator(options)
            return [locator.explain(image, options.place, options.versus, grid=options.grid).to_dict()]
        if job.trip is not None:
            trip, locator = dict(job.trip), self._locator(options)
            speed_kmh, times_s = trip.pop("speed_kmh"), trip.pop("times_s")
            pairs = [[fix and Fix(**fix) for fix in pair] for pair in trip.pop("brackets") or ()]
            brackets = tuple((before, after) for before, after in pairs)
            times = Anchors(tuple(times_s), brackets) if brackets else [time_s / 3600 for time_s in times_s]
            arrays = map(_array, job.images)
            answers = locator.locate_trip(arrays, times, options.top_k, speed_kmh=speed_kmh, detail=options.detail)
            if answers[0].error is not None:
                raise DataError(answers[0].error)
            return [answer.to_dict() for answer in answers]
        if job.kind == "locate":
            arrays = map(_array, job.images)
            return [self._locator(options).locate_together(arrays, options.top_k, detail=options.detail).to_dict()]
        places = self._encode_coordinates(job.coordinates) if job.coordinates else ()
        texts = self.locator.encode_text(job.texts) if job.texts else ()
        return [one.float().tolist() for one in (*(single.embeddings[0] for single in singles), *places, *texts)]

    @torch.inference_mode()
    def _encode_coordinates(self, coordinates: Sequence[tuple[float, float]]) -> Tensor:
        return self.locator.model.location_encoder.encode(torch.tensor(coordinates, dtype=torch.float64))

    def _locator(self, options: Options) -> Locator:
        """The locator for a request; a few with areas are kept, as clients ask for the same ones again."""
        locator = self.locator
        if any(options.area):
            if options.area not in self._within:
                # What clients name leaves nothing on disk.
                self._within[options.area] = self.locator.within(
                    parse_area(*options.area, self._max_corners), keep=False
                )
            self._within.move_to_end(options.area)
            locator = self._within[options.area]
            self._evict()
        return locator if options.decode is None else locator.with_decode(options.decode)

    def _evict(self) -> None:
        """Keep few locators with areas, and of large ones fewer."""
        most = _MAX_GALLERIES * len(self.locator.gallery)
        while len(self._within) > 1 and (
            len(self._within) > _MAX_LOCATORS or sum(len(one.gallery) for one in self._within.values()) > most
        ):
            self._within.popitem(last=False)


def _array(image: Pixels) -> np.ndarray:
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


def _attempt(answer: Callable[..., list[Any]], *arguments: Any) -> Outcome:
    """Answers, or a problem: the failure of one job is not that of the others."""
    try:
        return Outcome(answer(*arguments))
    except Exception as error:  # noqa: BLE001
        problem = problem_of(error)
        return Outcome(None, problem.status, problem.code, problem.message)


def _countries() -> list[dict[str, Any]]:
    """All countries by name; none where the extra ``places`` is not installed."""
    from open_geoclip.geo.countries import country_name, country_spellings

    try:
        spellings = country_spellings()
    except MissingExtraError:
        return []
    return [
        {"code": code, "name": country_name(code), "spellings": spellings[code]}
        for code in sorted(spellings, key=country_name)
    ]
