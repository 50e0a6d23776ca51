"""What a drop policy is, and what it sees after a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from streamdrop.scores import standardise


@dataclass(frozen=True)
class Offer:
    """What a cut gives and takes, per sample: forward multiply-adds no longer run, bytes stored and read instead."""

    saved_macs: int
    stored_bytes: int


@dataclass(frozen=True)
class Evidence:
    """What a policy sees after a round.

    ``importance`` holds P (Eq. 2) of the head's layers in execution order, empty for a policy with
    ``needs_scores = False``. ``dropped`` holds the standardised scores that the layers dropped so far had when they
    were dropped. ``iterations`` is M, the gradients behind each P. Rounds count from 1; ``cut`` is the current one.

    ``agreement`` holds z of the head's layers (see ``scores.agreement``); ``previous`` their P in the window before,
    empty where there was none. ``waited`` counts the rounds since the last drop, or the warm-up's end, after which
    scores were ripe and nothing was dropped. ``offers[n - 1]`` is what dropping n layers would save and cost; ``room``
    the bytes that the store may still take, None where nothing bounds it; ``samples`` how many it holds.
    ``break_even`` is the measured multiply-adds that could run while one stored byte is read, None: not measured.
    ``first_loss`` is the mean loss of the first round, ``losses`` those of the last six at most, this one's last.
    """

    round: int
    cut: int
    layers: int
    importance: tuple[float, ...] = ()
    dropped: tuple[float, ...] = ()
    iterations: int = 0
    agreement: tuple[float, ...] = ()
    previous: tuple[float, ...] = ()
    waited: int = 0
    offers: tuple[Offer, ...] = ()
    room: int | None = None
    samples: int = 0
    break_even: float | None = None
    first_loss: float | None = None
    losses: tuple[float, ...] = ()

    @property
    def standardised(self) -> torch.Tensor:
        """P' (Eq. 3) over the head's layers, [layers - cut] float64."""
        return standardise(torch.tensor(self.importance, dtype=torch.float64, device="cpu"))


class DropPolicy(Protocol):
    """How many of the head's first layers to drop after a round: 0 … layers - cut - 1.

    A function will do. What else a policy may say, as attributes and methods of its own: ``PolicyParts``.
    """

    def __call__(self, evidence: Evidence, /) -> int:
        """The number of layers to drop now."""


def _works_for_any(layers: int) -> None:
    """Refuses no model."""


def _says_nothing(evidence: Evidence) -> str:
    """Gives no reason."""
    return ""


@dataclass(frozen=True)
class PolicyParts:
    """All that a policy may have beside its decision, at what holds where it lacks them.

    ``needs_scores``: whether it decides by gradient scores: asked only after the warm-up, never right after a storing
    round, and once 30 gradients are in. ``scored_weights``: of a larger parameter about so many weights are scored;
    None: all. ``measures``: whether ``Evidence.break_even`` is measured for it. ``tolerance``: a drop whose first round
    has a loss above so many times that of the round before is taken back; None: never. ``check(layers)`` raises
    ConfigError, before training, where it cannot work for a model of so many layers. ``settled(evidence)``: whether the
    warm-up may end before its count (nothing is measured yet); None: never. ``explain(evidence)``: why it dropped so
    many, or none, on the evidence that it has just decided on.
    """

    needs_scores: bool = True
    scored_weights: int | None = None
    measures: bool = False
    tolerance: float | None = None
    check: Callable[[int], None] = _works_for_any
    settled: Callable[[Evidence], bool] | None = None
    explain: Callable[[Evidence], str] = _says_nothing
