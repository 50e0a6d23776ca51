"""The order of a traced model's work, and what is live between its steps.

A step is a node of the eval graph, of the train graph, or of both. Steps that depend on no input's content (weights,
sizes, constants) are *free*: they are done again on whichever side of a cut needs them. The others are *ordered*.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import fx, nn

from streamdrop.tracing.observe import Run, Seen, asks_batch, fetch, takes_batch
from streamdrop.tracing.standin import about
from streamdrop.tracing.trace import Trace
from streamdrop.tracing.values import storage_of


class Live(NamedTuple):
    """One value crossing a cut: a step's tensor, or ([N, dims - 1], int64) its sizes only."""

    step: int
    sizes: bool = False


@dataclass
class Step:
    """What is known of one step; ``nodes`` and ``order`` by mode (eval, train), None and -1 where it does not run."""

    nodes: tuple[fx.Node | None, fx.Node | None]
    order: tuple[int, int]
    free: bool = False
    same: tuple[int, int] = (0, 0)
    uses: frozenset[int] = frozenset()
    asks: dict[int, bool] = field(default_factory=dict)
    state: frozenset[int] = frozenset()
    storages: frozenset[tuple[int, int]] = frozenset()
    reads: frozenset[tuple[int, int]] = frozenset()
    writes: frozenset[tuple[int, int]] = frozenset()
    macs: int = 0
    bytes: int = 0
    dims: int = 1
    batched: bool = False
    dense: bool = False
    varies: bool = False  # in eval mode, by the other samples of a batch, by chance, or by runs before

    @property
    def node(self) -> fx.Node:
        """The node, of whichever mode has it."""
        node = self.nodes[0] if self.nodes[0] is not None else self.nodes[1]
        assert node is not None
        return node


