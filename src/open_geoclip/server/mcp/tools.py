"""The tools themselves, and the server that offers them over standard input and output."""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field

from open_geoclip._version import __version__
from open_geoclip.errors import ImageError, OpenGeoCLIPError, SettingsError
from open_geoclip.images import MAX_PIXELS
from open_geoclip.server.mcp.folders import Asked, Folders
from open_geoclip.server.mcp.schemas import (
    DOUBT,
    NOTE,
    LocatedResult,
    ModelsResult,
    VectorsResult,
    VerifiedResult,
    WhereResult,
)
from open_geoclip.server.mcp.words import said

if TYPE_CHECKING:
    from open_geoclip.geo.areas import Area
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.locator import Locator
    from open_geoclip.verification import Verification

__all__ = ["McpSettings", "make_server"]

T = TypeVar("T")

_INSTRUCTIONS = (
    "Where on Earth photos were taken, from the picture itself. Every answer is an estimate, not evidence: pass on the "
    "radius and whether `sure` is true, false or null (not measured), and say which model answered. Do not use it to "
    "find where a private person lives or is. Pictures are paths in the allowed folders, or data URIs; nothing leaves "
    "this machine."
)
_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
_CONTEXT = Context[Any, Any]

Images = Annotated[
    list[str],
    Field(
        min_length=1,
        description="Paths of pictures or of folders of pictures, absolute or from an allowed folder; or pictures "
        "themselves as data URIs (data:image/jpeg;base64,...).",
    ),
]
TopK = Annotated[int, Field(ge=1, le=100, description="Candidates of each.")]
Within = Annotated[
    list[str] | None,
    Field(
        description="Where it can only have been, any of: a country (France), a box south,west,north,east "
        "(35,-10,60,30), a circle lat,lon,radius (48.86,2.29,50km), the path of a GeoJSON file."
    ),
]
NotWithin = Annotated[list[str] | None, Field(description="Where it cannot have been, written like `within`.")]
Coordinates = Annotated[
    list[tuple[float, float]], Field(max_length=10_000, description="[lat, lon] in degrees, WGS84; latitude first.")
]


@dataclass(frozen=True)
class McpSettings:
    """What the server may read and what it answers with.

    Attributes:
        folders: pictures and GeoJSON files may be read in these alone.
        model: ``earth``, ``geoclip``, ``hub:org/repo@revision`` or ``dir:/folder``.
        backbone: where the image backbone is; the one that the model names when not given.
        gallery: places to choose from; the model's own when not given.
        max_pictures: the most that one call may name.
        max_bytes: of a picture's file or decoded data URI.
        max_pixels: of a picture; see :mod:`open_geoclip.images`.
    """

    folders: tuple[Path, ...]
    model: str = "earth"
    backbone: str | None = None
    gallery: Path | None = None
    max_pictures: int = 500
    max_bytes: int = 64_000_000
    max_pixels: int = MAX_PIXELS


def make_server(settings: McpSettings) -> MCPServer[Any]:
    """The server, ready for ``run("stdio")``. Weights are read when a tool first needs them.

    Raises:
        SettingsError: a number is out of range, or a folder is not there.
        ModelNameError: the model's name does not follow the grammar.
    """
    tools = _Tools(settings)
    server: MCPServer[Any] = MCPServer(
        "open-geoclip", title="OpenGeoCLIP", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING"
    )
    offered: dict[str, Callable[..., Any]] = {
        "Locate pictures": tools.locate,
        "Locate texts": tools.text,
        "Hold photos against the places that they name": tools.verify,
        "Name coordinates": tools.where,
        "Vectors of places, pictures and texts": tools.embed,
        "List models": tools.models,
    }
    for title, tool in offered.items():
        server.add_tool(tool, title=title, annotations=_READS)
    return server


@contextmanager
def _told() -> Iterator[None]:
    """Errors that this package raises on purpose, as errors of the tool, with what to do."""
    try:
        yield
    except OpenGeoCLIPError as error:
        raise ToolError(str(error)) from error


