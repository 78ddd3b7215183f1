"""Frozen dataclasses from JSON and TOML, and the JSON Schema of them.

Settings and answers are declared once, as dataclasses. :func:`from_dict` reads configuration files, calibrations and
answers into them: an unknown key, a missing key or a value of another type is an error. :func:`json_schema` describes
them. What a type does not say stands in ``Annotated``: a text describes the field, a :class:`Range` bounds a number,
and a function ``check(value, where)`` raises ValueError's children for anything else.
"""

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
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
    return {name: _convert(value, hints[name], prefix + name) for name, value in values.items()}


def _required(cls: type) -> list[str]:
    if not is_dataclass(cls):
        return sorted(cls.__required_keys__)  # type: ignore[attr-defined]
    return [field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return the value as the type that the annotation names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _checked(value, arguments[0], arguments[1:], where)
    if origin in (Union, types.UnionType):
        if value is None and _NONE in arguments:
            return None
        *options, last = [argument for argument in arguments if argument is not _NONE]
        for option in options:
            try:
                return _convert(value, option, where)
            except SettingsError:
                continue
        return _convert(value, last, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise SettingsError(f"{where}: one of {', '.join(map(str, arguments))}, not {value!r:.60}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{where} must be a list, not {value!r:.60}")
        inner = [arguments[0]] * len(value) if origin is list or arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise SettingsError(f"{where} must be a list of {len(inner)}, not {value!r:.60}")
        return origin(
            _convert(one, kind, f"{where}[{at}]") for at, (one, kind) in enumerate(zip(value, inner, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        if not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            raise SettingsError(f"{where} must be an object with named values, not {value!r:.60}")
        return {key: _convert(one, arguments[1], f"{where}.{key}") for key, one in value.items()}
    if typing.is_typeddict(hint):
        _fields(hint, value, where, f"{where}.")
        return value  # it is JSON, and stays what it was
    if is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]  # settings that were read before are embedded whole
            return value
        return hint(**_fields(hint, value, where, f"{where}."))  # type: ignore[operator,arg-type]
    if hint is datetime and isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    is_bool = isinstance(value, bool)
    if hint is float and isinstance(value, int | float) and not is_bool and math.isfinite(value):
        return float(value)
    if hint is Any or (hint in (int, str, bool) and isinstance(value, hint) and is_bool == (hint is bool)):
        return value
    what = "a finite number" if hint is float else _NAMES.get(hint, hint)
    raise SettingsError(f"{where} must be {what}, not {value!r:.60}")


def _checked(value: Any, kind: Any, metadata: Sequence[Any], where: str) -> Any:
    value = _convert(value, kind, where)
    for one in metadata:
        if isinstance(one, Range):
            if not one.least <= value <= one.most:
                raise SettingsError(f"{where} must be a number{one}, not {value!r:.60}")
        elif callable(one):
            one(value, where)
    return value


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
