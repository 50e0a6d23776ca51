"""What each node of a traced model does, seen by running it: shapes, storages, in-place writes, multiply-adds."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from streamdrop._trace import Trace, modes_kept, state_kept

_ABOUT_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout", "itemsize"}
_ABOUT_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "is_contiguous", "get_device"}


@dataclass
class Seen:
    """One node, in one mode: ``value`` when it is a tensor, and what the node touched."""

    value: torch.Tensor | None = None
    identity: int = 0
    storages: frozenset[int] = frozenset()
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    random: bool = False
    macs: int = 0


@dataclass
class Run:
    """One run of a trace: what was seen at each node, and the model's output."""

    seen: dict[fx.Node, Seen] = field(default_factory=dict)
    output: Any = None


def batch_of(inputs: tuple[torch.Tensor, ...], size: int) -> tuple[torch.Tensor, ...]:
    """The inputs' samples, repeated to ``size`` of them."""
    return tuple(x[torch.arange(size, device=x.device) % len(x)] for x in inputs)


def observe(
    trace: Trace, model: nn.Module, inputs: tuple[torch.Tensor, ...], training: bool, count: bool = False
) -> Run:
    """Run ``trace`` on ``inputs`` and note what each node does; the model's state and torch's RNG stay as they were.

    ``count`` adds multiply-adds (for the whole batch), as torch's FlopCounterMode sees them.
    """
    with torch.no_grad(), modes_kept(model), state_kept(model), rng_kept(inputs):
        model.train(training)
        if not count:
            return _run(trace, model, inputs, None)
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know the fused kernel
        try:
            with FlopCounterMode(display=False) as counter:
                return _run(trace, model, inputs, counter)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


def rng_kept(inputs: tuple[torch.Tensor, ...]) -> Any:
    """Torch's random generators as before when the block ends."""
    return torch.random.fork_rng([x.device for x in inputs if x.is_cuda])


def about(node: fx.Node) -> bool:
    """Whether a node asks its first argument only for its shape, dtype or device."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _ABOUT_ATTRIBUTES
    if node.op == "call_function":
        return node.target in (torch.numel, torch.is_floating_point, torch.is_tensor)
    return node.op == "call_method" and node.target in _ABOUT_METHODS


def asks_batch(node: fx.Node) -> bool:
    """Whether a node, which is ``about`` its argument, needs no more of it than the batch size, dtype and device."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    return not (node.op == "call_function" and node.args[1:] == ("shape",)) and node.target not in (
        torch.numel,
        "numel",
        "nelement",
    )


def takes_batch(node: fx.Node) -> fx.Node | None:
    """The shape node of which ``node`` takes the batch size, if it is ``x.shape[0]`` or ``x.size()[0]``."""
    if node.op == "call_function" and node.target is operator.getitem and node.args[1:] == (0,):
        shape = node.args[0]
        if isinstance(shape, fx.Node) and about(shape) and isinstance(shape.args[0], fx.Node):
            return shape
    return None


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors inside nested tuples, lists, dicts and slices."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, slice):
        yield from tensors((value.start, value.stop, value.step))


def fetch(model: nn.Module, trace: Trace, target: str) -> Any:
    """What a get_attr node stands for."""
    if target in trace.constants:
        return trace.constants[target]
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _run(trace: Trace, model: nn.Module, inputs: tuple[torch.Tensor, ...], counter: FlopCounterMode | None) -> Run:
    run, values, given = Run(), {}, iter(inputs)
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            value: Any = next(given)
            value = value.clone()  # the model may write to it
            run.seen[node] = Seen()
        else:
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            touched = list(tensors((args, kwargs)))
            versions = [t._version for t in touched]
            before, state = counter.get_total_flops() if counter else 0, _random_state(touched)
            value = _call(node, model, trace, args, kwargs)
            run.seen[node] = Seen(
                reads=frozenset(map(storage_of, touched)),
                writes=frozenset(storage_of(t) for t, v in zip(touched, versions, strict=True) if t._version != v),
                random=not all(map(torch.equal, state, _random_state(touched))),
                macs=(counter.get_total_flops() - before) // 2 if counter else 0,
            )
        values[node] = value  # all are kept to the end, so that identities and storages stay distinct
        seen = run.seen[node]
        seen.value = value if isinstance(value, torch.Tensor) else None
        seen.identity = id(value)
        seen.storages = frozenset(map(storage_of, tensors(value)))
        if node.op == "output":
            run.output = value
    return run


def _call(node: fx.Node, model: nn.Module, trace: Trace, args: Any, kwargs: Any) -> Any:
    if node.op == "get_attr":
        return fetch(model, trace, str(node.target))
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "output":
        return args[0]
    assert callable(node.target)
    return node.target(*args, **kwargs)


def storage_of(tensor: torch.Tensor) -> int:
    """Which memory a tensor lies in, while it is alive."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without one storage
        return id(tensor)


def _random_state(touched: list[torch.Tensor]) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    devices = {t.device for t in touched if t.is_cuda}
    return states + [torch.cuda.get_rng_state(device) for device in devices]
