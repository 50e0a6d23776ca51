"""A model traced, tried in both modes, and checked: the trace does what the model does."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch
from torch import nn

from streamdrop.errors import TraceError
from streamdrop.nested import tensors
from streamdrop.tracing.flow import Flow
from streamdrop.tracing.kept import modes_kept, recording, rng_kept, state_kept
from streamdrop.tracing.observe import Run, batch_around, batch_of, observe
from streamdrop.tracing.trace import Trace, trace_modes

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, TraceError)

_ONE_AT_A_TIME = threading.RLock()
"""A trace patches torch, and draws from its generator, for the whole process: two at once would undo each other's."""


def follow(model: nn.Module, inputs: tuple[torch.Tensor, ...], names: list[str], leaves: list[str]) -> Flow:
    """Trace and observe the model; raises TraceError where the trace does not do exactly what the model does."""
    with _ONE_AT_A_TIME:
        return _follow(model, inputs, names, leaves)


@recording()
def _follow(model: nn.Module, inputs: tuple[torch.Tensor, ...], names: list[str], leaves: list[str]) -> Flow:
    inputs = tuple(one.clone() if one.is_inference() else one for one in inputs)
    sizes = (2, 3)
    small = batch_of(inputs, sizes[0])
    truth = _truth(model, small, False)
    if isinstance(truth, str):
        raise TraceError(
            f"{type(model).__name__} fails on the example repeated to {sizes[0]} samples: {truth}: "
            "give an example that it takes, at any batch size"
        )
    traces = trace_modes(model, small, names, leaves)
    runs = [observe(traces[0], model, small, False)]
    _compare(model, truth, runs[0].output, False)
    truth = _truth(model, small, True)  # may fail, for the example may be too small for auxiliary outputs
    runs.append(observe(traces[1], model, small, True, partly=isinstance(truth, str)))
    if not isinstance(truth, str):
        _compare(model, truth, runs[1].output, True)
    runs.append(_observe_larger(traces[0], model, inputs, sizes[1]))
    return Flow(model, traces, (runs[0], runs[1], runs[2]), sizes)


def _observe_larger(trace: Trace, model: nn.Module, inputs: tuple[torch.Tensor, ...], size: int) -> Run:
    """A run in eval mode among other samples; of copies, where the model does not take others."""
    with contextlib.suppress(*_FAILURES):
        return observe(trace, model, batch_around(inputs, size), False, count=True)
    try:
        return observe(trace, model, batch_of(inputs, size), False, count=True)
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:200]
        raise TraceError(
            f"{type(model).__name__} depends on the batch size where a trace cannot: {reason}: "
            "name the module that does so in leaves= or layers="
        ) from error


def _truth(model: nn.Module, inputs: tuple[torch.Tensor, ...], training: bool) -> list[torch.Tensor] | str:
    """The tensors that the model itself gives, or why it fails; its state and torch's RNG stay as they were."""
    with rng_kept(inputs), torch.no_grad(), state_kept(model), modes_kept(model):
        model.train(training)
        try:
            return list(tensors(model(*(x.clone() for x in inputs))))
        except Exception as error:  # the model's own
            return " ".join(str(error).split())[:200] or type(error).__name__


def _compare(model: nn.Module, truth: list[torch.Tensor], output: Any, training: bool) -> None:
    """Raises TraceError unless the trace's output is the model's, bit for bit."""
    found = list(tensors(output))
    same = len(truth) == len(found) and all(
        a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        for a, b in zip(truth, found, strict=True)
    )
    if not same and (model._forward_hooks or model._forward_pre_hooks):
        raise TraceError(
            f"{type(model).__name__} has forward hooks of its own that change its input or output, and no trace holds "
            "these: do in its forward what they do, or hook a module inside it"
        )
    if not same:
        raise TraceError(
            f"the trace of {type(model).__name__} in {'train' if training else 'eval'} mode gives another output than "
            "the model: its forward decides on something a trace cannot hold; name that module in leaves= or layers="
        )
