"""torch's compiler, which nothing here uses, left out of a process of our own."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import sys
from collections.abc import Iterator
from types import FunctionType

import torch


def leave_out_compiler() -> None:
    """Keep optimisers and the operation counter from importing torch's compiler, which takes seconds and memory.

    They import it at their first use, only to have it keep out of them: methods marked so (``torch._disable_dynamo``)
    get the answer beforehand, and ``step`` runs without gradients, as it does anyway, without a break in a graph that
    nobody compiles. For processes that compile nothing, as ``streamdrop serve``; results are the same. Where torch does
    it otherwise, nothing changes. To be called before a model is split: the counter then does without triton, too.
    """
    with _no_triton():
        flop_counter = importlib.import_module("torch.utils.flop_counter")
    optimizers = [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]
    for owner in (*optimizers, *(kind for kind in vars(flop_counter).values() if isinstance(kind, type))):
        for method in tuple(vars(owner).values()):
            plain = getattr(method, "__wrapped__", None)
            if isinstance(plain, FunctionType):
                plain.__dict__.setdefault("__dynamo_disable", plain)
    for kind in optimizers:
        step = vars(kind).get("step")
        if step is not None and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
            kind.step = torch.no_grad()(inspect.unwrap(step))  # type: ignore[method-assign]


@contextlib.contextmanager
def _no_triton() -> Iterator[None]:
    """Inside, triton cannot be imported: the counter wants it for kernels that no model here has, at 75 MB."""
    if "triton" in sys.modules:
        yield
        return
    log = logging.getLogger("torch.utils.flop_counter")  # it would say that triton was not found
    disabled, log.disabled = log.disabled, True
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        log.disabled = disabled
        del sys.modules["triton"]
