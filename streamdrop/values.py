"""What the value of a field may be, by its type, and how to say so; the same for YAML and for Python arguments."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import InstanceOf, TypeAdapter, ValidationError

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
    try:
        result = _adapter(kind).validate_python(value, strict=strict)
    except ValidationError:
        raise UnfitValue(called(kind), value) from None
    for path, truth, number in _truths(value, result):
        raise UnfitValue(called(type(number)) if path else called(kind), truth, path)
    for path, number in _not_finite(result):
        raise UnfitValue("a finite number", number, path)
    return result


def check_fields(instance: Any, owner: str = "") -> None:
    """Raise ConfigError unless every field of a dataclass instance holds what its type says; ``owner`` begins it.

    NumPy's numbers become Python's, and lists tuples where those are wanted, also where the dataclass is frozen. What a
    field in whose metadata ``secret`` is true holds is not shown.
    """
    hints = _hints(instance.__class__)
    for field in dataclasses.fields(instance):
        value, kind = getattr(instance, field.name), hints[field.name]
        plain = _without_numpy(value)
        if isinstance(plain, list) and typing.get_origin(kind) is tuple:
            plain = tuple(plain)
        try:
            fitted(kind, plain, strict=True)
        except UnfitValue as unfit:
            name = ".".join((field.name, *unfit.path))
            held = "of another kind (not shown here)" if field.metadata.get("secret") else repr(unfit.value)
            raise ConfigError(f"{owner}{name} is {held}: give {unfit.wanted}") from None
        if plain is not value:
            object.__setattr__(instance, field.name, plain)


def check_above(name: str, value: float, bound: float) -> None:
    """Raise ConfigError unless a field's value is finite and above ``bound``."""
    if not bound < value < math.inf:
        raise ConfigError(f"{name} is {value}: give a number above {bound:g}")


def check_whole(name: str, value: int, least: int, most: int | None = None) -> None:
    """Raise ConfigError for a whole number below ``least``, or above ``most`` where that is given."""
    if value < least:
        raise ConfigError(f"{name} is {value}: give a whole number of at least {least}")
    if most is not None and value > most:
        raise ConfigError(f"{name} is {value}: give a whole number of at most {most}")


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
    if dataclasses.is_dataclass(kind):
        return f"a {kind_of(kind)}"
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
    return TypeAdapter(_by_instance(kind))


def _by_instance(kind: Any) -> Any:
    """A dataclass, also within a tuple or a union, as what its instances are: they have checked themselves."""
    if dataclasses.is_dataclass(kind):
        return InstanceOf[kind]  # type: ignore[misc]
    if typing.get_origin(kind) is tuple and any(map(dataclasses.is_dataclass, typing.get_args(kind))):
        return types.GenericAlias(tuple, tuple(map(_by_instance, typing.get_args(kind))))
    parts = _parts(kind)
    return functools.reduce(operator.or_, map(_by_instance, parts)) if len(parts) > 1 else kind


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _truths(given: Any, made: Any, path: Path = ()) -> Iterator[tuple[Path, bool, Any]]:
    """Every truth in nested values that became a number, with its path."""
    if isinstance(given, bool):
        if isinstance(made, (int, float)) and not isinstance(made, bool):
            yield path, given, made
    elif isinstance(given, Mapping) and isinstance(made, Mapping):
        for (key, item), result in zip(given.items(), made.values(), strict=False):
            yield from _truths(item, result, (*path, str(key)))
    elif isinstance(given, (list, tuple)) and isinstance(made, (list, tuple)):
        for index, (item, result) in enumerate(zip(given, made, strict=False)):
            yield from _truths(item, result, (*path, str(index)))


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
    if isinstance(value, (list, tuple)) and any(isinstance(item, np.generic) for item in value):
        return type(value)(_without_numpy(item) for item in value) if type(value) in (list, tuple) else value
    return value
