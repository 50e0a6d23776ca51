"""Which modules of a model are its layers: by name, or by a rule."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from torch import nn

from streamdrop.errors import ModelError, TraceError

Layers: TypeAlias = Sequence[str] | Callable[[str, nn.Module], bool]
"""Which modules are layers: their names, or a rule (name, module) → bool."""


def convolutions(name: str, module: nn.Module) -> bool:
    """The default rule: every convolution, transposed ones too."""
    return isinstance(module, nn.modules.conv._ConvNd)


def transformer_blocks(name: str, module: nn.Module) -> bool:
    """A rule for ``layers=``: the smallest modules called …Block or …Layer that hold an attention module."""
    return _is_block(module) and not any(_is_block(m) for m in module.modules() if m is not module)


def _is_block(module: nn.Module) -> bool:
    kind = type(module).__name__.lower().rstrip("0123456789").removesuffix("v")
    if not kind.endswith(("block", "layer")) or "attention" in kind:
        return False
    return any("att" in type(m).__name__.lower() for m in module.modules() if m is not module)


def layer_names(model: nn.Module, layers: Layers) -> list[str]:
    """The names of the modules that are layers. Raises TraceError for a rule that finds none, ModelError for names."""
    if callable(layers):
        names = [name for name, module in model.named_modules() if name and layers(name, module)]
        if not names:
            raise TraceError(f"{type(model).__name__} has no layer by this rule: give layers= as names or another rule")
        return names
    if isinstance(layers, str):
        raise ModelError(f"layers={layers!r} is one string: give a sequence of module names, or a rule")
    return canonical(model, layers)


def canonical(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The names under which the model lists these modules first; raises ModelError for a name that it lacks."""
    by_name = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): name for name, module in reversed(by_name.items())}
    result = []
    for name in names:
        if not name or name not in by_name:
            near = difflib.get_close_matches(name, [n for n in by_name if n], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see model.named_modules()"
            raise ModelError(f"{type(model).__name__} has no module {name!r}: {hint}")
        result.append(first[id(by_name[name])])
    return result
