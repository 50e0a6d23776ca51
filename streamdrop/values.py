"""What the value of a field may be, by its type, and how to say so; the same for YAML and for Python arguments."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from streamdrop.errors import ConfigError

Path = tuple[str, ...]

MOST_SEED = 2**64 - 1
"""Torch's seeds end there."""

MOST_THREADS = 1024
"""More threads find no room for their stacks."""


class UnfitValue(ValueError):
    """A value, at ``path`` below the field that was looked at, is not the ``wanted`` kind."""

    def __init__(self, wanted: str, value: Any, path: Path = ()) -> None:
        super().__init__(wanted)
        self.wanted, self.value, self.path = wanted, value, path


def fitted(kind: Any, value: Any, *, strict: bool = False) -> Any:
    """``value`` as ``kind``; unless ``strict``, text that reads as a number is one. Raises UnfitValue.

    Truth is no number, and no number is infinite or NaN: neither is ever a setting, and both end in odd places.
    """
    parts = _parts(kind)
    if isinstance(value, bool) and bool not in parts and (int in parts or float in parts):
        raise UnfitValue(called(kind), value)
    try:
        result = _adapter(kind).validate_python(value, strict=strict)
    except ValidationError:
        raise UnfitValue(called(kind), value) from None
    for path, number in _not_finite(result):
        raise UnfitValue("a finite number", number, path)
    return result


def check_fields(instance: Any, owner: str = "") -> None:
    """Raise ConfigError unless every field of a dataclass instance holds what its type says; ``owner`` begins it.

    NumPy's numbers become Python's, also where the dataclass is frozen.
    """
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        plain = _without_numpy(value)
        try:
            fitted(hints[field.name], plain, strict=True)
        except UnfitValue as unfit:
            name = ".".join((field.name, *unfit.path))
            raise ConfigError(f"{owner}{name} is {unfit.value!r}: give {unfit.wanted}") from None
        if plain is not value:
            object.__setattr__(instance, field.name, plain)


def called(kind: Any) -> str:
    """A type in a user's words."""
    if typing.get_origin(kind) is typing.Literal:
        options = [str(option) for option in typing.get_args(kind)]
        return "one of " + ", ".join(options) if len(options) > 1 else options[0]
    if typing.get_origin(kind) is Callable:
        return "a function"
    parts = _parts(kind)
    if len(parts) > 1:
        return " or ".join(called(part) for part in parts)
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "nothing"}
    return plain.get(kind, str(kind).replace("typing.", "").replace("NoneType", "nothing").replace("None", "nothing"))


def kind_of(made: Any) -> str:
    """What errors call an object: its class, or a function's name."""
    return str(getattr(made, "__name__", type(made).__name__))


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else, itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


@functools.cache  # making one takes milliseconds
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _not_finite(value: Any, path: Path = ()) -> Iterator[tuple[Path, float]]:
    """Every infinite or NaN number in nested values, with its path."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _not_finite(item, (*path, str(index)))


def _without_numpy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping) and any(isinstance(part, np.generic) for pair in value.items() for part in pair):
        return {_without_numpy(key): _without_numpy(item) for key, item in value.items()}
    return value
