"""The tools, and the server that offers them over standard input and output."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from open_geoclip._version import __version__
from open_geoclip.errors import OpenGeoCLIPError, SettingsError
from open_geoclip.images import MAX_PIXELS
from open_geoclip.server.jobs import Job, Options, PreparedImage, Upload, image_records
from open_geoclip.server.mcp.folders import Folders, ImageFile
from open_geoclip.server.mcp.results import (
    MAX_CHARACTERS,
    EmbeddingsResult,
    LocatedResult,
    ModelsResult,
    VerifiedResult,
    WhereResult,
    records_result,
    result,
)

if TYPE_CHECKING:
    from open_geoclip.server.engine import Engine

__all__ = ["McpSettings", "make_server"]

T = TypeVar("T")

_INSTRUCTIONS = (
    "Estimates where on Earth photos were taken, from the image itself. Every answer is an estimate, not evidence: "
    "report the radius and whether `sure` is true, false or null (not measured), and say which model answered. Do not "
    "use it to find where a private person lives or is. Images are paths in the allowed folders, or data URIs; nothing "
    "leaves this machine."
)
_READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
_CONTEXT = Context[Any, Any]
_DIGITS = 12  # of a number of an embedding
_PART = 8  # images that are worked on between two reports of progress
_MAX_CORNERS = 100_000  # of a polygon in a file

Images = Annotated[
    list[str],
    Field(
        min_length=1,
        description="Paths of images or of folders of images, absolute or relative to an allowed folder; or images "
        "themselves as data URIs (data:image/jpeg;base64,...).",
    ),
]
TopK = Annotated[int, Field(ge=1, le=100, description="Candidates per answer.")]
Within = Annotated[
    list[str] | None,
    Field(
        description="The area that contains the place, any of: a country (France), a box south,west,north,east "
        "(35,-10,60,30), a circle lat,lon,radius (48.86,2.29,50km), the path of a GeoJSON file."
    ),
]
NotWithin = Annotated[list[str] | None, Field(description="Areas that do not contain the place, as for `within`.")]
Coordinates = Annotated[
    list[tuple[float, float]], Field(max_length=10_000, description="[lat, lon] in degrees, WGS84; latitude first.")
]
Full = Annotated[
    bool, Field(description="All fields, however long the result is. Clients may cut results over 25,000 tokens.")
]


@dataclass(frozen=True)
class McpSettings:
    """What the server may read and what it answers with: the options of ``geoclip mcp``.

    ``max_bytes`` bounds a file or a decoded data URI, ``max_images`` a call.
    """

    folders: tuple[Path, ...]
    model: str = "earth"
    backbone: str | None = None
    gallery: Path | None = None
    max_images: int = 500
    max_bytes: int = 64_000_000
    max_pixels: int = MAX_PIXELS


def make_server(settings: McpSettings) -> MCPServer[Any]:
    """The server, ready for ``run("stdio")``. Weights are read when a tool first needs them.

    Raises:
        SettingsError: a number is out of range, or a folder does not exist.
        ModelNameError: the model's name does not follow the grammar.
    """
    tools = _Tools(settings)
    server: MCPServer[Any] = MCPServer(
        "open-geoclip", title="OpenGeoCLIP", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING"
    )
    offered: dict[str, Callable[..., Any]] = {
        "Locate images": tools.locate,
        "Locate texts": tools.text,
        "Compare photos with the places in their metadata": tools.verify,
        "Name coordinates": tools.where,
        "Embeddings of places, images and texts": tools.embed,
        "List models": tools.models,
    }
    for title, tool in offered.items():
        server.add_tool(tool, title=title, annotations=_READS)
    return server


@contextmanager
def _tool_errors() -> Iterator[None]:
    """Errors of this package as errors of the tool."""
    try:
        yield
    except OpenGeoCLIPError as error:
        raise ToolError(str(error)) from error


class _Tools:
    """One model, one gallery. Calls may be concurrent; the model works on one part of one call at a time."""

    def __init__(self, settings: McpSettings) -> None:
        from open_geoclip.weights.names import parse_name

        for name in ("max_images", "max_bytes", "max_pixels"):
            if getattr(settings, name) < 1:
                raise SettingsError(f"{name}: 1 or more, not {getattr(settings, name)}")
        parse_name(settings.model)
        self.settings = settings
        self.folders = Folders(settings.folders, max_bytes=settings.max_bytes, max_images=settings.max_images)
        self._turn = anyio.CapacityLimiter(1)  # first come, first served
        self._loaded: Engine | None = None

    async def locate(
        self,
        ctx: _CONTEXT,
        images: Images,
        top_k: TopK = 5,
        within: Within = None,
        not_within: NotWithin = None,
        text: Annotated[str | None, Field(description="What is known about the images, in words.")] = None,
        text_weight: Annotated[float, Field(ge=0, le=1, description="0: the images alone; 1: the text alone.")] = 0.5,
        together: Annotated[bool, Field(description="All images show one place: one answer for all.")] = False,
        full: Full = False,
    ) -> Annotated[CallToolResult, LocatedResult]:
        """Estimate where images were taken: candidates with coordinates, probability and radius.

        Estimates, not evidence. An image that cannot be read has an `error`; the others are located.
        """
        with _tool_errors():
            if together and text is not None:
                raise SettingsError("text cannot be combined with together: locate the images alone")
            area = self._area(within, not_within)
            options = Options(top_k, *area, text=text, text_weight=text_weight, together=together)
            files = await self._work(self.folders.find_images, images)
            engine = await self._work(self._engine, ctx)

            def locate(part: Sequence[ImageFile]) -> list[dict[str, Any]]:
                read = [self._prepare(engine, one) for one in part]
                pixels = tuple(image.pixels for image in read if image.pixels is not None)
                possible = pixels and (len(pixels) == len(read) or not together)
                answers = _run(engine, Job("locate", options, pixels)) if possible else []
                return image_records([one.name for one in part], read, answers, together=together)

            records = await self._each(ctx, files, locate, size=len(files) if together else _PART)
            return records_result(_some(records), full=full)

    async def verify(
        self, ctx: _CONTEXT, images: Images, top_k: TopK = 1, full: Full = False
    ) -> Annotated[CallToolResult, VerifiedResult]:
        """Compare photos with the places in their EXIF data, XMP or sidecars.

        A verdict is a reason to look closer, never a proof. The metadata take no part in the estimate.
        """
        from open_geoclip.verification import verify

        with _tool_errors():
            files = [self.folders.check_sidecars(one) for one in await self._work(self.folders.find_images, images)]
            engine = await self._work(self._engine, ctx)

            def compare(part: Sequence[ImageFile]) -> list[dict[str, Any]]:
                found = verify(engine.locator, [one.source for one in part if one.source is not None], top_k)
                return [
                    {"image": one.name, "error": one.error}
                    if one.source is None
                    else next(found).to_dict() | {"image": one.name}
                    for one in part
                ]

            records = await self._each(ctx, files, compare)
            return records_result(_some(records), full=full, key="photos")

    async def text(
        self,
        ctx: _CONTEXT,
        texts: Annotated[list[str], Field(min_length=1, max_length=256, description="Such as 'a hot desert'.")],
        top_k: TopK = 5,
        within: Within = None,
        not_within: NotWithin = None,
        full: Full = False,
    ) -> Annotated[CallToolResult, LocatedResult]:
        """Estimate where on Earth a text describes: kinds of land, climates, large regions.

        Estimates, not evidence.
        """
        with _tool_errors():
            options = Options(top_k, *self._area(within, not_within))
            engine = await self._work(self._engine, ctx)
            return records_result(await self._work(_run, engine, Job("text", options, texts=tuple(texts))), full=full)

    async def where(
        self, coordinates: Annotated[Coordinates, Field(min_length=1)]
    ) -> Annotated[CallToolResult, WhereResult]:
        """Name the country and the nearest city of coordinates, offline. Needs no model."""
        with _tool_errors():
            names = await anyio.to_thread.run_sync(_names, coordinates)
        lines = [f"{one['lat']:.5f}, {one['lon']:.5f}: {one['place']}" for one in names]
        return result({"places": names}, lines)

    async def embed(
        self,
        ctx: _CONTEXT,
        coordinates: Coordinates | None = None,
        images: Annotated[list[str] | None, Field(description="As for locate.")] = None,
        texts: Annotated[list[str], Field(max_length=256)] | None = None,
        full: Full = False,
    ) -> Annotated[CallToolResult, EmbeddingsResult]:
        """Compute embeddings of length 1 of places, images and texts in one space; dot products compare them."""
        with _tool_errors():
            coordinates, texts = coordinates or [], texts or []
            if not (coordinates or images or texts):
                raise SettingsError("give coordinates, images or texts, or several of these")
            files = await self._work(self.folders.find_images, images) if images else []
            engine = await self._work(self._engine, ctx)
            size, count = engine.dimensions, len(coordinates) + len(files) + len(texts)
            most = MAX_CHARACTERS // (_DIGITS * size)
            if count > most and not full:
                raise SettingsError(f"{count} embeddings are too long for most clients: at most {most}, or set full")

            def embed(part: Sequence[ImageFile]) -> list[dict[str, Any]]:
                read = [self._prepare(engine, one) for one in part]
                pixels = tuple(image.pixels for image in read if image.pixels is not None)
                found = iter(_run(engine, Job("embed", images=pixels)))
                return [
                    _embedding(one.name, None if image.pixels is None else next(found), image.error)
                    for one, image in zip(part, read, strict=True)
                ]

            of_images = await self._each(ctx, files, embed)
            job = Job("embed", texts=tuple(texts), coordinates=tuple(coordinates))
            names = [*(f"{lat:.10g},{lon:.10g}" for lat, lon in coordinates), *texts]
            found = list(map(_embedding, names, await self._work(_run, engine, job)))
        embeddings = [*found[: len(coordinates)], *of_images, *found[len(coordinates) :]]
        failed = [f"{one['input']}: {one['error']}" for one in embeddings if one["error"] is not None]
        model = engine.locator.model_name
        summary = f"{len(embeddings) - len(failed):,} embeddings of {size} numbers by {model}"
        return result({"model": model, "dimensions": size, "embeddings": embeddings}, [summary, *failed])

    async def models(self) -> Annotated[CallToolResult, ModelsResult]:
        """List the models that have a name, whether they are on this machine, and which one answers here."""
        found = await anyio.to_thread.run_sync(_known_models)
        lines = [
            f"{one['name']}: {one['title']}; {'here' if one['here'] else 'not here, ' + str(one['command'])}"
            for one in found
        ]
        in_use = self.settings.model
        return result({"in_use": in_use, "models": found}, [f"answers here are by {in_use}", *lines])

    async def _work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something slow in a thread, when it is its turn. A cancelled call ends when that has ended."""
        return await anyio.to_thread.run_sync(lambda: function(*arguments), limiter=self._turn)

    async def _each(
        self,
        ctx: _CONTEXT,
        files: Sequence[ImageFile],
        work: Callable[[Sequence[ImageFile]], list[dict[str, Any]]],
        size: int = _PART,
    ) -> list[dict[str, Any]]:
        """Records of images in order, made in parts: other calls and cancellation come in between."""
        records: list[dict[str, Any]] = []
        for start in range(0, len(files), max(size, 1)):
            records += await self._work(work, files[start : start + size])
            for done, one in enumerate(files[start : start + size], start + 1):
                await ctx.report_progress(done, len(files), one.name)
        return records

    def _engine(self, ctx: _CONTEXT) -> "Engine":
        """The engine, loaded at the first call that needs it."""
        if self._loaded is None:
            from open_geoclip.search.locator import Locator
            from open_geoclip.server.engine import Engine

            def progress(done: int, total: int) -> None:
                anyio.from_thread.check_cancelled()
                anyio.from_thread.run(ctx.report_progress, done, total, "preparing the model, once")

            locator = Locator.from_pretrained(
                self.settings.model,
                backbone=self.settings.backbone,
                gallery=self.settings.gallery,
                max_pixels=self.settings.max_pixels,
                progress=progress,
            )
            self._loaded = Engine(locator, max_corners=_MAX_CORNERS)
        return self._loaded

    def _prepare(self, engine: "Engine", image: ImageFile) -> PreparedImage:
        from open_geoclip.server.utility import prepare_image

        if image.source is None:
            return PreparedImage(None, image.error)
        try:
            data = image.source if isinstance(image.source, bytes) else image.source.read_bytes()
        except OSError as error:
            return PreparedImage(None, f"cannot be read: {error.strerror or error}")
        return prepare_image(Upload(image.name, data), **engine.image_options)

    def _area(
        self, within: Sequence[str] | None, not_within: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Areas as the engine takes them: the content of files, if they may be read."""
        return tuple(map(self._shape, within or ())), tuple(map(self._shape, not_within or ()))

    def _shape(self, text: str) -> str:
        if not text.strip().lower().endswith((".json", ".geojson")):
            return text
        from open_geoclip.geo.shapes import read_geojson

        file = self.folders.resolve(text.strip())
        if file.is_file() and file.stat().st_size > self.settings.max_bytes:
            raise SettingsError(f"{text}: is larger than {self.settings.max_bytes / 1e6:g} MB (--max-mb)")
        content = read_geojson(file)
        return json.dumps({**content, "name": text.strip()} if isinstance(content, dict) else content)


def _run(engine: "Engine", job: Job) -> list[Any]:
    """The answers of a job, or its problem as SettingsError."""
    [outcome] = engine.run([job])
    if outcome.answers is None:
        raise SettingsError(outcome.message)
    return outcome.answers


def _some(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of which at least one is an answer; SettingsError if all are errors."""
    if all(one.get("error") is not None for one in records):
        raise SettingsError("; ".join(f"{one['image']}: {one['error']}" for one in records[:10]))
    return records


def _names(coordinates: list[tuple[float, float]]) -> list[dict[str, Any]]:
    import numpy as np

    from open_geoclip.geo.geocode import describe

    fields = {"lat": "lat", "lon": "lon", "country": "country", "country_name": "country_name", "place": "text"}
    places = describe(np.array(coordinates, np.float64))
    return [{name: getattr(place, attribute) for name, attribute in fields.items()} for place in places]


def _embedding(name: str, embedding: list[float] | None, error: str | None = None) -> dict[str, Any]:
    """Seven digits after the point: what float32 holds of numbers below 1."""
    rounded = None if embedding is None else [round(value, 7) for value in embedding]
    return {"input": name, "embedding": rounded, "error": error}


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
