"""Tail, step and head as modules: code generated from the steps between two cuts, over the model's own submodules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from typing_extensions import Self

from streamdrop.errors import DataError, ModelError
from streamdrop.tracing.flow import Flow, Live, is_dense
from streamdrop.tracing.standin import about


class Piece(nn.Module):
    """A part of a model between two cuts; shares the model's parameters and submodules under their own names.

    Takes the activations of its lower cut, as a tuple or one by one; gives those of its upper cut as a tuple, or the
    model's output. Never writes to what it is given. ``train()`` and ``eval()`` reach the submodules it shares, as the
    model's own would (one that keeps its BatchNorm in eval mode does so here); what the model's forward itself decides
    by its mode follows those submodules.
    """

    _pacer: nn.Module | None  # tells the mode in place of this module; kept out of the submodules
    _owners: tuple[nn.Module, ...]  # modules around the shared ones that have a train() of their own; kept out too

    def __init__(self, name: str, takes: int, make: Callable[[bool], Callable[..., Any]]) -> None:
        super().__init__()
        self._plan = (name, takes, make)
        self._code: dict[bool, Callable[..., Any]] = {}
        object.__setattr__(self, "_pacer", None)
        object.__setattr__(self, "_owners", ())

    def train(self, mode: bool = True) -> Self:
        """Put what it shares into train or eval mode, and nothing else of the model."""
        super().train(mode)
        if not self._owners:
            return self
        followed = filter(_ends, self._owners)  # layers whose forward was followed: they are in it as a whole
        own = {id(module) for module in (*self.modules(), *followed)}
        for owner in self._owners:
            others = [(module, module.training) for module in owner.modules() if id(module) not in own]
            owner.train(mode)
            for module, before in others:
                _back_to(module, before)
        return self

    def extra_repr(self) -> str:
        """Which part this is."""
        return str(self._plan[0])

    def forward(self, *activations: Any) -> Any:
        """Run this part; raises DataError unless given as many tensors as cross the lower cut."""
        name, takes, make = self._plan
        if len(activations) == 1 and isinstance(activations[0], (tuple, list)):
            activations = tuple(activations[0])
        if len(activations) != takes or not all(isinstance(a, torch.Tensor) for a in activations):
            raise DataError(
                f"{name} takes {takes} tensors, got {len(activations)} values: give the activations of its cut"
            )
        mode = bool((self._pacer if self._pacer is not None else self).training)
        if mode not in self._code:
            self._code[mode] = make(mode)
        return self._code[mode](self, *activations)


class _Maker:
    """Makes a piece's code by mode; a copy of a piece shares it."""

    def __init__(self, make: Callable[[bool], Callable[..., Any]]) -> None:
        self._make = make

    def __call__(self, training: bool) -> Callable[..., Any]:
        return self._make(training)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Maker:
        return self

    def __reduce__(self) -> Any:
        raise ModelError(
            "a tail, step or head is code and cannot be pickled: pickle the SplitModel, or save its state_dict()"
        )


def build(flow: Flow, name: str, lower: tuple[int, Sequence[Live]], upper: tuple[int, Sequence[Live]] | None) -> Piece:
    """The steps from ``lower`` up to ``upper`` (each a position and what is live there), or to the output (None)."""
    end = upper[0] if upper is not None else len(flow.steps)
    span = range(lower[0], end)
    codes: dict[int, Callable[..., Any]] = {}

    def make(training: bool) -> Callable[..., Any]:
        mode = int(training)
        key = mode if flow.traces[0] is not flow.traces[1] else 0
        if key not in codes:
            codes[key] = _compile(_Writer(flow, mode, span, lower[1]).write(upper[1] if upper is not None else None))
        return codes[key]

    piece = Piece(name, len(lower[1]), _Maker(make))
    _share(piece, flow, span)
    piece.training = flow.model.training
    object.__setattr__(piece, "_owners", _owners(piece, flow.model))
    if flow.traces[0] is not flow.traces[1]:
        object.__setattr__(piece, "_pacer", _pacer(piece))
    return piece


