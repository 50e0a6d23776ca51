"""While a model is traced: what its forward reads, writes, makes and draws beside the tensors it is given."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from streamdrop.tracing.trace import Tracer

_FACTORIES = ("zeros", "ones", "full", "empty", "eye", "arange", "linspace", "logspace", "tensor", "as_tensor")
_RANDOM = ("rand", "randn", "randint", "randperm", "normal", "bernoulli")


class Draws:
    """Whether random numbers were drawn on the CPU, by torch, numpy or Python."""

    def __init__(self) -> None:
        self._last = _states()

    def made(self) -> bool:
        """Whether any were since this was last asked."""
        before, self._last = self._last, _states()
        return before != self._last


def _states() -> tuple[Any, ...]:
    _, keys, position, *_ = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(keys).tobytes(), position


@contextlib.contextmanager
def watched(tracer: Tracer) -> Iterator[None]:
    """While tracing: reads of ``training``, writes of attributes and tensor factories are seen."""

    def read(module: nn.Module) -> bool:
        if tracer.inside not in tracer.leaves and not tracer.evaluating:
            tracer.sensitive.add(tracer.inside)
            tracer.reads_training = True
        return bool(module.__dict__["training"])

    def write(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    assign = nn.Module.__setattr__

    def noting_assign(module: nn.Module, name: str, value: Any) -> None:
        if name != "training" and not tracer.evaluating:
            tracer.sensitive.add(tracer.inside)
            if name in module._buffers or name in module._parameters:
                tracer.lost(tracer.inside, f"assigns {name!r}, which a trace would not do again: write to it in place")
        assign(module, name, value)

    originals = {name: getattr(torch, name) for name in (*_FACTORIES, *_RANDOM)}
    nn.Module.training = property(read, write)  # type: ignore[assignment]
    nn.Module.__setattr__ = noting_assign  # type: ignore[method-assign, assignment]
    for name, original in originals.items():
        setattr(torch, name, _recording(tracer, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)
        nn.Module.__setattr__ = assign  # type: ignore[method-assign]
        del nn.Module.training


def _recording(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor factory that becomes a node: its result may be random, or depend on sizes and devices."""

    @functools.wraps(original)
    def record(*args: Any, **kwargs: Any) -> Any:
        if tracer.evaluating:
            return original(*args, **kwargs)
        try:
            return tracer.create_proxy("call_function", original, args, kwargs)
        except NotImplementedError:  # arguments that no graph can hold, such as arrays
            return original(*args, **kwargs)

    return record