class _Tools:
    """One model, one gallery. Calls may come at the same time; the model works on one batch at a time, in turn."""

    def __init__(self, settings: McpSettings) -> None:
        from open_geoclip.weights.names import parse_name

        for name in ("max_pictures", "max_bytes", "max_pixels"):
            if getattr(settings, name) < 1:
                raise SettingsError(f"{name}: 1 or more, not {getattr(settings, name)}")
        parse_name(settings.model)
        self.settings = settings
        self.folders = Folders(settings.folders, max_bytes=settings.max_bytes, max_pictures=settings.max_pictures)
        self._turn = anyio.CapacityLimiter(1)  # first come, first served
        self._locator: Locator | None = None

    async def locate(
        self,
        ctx: _CONTEXT,
        images: Images,
        top_k: TopK = 5,
        within: Within = None,
        not_within: NotWithin = None,
        text: Annotated[str | None, Field(description="What is known beside the pictures, in words.")] = None,
        text_weight: Annotated[float, Field(ge=0, le=1, description="0: the pictures alone; 1: the text alone.")] = 0.5,
        together: Annotated[bool, Field(description="All pictures show one place: one answer for all.")] = False,
    ) -> Annotated[CallToolResult, LocatedResult]:
        """Say where pictures were taken: candidates with coordinates, probability and radius. Estimates, not evidence.

        A picture that cannot be read has an `error`, and the others are done.
        """
        with _told():
            if together and text is not None:
                raise SettingsError("text goes beside pictures that are located alone, not together")
            area = self._area(within, not_within)
            asked = await self._work(self.folders.pictures, images)
            locator = await self._work(self._limited, ctx, area)
            if together:
                return await self._together(locator, asked, top_k)

            def stream(sources: Sequence[Path | bytes]) -> "Iterator[Answer]":
                return locator.stream(sources, top_k, text=text, text_weight=text_weight)

            records = await self._each(ctx, asked, stream, lambda one, name: replace(one, image=name).to_dict())
        return _located(records)

    async def verify(self, ctx: _CONTEXT, images: Images, top_k: TopK = 1) -> Annotated[CallToolResult, VerifiedResult]:
        """Hold photos against the places that their EXIF data, XMP or sidecars name: how surprising these are.

        A verdict is a reason to look closer, never a proof. What the file says takes no part in the estimate.
        """
        from open_geoclip.verification import verify

        with _told():
            asked = [self.folders.with_sidecars(one) for one in await self._work(self.folders.pictures, images)]
            locator = await self._work(self._limited, ctx, None)

            def stream(sources: Sequence[Path | bytes]) -> "Iterator[Verification]":
                return verify(locator, sources, top_k)

            def record(one: "Verification", name: str) -> dict[str, Any]:
                return replace(one, answer=replace(one.answer, image=name)).to_dict()

            records = await self._each(ctx, asked, stream, record)
        return _result({"note": DOUBT, "photos": records}, said(records) + f"\n{DOUBT}")

    async def _each(
        self,
        ctx: _CONTEXT,
        asked: Sequence[Asked],
        stream: "Callable[[Sequence[Path | bytes]], Iterator[T]]",
        record: Callable[[T, str], dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """What is found for each picture, in order, and why there is nothing for those that cannot be read.

        Raises:
            SettingsError: none of them can be.
        """
        records: list[dict[str, Any]] = [{"image": one.name, "error": one.error} for one in asked]
        readable = [(number, one) for number, one in enumerate(asked) if one.source is not None]
        sources = [one.source for _, one in readable if one.source is not None]
        answers = cast("Generator[T]", await self._work(stream, sources))
        try:
            for done, (number, one) in enumerate(readable, 1):
                records[number] = record(await self._work(next, answers), one.name)
                await ctx.report_progress(done, len(readable), one.name)
        finally:
            with anyio.CancelScope(shield=True):  # decoding ahead ends before the next call begins
                await self._work(answers.close)
        if all(one.get("error") is not None for one in records):
            raise SettingsError("; ".join(f"{one['image']}: {one['error']}" for one in records[:10]))
        return records

    async def _together(self, locator: "Locator", asked: Sequence[Asked], top_k: int) -> CallToolResult:
        for one in asked:
            if one.error is not None:
                raise ImageError(one.name, one.error)
        sources = [one.source for one in asked if one.source is not None]
        try:
            answer = await self._work(locator.locate_together, sources, top_k)
        except ImageError as error:  # it knows files by where their links lead
            names = {str(one.source): one.name for one in asked}
            raise ImageError(names.get(error.name, error.name), error.reason) from error
        return _located([replace(answer, image=", ".join(one.name for one in asked)).to_dict()])

    async def text(
        self,
        ctx: _CONTEXT,
        texts: Annotated[list[str], Field(min_length=1, max_length=256, description="Such as 'a hot desert'.")],
        top_k: TopK = 5,
        within: Within = None,
        not_within: NotWithin = None,
    ) -> Annotated[CallToolResult, LocatedResult]:
        """Say where on Earth words lead: kinds of land, climates, large regions. Estimates, not evidence."""
        with _told():
            locator = await self._work(self._limited, ctx, self._area(within, not_within))
            answers: list[Answer] = await self._work(locator.locate_text, texts, top_k)
        return _located([answer.to_dict() for answer in answers])

    async def where(
        self, coordinates: Annotated[Coordinates, Field(min_length=1)]
    ) -> Annotated[CallToolResult, WhereResult]:
        """Name the country and the nearest city of coordinates, offline. Needs no model."""
        with _told():
            names = await anyio.to_thread.run_sync(_names, coordinates)
        lines = [f"{one['lat']:.5f}, {one['lon']:.5f}: {one['place']}" for one in names]
        return _result({"places": names}, said(lines))

    async def embed(
        self,
        ctx: _CONTEXT,
        coordinates: Coordinates = [],  # noqa: B006 - pydantic copies defaults
        images: Annotated[list[str], Field(description="Written as for locate.")] = [],  # noqa: B006
        texts: Annotated[list[str], Field(max_length=256)] = [],  # noqa: B006
    ) -> Annotated[CallToolResult, VectorsResult]:
        """Give vectors of length 1 of places, pictures and texts, all in one space: products compare them."""
        with _told():
            if not (coordinates or images or texts):
                raise SettingsError("give coordinates, images or texts, or several of these")
            asked = await self._work(self.folders.pictures, images) if images else []
            locator = await self._work(self._limited, ctx, None)
            vectors = await self._work(_vectors_of_places, locator, coordinates)
            for done, one in enumerate(asked, 1):
                vectors.append(await self._work(_vector_of_picture, locator, one))
                await ctx.report_progress(done, len(asked), one.name)
            vectors += await self._work(_vectors_of_texts, locator, texts)
        size = locator.model.location_encoder.settings.output
        failed = [f"{one['input']}: {one['error']}" for one in vectors if one["error"] is not None]
        summary = f"{len(vectors) - len(failed):,} vectors of {size} numbers by {locator.model_name}"
        return _result({"model": locator.model_name, "dimensions": size, "vectors": vectors}, said([summary, *failed]))

    async def models(self) -> Annotated[CallToolResult, ModelsResult]:
        """List the models that are known by a name, whether they are on this machine, and which one answers here."""
        found = await anyio.to_thread.run_sync(_known_models)
        lines = [
            f"{one['name']}: {one['title']}; {'here' if one['here'] else 'not here, ' + str(one['command'])}"
            for one in found
        ]
        in_use = self.settings.model
        return _result({"in_use": in_use, "models": found}, said([f"answers here are by {in_use}", *lines]))

    async def _work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something slow in a thread, when it is its turn. A cancelled call ends when that has ended."""
        return await anyio.to_thread.run_sync(lambda: function(*arguments), limiter=self._turn)

    def _limited(self, ctx: _CONTEXT, area: "Area | None") -> "Locator":
        """The locator, loaded at the first call that needs it, within limits if there are any."""
        if self._locator is None:
            from open_geoclip.search.locator import Locator

            def progress(done: int, total: int) -> None:
                anyio.from_thread.check_cancelled()
                anyio.from_thread.run(ctx.report_progress, done, total, "encoding the gallery, once")

            self._locator = Locator.from_pretrained(
                self.settings.model,
                backbone=self.settings.backbone,
                gallery=self.settings.gallery,
                max_pixels=self.settings.max_pixels,
                progress=progress,
            )
        return self._locator if area is None else self._locator.within(area)

    def _area(self, within: list[str] | None, not_within: list[str] | None) -> "Area | None":
        """Limits as they were written; files only where files may be read."""
        from open_geoclip.geo.areas import Area

        if not within and not not_within:
            return None
        return Area(tuple(map(self._shape, within or ())), tuple(map(self._shape, not_within or ())))

    def _shape(self, text: str) -> Any:
        from open_geoclip.geo.areas import Polygon, parse_shape

        if not text.strip().lower().endswith((".json", ".geojson")):
            return parse_shape(text)
        real = self.folders.find(text.strip())
        if real.is_file() and real.stat().st_size > self.settings.max_bytes:
            raise SettingsError(f"{text}: is larger than {self.settings.max_bytes / 1e6:g} MB (--max-mb)")
        return replace(Polygon.from_file(real), name=text.strip())


def _located(records: list[dict[str, Any]]) -> CallToolResult:
    return _result({"note": NOTE, "answers": records}, said(records) + f"\n{NOTE}")


def _result(content: dict[str, Any], text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=content)


def _names(coordinates: list[tuple[float, float]]) -> list[dict[str, Any]]:
    import numpy as np

    from open_geoclip.geo.geocode import describe

    return [
        {
            "lat": place.lat,
            "lon": place.lon,
            "country": place.country,
            "country_name": place.country_name,
            "place": place.text,
        }
        for place in describe(np.array(coordinates, np.float64))
    ]


def _vectors_of_places(locator: "Locator", coordinates: list[tuple[float, float]]) -> list[dict[str, Any]]:
    import torch

    if not coordinates:
        return []
    with torch.inference_mode():
        found = locator.model.location_encoder.encode(torch.tensor(coordinates, dtype=torch.float64))
    return [
        {"input": f"{lat:.10g},{lon:.10g}", "vector": _rounded(vector), "error": None}
        for (lat, lon), vector in zip(coordinates, found.tolist(), strict=True)
    ]


def _vector_of_picture(locator: "Locator", asked: Asked) -> dict[str, Any]:
    if asked.source is None:
        return {"input": asked.name, "vector": None, "error": asked.error}
    try:
        [vector] = locator.encode([asked.source]).tolist()
    except ImageError as error:
        return {"input": asked.name, "vector": None, "error": error.reason}
    return {"input": asked.name, "vector": _rounded(vector), "error": None}


def _vectors_of_texts(locator: "Locator", texts: list[str]) -> list[dict[str, Any]]:
    if not texts:
        return []
    return [
        {"input": text, "vector": _rounded(vector), "error": None}
        for text, vector in zip(texts, locator.encode_text(texts).tolist(), strict=True)
    ]


def _rounded(vector: list[float]) -> list[float]:
    """Seven digits after the point: what float32 holds of numbers below 1."""
    return [round(value, 7) for value in vector]


def _known_models() -> list[dict[str, Any]]:
    from open_geoclip.weights.folders import status
    from open_geoclip.weights.registry import RECORDS

    found = [status(name) for name in RECORDS]
    return [
        {
            "name": one.record.name,
            "title": one.record.title,
            "here": one.folder is not None,
            "command": one.command,
            "licence": one.record.licence,
            "trained_on": one.record.trained_on,
            "accuracy": json.loads(json.dumps(one.record.accuracy)),
        }
        for one in found
    ]
