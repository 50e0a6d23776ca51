"""The default policy: drop what no longer learns beyond chance, where that pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamdrop.errors import ConfigError
from streamdrop.evidence import Evidence, Offer
from streamdrop.values import check_fields

NOT_NEGATIVE = ("learned", "fitted", "patience", "settle", "break_even", "worth", "max_bytes", "tolerance")


@dataclass(frozen=True)
class AutoPolicy:
    """Drops the leading layers whose gradients no longer agree beyond chance, where that pays; the default.

    A layer still learns while its agreement z exceeds ``critical`` standard deviations of chance: an absolute test,
    where the paper's standardised scores rank layers against each other and, once all are at their noise floor, rank
    noise. In a deep network noise hides slow learning, so nothing is dropped either while the loss is above ``learned``
    of the first round's and still falling: the mean of the last three rounds a tenth below that of the three before.
    Below ``fitted`` of it there is nothing left to gain by agreeing. Where the first loss is not above 0, agreement
    alone decides. After ``patience`` decisions without a drop a loss
    that is high but no longer falls holds nothing back, and the test of agreement grows more lenient, by half a
    deviation each time.

    ``settle``: the warm-up ends before its count once no layer's P has moved by more than this since the window before;
    0: never before. Among the cuts of layers that have stopped, those count whose saving is within a tenth of the best;
    of them, the one that saves most per stored byte. ``break_even``: a cut must save so many multiply-adds for each
    byte then read; "measured": as many as run in that time here (the decision then depends on the clock, and a resumed
    run, or ``freeze`` beside ``drop``, may decide otherwise). ``worth``: a drop costs a round of storing, so it must
    save this share of what dropping all but the last layer would. ``max_bytes``: what the store may hold. A drop is on
    trial in its first round: a loss above ``tolerance`` times that of the round before takes it back; None: never.
    Raises ConfigError for options that cannot work.
    """

    critical: float = 2.0
    learned: float = 0.2
    fitted: float = 0.02
    patience: int = 3
    settle: float = 0.01
    break_even: float | Literal["measured"] = 50.0
    worth: float = 0.1
    max_bytes: int | None = None
    tolerance: float | None = 1.0
    needs_scores = True
    scored_weights = 32_768  # of a parameter: enough for the test, and little work

    def __post_init__(self) -> None:
        check_fields(self, "policy auto: ")
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value < 0:
                raise ConfigError(f"policy auto: {name} is {value}: give a number of at least 0")

    @property
    def measures(self) -> bool:
        """Whether ``Evidence.break_even`` has to be measured."""
        return self.break_even == "measured"

    def check(self, layers: int) -> None:
        """Works for any number of layers."""

    def settled(self, evidence: Evidence) -> bool:
        """Whether the warm-up may end now: no layer's P has moved much since the window before."""
        moved = [abs(now - before) for now, before in zip(evidence.importance, evidence.previous, strict=False)]
        return self.settle > 0 and bool(evidence.previous) and max(moved, default=1.0) <= self.settle

    def __call__(self, evidence: Evidence) -> int:
        """The number of layers to drop now."""
        return self._choice(evidence)[0]

    def explain(self, evidence: Evidence) -> str:
        """Why so many layers are dropped now, or why none: one sentence."""
        return self._choice(evidence)[1]

    def _choice(self, evidence: Evidence) -> tuple[int, str]:
        """How many layers, and why."""
        if not self._has_learned(evidence):
            return 0, "most of the loss is still there: layers may learn though noise hides it"
        stopped = self._stopped(evidence)
        if not stopped:
            z = evidence.agreement[0] if evidence.agreement else 0.0
            critical = self._critical(evidence)
            return 0, f"layer {evidence.cut + 1} still learns: its gradients agree at z {z:.2f}, above {critical:g}"
        if not evidence.offers:  # nothing is known of costs: the deepest
            return stopped, f"{stopped} layers have stopped learning"
        return self._best(evidence, list(enumerate(evidence.offers[:stopped], start=1)))

    def _best(self, evidence: Evidence, offers: list[tuple[int, Offer]]) -> tuple[int, str]:
        """Of cuts whose layers have stopped learning, the one to take: it must fit, and pay."""
        room = min((r for r in (self.max_bytes, evidence.room) if r is not None), default=None)
        fitting = [(n, o) for n, o in offers if room is None or o.stored_bytes * evidence.samples <= room]
        if not fitting:
            least = min(o.stored_bytes for _, o in offers) * evidence.samples
            return 0, f"no cut of the {len(offers)} layers that have stopped fits: {least} bytes needed, {room} free"
        rate = (evidence.break_even or 0.0) if self.break_even == "measured" else float(self.break_even)
        paying = [(n, o) for n, o in fitting if o.saved_macs >= rate * o.stored_bytes]
        if not paying:
            most = max(_per_byte(o) for _, o in fitting)
            return 0, f"reading costs more than running: {most:.0f} multiply-adds saved per byte, {rate:.0f} break even"
        most, whole = max(o.saved_macs for _, o in paying), evidence.offers[-1].saved_macs
        if most < self.worth * whole:
            return 0, f"{len(offers)} layers have stopped learning, but are only {most / whole:.0%} of the work"
        near = [(n, o) for n, o in paying if o.saved_macs >= 0.9 * most]
        count, offer = max(near, key=lambda one: (_per_byte(one[1]), one[0]))
        why = (
            f"{len(offers)} layers have stopped learning; {count} save {_per_byte(offer):.0f} multiply-adds per stored "
        )
        return count, why + f"byte, {rate:.0f} break even"

    def _has_learned(self, evidence: Evidence) -> bool:
        """Whether most of the loss is gone, or it no longer falls and that was waited for."""
        first = _first_loss(evidence)
        if first is None or evidence.losses[-1] <= self.learned * first:
            return True
        return evidence.waited >= self.patience and not _falls(evidence.losses)

    def _critical(self, evidence: Evidence) -> float:
        """The agreement above which a layer learns, after so long a wait."""
        return self.critical + 0.5 * max(0, evidence.waited - self.patience)

    def _stopped(self, evidence: Evidence) -> int:
        """How many leading layers no longer learn, leaving one."""
        first = _first_loss(evidence)
        if first is not None and evidence.losses[-1] <= self.fitted * first:
            return max(0, evidence.layers - evidence.cut - 1)
        stopped = 0
        for z in evidence.agreement[:-1]:
            if z > self._critical(evidence):
                break
            stopped += 1
        return stopped


def _first_loss(evidence: Evidence) -> float | None:
    """What later losses are a share of; None where none is known, or it is not above 0: nothing is a share of that."""
    return evidence.first_loss if evidence.first_loss is not None and evidence.first_loss > 0 else None


def _falls(losses: tuple[float, ...]) -> bool:
    """Whether the later half's mean is a tenth below the earlier half's; True where there is nothing to compare."""
    half = len(losses) // 2
    return half == 0 or sum(losses[-half:]) < 0.9 * sum(losses[-2 * half : -half])


def _per_byte(offer: Offer) -> float:
    return offer.saved_macs / max(offer.stored_bytes, 1)
