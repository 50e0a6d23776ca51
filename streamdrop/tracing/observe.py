"""What each node of a traced model does, seen by running it: shapes, storages, in-place writes, multiply-adds."""

from __future__ import annotations

import contextlib
import operator
import threading
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from streamdrop.nested import tensors
from streamdrop.tracing.kept import modes_kept, rng_kept, state_kept
from streamdrop.tracing.standin import about, call
from streamdrop.tracing.trace import Trace
from streamdrop.tracing.values import Values, storage_of
from streamdrop.tracing.watch import Drawing

_PICKED = 256
_MASKS = (torch.bool, torch.uint8)
_COUNTED = ("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "_unique2", "nms", "batched_nms")
Array: TypeAlias = npt.NDArray[np.float64]


@dataclass
class Seen:
    """One node, in one mode: ``value`` when it is a tensor, its content let go of, and what the node touched."""

    value: torch.Tensor | None = None
    identity: int = 0
    storages: frozenset[int] = frozenset()
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    random: bool = False
    lasting: bool = False  # it wrote to the model's own state
    ragged: bool = False  # the values decide how many rows it has
    sample: Array | None = None  # some of the last sample's values, in eval mode
    macs: int = 0


@dataclass
class Run:
    """One run of a trace: what was seen at each node, and the model's output."""

    seen: dict[fx.Node, Seen] = field(default_factory=dict)
    output: Any = None


def batch_of(inputs: tuple[torch.Tensor, ...], size: int) -> tuple[torch.Tensor, ...]:
    """The inputs' samples, repeated to ``size`` of them."""
    return tuple(x[torch.arange(size, device=x.device) % len(x)] for x in inputs)


def batch_around(inputs: tuple[torch.Tensor, ...], size: int) -> tuple[torch.Tensor, ...]:
    """The last sample of ``batch_of(inputs, 2)`` behind ``size - 1`` others, of much the same values."""
    batches = []
    for x in batch_of(inputs, 2):
        last = x[-1:]
        turned = last.flip(tuple(range(1, x.dim())))
        if x.is_floating_point() and torch.equal(turned, last):  # such as zeros
            turned = last + torch.linspace(0, 1, last.numel(), dtype=x.dtype, device=x.device).reshape(last.shape)
        others = [turned.roll(i, -1) if x.dim() > 1 else turned for i in range(size - 1)]
        batches.append(torch.cat([*others, last]))
    return tuple(batches)


def observe(
    trace: Trace,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    training: bool,
    *,
    count: bool = False,
    partly: bool = False,
) -> Run:
    """Run ``trace`` on ``inputs`` and note what each node does; the model's state and torch's RNG stay as they were.

    ``count`` adds multiply-adds (for the whole batch), as torch's FlopCounterMode sees them. ``partly`` leaves out
    what fails, and what depends on it.
    """
    with torch.no_grad(), modes_kept(model), state_kept(model), rng_kept(inputs):
        model.train(training)
        shared = threading.active_count() > 1
        run = _counted(trace, model, inputs, partly) if count else _run(trace, model, inputs, None, partly)
        if (shared or threading.active_count() > 1) and any(seen.random for seen in run.seen.values()):
            with Drawing() as own:  # not at once: kernels may give other bits inside
                again = _run(trace, model, inputs, own, partly)
            for node, seen in run.seen.items():
                seen.random = seen.random and again.seen[node].random
        return run


def _counted(trace: Trace, model: nn.Module, inputs: tuple[torch.Tensor, ...], partly: bool) -> Run:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know the fused kernel
    try:
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()  # type: ignore[assignment]
        with counter:
            return _run(trace, model, inputs, counter, partly)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _NoModules(contextlib.nullcontext[None]):
    """In the place of the counter's tracker of modules, whose hooks fail on views of weights; it counts the whole."""

    parents = frozenset({"Global"})


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


def fetch(model: nn.Module, trace: Trace, target: str) -> Any:
    """What a get_attr node stands for."""
    if target in trace.constants:
        return trace.constants[target]
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _run(
    trace: Trace,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    mode: FlopCounterMode | Drawing | None,
    partly: bool,
) -> Run:
    run, values = Run(), Values(trace, model)
    given = iter(inputs)
    for node in trace.graph.nodes:
        seen = run.seen[node] = Seen(identity=-id(node))
        if node.op == "placeholder":
            value: Any = next(given).clone()  # the model may write to it
        elif any(arg not in values.of for arg in node.all_input_nodes):
            continue
        else:
            try:
                value = _watch(node, trace, model, values, seen, mode)
            except Exception:
                if not partly:
                    raise
                continue
        seen.ragged = _is_ragged(node, value, values.of, run.seen)
        values.hold(node, value)
        seen.storages = frozenset(map(values.memory, tensors(value)))
        if isinstance(value, torch.Tensor):
            seen.value, seen.identity = _outline(value), values.name(id(value))
            seen.sample = None if model.training else _last_sample(value)
        if node.op == "output":
            run.output = value
        values.let_go_after(node)
    return run


def _watch(
    node: fx.Node, trace: Trace, model: nn.Module, values: Values, seen: Seen, mode: FlopCounterMode | Drawing | None
) -> Any:
    """Run one node and note in ``seen`` what it reads, writes, draws and, with a counter, computes."""
    counter = mode if isinstance(mode, FlopCounterMode) else None
    args = fx.node.map_arg(node.args, values.of.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.of.__getitem__)
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    touched, state_before = list(tensors((args, kwargs))), _versions(module)
    versions = [t._version for t in touched]
    before, drawn = counter.get_total_flops() if counter else 0, _random_state(touched)
    value = fetch(model, trace, str(node.target)) if node.op == "get_attr" else call(node, model, args, kwargs)
    seen.reads = frozenset(map(values.memory, touched))
    seen.writes = frozenset(values.memory(t) for t, v in zip(touched, versions, strict=True) if t._version != v)
    changed = not all(map(torch.equal, drawn, _random_state(touched)))
    seen.random = mode.made() if isinstance(mode, Drawing) else changed
    written = {storage_of(t) for t, v in zip(touched, versions, strict=True) if t._version != v}
    seen.lasting = state_before != _versions(module) or not values.buffers.isdisjoint(written)
    seen.macs = (counter.get_total_flops() - before) // 2 if counter else 0
    return value


def _is_ragged(node: fx.Node, value: Any, of: dict[fx.Node, Any], seen: dict[fx.Node, Seen]) -> bool:
    """Whether values decide how many rows ``value`` has: they may be as many as samples, by chance."""
    name = getattr(node.target, "__name__", str(node.target))
    first = node.args[1] if name == "getitem" else None
    first = first[0] if isinstance(first, (tuple, list)) and first else first
    mask = of[first] if isinstance(first, fx.Node) else None
    masked = isinstance(mask, torch.Tensor) and mask.dtype in _MASKS
    if masked or name in _COUNTED or (name == "where" and len(node.args) + len(node.kwargs) == 1):
        return True
    counted = [of[arg] for arg in node.all_input_nodes if seen[arg].ragged]
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return bool(counted)
    return any(not isinstance(one, torch.Tensor) or (one.dim() > 0 and len(one) == len(value)) for one in counted)


def _versions(module: nn.Module | None) -> list[tuple[int, int]]:
    """Which buffers a module has, and how often each was written to."""
    return [] if module is None else [(id(buffer), buffer._version) for buffer in module.buffers()]


def _last_sample(value: torch.Tensor) -> Array | None:
    """Values from all over the last row, about ``_PICKED``, as float64."""
    if value.dim() == 0 or value.layout != torch.strided or not len(value) or value.is_complex():
        return None
    try:  # past torch: under a counter each of its operations takes longer than a small layer
        row = (value.detach() if value.requires_grad else value).numpy()[-1]
    except (TypeError, RuntimeError):  # on a GPU, or of a dtype that numpy lacks
        row = value[-1].to("cpu", torch.float64).numpy()
    picked: Array = row.flat[:: max(1, row.size // _PICKED)].astype(np.float64)  # by place: strides may be others
    return picked


def _outline(tensor: torch.Tensor) -> torch.Tensor:
    """Shape, strides and dtype without content: a run's values together are many times the model's size."""
    if tensor.layout != torch.strided:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _random_state(touched: list[torch.Tensor]) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    devices = {t.device for t in touched if t.is_cuda}
    return states + [torch.cuda.get_rng_state(device) for device in devices]
