"""Answers as they come back from JSON: every value checked, since anybody may have written it."""

import math
from collections.abc import Callable
from typing import Any

from open_geoclip.errors import DataError

__all__ = ["checked_answer"]

Check = Callable[[object, str], Any]

_ROUNDING = 1e-6  # sums of float32 may end so far beyond 1


def checked_answer(values: object) -> dict[str, Any]:
    """The fields of an answer from what :meth:`open_geoclip.search.answer.Answer.to_dict` gave.

    Raises:
        DataError: a key is missing or unknown, or a value is not what it must be; the message names it.
    """
    given = _mapping(values, "answer")
    if "error" in given:
        found = _fields(given, "answer", {"image": _text, "error": _text}, {})
        return {"model": "", "gallery": "", "version": "", "candidates": [], **found}
    found = _fields(given, "answer", _NEEDED, _OPTIONAL)
    if not (found.get("image") or found.get("text")):
        raise DataError("answer: it has neither image nor text")
    return {"image": "", **found}


# --- one value ------------------------------------------------------------------------------------


def _wrong(value: object, name: str, wanted: str) -> DataError:
    return DataError(f"{name}: {wanted}, not {value!r:.60}")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong(value, name, "a text")
    return value


def _number(least: float, most: float) -> Check:
    def check(value: object, name: str) -> float:
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not (whole and math.isfinite(value) and least <= value <= most):  # type: ignore[arg-type,operator]
            upto = "" if most == math.inf else f" to {most:g}"
            raise _wrong(value, name, "a number" + ("" if least == -math.inf else f" from {least:g}{upto}"))
        return value  # type: ignore[return-value]

    return check


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, name, "true or false")
    return value


def _or_null(check: Check) -> Check:
    return lambda value, name: None if value is None else check(value, name)


# --- several values -------------------------------------------------------------------------------


def _mapping(value: object, name: str) -> dict[str, Any]:
    if not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise _wrong(value, name, "an object with named values")
    return value


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(value, name, "a list")
    return list(value)


def _each(check: Check) -> Check:
    """A list of values of one kind."""
    return lambda value, name: [check(one, f"{name}[{at}]") for at, one in enumerate(_list(value, name))]


def _by_name(check: Check) -> Check:
    """Values of one kind by any names."""
    return lambda value, name: {key: check(one, f"{name}.{key}") for key, one in _mapping(value, name).items()}


def _fields(values: object, name: str, needed: dict[str, Check], optional: dict[str, Check]) -> dict[str, Any]:
    """Values by known names."""
    given, known = _mapping(values, name), needed | optional
    if missing := [key for key in needed if key not in given]:
        raise DataError(f"{name}: {', '.join(missing)} is missing")
    if unknown := [key for key in given if key not in known]:
        raise DataError(f"{name}: unknown {', '.join(map(repr, unknown)):.60}; known are {', '.join(known)}")
    return {key: known[key](value, f"{name}.{key}") for key, value in given.items()}


def _position(value: object, name: str) -> list[float]:
    """Longitude and latitude, as GeoJSON has them."""
    numbers = _list(value, name)
    if len(numbers) != 2:
        raise _wrong(value, name, "[longitude, latitude]")
    return [_LON(numbers[0], name), _LAT(numbers[1], name)]


def _ring(value: object, name: str) -> list[list[float]]:
    ring: list[list[float]] = _each(_position)(value, name)
    if len(ring) < 4 or ring[0] != ring[-1]:
        raise DataError(f"{name}: a ring is four positions or more, the last one the first")
    return ring


def _region(value: object, name: str) -> dict[str, Any]:
    found = _fields(value, name, {"type": _text, "coordinates": _each(_each(_ring))}, {})
    if found["type"] != "MultiPolygon":
        raise _wrong(found["type"], f"{name}.type", "MultiPolygon")
    if not all(found["coordinates"]):
        raise DataError(f"{name}.coordinates: a polygon without a ring")
    return found


def _cell(value: object, name: str) -> list[float]:
    numbers = _list(value, name)
    if len(numbers) != 3:
        raise _wrong(value, name, "[latitude, longitude, probability]")
    return [check(number, name) for check, number in zip((_LAT, _LON, _SHARE), numbers, strict=True)]


_LAT, _LON = _number(-90, 90), _number(-180, 180)
_SHARE = _number(0, 1 + _ROUNDING)
_KM = _number(0, math.inf)

_CANDIDATE: dict[str, Check] = {
    "lat": _LAT,
    "lon": _LON,
    "score": _number(-math.inf, math.inf),  # of several pictures the evidence adds up beyond 1
    "probability": _SHARE,
    "radius_km": _KM,
}
_NAMES: dict[str, Check] = {"country": _or_null(_text), "place": _or_null(_text)}
_NEEDED: dict[str, Check] = {
    "model": _text,
    "gallery": _text,
    "version": _text,
    "candidates": _each(lambda value, name: _fields(value, name, _CANDIDATE, _NAMES)),
}
_OPTIONAL: dict[str, Check] = {
    "image": _text,
    "text": _text,
    "credible_radius_km": _by_name(_KM),
    "within_km": _by_name(_SHARE),
    "countries": _or_null(_by_name(_SHARE)),
    "sure": _or_null(_flag),
    "sha256": _by_name(_text),
    "regions": _by_name(_region),
    "heat": lambda value, name: _fields(value, name, {"cell_km": _KM, "cells": _each(_cell)}, {}),
}
