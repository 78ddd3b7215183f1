"""Frozen dataclasses from JSON and TOML, and the JSON Schema of them.

Settings and answers are declared once, as dataclasses. :func:`from_dict` reads configuration files, calibrations and
answers into them: an unknown key, a missing key or a value of another type is an error. :func:`json_schema` describes
them. What a type does not say stands in ``Annotated``: a text describes the field, a :class:`Range` bounds a number,
and a function ``check(value, where)`` raises ValueError's children for anything else.
"""

import difflib
import itertools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union

from open_geoclip.errors import OpenGeoCLIPError, SettingsError

__all__ = ["Range", "from_dict", "json_schema", "record_schema", "type_hints"]

_T = TypeVar("_T")
_NONE = type(None)
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", datetime: "an ISO 8601 time"}
_JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", datetime: "string", _NONE: "null"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    least: float = -math.inf
    most: float = math.inf

    def __str__(self) -> str:
        if self.least == -math.inf:
            return ""
        return f" from {self.least:g}" + ("" if self.most == math.inf else f" to {self.most:g}")


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """Return the annotations of a dataclass or TypedDict, ``Annotated`` included."""
    return typing.get_type_hints(cls, include_extras=True)


def from_dict(
    cls: type[_T],
    values: object,
    where: str,
    *,
    required: Sequence[str] = (),
    error: type[OpenGeoCLIPError] = SettingsError,
) -> _T:
    """Build a dataclass from a mapping.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, datetime, literals, tuples, mappings by name,
            dataclasses and TypedDicts of these, or optional ones.
        values: what was read from a file; nothing about it is taken for granted.
        where: what is being read, for messages.
        required: fields that must be given although they have a default.
        error: the class of errors that are raised.

    Raises:
        OpenGeoCLIPError: ``error``, for a key or value that does not fit; the message names it.
    """
    try:
        return cls(**_fields(cls, values, where, f"{where}: ", required))
    except SettingsError as found:  # also of the dataclass itself: a number out of range
        raise error(str(found) if str(found).startswith(where) else f"{where}: {found}") from found


def _fields(cls: type, values: object, where: str, prefix: str, required: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values of a dataclass or TypedDict, each of the type that its annotation names."""
    hints = type_hints(cls)
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where} must be an object with the keys {', '.join(hints)}, not {values!r:.60}")
    if unknown := sorted(map(str, values.keys() - hints.keys())):
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(hints)}"
        raise SettingsError(f"{where}: unknown key {', '.join(unknown):.60}; {hint}")
    if missing := [name for name in (*_required(cls), *required) if name not in values]:
        raise SettingsError(f"{where}: the key {', '.join(dict.fromkeys(missing))} is missing")
    return {name: _converter(hints[name])(value, prefix + name) for name, value in values.items()}


def _required(cls: type) -> list[str]:
    if not is_dataclass(cls):
        return sorted(cls.__required_keys__)  # type: ignore[attr-defined]
    return [field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]


_Converter = Callable[[Any, str], Any]


@cache
def _converter(hint: Any) -> _Converter:
    """Return the function of a value and its name that gives the value as the type that an annotation names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated(_converter(arguments[0]), arguments[1:])
    if origin in (Union, types.UnionType):
        return _optional([_converter(one) for one in arguments if one is not _NONE], _NONE in arguments)
    if origin in (tuple, list):
        size = None if origin is list or arguments[-1] is Ellipsis else len(arguments)
        return _sequence(origin, [_converter(one) for one in arguments if one is not Ellipsis], size)
    if origin is not None and origin is not Literal and issubclass(origin, Mapping):
        return _mapping(_converter(arguments[1]))
    if typing.is_typeddict(hint) or is_dataclass(hint):
        return _object(hint)

    def scalar(value: Any, where: str) -> Any:
        if type(value) is float and hint is float and math.isfinite(value):  # by far the most frequent
            return value
        if origin is Literal:
            if value not in arguments or isinstance(value, bool):
                allowed = ", ".join(str(one) or '""' for one in arguments)
                raise SettingsError(f"{where}: one of {allowed}, not {value!r:.60}")
            return value
        if hint is datetime and isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value)
        is_bool = isinstance(value, bool)
        if hint is float and isinstance(value, int | float) and not is_bool and math.isfinite(value):
            return float(value)
        if hint is Any or (hint in (int, str, bool) and isinstance(value, hint) and is_bool == (hint is bool)):
            return value
        what = "a finite number" if hint is float else _NAMES.get(hint, hint)
        raise SettingsError(f"{where} must be {what}, not {value!r:.60}")

    return scalar


