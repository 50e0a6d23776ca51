"""When to drop, and how many: a policy is a function from the evidence of a round to a count of layers."""

from __future__ import annotations

import difflib
import inspect
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from streamdrop.errors import ConfigError
from streamdrop.scores import best_prefix, first_crossing, standardise


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


def passes_median_test(candidates: torch.Tensor, dropped: tuple[float, ...], waived: bool = False) -> bool:
    """Section 3.2, step 2: ``M_c ≥ M_d``; nothing holds back the first drop, nor one where the test is ``waived``."""
    return waived or not dropped or statistics.median(candidates.tolist()) >= statistics.median(dropped)


@dataclass(frozen=True)
class PaperPolicy:
    """The paper, literally: Eq. 4's first sign change, at least two layers (Algorithm 1: n* > 1), median test.

    Known to stall: Eq. 4 can propose negative scores, and after a lucky first drop M_d may never be reached. Where
    ``patience`` is given, the median test is waived after so many rounds without a drop (not the paper's).
    """

    patience: int | None = None
    needs_scores = True

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


@dataclass(frozen=True)
class AutoPolicy:
    """Drops the leading layers whose gradients no longer agree beyond chance, where that pays; the default.

    A layer still learns while its agreement z exceeds ``critical`` standard deviations of chance: an absolute test,
    where the paper's standardised scores rank layers against each other and, once all are at their noise floor, rank
    noise. After ``patience`` rounds without a drop it grows more lenient, by half a deviation a round.

    ``settle``: the warm-up ends before its count once no layer's P has moved by more than this since the window before;
    0: never before. Among the cuts of layers that have stopped, those count whose saving is within a tenth of the best;
    of them, the one that saves most per stored byte. ``break_even``: a cut must save so many multiply-adds for each
    byte then read; "measured": as many as run in that time here (the decision then depends on the clock, and a resumed
    run, or ``freeze`` beside ``drop``, may decide otherwise). ``max_bytes``: what the store may hold. A drop is on
    trial in its first round: a loss above ``tolerance`` times that of the round before takes it back; None: never.
    Raises ConfigError for options that cannot work.
    """

    critical: float = 2.0
    patience: int = 3
    settle: float = 0.01
    break_even: float | Literal["measured"] = 50.0
    max_bytes: int | None = None
    tolerance: float | None = 1.5
    needs_scores = True
    scored_weights = 32_768  # of a parameter: enough for the test, and little work

    def __post_init__(self) -> None:
        rate = self.break_even
        if isinstance(rate, str) and rate != "measured":
            raise ConfigError(f"policy auto: break_even {rate!r}: give multiply-adds per byte, or measured")
        for name in ("patience", "settle", *(("break_even",) if rate != "measured" else ())):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"policy auto: {name} is {getattr(self, name)}: give a number of at least 0")

    @property
    def measures(self) -> bool:
        """Whether ``Evidence.break_even`` has to be measured."""
        return self.break_even == "measured"

    def check(self, layers: int) -> None:
        """Works for any number of layers."""

    def settled(self, evidence: Evidence) -> bool:
        """Whether the warm-up may end now: no layer's P has moved much since the window before."""
        moved = [abs(now - before) for now, before in zip(evidence.importance, evidence.previous, strict=False)]
        return bool(evidence.previous) and max(moved, default=1.0) <= self.settle

    def __call__(self, evidence: Evidence) -> int:
        """The number of layers to drop now."""
        return self._choice(evidence)[0]

    def explain(self, evidence: Evidence) -> str:
        """Why so many layers are dropped now, or why none: one sentence."""
        return self._choice(evidence)[1]

    def _choice(self, evidence: Evidence) -> tuple[int, str]:
        stopped = self._stopped(evidence)
        if not stopped:
            z = evidence.agreement[0] if evidence.agreement else 0.0
            return 0, f"layer {evidence.cut + 1} still learns: its gradients agree at z {z:.1f}, above {self.critical}"
        offers = list(enumerate(evidence.offers[:stopped], start=1))
        if not offers:  # nothing is known of costs: the deepest
            return stopped, f"{stopped} layers have stopped learning"
        room = min((r for r in (self.max_bytes, evidence.room) if r is not None), default=None)
        fitting = [(n, o) for n, o in offers if room is None or o.stored_bytes * evidence.samples <= room]
        if not fitting:
            least = min(o.stored_bytes for _, o in offers) * evidence.samples
            return 0, f"no cut of the {stopped} layers that have stopped fits: {least} bytes needed, {room} free"
        rate = (evidence.break_even or 0.0) if self.break_even == "measured" else float(self.break_even)
        paying = [(n, o) for n, o in fitting if o.saved_macs >= rate * o.stored_bytes]
        if not paying:
            best = max(o.saved_macs / max(o.stored_bytes, 1) for _, o in fitting)
            return 0, f"reading costs more than running: {best:.0f} multiply-adds saved per byte, {rate:.0f} break even"
        most = max(o.saved_macs for _, o in paying)
        count, offer = max(
            ((n, o) for n, o in paying if o.saved_macs >= 0.9 * most),
            key=lambda one: (one[1].saved_macs / max(one[1].stored_bytes, 1), one[0]),
        )
        ratio = offer.saved_macs / max(offer.stored_bytes, 1)
        return count, f"{stopped} layers have stopped learning; {count} saves {ratio:.0f} multiply-adds per stored byte"

    def _stopped(self, evidence: Evidence) -> int:
        """How many leading layers no longer learn, leaving one."""
        critical = self.critical + 0.5 * max(0, evidence.waited - self.patience)
        stopped = 0
        for z in evidence.agreement[:-1]:
            if z > critical:
                break
            stopped += 1
        return stopped


