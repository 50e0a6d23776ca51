"""When to drop, and how many: a policy is a function from the evidence of a round to a count of layers."""

from __future__ import annotations

import difflib
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from streamdrop.auto import AutoPolicy
from streamdrop.config import load
from streamdrop.errors import ConfigError
from streamdrop.evidence import DropPolicy, Evidence, Offer, PolicyParts
from streamdrop.scores import best_prefix, first_crossing
from streamdrop.values import UnfitValue, check_fields, check_whole, fitted, kind_of

__all__ = [
    "AutoPolicy",
    "DropPolicy",
    "Evidence",
    "Offer",
    "PaperPolicy",
    "PolicyParts",
    "PrefixSumPolicy",
    "SchedulePolicy",
    "policy_from",
]


def passes_median_test(candidates: torch.Tensor, dropped: tuple[float, ...], waived: bool = False) -> bool:
    """Section 3.2, step 2: ``M_c ≥ M_d``; nothing holds back the first drop, nor one where the test is ``waived``."""
    return waived or not dropped or statistics.median(candidates.tolist()) >= statistics.median(dropped)


def _check_patience(policy: PaperPolicy | PrefixSumPolicy, name: str) -> None:
    check_fields(policy, f"policy {name}: ")
    if policy.patience is not None:
        check_whole(f"policy {name}: patience", policy.patience, 0)


@dataclass(frozen=True)
class PaperPolicy:
    """The paper, literally: Eq. 4's first sign change, at least two layers (Algorithm 1: n* > 1), median test.

    Known to stall: Eq. 4 can propose negative scores, and after a lucky first drop M_d may never be reached. Where
    ``patience`` is given, the median test is waived after so many rounds without a drop (not the paper's).
    """

    patience: int | None = None
    needs_scores = True

    def __post_init__(self) -> None:
        _check_patience(self, "paper")

    def check(self, layers: int) -> None:
        """Works for any number of layers."""

    def __call__(self, evidence: Evidence) -> int:
        """The number of layers to drop now, 0 or at least 2."""
        z = evidence.standardised
        count = first_crossing(z)
        waived = self.patience is not None and evidence.waited >= self.patience
        return count if count > 1 and passes_median_test(z[:count], evidence.dropped, waived) else 0


@dataclass(frozen=True)
class PrefixSumPolicy:
    """The paper's text: the prefix of P' with the largest sum, one layer is enough; median test as in PaperPolicy."""

    patience: int | None = None
    needs_scores = True

    def __post_init__(self) -> None:
        _check_patience(self, "prefix-sum")

    def check(self, layers: int) -> None:
        """Works for any number of layers."""

    def __call__(self, evidence: Evidence) -> int:
        """The number of layers to drop now."""
        z = evidence.standardised
        count = best_prefix(z[:-1])  # the last layer is never dropped
        waived = self.patience is not None and evidence.waited >= self.patience
        return count if count and passes_median_test(z[:count], evidence.dropped, waived) else 0


@dataclass(frozen=True)
class SchedulePolicy:
    """Fixed in advance: after round r the cut is ``schedule[r]``, whatever the warm-up. Raises ConfigError."""

    schedule: Mapping[int, int] = field(default_factory=dict)
    needs_scores = False

    def __post_init__(self) -> None:
        check_fields(self)
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


def check_policy(policy: Any) -> None:
    """Raise ConfigError for what is no policy: a name (``policy_from`` takes those), a class, anything not callable."""
    if isinstance(policy, type) or not callable(policy):
        shown = policy.__name__ if isinstance(policy, type) else repr(policy)
        raise ConfigError(
            f"policy is {shown}: give an object such as AutoPolicy(), called with Evidence after a round for the "
            "number of layers to drop"
        )


def parts_of(policy: DropPolicy) -> PolicyParts:
    """What a policy has of PolicyParts; None stands for what it lacks. Raises ConfigError for parts of other kinds."""
    check_policy(policy)
    given = {part.name: getattr(policy, part.name, None) for part in fields(PolicyParts)}
    parts = PolicyParts(**{name: value for name, value in given.items() if value is not None})
    owner = f"policy {kind_of(policy)}: "
    check_fields(parts, owner)
    if parts.scored_weights is not None:
        check_whole(f"{owner}scored_weights", parts.scored_weights, 1)
    return parts


def ask(policy: DropPolicy, evidence: Evidence) -> int:
    """How many layers a policy drops now. Raises ConfigError unless the answer leaves at least one to train."""
    answer: Any = policy(evidence)
    most = evidence.layers - evidence.cut - 1
    try:
        count = int(operator.index(answer))
    except TypeError:  # None, a fraction, a tensor of several
        raise ConfigError(
            f"policy {kind_of(policy)} returned {answer!r} after round {evidence.round}: it must return how many "
            f"layers to drop, a whole number from 0 to {most}"
        ) from None
    if not 0 <= count <= most:
        raise ConfigError(
            f"the policy asked to drop {count} of {most + 1} layers: the last one must stay: {kind_of(policy)} must "
            f"return a whole number from 0 to {most}"
        )
    return count


_NAMES: dict[str, type[DropPolicy]] = {
    "auto": AutoPolicy,
    "paper": PaperPolicy,
    "prefix-sum": PrefixSumPolicy,
}


def policy_from(spec: str | Mapping[str, Any], others: Sequence[str] = ()) -> DropPolicy:
    """A policy from configuration: ``auto``, ``paper``, ``prefix-sum`` or ``never``; ``{name: {option: value}}``.

    A schedule is ``{schedule: {round: cut}}``. ``others``: names that the caller knows itself. Raises ConfigError
    naming the nearest valid name.
    """
    name, value = next(iter(spec.items()), ("", None)) if isinstance(spec, Mapping) else (spec, {})
    if isinstance(value, Mapping) and (isinstance(spec, str) or len(spec) == 1):
        if name in _NAMES:
            return _with_options(_NAMES[name], str(name), value)
        if name == "schedule" and isinstance(spec, Mapping):
            return _schedule(value)
    if spec == "never":
        return SchedulePolicy()
    valid = [*others, *_NAMES, "never", "schedule"]
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near and near[0] != name else f"valid: {', '.join(valid)}"
    raise ConfigError(f"policy {spec!r} is not known: {hint} (a schedule is written {{schedule: {{4: 10, 5: 19}}}})")


def _with_options(kind: type[DropPolicy], name: str, options: Mapping[str, Any]) -> DropPolicy:
    try:
        return load(options, kind)
    except ConfigError as error:
        own = f"policy {name}: "  # what the policy itself refuses begins with it already
        problems = [own + problem.removeprefix("configuration: ").removeprefix(own) for problem in error.problems]
        raise ConfigError("; ".join(problems), problems=problems) from None


def _schedule(cuts: Mapping[Any, Any]) -> SchedulePolicy:
    try:
        return SchedulePolicy({fitted(int, r): fitted(int, c) for r, c in cuts.items()})
    except UnfitValue:
        raise ConfigError(
            f"policy {{'schedule': {dict(cuts)!r}}}: rounds and cuts are whole numbers: give {{schedule: {{4: 10}}}}"
        ) from None
