"""Thaw: when dropped layers are trained again, and how a store is brought back to an earlier cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamdrop.errors import ConfigError, DataError, StoreError
from streamdrop.rounds import inputs_explained, predicted, seeded, shown
from streamdrop.split import SplitModel, run_in_chunks
from streamdrop.store import FeatureStore, decode_source
from streamdrop.tracing.kept import modes_kept
from streamdrop.types import Activations, Inputs
from streamdrop.values import check_fields, check_whole

Prepare = Callable[[Any], Inputs]
"""A decoded source → one sample as the model takes it, without the batch dimension (a tuple for several inputs)."""


RISEN = 2
"""Rounds running with a risen loss that are no chance."""


@dataclass(frozen=True)
class ThawPlan:
    """Alternate head-only rounds with a few rounds of more layers (the paper's section 6, future work).

    Layers from ``to`` on are trained again for ``rounds`` rounds after ``every`` rounds at a cut, or once the loss has
    not fallen by a hundredth for ``plateau`` of them; then the cut moves back to where it was, or as far as a
    policy without scores, asked meanwhile as if it were there, wants it since. ``rise`` is for streams
    that drift: once the loss has been above ``rise`` times its least at this cut for two rounds running, layers from
    ``to`` on are trained until the policy drops them anew (a loss below 0 has no such factor: it never rises).
    ``most``: how often at most. Raises ConfigError.
    """

    every: int | None = None
    plateau: int | None = None
    rise: float | None = None
    rounds: int = 1
    to: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "thaw.")
        if self.every is None and self.plateau is None and self.rise is None:
            raise ConfigError(
                "thaw: none of every, plateau and rise is given: give one, rounds or a factor of the loss"
            )
        if self.rise is not None and not self.rise > 1:
            raise ConfigError(f"thaw.rise is {self.rise}: give a factor above 1")
        for name in ("every", "plateau", "rounds", "most"):
            value = getattr(self, name)
            if value is not None:
                check_whole(f"thaw.{name}", value, 1)
        if self.to < 0:
            raise ConfigError(f"thaw.to is {self.to}: give a cut of at least 0")


class Thawing:
    """A plan under way: ``back`` is the cut to return to while more layers are trained, None otherwise."""

    def __init__(self, plan: ThawPlan | None) -> None:
        self.plan = plan
        self.back: int | None = None
        self._left = self._quiet = self._flat = self._risen = self._done = 0
        self._best = math.inf

    def next_cut(self, cut: int, loss: float, moving: bool) -> int | None:
        """Where the cut goes after a round at ``cut``, None: it stays. ``moving``: a drop is under way."""
        if self.plan is None:
            return None
        if self.back is not None:
            return self._return()
        if moving or cut <= self.plan.to:
            self._begin()
            return None
        self._quiet += 1
        self._risen = self._risen + 1 if self._has_risen(loss, self.plan) else 0
        fell = loss < (0.99 if self._best > 0 else 1.01) * self._best
        self._flat, self._best = (0, loss) if fell else (self._flat + 1, self._best)
        if self.plan.most is not None and self._done >= self.plan.most:
            return None
        if self._risen >= RISEN:
            self._done += 1
            self._begin()
            return self.plan.to
        return self._thaw(cut) if self._due(self.plan) else None

    def _has_risen(self, loss: float, plan: ThawPlan) -> bool:
        """A negative loss has no factor to rise by."""
        return plan.rise is not None and self._best >= 0 and loss > plan.rise * self._best

    def _begin(self) -> None:
        """Nothing is known of this cut yet."""
        self._quiet = self._flat = self._risen = 0
        self._best = math.inf

    def _due(self, plan: ThawPlan) -> bool:
        by_count = plan.every is not None and self._quiet >= plan.every
        return by_count or (plan.plateau is not None and self._flat >= plan.plateau)

    def _thaw(self, cut: int) -> int:
        assert self.plan is not None
        self.back, self._left = cut, self.plan.rounds
        self._done += 1
        return self.plan.to

    def _return(self) -> int | None:
        self._left -= 1
        if self._left > 0:
            return None
        back, self.back = self.back, None
        self._begin()
        return back

    def state(self) -> list[Any]:
        """What ``restore`` takes, as plain data."""
        best = None if math.isinf(self._best) else self._best
        return [self.back, self._left, self._quiet, self._flat, self._risen, self._done, best]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on where ``state`` was taken."""
        self.back, self._left, self._quiet, self._flat, self._risen, self._done, best = state
        self._best = math.inf if best is None else best
        if self.plan is None:  # taken out on purpose: nobody would ever return from a thaw under way
            self.back = None


def thaw_store(store: FeatureStore, split: SplitModel, cut: int, chunk: int, prepare: Prepare | None = None) -> None:
    """Bring a store back to ``cut``: every sample made anew from its source. Raises StoreError, DataError.

    ``prepare`` turns a decoded source into the model's input; sources kept as ``raw`` tensors need none. What it gives
    first is shown to the model before the store is touched.
    """
    thaw = getattr(store, "thaw", None)
    if thaw is None:
        raise StoreError(f"{type(store).__name__} keeps no sources: use MemoryStore, LmdbStore or TieredStore to thaw")
    tail = split.tail(cut)
    taken = False

    def embed(sources: list[bytes]) -> Activations:
        nonlocal taken
        inputs = _stacked([_as_inputs(decode_source(source), prepare) for source in sources], split)
        if not taken:
            _check_taken(split, tuple(one[:2] for one in inputs))
            taken = True
        return run_in_chunks(tail, tuple(one.to(split.device) for one in inputs), chunk)

    thaw(cut, embed, split.version(cut), chunk)


def _stacked(inputs: Sequence[tuple[Tensor, ...]], split: SplitModel) -> tuple[Tensor, ...]:
    """Samples as batches. Raises DataError for samples that are not alike, not finite, or too few or many tensors."""
    kinds = dict.fromkeys(map(shown, inputs))
    if len(kinds) > 1:
        raise DataError(f"sources are prepared as {' and as '.join(kinds)}: let prepare make them alike")
    if len(inputs[0]) != split.inputs:
        raise DataError(f"sources are prepared as {len(inputs[0])} tensors, but the model takes {split.inputs}")
    batches = tuple(map(torch.stack, zip(*inputs, strict=True)))
    if not all(bool(torch.isfinite(one).all()) for one in batches if one.is_floating_point()):
        raise DataError("prepared sources hold values that are not finite: look at prepare")
    return batches


def _check_taken(split: SplitModel, inputs: tuple[Tensor, ...]) -> None:
    """Raise DataError for prepared sources that the whole model does not take."""
    with inputs_explained(split.example, inputs), modes_kept(split.model), seeded(split.device):
        predicted(split.model, inputs, len(inputs[0]), split.device)


def _as_inputs(source: Any, prepare: Prepare | None) -> tuple[Tensor, ...]:
    inputs = source if prepare is None else prepare(source)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    if not all(isinstance(one, Tensor) for one in inputs):
        what = "sources are images" if prepare is None else f"prepare gave a {type(inputs[0]).__name__}"
        raise StoreError(f"{what}: give prepare, which turns one into the model's input, a tensor or a tuple of them")
    return inputs
