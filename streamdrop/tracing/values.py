"""The values of a run of a traced model: each kept while a later node needs it, each with a name of its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import fx, nn

from streamdrop.nested import tensors
from streamdrop.tracing.inplace import writes
from streamdrop.tracing.trace import Trace

_GENERATION = 64  # bits of an address, below the count of its uses


class Values:
    """What the nodes came to (``of``), and names for tensors and their memory.

    A name is an address and how often that has been given back before, so that two values never share one though the
    second lies where the first did. All of a network's activations at once would be many times its size.
    ``buffers``: where the model's lie.
    """

    def __init__(self, trace: Trace, model: nn.Module) -> None:
        self.of: dict[fx.Node, Any] = {}
        self._model = model
        last = {arg: node for node in trace.graph.nodes for arg in node.all_input_nodes}
        self._spent: dict[fx.Node, list[fx.Node]] = {node: [] for node in trace.graph.nodes}
        for node in trace.graph.nodes:
            self._spent[last.get(node, node)].append(node)
        self.buffers = frozenset(map(storage_of, model.buffers()))
        self._held, self._uses = Counter[int](), Counter[int]()

    def name(self, address: int) -> int:
        """The name of what lies at an address now."""
        return address + (self._uses[address] << _GENERATION)

    def memory(self, tensor: torch.Tensor) -> int:
        """The name of a tensor's memory."""
        return self.name(storage_of(tensor))

    def hold(self, node: fx.Node, value: Any) -> None:
        """Keep the value of a node."""
        self.of[node] = value
        self._held.update(_addresses(value))

    def let_go_after(self, node: fx.Node) -> None:
        """Forget the values that no node after this one needs."""
        for spent in self._spent[node]:
            if spent in self.of and self._is_ours(spent):
                addresses = _addresses(self.of.pop(spent))
                self._held.subtract(addresses)
                self._uses.update(address for address in set(addresses) if not self._held[address])

    def _is_ours(self, node: fx.Node) -> bool:
        """Whether nobody else can hold a node's value: a module of the model's own, or a hook, may keep it."""
        if node.op == "call_module":
            module = self._model.get_submodule(str(node.target))
            return type(module).__module__.startswith("torch.nn.") and not module._forward_hooks
        if node.op == "call_function":
            if writes(node.op, node.target):
                return True
            return (getattr(node.target, "__module__", None) or "torch").split(".")[0] in ("torch", "_operator")
        return node.op in ("placeholder", "call_method")


def storage_of(tensor: torch.Tensor) -> int:
    """Which memory a tensor lies in, while it is alive."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without one storage
        return id(tensor)


def _addresses(value: Any) -> list[int]:
    """Of the tensors in a value, and of their memory."""
    return [address for tensor in tensors(value) for address in (id(tensor), storage_of(tensor))]
