"""Jobs for a model and their outcomes: plain data that goes to a worker process as JSON and bytes.

This module and what it imports stay free of NumPy and PyTorch: the main process of the server needs neither.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from open_geoclip.schema import from_dict

__all__ = [
    "DecodeMethod",
    "Job",
    "Message",
    "Options",
    "Outcome",
    "Pixels",
    "PreparedImage",
    "Upload",
    "decode_jobs",
    "encode_jobs",
    "image_records",
]

DecodeMethod = Literal["mass", "distance", "geoscore", "max"]
"""That of :mod:`open_geoclip.search.decode`, which imports PyTorch."""

Message = tuple[Any, Sequence[bytes | bytearray]]
"""JSON-ready content, and bytes that belong to it."""


@dataclass(frozen=True)
class Upload:
    """An image file as it was sent, and what its answer calls it."""

    name: str
    data: bytes | bytearray


@dataclass(frozen=True)
class Pixels:
    """A decoded image: RGB of 8 bits, row by row."""

    width: int
    height: int
    data: bytes | bytearray


@dataclass(frozen=True)
class PreparedImage:
    """An image file that was read.

    Attributes:
        pixels: shortest edge as the model's preprocessing resizes it; None where the file cannot be decoded.
        error: why not.
        sha256: of the file; None where it took too long.
        exif: the place in its metadata, JSON-ready; None where there is none, or it was not asked for.
        thumbnail: a small JPEG as a data URI; None where the file cannot be decoded, or it was not asked for.
        trip: a :class:`~open_geoclip.data.clocks.TripPhoto`, JSON-ready; None where it was not asked for.
    """

    pixels: Pixels | None
    error: str | None
    sha256: str | None = None
    exif: dict[str, Any] | None = None
    thumbnail: str | None = None
    trip: dict[str, Any] | None = None


@dataclass(frozen=True)
class Options:
    """How a request wants its answers.

    The fields are those of :class:`~open_geoclip.server.schemas.LocateForm`, and from ``place`` on those of
    :class:`~open_geoclip.server.schemas.ExplainForm`.
    """

    top_k: int = 5
    within: tuple[str, ...] = ()
    not_within: tuple[str, ...] = ()
    text: str | None = None
    text_weight: float = 0.5
    together: bool = False
    decode: DecodeMethod | None = None
    detail: bool = False
    place: tuple[float, float] | None = None
    versus: tuple[float, float] | None = None
    grid: int = 0

    @property
    def area(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The area as a key: jobs with the same one can share a batch."""
        return self.within, self.not_within


@dataclass(frozen=True)
class Job:
    """One unit of work for a model.

    Attributes:
        kind: ``locate`` images, ``text`` to locate texts, ``embed`` images, coordinates and texts, ``explain`` an
            image, or locate the images of a ``trip``.
        images: decoded, shortest edge as the model's preprocessing resizes it.
        coordinates: (lat, lon) in degrees.
        trip: the fields of :class:`~open_geoclip.data.clocks.Anchors`, JSON-ready, and ``speed_kmh``.
    """

    kind: Literal["locate", "text", "embed", "explain", "trip"]
    options: Options = Options()
    images: tuple[Pixels, ...] = ()
    texts: tuple[str, ...] = ()
    coordinates: tuple[tuple[float, float], ...] = ()
    trip: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        """Number of inputs, with the copies of an image that is explained."""
        return len(self.images) + len(self.texts) + len(self.coordinates) + self.options.grid**2


@dataclass(frozen=True)
class Outcome:
    """The result of a job: answers (of images, then of coordinates, then of texts), or None and a problem."""

    answers: list[Any] | None
    status: int = 200
    code: str = ""
    message: str = ""


def encode_jobs(jobs: Iterable[Job]) -> Message:
    """Jobs as a message; :func:`decode_jobs` is the inverse."""
    content, blobs = [], []
    for job in jobs:
        plain = {**vars(job), "options": asdict(job.options)}
        plain["images"] = [(image.width, image.height) for image in job.images]
        content.append(plain)
        blobs += [image.data for image in job.images]
    return content, blobs


def decode_jobs(message: Message) -> list[Job]:
    """Jobs from a message of :func:`encode_jobs`, whether or not it went through JSON."""
    content, blobs = message
    data = iter(blobs)
    return [
        Job(
            plain["kind"],
            from_dict(Options, plain["options"], "options"),
            tuple(Pixels(width, height, next(data)) for width, height in plain["images"]),
            tuple(plain["texts"]),
            tuple((lat, lon) for lat, lon in plain["coordinates"]),
            plain["trip"],
        )
        for plain in content
    ]


def image_records(
    names: Sequence[str],
    images: Sequence[PreparedImage],
    answers: Sequence[dict[str, Any]],
    *,
    together: bool = False,
    exif: bool = False,
) -> list[dict[str, Any]]:
    """Records of images in order, or one of all ``together``: answers with names, hashes, and what was asked for.

    Args:
        names: of the images.
        images: as they were read.
        answers: of those that could be read, or one of all together; none where one of these could not be read.
        together: all images show one place.
        exif: include the place in the metadata of each, or the first place of several together.
    """
    pairs = list(zip(names, images, strict=True))
    groups = [pairs] if together else [[pair] for pair in pairs]
    found = iter(answers)
    records = []
    for group in groups:
        name = ", ".join(name for name, _ in group)
        errors = [f"{name}: {image.error}" if together else image.error for name, image in group if image.error]
        if errors:
            record: dict[str, Any] = {"image": name, "error": errors[0]}
        else:
            answer = next(found)
            hashes = {"image": ", ".join(str(image.sha256) for _, image in group)} | answer.get("sha256", {})
            record = {"image": name, **answer, "sha256": hashes} | {"image": name}
        if exif:
            record["exif"] = next((image.exif for _, image in group if image.exif is not None), None)
        if group[0][1].thumbnail is not None:
            record["thumbnail"] = group[0][1].thumbnail
        records.append(record)
    return records