class Flow:
    """Steps in order, with the first and last use of every value, weight and piece of state."""

    def __init__(
        self, model: nn.Module, traces: tuple[Trace, Trace], runs: tuple[Run, Run, Run], sizes: tuple[int, int]
    ):
        """``runs``: eval at ``sizes[0]`` samples, train at as many, eval at ``sizes[1]``."""
        self.model, self.traces = model, traces
        self.steps, self.of = _merge(traces)
        self._describe(runs, sizes)
        self._free(runs[:2])
        self._put_off()
        self._link()
        # a free step, such as torch.arange(N), mixes nothing by itself: what uses it may
        mixing = (i for i, step in enumerate(self.steps) if step.varies and not step.free)
        self._steady = next(mixing, len(self.steps))

    def _describe(self, runs: tuple[Run, Run, Run], sizes: tuple[int, int]) -> None:
        for step in self.steps:
            seen = [run.seen[node] if node is not None else None for run, node in zip(runs, step.nodes, strict=False)]
            marked = [(mode, one) for mode, one in enumerate(seen) if one is not None]
            step.storages = frozenset((mode, s) for mode, one in marked for s in one.storages)
            step.reads = frozenset((mode, s) for mode, one in marked for s in one.reads)
            step.writes = frozenset((mode, s) for mode, one in marked for s in one.writes)
            ids = [one.identity if one is not None else -id(step) for one in seen]
            step.same = (ids[0], ids[1])
            step.dims = next((one.value.dim() for one in seen if one is not None and one.value is not None), 1)
            if step.nodes[0] is None or seen[0] is None:
                continue
            other = runs[2].seen[step.nodes[0]]
            step.macs = other.macs // sizes[1]
            step.varies = _varies(seen[0], other)
            if seen[0].value is not None and other.value is not None:
                value = seen[0].value
                step.batched = batched(value, other.value, sizes) and step.nodes[1] is not None and not seen[0].ragged
                step.bytes = value.numel() * value.element_size() // sizes[0]
                step.dense = is_dense(value)

    def _free(self, runs: tuple[Run, ...]) -> None:
        written = frozenset().union(*(step.writes for step in self.steps)) if self.steps else frozenset()
        for step in self.steps:
            step.free = all(self._free_node(node) for node in step.nodes if node is not None)
            seen = [run.seen[node] for run, node in zip(runs, step.nodes, strict=True) if node is not None]
            if step.node.op != "get_attr" and (
                step.writes or any(one.random for one in seen) or (step.reads | step.storages) & written
            ):
                step.free = step.free and all(about(node) for node in step.nodes if node is not None)

    def _free_node(self, node: fx.Node) -> bool:
        if node.op in ("placeholder", "call_module", "output"):
            return False
        return about(node) or all(self.steps[self.of[arg]].free for arg in node.all_input_nodes)

    def _put_off(self) -> None:
        """Move what only training does and only its output needs (auxiliary classifiers) to the end, if nothing it
        reads is written meanwhile: no dropped layer then depends on it."""
        late: set[int] = set()
        for index in reversed(range(len(self.steps) - 1)):
            node = self.steps[index].nodes[1]
            if self.steps[index].nodes[0] is None and node is not None:
                users = {self.of[user] for user in node.users}
                if users and users <= late | {len(self.steps) - 1}:
                    late.add(index)
        for index in late:
            between = [s for i, s in enumerate(self.steps) if i > index and i not in late]
            if any(self.steps[index].reads & step.writes for step in between):
                return
        kept = [i for i in range(len(self.steps) - 1) if i not in late]
        self.steps = [self.steps[i] for i in (*kept, *sorted(late), len(self.steps) - 1)]
        self.of = {node: i for i, step in enumerate(self.steps) for node in step.nodes if node is not None}

    def _link(self) -> None:
        """Per ordered step: the tensors it uses, those whose sizes it needs, and the state it touches."""
        first: dict[tuple[int, int], int] = {}
        self.rep = [first.setdefault(s.same, i) if not s.free else i for i, s in enumerate(self.steps)]
        written = frozenset().union(*(step.writes for step in self.steps))
        self.pulled = [self._pulls(i) for i in range(len(self.steps))]
        for index, step in enumerate(self.steps):
            if step.free:
                continue
            closure = {index} | self.pulled[index]
            state: set[int] = set()
            for mode, node in (pair for i in sorted(closure) for pair in self._nodes(i)):
                state |= self._state(node, mode, written)
            step.uses = frozenset(
                self.rep[self.of[arg]]
                for _, node in self._nodes(index)
                for arg in node.all_input_nodes
                if not self.steps[self.of[arg]].free
            )
            step.asks, step.state = self._asks(closure), frozenset(state)

    def _pulls(self, index: int) -> set[int]:
        """The free steps that a step needs, directly or through others."""
        found: set[int] = set()
        todo = [index]
        while todo:
            for _, node in self._nodes(todo.pop()):
                new = {self.of[arg] for arg in node.all_input_nodes if self.steps[self.of[arg]].free} - found
                found |= new
                todo += new
        return found

    def _asks(self, closure: set[int]) -> dict[int, bool]:
        """The tensors of which ``closure`` needs the batch size only (False) or all sizes (True)."""
        asks: dict[int, bool] = {}
        for _, node in (pair for i in closure if self.steps[i].free for pair in self._nodes(i)):
            for used in (self.of[arg] for arg in node.all_input_nodes):
                if not self.steps[used].free:
                    users = [user for user in node.users if self.of[user] in closure]
                    full = not asks_batch(node) and not all(takes_batch(user) is node for user in users)
                    asks[self.rep[used]] = asks.get(self.rep[used], False) or full
        return asks

    def _nodes(self, index: int) -> Iterator[tuple[int, fx.Node]]:
        for mode, node in enumerate(self.steps[index].nodes):
            if node is not None:
                yield mode, node

    def _state(self, node: fx.Node, mode: int, written: frozenset[tuple[int, int]]) -> set[int]:
        """Identities of the weights and running statistics that a node touches."""
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return {id(t) for t in (*module.parameters(), *module.buffers())}
        if node.op == "get_attr":
            value = fetch(self.model, self.traces[mode], str(node.target))
            if isinstance(value, nn.Parameter) or (mode, storage_of(value)) in written:
                return {id(value)}
        return set()

    def bytes_of(self, live: Iterable[Live]) -> int:
        """Bytes per sample of what crosses a cut."""
        return sum(8 * (self.steps[one.step].dims - 1) if one.sizes else self.steps[one.step].bytes for one in live)

    def live(self, position: int) -> tuple[Live, ...] | None:
        """What crosses the cut before step ``position``; None if not all of it is one tensor row per sample.

        None too where what is below would not give a sample the same row in any batch, whenever it is run.
        """
        if position > self._steady:
            return None
        later = [s for s in self.steps[position:] if not s.free]
        used = sorted({u for s in later for u in s.uses if u < position})
        if any(not self.steps[u].batched for u in used):
            return None
        crossing = [Live(u) for u in used]
        sized = {u for s in later for u, full in s.asks.items() if full and u < position} - set(used)
        if not used or any(self.steps[u].nodes[0] is None or self.steps[u].nodes[1] is None for u in sized):
            return None
        written = frozenset().union(*(s.writes for s in later))
        storages = [self.steps[u].storages & written for u in used]
        if sum(map(len, storages)) > len(frozenset().union(*storages)):
            return None  # two of them are one memory that is written later: they would part ways in a store
        return (*crossing, *(Live(u, sizes=True) for u in sorted(sized)))