_NAMES: dict[str, Callable[..., DropPolicy]] = {
    "auto": AutoPolicy,
    "paper": PaperPolicy,
    "prefix-sum": PrefixSumPolicy,
}


def policy_from(spec: str | Mapping[str, Any]) -> DropPolicy:
    """A policy from configuration: ``auto``, ``paper``, ``prefix-sum`` or ``never``; ``{name: {option: value}}``.

    A schedule is ``{schedule: {round: cut}}``. Raises ConfigError naming the nearest valid name.
    """
    name, value = next(iter(spec.items()), ("", None)) if isinstance(spec, Mapping) else (spec, {})
    if isinstance(value, Mapping) and (isinstance(spec, str) or len(spec) == 1):
        if name in _NAMES:
            return _with_options(_NAMES[name], str(name), value)
        if name == "schedule" and isinstance(spec, Mapping):
            return _schedule(value)
    if spec == "never":
        return SchedulePolicy()
    valid = [*_NAMES, "never", "schedule"]
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near and near[0] != name else f"valid: {', '.join(valid)}"
    raise ConfigError(f"policy {spec!r} is not known: {hint} (a schedule is written {{schedule: {{4: 10, 5: 19}}}})")


def _with_options(kind: Callable[..., DropPolicy], name: str, options: Mapping[str, Any]) -> DropPolicy:
    valid = list(inspect.signature(kind).parameters)
    for key in options:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"valid: {', '.join(valid)}"
            raise ConfigError(f"policy {name}: {key!r} is not an option of it: {hint}")
    try:
        return kind(**options)
    except TypeError:
        raise ConfigError(f"policy {name}: {dict(options)!r}: options are numbers: see configs/advanced.yaml") from None


def _schedule(cuts: Mapping[Any, Any]) -> SchedulePolicy:
    try:
        return SchedulePolicy({int(r): int(c) for r, c in cuts.items()})
    except (TypeError, ValueError):
        raise ConfigError(
            f"policy {{'schedule': {dict(cuts)!r}}}: rounds and cuts are whole numbers: give {{schedule: {{4: 10}}}}"
        ) from None
