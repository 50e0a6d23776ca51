"""Writing in place: ``x += y`` as a node that writes, and how to tell the nodes that do."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from torch import fx

_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")


def _augmented(name: str) -> Callable[[Any, Any], Any]:
    """An operator under a name of our own: of torch's, fx would write ``x += y``, and a size x be another after it."""
    write = getattr(operator, name)

    def assign(value: Any, other: Any) -> Any:
        return write(value, other)

    assign.__name__ = name
    return assign


AUGMENTED: dict[str, Callable[[Any, Any], Any]] = {f"__{name}__": _augmented(name) for name in _OPERATORS}
"""By the method that Python calls: fx alone would add where the model's forward writes, and lose it for views."""


def writes(kind: str, target: Any) -> bool:
    """Whether a node of this kind and target writes to its first argument."""
    if kind == "call_function":
        return target is operator.setitem or target in AUGMENTED.values()
    return kind == "call_method" and re.fullmatch(r"[^_].*[^_]_", str(target)) is not None


def written(value: Any) -> fx.Node | None:
    """The node to which a stand-in's own node wrote and which it gives back, None where it is no such stand-in."""
    node = getattr(value, "node", None)
    if not isinstance(node, fx.Node) or not writes(node.op, node.target):
        return None
    return node.args[0] if isinstance(node.args[0], fx.Node) else None
