"""The moves of the cut: on where a policy drops, back where a thaw is due or a drop is taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from torch.nn import Parameter

from streamdrop.boundary import Boundary
from streamdrop.calibration import calibrate, calibration_batches
from streamdrop.decisions import Decisions
from streamdrop.errors import ConfigError
from streamdrop.interrupts import held
from streamdrop.rounds import Clock
from streamdrop.scores import GradientScores
from streamdrop.split import SplitModel
from streamdrop.store import FeatureStore
from streamdrop.thawing import Prepare, Thawing, thaw_store
from streamdrop.tracing.kept import modes_kept
from streamdrop.weight_mean import WeightMean

UNDONE = -2.0
"""Agreement below which a layer's steps undo each other beyond chance: two standard deviations."""


class Cutting:
    """Moves a tuner's cut after its rounds, with all that hangs on it: optimiser, scores, statistics, store."""

    def __init__(
        self,
        split: SplitModel,
        store: FeatureStore,
        boundary: Boundary,
        decisions: Decisions,
        thawing: Thawing,
        prepare: Prepare | None,
        scoring: bool,
    ) -> None:
        self.split, self.store, self.settings = split, store, decisions.settings
        self.boundary, self.decisions, self.thawing = boundary, decisions, thawing
        self._prepare, self._scoring = prepare, scoring
        self.scores, self.mean = self._new_scores(), WeightMean(self._averaged())

    @property
    def cut(self) -> int:
        """How many leading layers are no longer trained."""
        return self.boundary.cut

    def begin_round(self, number: int) -> None:
        """Scores, and the mean of the weights, start anew where their window is over."""
        self.decisions.begin_round(self.scores, number, self.boundary.rate)
        if self.scores.iterations == 0:
            self.mean.reset()

    def after_round(self, number: int, loss: float, macs_per_second: float, clock: Clock) -> int:
        """Move the cut: back where a thaw is due, on where one ends or the policy drops; returns multiply-adds run."""
        back = self.decisions.back
        if back is not None:  # the drop on trial in this round is taken back: the store has not moved
            self.decisions.back = None
            self._retreat(back)
            return 0
        planned = self.thawing.state()
        cut = self._next_cut(number, loss)
        if cut is not None and cut < self.cut:
            with clock.part("tail"):
                self._thaw_as_planned(cut, planned)
        elif cut is not None:
            self.decisions.returns(number, self.cut, cut, self.scores)
            return self._drop(cut, number, clock)
        elif self.thawing.back is None:
            count = self.decisions.after_round(number, self.cut, self.scores, self.store, macs_per_second)
            if count:
                return self._drop(self.cut + count, number, clock)
        return 0

    def _next_cut(self, number: int, loss: float) -> int | None:
        """Where the plan moves the cut, None: it does not; what a policy drops meanwhile waits for a thaw to end."""
        before = self.thawing.back
        cut = self.thawing.next_cut(self.cut, loss, self.decisions.settling)
        back = self.thawing.back if self.thawing.back is not None else before
        if back is None:
            return cut
        back += self.decisions.meanwhile(number, back, self.scores, self.store)
        if self.thawing.back is None:
            return back
        self.thawing.back = back
        return cut

    def advance(self, cut: int) -> None:
        """Move the cut on: the layers below leave the optimiser and the scores; the batch may grow."""
        self.boundary.advance(cut)
        self.scores.keep(self.split.layers[cut:])
        self.mean.keep(self._averaged().keys())

    def go_on_at(self, cut: int) -> None:
        """Move the cut of a tuner built anew to where another one's was, before or after where it starts."""
        if cut < self.cut:
            self._retreat(cut)
        else:
            self.advance(cut)

    def thaw(self, cut: int) -> None:
        """What ``FineTuner.thaw`` does, and raises."""
        if not isinstance(cut, SupportsIndex) or not 0 <= cut < self.cut:
            raise ConfigError(f"thaw to cut {cut!r}: the cut is {self.cut}: give an earlier one")
        if self.store.cut > cut:
            thaw_store(self.store, self.split, cut, self.settings.chunk, self._prepare)
        self._retreat(cut)

    def _thaw_as_planned(self, cut: int, planned: Sequence[Any]) -> None:
        """Thaw; where that cannot be, the plan is as it was before the round: there is nothing to return from."""
        try:
            self.thaw(cut)
        except BaseException:
            self.thawing.restore(planned)
            raise
        self.decisions.why = f"thawed: all from cut {cut} on is trained again"

    def _drop(self, cut: int, number: int, clock: Clock) -> int:
        """Move the cut on and make the layers below fit to be run in eval mode for good; returns multiply-adds run."""
        lower, settings = self.cut, self.settings
        with held():  # weights, optimiser, scores and cut move together
            self.mean.take(self._undone())
            self.advance(cut)
            self.scores.reset()
            self.mean.reset()
        if settings.batch_norm == "frozen" or not settings.calibrate:
            return 0
        keys = calibration_batches(self.store.keys(), settings.calibrate, settings.batch_size, settings.seed, number, 1)
        with clock.part("tail"), modes_kept(self.split.model):
            return calibrate(self.split, self.store, lower, cut, keys, settings.chunk)

    def _undone(self) -> set[str]:
        """The parameters of layers whose steps undo each other; others get somewhere, the mean would set them back.

        What stands between a layer and the next, such as its BatchNorm, goes with it.
        """
        agreement, layers = self.scores.agreement(), self.split.layers
        heads = [*(self.split.head_parameters(cut).keys() for cut in range(self.cut, len(layers))), set()]
        between = zip(layers[self.cut :], heads, heads[1:], strict=False)
        return {name for layer, own, above in between if agreement.get(layer, 0.0) < UNDONE for name in own - above}

    def _retreat(self, cut: int) -> None:
        with held():
            self.boundary.retreat(cut)
            self.scores, self.mean = self._new_scores(), WeightMean(self._averaged())
            self.decisions.forget(max(cut, self.thawing.back or 0))  # what a thaw returns to is not forgotten

    def _new_scores(self) -> GradientScores:
        return self.decisions.scores(self.cut if self._scoring else None)

    def _averaged(self) -> Mapping[str, Parameter]:
        """What the mean is of: all that is trained, while scores decide whether layers of it are dropped."""
        scored = self._scoring and self.decisions.needs_scores and self.settings.strategy != "sgd"
        droppable = self.cut < self.decisions.layers - 1
        return self.split.head_parameters(self.cut) if self.settings.average and scored and droppable else {}
