"""What is asked of a model: pictures, texts or inputs, and how to answer. Plain data, as it goes to a worker."""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Job", "Options", "Outcome", "Picture"]

Kind = Literal["locate", "text", "embed"]


@dataclass(frozen=True)
class Options:
    """How a request wants its answers; the fields are those of the HTTP API.

    Attributes:
        top_k: candidates an answer.
        within: where it can only have been, as for ``geoclip locate --within``, or GeoJSON itself.
        not_within: where it cannot have been.
        text: what is known beside the pictures.
        text_weight: how much that counts.
        together: all pictures show one place.
        decode: what the best answer is best for; the model's own choice when not given.
        detail: with credible regions and heat.
        exif: with where a photo itself says it was taken.
        thumbnails: with the pictures, small, for files that show them.
    """

    top_k: int = 5
    within: tuple[str, ...] = ()
    not_within: tuple[str, ...] = ()
    text: str | None = None
    text_weight: float = 0.5
    together: bool = False
    decode: Literal["mass", "distance", "geoscore", "max"] | None = None
    detail: bool = False
    exif: bool = False
    thumbnails: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture as it was sent.

    Attributes:
        name: what the answer calls it.
        data: the bytes of its file.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Job:
    """One thing to answer.

    Attributes:
        kind: ``locate`` pictures, ``text``, or ``embed``.
        options: how to answer.
        pictures: to locate.
        texts: to locate.
        inputs: to embed, in order: pictures, coordinates or texts.
    """

    kind: Kind
    options: Options = Options()
    pictures: tuple[Picture, ...] = ()
    texts: tuple[str, ...] = ()
    inputs: tuple[Picture | tuple[float, float] | str, ...] = ()

    @property
    def size(self) -> int:
        """How many things there are to answer."""
        return len(self.pictures) + len(self.texts) + len(self.inputs)

    @property
    def seen(self) -> tuple[Picture, ...]:
        """All its pictures, to locate or to embed, in order."""
        return (*self.pictures, *(given for given in self.inputs if isinstance(given, Picture)))


@dataclass(frozen=True)
class Outcome:
    """What became of a job: answers, or a problem.

    Attributes:
        answers: JSON-ready values, in order; None when there is a problem.
        status: of HTTP, of the problem.
        code: of the problem.
        message: of the problem.
    """

    answers: list[dict[str, Any]] | None
    status: int = 200
    code: str = ""
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; ``Outcome(**values)`` is the same again."""
        return dict(vars(self))
