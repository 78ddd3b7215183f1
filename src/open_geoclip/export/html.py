"""Answers as one self-contained page: the web page, frozen. It works from disk and asks no network for anything."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from open_geoclip.errors import OpenGeoCLIPError

__all__ = ["to_html"]

_PLACE = "__RECORDS__"


def to_html(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """The report.

    Raises:
        OpenGeoCLIPError: the page was not built.
    """
    template = files("open_geoclip").joinpath("export", "page", "report.html")
    try:
        page = template.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise OpenGeoCLIPError(
            "the page of the report was not built: run `make web` in a checkout, or install a built wheel"
        ) from error
    before, found, after = page.partition(_PLACE)
    assert found, "the template has a place for records"
    return (before + _embedded({"records": list(records), "about": about}) + after).encode()


def _embedded(content: object) -> str:
    """JSON that cannot end the element it stands in, nor begin a comment, whatever a file is called."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
