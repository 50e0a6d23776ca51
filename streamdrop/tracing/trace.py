"""A model as fx graphs, one for eval and one for train mode where they differ, with nothing frozen that may change.

Plain symbolic tracing runs ``forward`` once with stand-ins, so every Python value it meets becomes a constant. What
that would silently break is caught here: reads of ``training``, writes to a module's own state, random numbers and
switches of the gradient mode turn a module into one opaque node (a leaf); of a module that holds layers they are
written into the graph (torch.no_grad) or refused. Tensor factories such as ``torch.randn`` are recorded.
"""

from __future__ import annotations

import operator
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from streamdrop.errors import TraceError
from streamdrop.nested import dict_maker, fields_of
from streamdrop.tracing.inplace import writes, written
from streamdrop.tracing.kept import modes_kept, rng_kept, state_kept
from streamdrop.tracing.standin import NotTraceableError, StandIn, about_sizes, call, detached, unchanged
from streamdrop.tracing.watch import Draws, watched


@dataclass(frozen=True)
class Trace:
    """A graph over the model's modules, and the tensors it needs that are no attribute of the model."""

    graph: fx.Graph
    constants: dict[str, torch.Tensor]


def trace_modes(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], layers: Iterable[str], leaves: Iterable[str]
) -> tuple[Trace, Trace]:
    """The model in (eval, train) mode; the same object twice where its forward does not depend on the mode.

    ``inputs`` answer what ``forward`` asks about sizes; modules named in ``layers`` stay visible unless they hold no
    other layer; those in ``leaves`` are one node each. Raises TraceError naming the module that cannot be traced.
    """
    names, opaque = set(layers), set(leaves)
    while True:
        traces: list[Trace] = []
        marks: set[str] = set()
        for training in (False, True):
            tracer = Tracer(names, opaque)
            trace, failure = _trace(tracer, model, inputs, training)
            new = {name for name in tracer.sensitive if name and not _holds(name, names)} - opaque | tracer.closed
            marks |= new
            if trace is not None:
                traces.append(trace)
            elif not new:
                raise failure or TraceError("cannot be traced")
            if not tracer.reads_training:
                break
        if not marks:
            return traces[0], traces[-1]
        opaque |= marks


def _holds(name: str, layers: Iterable[str]) -> bool:
    """Whether a module holds a layer inside."""
    return any(layer.startswith(f"{name}.") for layer in layers)


