"""Tensors inside what a model gives or takes: tuples, lists, dicts of any kind and dataclasses, one in the other."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors inside a value, in its own order; slices may hold some too."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, slice):
        yield from tensors((value.start, value.stop, value.step))
    else:
        for part in _parts(value).values():
            yield from tensors(part)


def leaves(value: Any) -> Iterator[Any]:
    """What lies innermost in a value, tensors and others, in its own order."""
    parts = {} if isinstance(value, torch.Tensor) else _parts(value)
    if not parts:
        yield value
    for part in parts.values():
        yield from leaves(part)


def mapped(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """A value built as ``first`` is, with ``function`` of its tensors and those at the same places of the others.

    What holds no tensor is taken from ``first``.
    """
    if isinstance(first, torch.Tensor):
        return function(first, *others)
    parts = _parts(first)
    if not parts:
        return first
    beside = [_parts(other) for other in others]
    new = {key: mapped(function, part, *(other[key] for other in beside)) for key, part in parts.items()}
    if isinstance(first, (tuple, list)):
        return type(first)(*new.values()) if hasattr(first, "_fields") else type(first)(list(new.values()))
    if fields_of(first) is not None:
        return dataclasses.replace(first, **new)
    return dict_maker(first)(new)


def fields_of(value: Any) -> dict[str, Any] | None:
    """What an instance of a dataclass, which may be a dict too, is made from; None for other values."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}


def dict_maker(kind: dict[Any, Any]) -> Callable[[dict[Any, Any]], Any]:
    """What makes a dict of the kind of another one, such as an OrderedDict, of plain items."""
    if not isinstance(kind, defaultdict):
        return type(kind)

    def defaulted(items: dict[Any, Any]) -> Any:
        return type(kind)(kind.default_factory, items)

    return defaulted


def _parts(value: Any) -> dict[Any, Any]:
    """The parts of a value that holds several, by place, key or name of field."""
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    fields = fields_of(value)  # of one that is a dict too: fields that are None are no items
    if fields is not None:
        return fields
    return value if isinstance(value, dict) else {}