def needed(flow: Flow, span: range) -> list[int]:
    """The steps that a piece runs or repeats: the ordered ones in ``span`` and the free ones they need."""
    found = {i for i in span if not flow.steps[i].free}
    return sorted(found.union(*(flow.pulled[i] for i in found)))


def attach(piece: nn.Module, model: nn.Module, name: str) -> None:
    """Put the submodule, parameter, buffer or constant ``name`` of ``model`` into ``piece`` under the same name."""
    owner, here = model, piece
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
        if part not in here._modules:
            here.add_module(part, nn.Module())
            here._modules[part].training = owner.training  # type: ignore[union-attr]
        here = getattr(here, part)
        if here is owner:
            return
    if last in owner._buffers:  # .to() replaces buffers: share the place, not the tensor
        here._buffers = owner._buffers
        here._non_persistent_buffers_set = owner._non_persistent_buffers_set
    elif last in owner._parameters:
        here.register_parameter(last, owner._parameters[last])
    elif last in owner._modules:
        here.add_module(last, owner._modules[last])
    else:
        object.__setattr__(here, last, getattr(owner, last))


def _share(piece: Piece, flow: Flow, span: range) -> None:
    modules, others = {}, {}
    for index in needed(flow, span):
        for mode, node in enumerate(flow.steps[index].nodes):
            if node is not None and node.op == "call_module":
                modules[str(node.target)] = mode
            elif node is not None and node.op == "get_attr":
                others[str(node.target)] = mode
    for target in (*sorted(modules, key=lambda t: t.count(".")), *others):
        constants = flow.traces[others.get(target, 0)].constants
        if target in constants:
            object.__setattr__(piece, target, constants[target])
        else:
            attach(piece, flow.model, target)


