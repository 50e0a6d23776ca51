"""Training on the first frame: the upper backbone's warm-up, the head's steps, more of them where it finds nothing."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from streamdrop.engine import FineTuner
from streamdrop.split import SplitModel
from streamdrop.tracking.arms import warm_up_rounds
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.labels import score_loss
from streamdrop.tracking.samples import first_frame_sampler
from streamdrop.types import RoundReport

Pieces: TypeAlias = Generator[None, None, RoundReport]
"""A round whose ``next`` runs a piece of it, and which returns its report."""

_LEAST = 0.5  # share of what is owed before the first box
_PROBES = 8  # of the first frame's crops tell whether the head has learned them


class FirstTraining:
    """One target's training on its first frame: ``warm_up``, then ``finish`` or, where frames may not wait, ``rest``.

    ``owed``: steps that are still to be done.
    """

    def __init__(self, config: TrackerConfig, split: SplitModel, tuner: FineTuner) -> None:
        self._config, self._split, self._tuner = config, split, tuner
        self._sampler = first_frame_sampler(config.first_frame.batch)
        self._again = config.first_frame.again  # how often the steps may be done again
        self.owed = config.first_frame.steps

    @property
    def least(self) -> int:
        """How many of the steps ``owed`` run before the first box, whatever the time: fewer do not find the target."""
        return math.ceil(_LEAST * self.owed)

    def warm_up(self) -> list[RoundReport]:
        """The rounds that train the upper backbone, and the one that stores at the new cut."""
        drop, tuner = self._config.drop, self._tuner
        rounds = range(warm_up_rounds(self._config))
        reports = [tuner.fit_round(steps=drop.steps, sampler=self._sampler) for _ in rounds]
        done = len(rounds) * drop.steps
        if tuner.settings.strategy == "drop" and tuner.store.cut < tuner.cut:
            reports.append(tuner.fit_round(steps=1, sampler=self._sampler))  # it stores: its batches pass the tail
            done += 1
        self.owed = max(self.owed - done, 0)
        return reports

    def finish(self) -> list[RoundReport]:
        """What is ``owed``, now; where ``realtime.first`` is set that is left to ``rest``."""
        realtime, reports = self._config.realtime, list[RoundReport]()
        while self.owed and (realtime.in_line or realtime.first is None):
            reports.append(self._tuner.fit_round(steps=self.owed, sampler=self._sampler))
            self.owed = self._more()
        return reports

    def rest(self) -> Pieces | None:
        """What is ``owed``, in pieces; after it there may be more. None: nothing is."""
        return self._pieces() if self.owed else None

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes, as plain data."""
        return {"owed": self.owed, "again": self._again}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; without it nothing is owed."""
        self.owed, self._again = (state.get(name, 0) for name in ("owed", "again"))

    def _pieces(self) -> Pieces:
        steps = self._tuner.round_by_steps(self.owed, self._sampler)
        while True:
            try:
                next(steps)
            except StopIteration as ended:
                self.owed = self._more()
                report: RoundReport = ended.value
                return report
            self.owed -= 1
            yield

    def _more(self) -> int:
        """Steps that are needed yet: all once more where the head finds nothing, so often as may be."""
        if not self._again or self._finds():
            return 0
        self._again -= 1
        return self._config.first_frame.steps

    def _finds(self) -> bool:
        """Whether the head leaves less of the loss than half of what one leaves that finds nothing."""
        store = self._tuner.store
        keys = store.keys()[:_PROBES]
        targets, weights = store.get_targets(keys), torch.ones(len(keys))
        assert isinstance(targets, Tensor)
        with torch.no_grad():
            scores = self._split.head(store.cut)(store.get_many(keys))
            nothing = score_loss(torch.zeros_like(targets), targets, weights)
            return bool(score_loss(scores, targets, weights) < 0.5 * nothing)
