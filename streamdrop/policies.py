"""When to drop, and how many: a policy is a function from the evidence of a round to a count of layers."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from streamdrop.errors import ConfigError
from streamdrop.scores import best_prefix, first_crossing, standardise


@dataclass(frozen=True)
class Evidence:
    """What a policy sees after a round.

    ``importance`` holds P (Eq. 2) of the head's layers in execution order, empty for a policy with
    ``needs_scores = False``. ``dropped`` holds the standardised scores that the layers dropped so far had when they
    were dropped. ``iterations`` is M, the gradients behind each P. Rounds count from 1; ``cut`` is the current one.
    """

    round: int
    cut: int
    layers: int
    importance: tuple[float, ...] = ()
    dropped: tuple[float, ...] = ()
    iterations: int = 0

    @property
    def standardised(self) -> torch.Tensor:
        """P' (Eq. 3) over the head's layers, [layers - cut] float64."""
        return standardise(torch.tensor(self.importance, dtype=torch.float64))


class DropPolicy(Protocol):
    """How many of the head's first layers to drop after a round: 0 … layers - cut - 1.

    ``needs_scores``: asked only after the warm-up, never right after a storing round, and once 30 gradients are in.
    ``check`` refuses, before training, what cannot work for a model of that many layers (ConfigError).
    """

    @property
    def needs_scores(self) -> bool:
        """Whether the decision rests on ``Evidence.importance``."""

    def check(self, layers: int) -> None:
        """Raise ConfigError if the policy cannot work for a model of so many layers."""

    def __call__(self, evidence: Evidence) -> int:
        """The number of layers to drop now."""


def passes_median_test(candidates: torch.Tensor, dropped: tuple[float, ...]) -> bool:
    """Section 3.2, step 2: ``M_c ≥ M_d``; nothing holds back the first drop."""
    return not dropped or statistics.median(candidates.tolist()) >= statistics.median(dropped)


@dataclass(frozen=True)
class PaperPolicy:
    """The paper, literally: Eq. 4's first sign change, at least two layers (Algorithm 1: n* > 1), median test.

    Known to stall: Eq. 4 can propose negative scores, and after a lucky first drop M_d may never be reached.
    """

    needs_scores = True

    def check(self, layers: int) -> None:
        """Works for any number of layers."""

    def __call__(self, evidence: Evidence) -> int:
        """The number of layers to drop now, 0 or at least 2."""
        z = evidence.standardised
        count = first_crossing(z)
        return count if count > 1 and passes_median_test(z[:count], evidence.dropped) else 0


@dataclass(frozen=True)
class PrefixSumPolicy:
    """The paper's text: the prefix of P' with the largest sum, one layer is enough; median test as in the paper."""

    needs_scores = True

    def check(self, layers: int) -> None:
        """Works for any number of layers."""

    def __call__(self, evidence: Evidence) -> int:
        """The number of layers to drop now."""
        z = evidence.standardised
        count = best_prefix(z[:-1])  # the last layer is never dropped
        return count if count and passes_median_test(z[:count], evidence.dropped) else 0


@dataclass(frozen=True)
class SchedulePolicy:
    """Fixed in advance: after round r the cut is ``schedule[r]``, whatever the warm-up. Raises ConfigError."""

    schedule: Mapping[int, int] = field(default_factory=dict)
    needs_scores = False

    def __post_init__(self) -> None:
        cuts = [self.schedule[r] for r in sorted(self.schedule)]
        if any(r < 1 for r in self.schedule) or any(c < 0 for c in cuts) or cuts != sorted(cuts):
            raise ConfigError(
                f"schedule {dict(self.schedule)}: rounds count from 1, cuts never shrink: correct {{round: cut}}"
            )

    def check(self, layers: int) -> None:
        """Every cut must leave one layer to train; raises ConfigError."""
        for round_, cut in self.schedule.items():
            if cut > layers - 1:
                raise ConfigError(
                    f"schedule {{{round_}: {cut}}}: the model has {layers} layers and the last is never dropped: "
                    f"give cuts up to {layers - 1}"
                )

    def __call__(self, evidence: Evidence) -> int:
        """The number of layers to drop now."""
        return max(0, self.schedule.get(evidence.round, evidence.cut) - evidence.cut)


_NAMES: dict[str, Callable[[], DropPolicy]] = {"paper": PaperPolicy, "prefix-sum": PrefixSumPolicy}


def policy_from(spec: str | Mapping[str, Any]) -> DropPolicy:
    """A policy from configuration: ``paper``, ``prefix-sum``, ``never`` or ``{schedule: {round: cut}}``.

    Raises ConfigError naming the nearest valid name.
    """
    valid = [*_NAMES, "never", "schedule"]
    name, value = next(iter(spec.items()), ("", None)) if isinstance(spec, Mapping) else (spec, None)
    if isinstance(spec, Mapping) and len(spec) == 1 and name == "schedule" and isinstance(value, Mapping):
        try:
            return SchedulePolicy({int(r): int(c) for r, c in value.items()})
        except (TypeError, ValueError):
            raise ConfigError(
                f"policy {spec!r}: rounds and cuts are whole numbers: give {{schedule: {{4: 10}}}}"
            ) from None
    if isinstance(spec, str) and name in _NAMES:
        return _NAMES[name]()
    if spec == "never":
        return SchedulePolicy()
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"valid: {', '.join(valid)}"
    raise ConfigError(f"policy {spec!r} is not known: {hint} (a schedule is written {{schedule: {{4: 10, 5: 19}}}})")