def _owners(piece: Piece, model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules in whose place the piece has empty ones, the model first, as far as they have their own ``train``."""
    empty = [name for name, module in piece.named_modules() if name and type(module) is nn.Module]
    owners = [model, *(model.get_submodule(name) for name in empty)]
    return tuple(owner for owner in owners if getattr(owner.train, "__func__", None) is not nn.Module.train)


def _back_to(module: nn.Module, training: bool) -> None:
    """A mode that was changed in passing; modules that do more when it changes, such as merge weights, do it again."""
    if module.training == training:
        return
    if _ends(module):
        module.train(training)
    else:
        module.training = training


def _ends(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _pacer(piece: Piece) -> nn.Module | None:
    """A submodule whose flag tells the mode: one that nobody holds in eval on purpose, as one does norms."""
    leaves = [m for m in piece.modules() if not list(m.children()) and type(m) is not nn.Module and m is not piece]
    weighted = [m for m in leaves if any(p.dim() > 1 for p in m.parameters())]
    return next(iter([*weighted, *leaves]), None)


def _compile(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<streamdrop piece>", "exec"), namespace)  # the same way fx makes a forward
    function: Callable[..., Any] = namespace["forward"]
    return function


class _Writer:
    """Writes one piece, in one mode, as an fx graph."""

    def __init__(self, flow: Flow, mode: int, span: range, given: Sequence[Live]) -> None:
        self.flow, self.mode, self.span, self.given = flow, mode, span, given
        self.graph = fx.Graph()
        self.done: dict[int, fx.Node] = {}
        self.free: dict[int, fx.Node] = {}
        self.sizes: dict[int, fx.Node] = {}
        self.like: fx.Node | None = None

    def write(self, wanted: Sequence[Live] | None) -> fx.Graph:
        """The graph from what is given to what is wanted, or to the model's output."""
        flow = self.flow
        self._take()
        steps = [i for i in self.span if flow.steps[i].nodes[self.mode] is not None]
        for index in sorted(steps, key=lambda i: flow.steps[i].order[self.mode]):
            step = flow.steps[index]
            if not step.free and step.node.op not in ("placeholder", "output"):
                self.done[flow.rep[index]] = self._copy(index)
            elif step.free and self._check_possible(index):
                self.free[index] = self._copy(index)
        if wanted is None:
            node = flow.steps[-1].nodes[self.mode]
            assert node is not None
            self.graph.output(fx.node.map_arg(node.args[0], self._need))
        else:
            self.graph.output(tuple(self._give(live) for live in wanted))
        return self.graph

    def _take(self) -> None:
        steps = [self.flow.steps[i] for i in self.span]
        written = frozenset().union(*(step.writes for step in steps))
        nodes = [self.graph.placeholder(f"activation_{i}") for i in range(len(self.given))]
        for live, node in zip(self.given, nodes, strict=True):
            if live.sizes:
                self.sizes[live.step] = node
                continue
            if self.flow.steps[live.step].storages & written:
                node = self.graph.call_function(torch.clone, (node,))
            self.done[live.step] = node
            self.like = self.like if self.like is not None else node

    def _copy(self, index: int) -> fx.Node:
        node = self.flow.steps[index].nodes[self.mode]
        assert node is not None
        return self.graph.node_copy(node, self._need)

    def _need(self, node: fx.Node) -> fx.Node:
        """The copy of ``node`` in this piece, made now if it is free."""
        index = self.flow.of[node]
        if not self.flow.steps[index].free:
            return self._value(index, node)
        if index not in self.free:
            self.free[index] = self._copy(index)
        return self.free[index]

    def _value(self, index: int, node: fx.Node) -> fx.Node:
        rep = self.flow.rep[index]
        if rep not in self.done:  # only asked about: its sizes came along, or the batch size is all that is needed
            seen = self.flow.steps[rep]
            self.done[rep] = self.graph.call_function(stand_in, (self.like, self.sizes.get(rep), seen.dims))
        return self.done[rep]

    def _check_possible(self, index: int) -> bool:
        """Whether a step without users, such as an assertion, can run here: all it needs is at hand."""
        step, flow = self.flow.steps[index], self.flow
        node = step.nodes[self.mode]
        if node is None or node.users or node.op == "get_attr":
            return False
        chain = {index} | flow.pulled[index]
        nodes = [n for i in chain for n in flow.steps[i].nodes if n is not None]
        sources = {flow.rep[flow.of[a]] for n in nodes if about(n) for a in n.all_input_nodes}
        free = {flow.rep[i] for i in chain}
        return all(n.op != "get_attr" for n in nodes) and sources - free <= self.done.keys()

    def _give(self, live: Live) -> fx.Node:
        if live.sizes:
            if live.step in self.sizes:
                return self.sizes[live.step]
            return self.graph.call_function(sizes_of, (self.done[live.step],))
        node = self.done[live.step]
        if self.flow.steps[live.step].dense:
            return node
        return self.graph.call_function(dense, (node,))


def sizes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All sizes but the batch's, once per sample: int64 [N, dims - 1]."""
    sizes = torch.tensor(tensor.shape[1:], dtype=torch.int64, device=tensor.device)
    return sizes.expand(len(tensor), -1).contiguous()


def stand_in(like: torch.Tensor, sizes: torch.Tensor | None, dims: int) -> torch.Tensor:
    """A tensor without memory, to be asked for its sizes: the batch of ``like``, and ``sizes`` [N, dims - 1]."""
    rest = sizes[0].tolist() if sizes is not None else [1] * (dims - 1)
    return like.new_empty(1).expand(like.shape[0], *rest)


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` sample after sample without gaps, each in its own order of strides; itself if it is so already."""
    return tensor if is_dense(tensor) else join([tensor])


def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches [n, ...] one after the other, each sample in the first part's order of strides (cat would forget it)."""
    strides = parts[0].stride()
    order = sorted(range(1, parts[0].dim()), key=lambda d: (-strides[d], d))
    inverse = [0] * parts[0].dim()
    for place, dim in enumerate((0, *order)):
        inverse[dim] = place
    return torch.cat([part.permute(0, *order) for part in parts]).permute(inverse)
