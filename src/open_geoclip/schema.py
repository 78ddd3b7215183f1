"""Frozen dataclasses from JSON and TOML: an unknown key, a missing key or a value of another type is an error.

Settings are declared once, as dataclasses; configuration files of weights, runs and calibrations are read into them by
:func:`from_dict`. Ranges are checked by the dataclass itself.
"""

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union

from open_geoclip.errors import OpenGeoCLIPError, SettingsError

__all__ = ["from_dict"]

_Settings = TypeVar("_Settings")


def from_dict(
    cls: type[_Settings],
    values: object,
    where: str,
    *,
    required: Sequence[str] = (),
    error: type[OpenGeoCLIPError] = SettingsError,
) -> _Settings:
    """Build a dataclass from a mapping.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, literals, tuples of these, or optional ones.
        values: what was read from a file; nothing about it is taken for granted.
        where: what is being read, for messages.
        required: fields that must be given although they have a default.
        error: the class of errors that are raised.

    Raises:
        OpenGeoCLIPError: ``error``, for a key or value that does not fit; the message names it.
    """
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]  # it is a dataclass
    if not isinstance(values, Mapping):
        raise error(f"{where} must be an object with the keys {', '.join(known)}")
    if unknown := sorted(map(str, values.keys() - known.keys())):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise error(f"{where}: unknown key {', '.join(unknown)}; {hint}")
    needed = [n for n, f in known.items() if (f.default is MISSING and f.default_factory is MISSING) or n in required]
    if missing := [name for name in needed if name not in values]:
        raise error(f"{where}: the key {', '.join(missing)} is missing")
    hints = typing.get_type_hints(cls)
    try:
        return cls(**{name: _convert(value, hints[name], f"{where}: {name}") for name, value in values.items()})
    except SettingsError as found:  # of the dataclass itself: a number out of range
        raise error(str(found) if str(found).startswith(where) else f"{where}: {found}") from found


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return the value as the type that the annotation names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        *options, last = [argument for argument in arguments if argument is not type(None)]
        for option in options:
            try:
                return _convert(value, option, where)
            except SettingsError:
                continue
        return _convert(value, last, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise SettingsError(f"{where}: one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{where} must be a list, not {value!r}")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise SettingsError(f"{where} must be a list of {len(inner)}, not {value!r}")
        return tuple(_convert(one, kind, where) for one, kind in zip(value, inner, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is Any or (hint is not float and isinstance(value, hint) and (hint is bool or not isinstance(value, bool))):
        return value
    kinds = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
    raise SettingsError(f"{where} must be {kinds.get(hint, hint)}, not {value!r}")
