"""A locator that answers jobs."""

import itertools
import json
import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_geoclip.errors import AreaError, ImageError, OpenGeoCLIPError
from open_geoclip.geo.areas import Area, Polygon, Shape, parse_shape
from open_geoclip.search.answer import Answer
from open_geoclip.search.locator import Locator
from open_geoclip.server.beside import beside
from open_geoclip.server.jobs import Job, Options, Outcome, Picture
from open_geoclip.server.problems import problem_of

__all__ = ["Engine", "parse_area"]

logger = logging.getLogger(__name__)

_KEPT = 4  # locators with limits, each of which holds the vectors of its places
_KEPT_TIMES = 2  # the gallery's places, that these may have together


def parse_area(within: tuple[str, ...], without: tuple[str, ...]) -> Area:
    """Limits as a client writes them: as on the command line, but GeoJSON itself in the place of its file's name.

    Raises:
        AreaError: a text cannot be understood, or it names a file.
    """
    return Area(tuple(map(_shape, within)), tuple(map(_shape, without)))


def _shape(text: str) -> Shape:
    text = text.strip()
    if text.startswith("{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AreaError(f"an area is not GeoJSON: {error}") from error
        return Polygon.from_geojson(content)
    if text.lower().endswith((".geojson", ".json")):
        raise AreaError("a file's name is not an area here: send the GeoJSON itself")
    return parse_shape(text)


class Engine:
    """Answers jobs with one locator.

    Args:
        locator: a model and its gallery.
    """

    def __init__(self, locator: Locator) -> None:
        self.locator = locator
        self._limited: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], Locator] = OrderedDict()

    @classmethod
    def load(cls, name: str, **settings: Any) -> "Engine":
        """An engine with trained weights; arguments are those of :meth:`Locator.from_pretrained`.

        Raises:
            OpenGeoCLIPError: the weights or the gallery cannot be used.
        """
        engine = cls(Locator.from_pretrained(name, **settings))
        engine.warm_up()
        return engine

    def warm_up(self) -> None:
        """Do now what the first picture would have to wait for: read names of places, lay out the ground."""
        self.locator.locate(np.full((64, 64, 3), 128, np.uint8))

    def run_all(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What became of each job, in order.

        Pictures of all jobs, those to embed too, go through the image tower together, and are searched for together
        where they are asked for in one way.
        """
        of_towers = [n for n, job in enumerate(jobs) if _is_plain(job) or job.kind == "embed"]
        vectors = self._encoded([picture for n in of_towers for picture in jobs[n].seen])
        seen = {n: list(itertools.islice(vectors, len(jobs[n].seen))) for n in of_towers}
        outcomes: dict[int, Outcome] = {}
        plain = [n for n in of_towers if _is_plain(jobs[n])]
        for options in dict.fromkeys(jobs[n].options for n in plain):
            group = [n for n in plain if jobs[n].options == options]
            names = [picture.name for n in group for picture in jobs[n].pictures]
            told = _tried(self._told, options, names, [vector for n in group for vector in seen[n]])
            records = iter(told.answers or ())
            for n in group:
                own = None if told.answers is None else list(itertools.islice(records, len(jobs[n].pictures)))
                outcomes[n] = told if own is None else _tried(self._shown, jobs[n], own)
        return [
            outcomes[n] if n in outcomes else _tried(self._answered, job, seen.get(n, [])) for n, job in enumerate(jobs)
        ]

    def _encoded(self, pictures: list[Picture]) -> Iterator[Tensor | str]:
        """The vector of each picture, or why it cannot be read."""
        for batch in self.locator.pictures.batches([picture.data for picture in pictures]):
            vectors = iter(batch.vectors)
            yield from (next(vectors) if error is None else error for error in batch.errors)

    def _told(self, options: Options, names: list[str], found: list[Tensor | str]) -> list[dict[str, Any]]:
        locator = self._asked(options)
        vectors = [one for one in found if not isinstance(one, str)]
        told: Iterator[Answer] = iter(())
        if vectors:
            asked: dict[str, Any] = {"text": options.text, "text_weight": options.text_weight, "detail": options.detail}
            told = iter(locator.tell(torch.stack(vectors), options.top_k, **asked))
        return [
            {"image": name, "error": one} if isinstance(one, str) else replace(next(told), image=name).to_dict()
            for name, one in zip(names, found, strict=True)
        ]

    def _answered(self, job: Job, seen: list[Tensor | str]) -> list[dict[str, Any]]:
        if job.kind == "embed":
            return self._embedded(job, seen)
        locator = self._asked(job.options)
        if job.kind == "text":
            found = locator.locate_text(job.texts, job.options.top_k, detail=job.options.detail)
            return [answer.to_dict() for answer in found]
        return self._shown(job, [self._as_one(locator, job)])

    def _shown(self, job: Job, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Records with what is shown beside them: one a picture, or one for all."""
        each = [job.pictures] if job.options.together else [(picture,) for picture in job.pictures]
        most = self.locator.max_pixels
        return [
            record | beside(pictures, job.options, max_pixels=most, readable="error" not in record)
            for pictures, record in zip(each, records, strict=True)
        ]

    def _asked(self, options: Options) -> Locator:
        """The locator that a request means; a few with limits are kept, as a page asks for the same ones often."""
        key = (options.within, options.not_within)
        locator = self.locator
        if any(key):
            if key not in self._limited:
                self._limited[key] = self.locator.within(parse_area(*key), keep=False)
            self._limited.move_to_end(key)
            locator = self._limited[key]
            self._forget()
        if options.decode is not None:
            locator = locator.with_decode(options.decode)
        return locator

    def _forget(self) -> None:
        """Keep few locators with limits, and of large ones fewer: their vectors may be as many as the gallery's."""
        most = _KEPT_TIMES * len(self.locator.gallery)
        while len(self._limited) > 1 and (
            len(self._limited) > _KEPT or sum(len(one.gallery) for one in self._limited.values()) > most
        ):
            self._limited.popitem(last=False)

    def _as_one(self, locator: Locator, job: Job) -> dict[str, Any]:
        name = ", ".join(picture.name for picture in job.pictures)
        pictures = [NamedBytes(picture.data, picture.name) for picture in job.pictures]
        try:
            found = locator.locate_together(pictures, job.options.top_k, detail=job.options.detail)
            return replace(found, image=name).to_dict()
        except ImageError as error:
            return {"image": name, "error": str(error)}

    def _embedded(self, job: Job, seen: list[Tensor | str]) -> list[dict[str, Any]]:
        """Vectors of a job's inputs, in order; its pictures were seen already."""
        texts = [given for given in job.inputs if isinstance(given, str)]
        places = [given for given in job.inputs if isinstance(given, tuple)]
        pictures = iter(seen)
        told = iter(self.locator.encode_text(texts) if texts else ())
        located = iter(self._located(places) if places else ())
        vectors = []
        for given in job.inputs:
            if not isinstance(given, Picture):
                vector = next(told if isinstance(given, str) else located)
            elif isinstance(one := next(pictures), str):
                raise ImageError(given.name, one)
            else:
                vector = one
            vectors.append({"embedding": vector.float().tolist()})
        return vectors

    @torch.inference_mode()
    def _located(self, places: list[tuple[float, float]]) -> Tensor:
        encoder = self.locator.model.location_encoder
        return encoder.encode(torch.tensor(places, dtype=torch.float64))


def _tried(answer: Callable[..., list[dict[str, Any]]], *asked: Any) -> Outcome:
    """Answers, or the problem that there was: one job's failure is not the others'."""
    try:
        return Outcome(answer(*asked))
    except OpenGeoCLIPError as error:
        problem = problem_of(error)
        return Outcome(None, problem.status, problem.code, problem.message)
    except Exception as error:  # noqa: BLE001  # told without what was asked: that is nobody's business
        frames = traceback.extract_tb(error.__traceback__)
        logger.error("a job failed: %s at %s:%s", type(error).__name__, frames[-1].name, frames[-1].lineno)
        return Outcome(None, 500, "internal", "the server failed at this; what failed is in its log")


def _is_plain(job: Job) -> bool:
    """Whether its pictures are located one by one."""
    return job.kind == "locate" and not job.options.together


class NamedBytes(BytesIO):
    """A picture's bytes with a name for messages.

    Args:
        data: of its file.
        name: what it is called.
    """

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name
