"""A model in two parts that can be cut anywhere: the tail (input side, dropped) and the head (output side, trained)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from streamdrop.errors import DataError, ModelError, TraceError
from streamdrop.layers import Layers, canonical, convolutions, layer_names, transformer_blocks
from streamdrop.tracing.chunks import run_in_chunks
from streamdrop.tracing.flow import Flow, Live
from streamdrop.tracing.follow import follow
from streamdrop.tracing.pieces import Piece, attach, build, needed

__all__ = ["Layers", "SplitModel", "convolutions", "run_in_chunks", "transformer_blocks"]


class SplitModel:
    """A model cut into tail and head at any of its layers, sharing its parameters.

    ``example``: a tensor [N, ...], or a tuple of them, as the model takes; any N ≥ 1. ``layers``: names or a rule,
    by default every convolution; ``leaves``: names of modules to run as one piece, without looking inside;
    ``preparation``: what makes the model's input of an image, in words: part of every ``version``.
    In eval mode ``head(c)(tail(c)(x))`` equals ``model(x)`` bit for bit, and ``step(a, b)(tail(a)(x))`` equals
    ``tail(b)(x)``. The pieces share the model's submodules, so a mode set on one is set on all that share; a module
    without parameters that the model uses on both sides (one Dropout for all) has one mode: set it before each use.
    A parameter that is replaced after the split, instead of written to, is refused where parameters are asked for.
    No cut lies above what in eval mode mixes the samples of a batch, draws random numbers or writes to a buffer: a tail
    gives a sample the same activations in any batch, whenever it runs.
    Other threads may run other models while one is split; random numbers that they draw from the process's generators
    meanwhile are taken for its own, and may have it refused.
    Raises TraceError for a model that cannot be followed or cut, ModelError for layers that are not there.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        layers: Layers | None = None,
        leaves: Sequence[str] = (),
        preparation: str = "",
    ) -> None:
        if not isinstance(preparation, str):  # a function's digest would be another in every process
            raise ModelError(f"preparation is {preparation!r}: say in words what makes the model's input of an image")
        self.model, self.preparation = model, preparation
        _check_weights(model)
        _check_compiled(model)
        inputs = _inputs(example)
        self.example = tuple(torch.empty_like(one, device="meta") for one in inputs)  # shapes and dtypes only
        names = layer_names(model, layers if layers is not None else convolutions)
        leaves = canonical(model, leaves)
        self._flow = follow(model, inputs, names, leaves)
        units = _units(self._flow, names)
        if not units:
            raise TraceError(f"no layer of {type(model).__name__} is run: name its layers with layers=")
        self.layers: tuple[str, ...] = tuple(unit[-1] for unit, _ in units)
        self._members = {unit[-1]: unit for unit, _ in units}
        start = tuple(Live(i) for i, step in enumerate(self._flow.steps) if step.node.op == "placeholder")
        self._cuts: list[tuple[int, tuple[Live, ...]]] = [(0, start)]
        for _, position in units[:-1]:
            live = self._flow.live(position)
            assert live is not None
            self._cuts.append((position, live))
        self._own = dict(model.named_parameters())  # not their identities: a copy's are its own
        self._names = {id(parameter): name for name, parameter in self._own.items()}  # as steps know them
        self._pieces: dict[tuple[int, int | None], Piece] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: pieces are made anew, they hold code."""
        return {**self.__dict__, "_pieces": {}}

    def tail(self, cut: int) -> Piece:
        """Everything before ``cut``: inputs → activations; ``tail(0)(x) == (x,)``."""
        return self._piece(f"tail({cut})", 0, self._check(cut))

    def head(self, cut: int) -> Piece:
        """Everything from ``cut`` on: activations → the model's output."""
        return self._piece(f"head({cut})", self._check(cut), None)

    def step(self, lower: int, upper: int) -> Piece:
        """What lies between two cuts: activations at ``lower`` → activations at ``upper``."""
        if self._check(lower) > self._check(upper):
            raise ModelError(f"step({lower}, {upper}) goes back: only cuts from {lower} on can be reached from there")
        return self._piece(f"step({lower}, {upper})", lower, upper)

    def layer_parameters(self, name: str) -> tuple[nn.Parameter, ...]:
        """The weights of a layer that are scored: parameters with more than one dimension.

        Where none of these is trained (``requires_grad``), all that is trained of what is dropped with the layer: its
        biases, and what follows it, such as its norm.
        """
        if name not in self._members:
            raise ModelError(f"{name!r} is no layer of this split: see .layers")
        modules = [self.model.get_submodule(member) for member in self._members[name]]
        found = {id(p): p for module in modules for p in module.parameters() if p.dim() > 1}
        if any(p.requires_grad for p in found.values()):
            return tuple(found.values())
        cut = self.layers.index(name)
        above = self.head_parameters(cut + 1) if cut + 1 < len(self.layers) else {}
        own = self.head_parameters(cut).items()
        return tuple(p for n, p in own if n not in above and p.requires_grad) or tuple(found.values())

    def tail_parameters(self, cut: int) -> dict[str, nn.Parameter]:
        """The parameters before ``cut``, named as in the model, in execution order."""
        named, below = self._parameters(), self._parameters_below(cut)
        return {name: named[name] for name in self._execution_order(named) if name in below}

    def head_parameters(self, cut: int) -> dict[str, nn.Parameter]:
        """The parameters from ``cut`` on, named as in the model, in execution order; unused ones last."""
        named, below = self._parameters(), self._parameters_below(cut)
        return {name: named[name] for name in self._execution_order(named) if name not in below}

    @property
    def inputs(self) -> int:
        """How many tensors the model takes."""
        return len(self._cuts[0][1])

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are; all are in one place."""
        return next(self.model.parameters()).device

    def live_bytes(self, cut: int) -> int:
        """Bytes per sample crossing ``cut``."""
        return self._flow.bytes_of(self._cuts[self._check(cut)][1])

    def macs(self, cut: int) -> int:
        """Forward multiply-adds per sample of ``head(cut)`` in eval mode."""
        return sum(step.macs for step in self._flow.steps[self._cuts[self._check(cut)][0] :])

    def version(self, cut: int, preparation: str | None = None) -> str:
        """What activations at ``cut`` depend on, as a digest: weights and buffers, dropped layers, input preparation.

        ``preparation`` None: the split's own. The empty string for cut 0 without preparation.
        """
        preparation = self.preparation if preparation is None else preparation
        if self._check(cut) == 0 and not preparation:
            return ""
        digest = hashlib.sha256(repr((self.layers[:cut], preparation)).encode())
        below = self._tensors_below(cut)
        for name, tensor in (*self._parameters().items(), *self.model.named_buffers()):
            if id(tensor) in below:
                digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
                flat = tensor.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
        return digest.hexdigest()

    def summary(self) -> str:
        """A table: per layer the parameters and MACs that dropping it saves, and the bytes of the cut before it."""
        wide = max(len("layer"), *map(len, self.layers))
        lines = [f"{'cut':>3}  {'layer':<{wide}}  {'parameters':>11}  {'MACs':>14}  {'live bytes':>10}"]
        sizes = {name: parameter.numel() for name, parameter in self._parameters().items()}
        counts = [sum(sizes[n] for n in self.head_parameters(cut)) for cut in range(len(self.layers))] + [0]
        macs = [self.macs(cut) for cut in range(len(self.layers))] + [0]
        for cut, name in enumerate(self.layers):
            count, work = counts[cut] - counts[cut + 1], macs[cut] - macs[cut + 1]
            lines.append(f"{cut:>3}  {name:<{wide}}  {count:>11,}  {work:>14,}  {self.live_bytes(cut):>10,}")
        return "\n".join(lines)

    def _check(self, cut: int) -> int:
        if not 0 <= cut < len(self.layers):
            raise ModelError(f"cut {cut} is not in 0 … {len(self.layers) - 1}: the last layer is never dropped")
        return cut

    def _piece(self, name: str, lower: int, upper: int | None) -> Piece:
        if (lower, upper) not in self._pieces:
            above = self._cuts[upper] if upper is not None else None
            piece = build(self._flow, name, self._cuts[lower], above)
            if upper is None:
                for unused in set(self.head_parameters(lower)) - {n for n, _ in piece.named_parameters()}:
                    attach(piece, self.model, unused)
            self._pieces[lower, upper] = piece
        return self._pieces[lower, upper]

    def _tensors_below(self, cut: int) -> set[int]:
        """Identities of the parameters and buffers that the tail reads."""
        flow = self._flow
        nodes = [n for i in needed(flow, range(self._cuts[self._check(cut)][0])) for n in flow.steps[i].nodes if n]
        targets = {str(n.target) for n in nodes if n.op in ("call_module", "get_attr")}
        everything = (*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers())
        return {id(t) for name, t in everything if any(f"{name}.".startswith(f"{target}.") for target in targets)}

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The model's parameters by name. Raises ModelError where one is not the one that was there at the split."""
        named = dict(self.model.named_parameters())
        for name, parameter in self._own.items():
            if named.get(name) is not parameter:
                what = "is another one" if name in named else "is gone"
                raise ModelError(
                    f"parameter {name!r} of {type(self.model).__name__} {what} since the model was split (a module was "
                    "replaced, or weights were assigned instead of copied): split the model anew"
                )
        return named

    def _parameters_below(self, cut: int) -> set[str]:
        below = set().union(*(step.state for step in self._flow.steps[: self._cuts[self._check(cut)][0]]))
        return {name for identity, name in self._names.items() if identity in below}

    def _execution_order(self, names: Iterable[str]) -> list[str]:
        first: dict[str, int] = {}
        for index, step in enumerate(self._flow.steps):
            for identity in step.state & self._names.keys():
                first.setdefault(self._names[identity], index)
        return sorted(names, key=lambda name: first.get(name, len(self._flow.steps)))


