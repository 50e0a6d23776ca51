"""What stands for a value while a model is traced, and what it may be asked: sizes yes, contents no."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from streamdrop.errors import TraceError
from streamdrop.nested import mapped
from streamdrop.tracing.inplace import AUGMENTED

_ABOUT_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "layout", "itemsize"}
_ABOUT_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "get_device"}


class NotTraceableError(Exception):
    """Why a forward cannot be traced, found by us. ``where``: whose it is, None: that of the innermost module."""

    def __init__(self, why: str, where: str | None = None) -> None:
        super().__init__(why)
        self.where = where


def call(node: fx.Node, model: nn.Module, args: Any, kwargs: Any) -> Any:
    """What a node does to the values of its arguments."""
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(model.get_submodule(owner), name)
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "output":
        return args[0]
    assert callable(node.target)
    return node.target(*args, **kwargs)


def about(node: fx.Node) -> bool:
    """Whether a node asks its first argument only for its shape, dtype or device."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _ABOUT_ATTRIBUTES
    if node.op == "call_function":
        return node.target in (torch.numel, torch.is_floating_point, torch.is_tensor)
    return node.op == "call_method" and node.target in _ABOUT_METHODS


def about_sizes(node: fx.Node) -> bool:
    """Whether a node's value follows from shapes, dtypes and devices alone."""
    todo = [node]
    while todo:
        one = todo.pop()
        if about(one):
            continue
        if one.op != "call_function" or not one.all_input_nodes:
            return False
        todo += one.all_input_nodes
    return True


def unchanged(value: Any, expected: Any) -> None:
    """Raises TraceError when a size on which the model's forward decides is not the example's."""
    if value != expected:
        raise TraceError(
            f"the model's forward decides on a size that was {expected} for the example and is {value} now: "
            "split again with an example of this size, or name the deciding module in leaves= or layers="
        )


def detached(value: Any) -> Any:
    """What a forward makes under torch.no_grad: its tensors without their history."""
    return mapped(torch.Tensor.detach, value)


class _Known:
    """What stand-ins can tell, beyond what fx lets them."""

    node: fx.Node
    tracer: Any

    def __len__(self) -> int:
        return int(self.tracer.length(self))

    def __index__(self) -> int:
        return operator.index(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def _write(self, method: str, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", AUGMENTED[method], (self, other), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def _number(self) -> Any:
        if not about_sizes(self.node):
            raise NotTraceableError("it turns a tensor's values into Python numbers")
        return self.tracer.decide(self.node)


def _augmented_assignment(method: str) -> Any:
    return lambda self, other: self._write(method, other)


for _method in AUGMENTED:
    setattr(_Known, _method, _augmented_assignment(_method))


class StandIn(_Known, fx.Proxy):
    """A stand-in for a value."""

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)


class _Attribute(_Known, fx.proxy.Attribute):
    """A stand-in for a value's attribute, or a method about to be called."""