def _varies(one: Seen, other: Seen) -> bool:
    """Whether a step in eval mode draws, writes to the model, or gives one sample something else among others."""
    if one.random or one.lasting:
        return True
    a, b = one.sample, other.sample
    if a is None or b is None or a.shape != b.shape or one.value is None:
        return False
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    rounding = torch.finfo(one.value.dtype).eps if one.value.is_floating_point() else 0.0  # differs with batch size
    off = abs(a - b) > min(2**13 * rounding, 0.1) * abs(a).max(initial=0.0)
    return int(off.sum()) > len(a) // 50  # where rounding decides, as in a tie, single values may be others


def batched(value: torch.Tensor, other: torch.Tensor, sizes: tuple[int, int]) -> bool:
    """Whether the first dimension, and no other, is the batch, of which ``value`` and ``other`` have ``sizes``."""
    if value.dim() == 0 or value.is_sparse or value.dim() != other.dim():
        return False
    return (value.shape[0], other.shape[0]) == sizes and value.shape[1:] == other.shape[1:]


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether each sample is one block of memory without gaps, sample after sample."""
    if tensor.dim() == 0:
        return True
    expected = 1
    for size, stride in sorted(zip(tensor.shape[1:], tensor.stride()[1:], strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return tensor.shape[0] == 1 or tensor.stride(0) == expected


def _merge(traces: tuple[Trace, Trace]) -> tuple[list[Step], dict[fx.Node, int]]:
    """The nodes of both graphs as one list, equal ones paired, each graph's own order kept."""
    first, second = (list(trace.graph.nodes) for trace in traces)
    pairs = [(i, i) for i in range(len(first))] if traces[0] is traces[1] else _paired(first, second)
    steps = [Step((first[a] if a >= 0 else None, second[b] if b >= 0 else None), (a, b)) for a, b in pairs]
    return steps, {node: i for i, step in enumerate(steps) for node in step.nodes if node is not None}


def _paired(first: list[fx.Node], second: list[fx.Node]) -> list[tuple[int, int]]:
    """Positions of equal nodes in two graphs, in both graphs' order; -1 where the other has none."""
    keys = [[(node.op, str(node.target)) for node in nodes[:-1]] for nodes in (first, second)]
    pairs: list[tuple[int, int]] = []
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_opcodes():
        if tag == "equal":
            pairs += [(a0 + i, b0 + i) for i in range(a1 - a0)]
        else:
            pairs += [(i, -1) for i in range(a0, a1)] + [(-1, i) for i in range(b0, b1)]
    return [*pairs, (len(first) - 1, len(second) - 1)]