def _annotated(convert: _Converter, metadata: Sequence[Any]) -> _Converter:
    ranges = [one for one in metadata if isinstance(one, Range)]
    checks = [one for one in metadata if callable(one)]

    def annotated(value: Any, where: str) -> Any:
        value = convert(value, where)
        for one in ranges:
            if not one.least <= value <= one.most:
                raise SettingsError(f"{where} must be a number{one}, not {value!r:.60}")
        for check in checks:
            check(value, where)
        return value

    return annotated


def _optional(options: Sequence[_Converter], may_be_null: bool) -> _Converter:
    def optional(value: Any, where: str) -> Any:
        if value is None and may_be_null:
            return None
        for convert in options[:-1]:
            with suppress(SettingsError):
                return convert(value, where)
        return options[-1](value, where)

    return optional


def _sequence(kind: type, converters: Sequence[_Converter], size: int | None) -> _Converter:
    def sequence(value: Any, where: str) -> Any:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{where} must be a list, not {value!r:.60}")
        if size is not None and len(value) != size:
            raise SettingsError(f"{where} must be a list of {size}, not {value!r:.60}")
        each = converters if size is not None else itertools.repeat(converters[0])
        return kind(
            [convert(one, f"{where}[{at}]") for at, (one, convert) in enumerate(zip(value, each, strict=False))]
        )

    return sequence


def _mapping(convert: _Converter) -> _Converter:
    def mapping(value: Any, where: str) -> Any:
        if not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            raise SettingsError(f"{where} must be an object with named values, not {value!r:.60}")
        return {key: convert(one, f"{where}.{key}") for key, one in value.items()}

    return mapping


def _object(cls: Any) -> _Converter:
    is_class = is_dataclass(cls)

    def read(value: Any, where: str) -> Any:
        if is_class and isinstance(value, cls):  # settings that were read before are embedded whole
            return value
        values = _fields(cls, value, where, f"{where}.")
        return cls(**values) if is_class else value  # a TypedDict is JSON, and stays what it was

    return read


def record_schema(title: str, *classes: type) -> dict[str, Any]:
    """Return the JSON Schema of an object with the fields of several dataclasses, any of which may be absent."""
    properties = {name: one for cls in classes for name, one in json_schema(cls)["properties"].items()}
    description = json_schema(classes[0])["description"]
    return {"type": "object", "title": title, "description": description, "properties": properties}


def json_schema(hint: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type that :func:`from_dict` reads; dataclasses and TypedDicts have a title."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        schema = json_schema(arguments[0])
        for one in arguments[1:]:
            if isinstance(one, str):
                schema["description"] = one
            elif isinstance(one, Range):
                bounds = {"minimum": one.least, "maximum": one.most}
                schema |= {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
        return schema
    if origin in (Union, types.UnionType):
        return {"anyOf": [json_schema(argument) for argument in arguments]}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is tuple and arguments[-1] is not Ellipsis:
        # Not prefixItems, which readers of OpenAPI take for the older list of items.
        [kind] = {json_schema(argument)["type"] for argument in arguments}
        return {"type": "array", "items": {"type": kind}, "minItems": len(arguments), "maxItems": len(arguments)}
    if origin in (tuple, list):
        return {"type": "array", "items": json_schema(arguments[0])}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": json_schema(arguments[1])}
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    return {
        "type": "object",
        "title": hint.__name__,
        "description": (hint.__doc__ or "").partition("\n\n")[0],
        "properties": {name: json_schema(kind) for name, kind in type_hints(hint).items()},
        "required": _required(hint),
        "additionalProperties": False,
    }
