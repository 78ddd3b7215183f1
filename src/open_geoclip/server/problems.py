"""What a client is told when a request cannot be answered."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from open_geoclip.errors import (
    AreaError,
    CoordinateError,
    DataError,
    ImageError,
    MissingExtraError,
    OpenGeoCLIPError,
    SettingsError,
    TextError,
    WeightsError,
)
from open_geoclip.server.monitoring import source_lines

__all__ = ["Problem", "problem_of"]

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818  # not every problem is an error of ours
    """An answer other than 200: ``code`` is a word for programs, ``message`` says what is wrong and what to do."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """The kind of problem, in the words of the APIs that embedding clients know."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"message": self.message, "type": self.type, "code": self.code}}


_CODES: tuple[tuple[type[OpenGeoCLIPError], str], ...] = (
    (AreaError, "invalid_area"),
    (SettingsError, "invalid_value"),
    (TextError, "invalid_text"),
    (CoordinateError, "invalid_coordinate"),
    (ImageError, "invalid_image"),
    (DataError, "invalid_record"),
    (WeightsError, "not_supported"),
    (MissingExtraError, "not_installed"),
)


def problem_of(error: Exception) -> Problem:
    """What a client is told about an error.

    One of this package says what does not fit in the request. Any other is a failure of the server: its kind and place
    are logged, never its message, which may hold what was sent.
    """
    if isinstance(error, OpenGeoCLIPError):
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "invalid_request")
        return Problem(422, code, str(error))
    frames = source_lines(error.__traceback__) or ["?"]
    logger.error("a request failed: %s at %s", type(error).__name__, frames[-1])
    return Problem(500, "internal", "the server failed at this; what failed is in its log")
