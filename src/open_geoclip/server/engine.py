"""A locator that answers jobs."""

import json
from copy import copy
from dataclasses import replace
from typing import Any

import torch

from open_geoclip.errors import AreaError, ImageError
from open_geoclip.search.answers import Answer
from open_geoclip.search.limits import Area, Polygon, Shape, parse_shape
from open_geoclip.search.locator import Locator
from open_geoclip.server.jobs import Job, Options, Picture

__all__ = ["Engine", "parse_area"]


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
    """Answers jobs with one locator, one after the other.

    Args:
        locator: a model and its gallery.
    """

    def __init__(self, locator: Locator) -> None:
        self.locator = locator

    def run(self, job: Job) -> list[dict[str, Any]]:
        """The answers of a job, as JSON-ready values, in order.

        Raises:
            OpenGeoCLIPError: what was asked for cannot be done.
        """
        if job.kind == "embed":
            return self._embedded(job)
        locator = self._asked(job.options)
        if job.kind == "text":
            return [self._told(answer) for answer in locator.locate_text(job.texts, job.options.top_k)]
        return self._located(locator, job)

    def _asked(self, options: Options) -> Locator:
        locator = self.locator.within(parse_area(options.within, options.not_within))
        if options.decode is not None:
            locator = copy(locator)
            locator.answers = replace(locator.answers, decode=options.decode)
        return locator

    def _located(self, locator: Locator, job: Job) -> list[dict[str, Any]]:
        options, names = job.options, [picture.name for picture in job.pictures]
        sources = [picture.data for picture in job.pictures]
        if options.together:
            try:
                answer = replace(locator.locate_together(sources, options.top_k), image=", ".join(names))
            except ImageError as error:
                answer = Answer(", ".join(names), "", "", "", error=error.reason)
            return [self._told(answer)]
        found = locator.locate(sources, options.top_k, text=options.text, text_weight=options.text_weight)
        return [self._told(replace(answer, image=name)) for answer, name in zip(found, names, strict=True)]

    def _told(self, answer: Answer) -> dict[str, Any]:
        return answer.to_dict()

    def _embedded(self, job: Job) -> list[dict[str, Any]]:
        vectors = []
        for given in job.inputs:
            if isinstance(given, Picture):
                vector = self.locator.encode([given.data])
            elif isinstance(given, str):
                vector = self.locator.encode_text([given])
            else:
                with torch.inference_mode():
                    vector = self.locator.model.location_encoder.encode(torch.tensor([given], dtype=torch.float64))
            vectors.append({"embedding": vector[0].float().tolist()})
        return vectors