class Tracer(fx.Tracer):
    """Symbolic tracing that notes what must not be frozen."""

    def __init__(self, layers: set[str], leaves: set[str]) -> None:
        super().__init__(param_shapes_constant=True)
        self.proxy_buffer_attributes = True
        self.layers, self.leaves = layers, leaves
        self.holders = {name[:i] for name in layers for i, letter in enumerate(name) if letter == "."}
        self.sensitive: set[str] = set()
        self.closed: set[str] = set()  # torch's own that hold layers and cannot be followed: these are one unit then
        self.reads_training = False
        self.inputs: tuple[torch.Tensor, ...] = ()
        self.values: dict[fx.Node, Any] = {}
        self._evaluating, self._thread = False, threading.get_ident()
        self.draws = Draws()
        self.attributes: dict[int, str] = {}

    @property
    def evaluating(self) -> bool:
        """Whether what runs now is no part of the trace: a value is found, or it is another thread's own work."""
        return self._evaluating or threading.get_ident() != self._thread

    @property
    def inside(self) -> str:
        """The innermost module whose forward is running; '' for the model itself."""
        return next(reversed(self.module_stack.values()))[0] if self.module_stack else ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Named leaves, layers without layers inside, scripted and torch's own modules."""
        if module_qualified_name in self.leaves or isinstance(m, torch.jit.ScriptModule):
            return True
        if module_qualified_name in self.holders:
            return False
        return module_qualified_name in self.layers or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """As many stand-ins as there are inputs: further arguments keep their defaults."""
        names = [f"input_{i}" for i in range(len(self.inputs))]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def create_arg(self, a: Any) -> Any:
        """What a value is written as in the graph: a dict of another kind than dict as a node that makes one."""
        if not isinstance(a, dict) or type(a) in (dict, fx.immutable_collections.immutable_dict):
            return super().create_arg(a)
        fields = fields_of(a)
        if fields is not None:
            given = {name: self.create_arg(value) for name, value in fields.items()}
            return self.create_node("call_function", type(a), (), given)
        make = dict_maker(a)
        if list(make(dict(a))) != list(a):
            raise NotTraceableError(f"it makes a {type(a).__name__}, a dict that cannot be made of its items")
        return self.create_node("call_function", make, (super().create_arg(dict(a)),), {})

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers by name, found without searching the model each time."""
        if self.evaluating or not isinstance(attr_val, torch.Tensor) or id(attr_val) not in self.attributes:
            return attr_val
        name = self.attributes[id(attr_val)]
        if name not in parameter_proxy_cache:
            stand_in = None
            if isinstance(attr_val, nn.Parameter):  # whose shape is fixed: forward may decide on it

                def stand_in(node: fx.Node) -> fx.Proxy:
                    return fx.proxy.ParameterProxy(self, node, name, attr_val)

            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {}, proxy_factory_fn=stand_in)
        return parameter_proxy_cache[name]

    def create_proxy(self, kind: str, target: Any, args: Any, *rest: Any, **kwargs: Any) -> fx.Proxy:
        """A stand-in for what a function or method gives, without gradients where they are switched off."""
        if not torch.is_grad_enabled() and writes(kind, target) and not about_sizes(args[0].node):
            super().create_proxy(kind, target, fx.node.map_aggregate(args, self._quiet), *rest, **kwargs)
            return cast(fx.Proxy, args[0])  # its memory is written to, its history stays
        made = super().create_proxy(kind, target, args, *rest, **kwargs)
        return self._graded(made) if kind in ("call_function", "call_method") else made

    def _quiet(self, value: Any) -> Any:
        return self._graded(value) if isinstance(value, fx.Proxy) else value

    def _graded(self, made: fx.Proxy) -> fx.Proxy:
        """``made``, detached under torch.no_grad: a graph does not record the switch."""
        if torch.is_grad_enabled() or about_sizes(made.node):
            return made
        self.sensitive.add(self.inside)
        return super().create_proxy("call_function", detached, (made,), {})

    def lost(self, name: str, why: str) -> None:
        """A trace cannot hold what module ``name`` does: it is run as one piece, or refused where it holds layers."""
        self.sensitive.add(name)
        if not name or name in self.holders:
            raise NotTraceableError(why, name)

    def is_attribute(self, value: Any, tensor: torch.Tensor | None) -> bool:
        """Whether ``value`` stands for the model's own tensor, written to or not: ``self.n += 1`` assigns it anew."""
        node = written(value) or getattr(value, "node", None)
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return False
        return node.target == self.attributes.get(id(tensor))

    def note_draws(self, name: str) -> None:
        """Random numbers drawn up to now, other than by nodes, were drawn by module ``name``."""
        if self.draws.made():
            self.lost(name, "draws random numbers that a trace would not draw again: call torch.rand… by that name")

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A stand-in that knows its sizes."""
        return StandIn(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A decision: on sizes it is taken and guarded, on values it cannot be traced."""
        return bool(self.decide(obj.node)) if about_sizes(obj.node) else bool(super().to_bool(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """A loop over several results or sizes, whose number is guarded."""
        try:
            return iter(super().iter(obj))
        except fx.proxy.TraceError:
            if isinstance(self.value(obj.node), torch.Tensor):
                raise
            return iter(
                [self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(self.length(obj))]
            )

    def length(self, obj: fx.Proxy) -> int:
        """How many results or sizes there are, guarded; of a tensor, its first dimension."""
        if isinstance(self.value(obj.node), torch.Tensor):
            return int(self.decide(obj.size(0).node))
        return int(self.decide(self.create_proxy("call_function", len, (obj,), {}).node))

    def decide(self, node: fx.Node) -> Any:
        """The value of a node that forward decides on, checked again whenever the graph runs."""
        value = self.value(node)
        self.create_node("call_function", unchanged, (node, value), {})
        return value

    def value(self, node: fx.Node) -> Any:
        """What a node gives on the example, found by running what it depends on."""
        self.note_draws(self.inside)
        todo = [node]
        while todo:
            missing = [arg for arg in todo[-1].all_input_nodes if arg not in self.values]
            if missing:
                todo += missing
            else:
                self._evaluate(todo.pop())
        self.draws.made()  # by the evaluation
        return self.values[node]

    def _evaluate(self, node: fx.Node) -> None:
        if node in self.values:
            return
        if node.op == "placeholder":
            self.values[node] = self.inputs[int(str(node.target).removeprefix("input_"))].clone()
            return
        args, kwargs = (fx.node.map_arg(part, self.values.__getitem__) for part in (node.args, node.kwargs))
        self._evaluating = True
        try:
            with torch.no_grad():
                self.values[node] = call(node, self.root, args, kwargs)
        finally:
            self._evaluating = False

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A node for a leaf, the module's own forward for others."""
        if self.evaluating:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return self._graded(super().call_module(m, forward, args, kwargs))
        self.note_draws(self.inside)
        result = super().call_module(m, forward, args, kwargs)
        self.note_draws(name)
        return result


def _trace(
    tracer: Tracer, model: nn.Module, inputs: tuple[torch.Tensor, ...], training: bool
) -> tuple[Trace, None] | tuple[None, TraceError]:
    tracer.inputs = inputs
    tracer.attributes = {id(p): n for n, p in (*model.named_buffers(), *model.named_parameters())}
    before = {id(module): dict(module.__dict__) for module in model.modules()}
    with modes_kept(model), state_kept(model), rng_kept(inputs), torch.enable_grad():
        model.train(training)
        tracer.draws.made()
        try:
            with watched(tracer), tracer.draws.own:
                graph = tracer.trace(model)
                tracer.note_draws("")
        except Exception as error:  # whatever the model's own code raised on a stand-in
            name = _where(tracer, error)
            if name and fx.Tracer.is_leaf_module(tracer, model.get_submodule(name), name):
                tracer.closed.add(name)
            return None, _explain(name, model, error)
        finally:
            constants = {n: v for n, v in vars(model).items() if n not in before[id(model)]}
            for module in model.modules():
                if id(module) in before:
                    module.__dict__.clear()
                    module.__dict__.update(before[id(module)])
    return Trace(graph, {n: v for n, v in constants.items() if isinstance(v, torch.Tensor)}), None


def _where(tracer: Tracer, error: Exception) -> str:
    """The module in which a trace failed."""
    return error.where if isinstance(error, NotTraceableError) and error.where is not None else tracer.inside


def _explain(name: str, model: nn.Module, error: Exception) -> TraceError:
    reason = textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
    if not name:
        where = f"the model's own forward ({type(model).__name__}) cannot be traced"
        remedy = (
            "split the part of it that holds the layers by itself (a detector's backbone, say), or move what decides "
            "on values into a submodule and name that in leaves= or layers="
        )
    else:
        where = f"module {name!r} ({type(model.get_submodule(name)).__name__}) cannot be traced"
        remedy = f"run it as one piece with leaves=[{name!r}], or name it as a unit in layers="
    return TraceError(f"{where}: {reason}: {remedy}")