def _check_weights(model: nn.Module) -> None:
    """Raises TraceError for weights that are not there yet, or can never be trained."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise TraceError(f"{name!r} has no shape yet: run the model on a batch before it is split")
        if tensor.is_meta:
            raise TraceError(f"{name!r} is on the meta device, without values: load the model's weights first")
        if tensor.is_inference():
            raise TraceError(f"{name!r} was made under torch.inference_mode and cannot learn: build the model outside")


def _check_compiled(model: nn.Module) -> None:
    """Raises TraceError for what torch.compile or torch.jit gave: no trace sees through it, and a trial compiles it."""
    if type(model).__module__.startswith("torch._dynamo"):  # by name: importing the compiler takes seconds
        raise TraceError(
            "the model is what torch.compile made of one, which cannot be traced: split the one it was made of "
            "(model._orig_mod, the same weights), and compile what else runs it"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("the model is scripted, which cannot be traced: split the one that it was made of")


def _inputs(example: Any) -> tuple[torch.Tensor, ...]:
    inputs = (example,) if isinstance(example, torch.Tensor) else example
    if not isinstance(inputs, (tuple, list)) or not inputs or not all(isinstance(x, torch.Tensor) for x in inputs):
        raise DataError(f"example is {type(example).__name__}: give a tensor [N, ...] or a tuple of tensors")
    if any(x.dim() == 0 for x in inputs) or len({len(x) for x in inputs}) != 1 or len(inputs[0]) == 0:
        shapes = [tuple(x.shape) for x in inputs]
        raise DataError(
            f"example has shapes {shapes}: every input needs the batch, of one size ≥ 1, as first dimension"
        )
    return tuple(inputs)


def _units(flow: Flow, names: list[str]) -> list[tuple[list[str], int]]:
    """Layers that can only be dropped together, in execution order, and the position above each (the last's: -1)."""
    last = _last_uses(flow, names)
    order = sorted(last, key=lambda name: last[name])
    spans: dict[int, tuple[int, int]] = {}
    for index, step in enumerate(flow.steps):
        for identity in step.state:
            spans[identity] = (spans.get(identity, (index, index))[0], index)
    closed = {p for first, end in spans.values() for p in range(first + 1, end + 1)}
    units: list[tuple[list[str], int]] = []
    unit: list[str] = []
    for name, after in zip(order, [*order[1:], None], strict=True):
        unit.append(name)
        if after is None:
            return [*units, (unit, -1)]
        position = _best(flow, [p for p in range(last[name] + 1, last[after] + 1) if p not in closed])
        if position is not None:
            units.append((unit, position))
            unit = []
    return units


def _best(flow: Flow, positions: list[int]) -> int | None:
    """The admissible position with the fewest live bytes; dense tensors, then the later one, on a tie."""
    best: tuple[tuple[int, int, int], int] | None = None
    for position in positions:
        live = flow.live(position)
        if live is None:
            continue
        gaps = sum(not flow.steps[one.step].dense for one in live if not one.sizes)
        rank = (flow.bytes_of(live), gaps, -position)
        best = min(best, (rank, position)) if best is not None else (rank, position)
    return best[1] if best is not None else None


def _last_uses(flow: Flow, names: list[str]) -> dict[str, int]:
    """Where each layer is used last in eval mode; layers that do not run are left out."""
    own = {name: {id(p) for p in flow.model.get_submodule(name).parameters()} for name in names}
    last: dict[str, int] = {}
    for index, step in enumerate(flow.steps):
        node = step.nodes[0]
        if node is None or step.free:
            continue
        target = f"{node.target}." if node.op == "call_module" else ""
        stack = {entry[0] for entry in node.meta.get("nn_module_stack", {}).values()}
        for name in names:
            held = target and (f"{name}.".startswith(target) or target.startswith(f"{name}."))
            if held or name in stack or own[name] & step.state:
                last[name] = index
    return last
