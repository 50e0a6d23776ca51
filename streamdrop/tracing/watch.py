"""While a model is traced: what its forward reads, writes, makes and draws beside the tensors it is given."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils.checkpoint import CheckpointFunction

from streamdrop.tracing.mode import Mode

if TYPE_CHECKING:
    from streamdrop.tracing.trace import Tracer

_FACTORIES = ("zeros", "ones", "full", "empty", "eye", "arange", "linspace", "logspace", "tensor", "as_tensor")
_RANDOM = ("rand", "randn", "randint", "randperm", "normal", "bernoulli")


@dataclass(frozen=True)
class Applied:
    """An autograd function as one node of a graph: followed inside, its own backward pass would be lost."""

    function: type[torch.autograd.Function]

    def __call__(self, *args: Any) -> Any:
        """What the function gives."""
        return self.function.apply(*args)

    @property
    def __name__(self) -> str:
        return self.function.__name__


class Drawing(Mode):
    """Inside: which of this thread's operations may draw. Torch's generator is every thread's, and so tells less."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._seen |= torch.Tag.nondeterministic_seeded in func.tags or func.namespace != "aten"
        return func(*args, **(kwargs or {}))

    def made(self) -> bool:
        """Whether there were any since this was last asked."""
        seen, self._seen = self._seen, False
        return seen


class Draws:
    """Whether random numbers were drawn on the CPU, by torch, numpy or Python; torch's only inside ``own``."""

    def __init__(self) -> None:
        self.own = Drawing()
        self._torch, self._others = _states()
        self._shared = False  # with other threads, which may have ended since

    def made(self) -> bool:
        """Whether any were since this was last asked; by torch, where other threads draw too, in this one."""
        before, self._torch, self._others = (self._torch, self._others), *_states()
        self._shared |= threading.active_count() > 1
        own = self.own.made() or not self._shared
        return before[1] != self._others or (own and before[0] != self._torch)


def _states() -> tuple[bytes, tuple[Any, ...]]:
    """Of torch's generator, and of the others."""
    _, keys, position, *_ = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), (random.getstate(), np.asarray(keys).tobytes(), position)


@contextlib.contextmanager
def watched(tracer: Tracer) -> Iterator[None]:
    """While tracing: what is done beside nodes is seen, and becomes a node where it can."""
    apply = torch.autograd.Function.__dict__["apply"]
    places: list[tuple[Any, str, Any]] = [
        (nn.Module, "training", _training(tracer)),
        (nn.Module, "__setattr__", _assigning(tracer, nn.Module.__setattr__)),
        (torch.autocast, "__enter__", _switching(tracer, torch.autocast.__enter__)),
        (torch.autograd.Function, "apply", classmethod(_applying(tracer, apply.__get__))),
        *((torch, name, _recording(tracer, getattr(torch, name))) for name in (*_FACTORIES, *_RANDOM)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in places:
            stack.enter_context(_put(owner, name, value))
        yield


@contextlib.contextmanager
def _put(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute of a class or module for a while."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _training(tracer: Tracer) -> property:
    """The flag of every module, whose reading is noted."""

    def read(module: nn.Module) -> bool:
        if tracer.inside not in tracer.leaves and not tracer.evaluating:
            tracer.sensitive.add(tracer.inside)
            tracer.reads_training = True
        return bool(module.__dict__["training"])

    def write(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    return property(read, write)


def _assigning(tracer: Tracer, original: Callable[..., None]) -> Callable[..., None]:
    """A module's ``__setattr__``: what it is given in training is gone when the graph runs."""

    def assign(module: nn.Module, name: str, value: Any) -> None:
        if name != "training" and not tracer.evaluating:
            tracer.sensitive.add(tracer.inside)
            if name in module._buffers and tracer.is_attribute(value, module._buffers[name]):
                return
            if name in module._buffers or name in module._parameters:
                tracer.lost(tracer.inside, f"assigns {name!r}, which a trace would not do again: write to it in place")
        original(module, name, value)

    return assign


def _switching(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """The entry to autocast: a graph does not hold it."""

    def enter(autocast: torch.autocast) -> Any:
        if not tracer.evaluating and (autocast._enabled or torch.is_autocast_enabled(autocast.device)):
            tracer.lost(tracer.inside, "switches torch.autocast, which a trace would not do again, beside layers")
        return original(autocast)

    return enter


def _applying(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    """``apply`` of autograd functions as a node; a checkpointed part is followed, for it has no backward of its own."""

    def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
        run = original(None, function)
        if tracer.evaluating or not any(isinstance(arg, (fx.Proxy, torch.Tensor)) for arg in args):
            return run(*args)
        if function is CheckpointFunction:
            return args[0](*args[2:])
        try:
            return tracer.create_proxy("call_function", Applied(function), args, {})
        except NotImplementedError:
            tracer.lost(tracer.inside, f"gives {function.__name__} something that no graph can hold, beside layers")
            return run(*args)

    return apply


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
