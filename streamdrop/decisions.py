"""When a policy is asked, on what evidence, and what may come of its answer."""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from streamdrop.costs import free_bytes, seconds_per_byte
from streamdrop.errors import ConfigError
from streamdrop.policies import DropPolicy, Evidence, Offer, ask, parts_of
from streamdrop.rounds import has_normalisation
from streamdrop.scores import GradientScores
from streamdrop.settings import TunerSettings
from streamdrop.split import SplitModel
from streamdrop.store import FeatureStore
from streamdrop.values import kind_of

MINIMUM_ITERATIONS = 30
"""Gradients behind a score before any policy sees it: below that, P is mostly noise."""

LOSSES = 6
"""Rounds whose losses a policy sees: enough to tell a fall from noise."""

OTHER_RATE = 1.5
"""A learning rate that has moved by this factor starts a new window: gradients before and after do not compare."""


class Decisions:
    """A policy's decisions about a split model, and what has to be remembered from one to the next.

    ``settling``: the next round stores, and no scored decision follows it. ``dropped_scores``: by layer, the P' that it
    had when it was dropped. ``waited``: rounds since the last drop after which the policy dropped nothing.
    ``why``: what the policy says about its last answer. ``back``: the cut to return to, where a drop is taken back.
    ``layers``: how many there are for a policy; frozen ones (``requires_grad``) at the output side belong to the last.
    Raises ConfigError for what is no policy.
    """

    def __init__(self, policy: DropPolicy, settings: TunerSettings, split: SplitModel) -> None:
        self.policy, self.settings, self.split = policy, settings, split
        self._parts = parts_of(policy)
        self.layers = trained_layers(split)
        self.settling = False
        self.dropped_scores: dict[str, float] = {}
        self.last_iterations = 0
        self.waited = 0
        self.finished = 0  # the last round that was
        self.asked: int | None = None  # the first round after which the policy was asked
        self.why = ""
        self.back: int | None = None
        self._first_loss: float | None = None
        self._losses: list[float] = []  # of the last rounds
        self._came_from: int | None = None  # the cut before a drop that is on trial
        self._refusals = self._quiet_until = 0
        self._previous: dict[str, float] = {}
        self._rate = 0.0
        cuts = range(self.layers) if self.needs_scores else ()
        self._costs = [(split.macs(cut), split.live_bytes(cut)) for cut in cuts]

    @property
    def needs_scores(self) -> bool:
        """Whether the policy rests on gradient scores."""
        return self._parts.needs_scores

    def check(self, scoring: bool) -> None:
        """Raise ConfigError for what cannot work for this model; warn of what works badly."""
        asked = self.settings.strategy != "sgd"
        if asked:
            self._check_layers()
        if asked and self.needs_scores and not scoring:
            raise ConfigError(
                f"scoring is off, but policy {kind_of(self.policy)} decides by gradient scores, so it is never asked: "
                "leave scoring out, or give a policy with needs_scores = False, such as SchedulePolicy"
            )
        if self.settings.cut > self.layers - 1:
            raise ConfigError(
                f"cut {self.settings.cut}: the model has {self.layers} layers and the last stays{self._frozen()}: "
                f"give a cut up to {self.layers - 1}"
            )
        if self.needs_scores and asked and not has_normalisation(self.split.model):
            warnings.warn(
                "the model has no normalisation layer: the order of the scores reverses (paper, Fig. 3) and scored "
                "policies drop badly; give a SchedulePolicy",
                stacklevel=3,
            )

    def _check_layers(self) -> None:
        try:
            self._parts.check(self.layers)
        except ConfigError as error:
            raise ConfigError(f"{error}{self._frozen()}") from None

    def _frozen(self) -> str:
        """Why there are fewer layers than the split has; '' where there are not."""
        if self.layers == len(self.split.layers):
            return ""
        first = self.split.layers[self.layers]
        return f" (from layer {first} on nothing is trained, requires_grad is off: that counts as part of the last)"

    def scores(self, cut: int | None) -> GradientScores:
        """An empty window over the layers from ``cut`` on, as many of their weights as the policy wants; None: none."""
        layers = self.split.layers[cut:] if cut is not None else ()
        weights = {name: self.split.layer_parameters(name) for name in layers}
        return GradientScores(weights, self._parts.scored_weights)

    # ---------------------------------------------------------------- windows of scores

    def begin_round(self, scores: GradientScores, round_: int, rate: float) -> None:
        """Start a new window where the last is over, or the learning rate is another than at its start."""
        self.why = ""
        moved = self._rate > 0 and rate > 0 and not 1 / OTHER_RATE < rate / self._rate < OTHER_RATE
        if moved:
            self._previous = {}
        elif self._window_is_over(scores, round_):
            self._previous = scores.importance()
        if moved or self._window_is_over(scores, round_):
            scores.reset()
        if scores.iterations == 0:
            self._rate = rate

    def _window_is_over(self, scores: GradientScores, round_: int) -> bool:
        """Once it is long enough; not so when the first decision, after a round as short as the last, would be late."""
        first = round_ == self.settings.warm_up + 1 and self.last_iterations < MINIMUM_ITERATIONS
        return scores.iterations >= MINIMUM_ITERATIONS and not first

    # ---------------------------------------------------------------- decisions

    def after_round(
        self, round_: int, cut: int, scores: GradientScores, store: FeatureStore, macs_per_second: float
    ) -> int:
        """How many layers to drop after a round at ``cut``. Raises ConfigError."""
        settling, self.settling = self.settling, False
        if round_ < self._quiet_until:
            self.why = f"the last drop was taken back: the policy is asked again after round {self._quiet_until}"
            return 0
        room = self.layers - 1 - cut
        if self.settings.strategy == "sgd" or room <= 0 or (self.needs_scores and settling):
            return 0
        evidence = self._ripe_evidence(round_, cut, scores, store)
        if evidence is None:
            return 0
        if self._parts.measures:
            evidence = replace(evidence, break_even=macs_per_second * seconds_per_byte(store))
        self.asked = round_ if self.asked is None else self.asked
        count = self._ask(evidence)
        self.why = str(self._parts.explain(evidence))
        self.waited = 0 if count else self.waited + 1
        if count:
            self._note_dropped(cut, cut + count, evidence)
            self.settling, self._came_from = True, cut
        return count

    def meanwhile(self, round_: int, back: int, scores: GradientScores, store: FeatureStore) -> int:
        """How many layers more to drop when a thaw that returns to cut ``back`` is over. Raises ConfigError.

        Only what rests on no scores can be asked: a schedule's rounds go by while layers are thawed.
        """
        if self.settings.strategy == "sgd" or self.needs_scores or back >= self.layers - 1:
            return 0
        self.asked = round_ if self.asked is None else self.asked
        return self._ask(self._evidence(round_, back, scores, store))

    def _ask(self, evidence: Evidence) -> int:
        """What the policy drops now; one without scores, also after rounds that were broken off: a schedule goes on."""
        if self.needs_scores:
            return ask(self.policy, evidence)
        cut = evidence.cut
        for round_ in range(self.finished + 1, evidence.round + 1):
            cut += ask(self.policy, replace(evidence, round=round_, cut=cut))
        return cut - evidence.cut

    def takes_back(self, loss: float, round_: int) -> bool:
        """Whether a drop ends with its first round, whose loss is too far above the round before; ``back`` is then set.

        The policy's ``tolerance`` says how far; it is asked again after 2, 4, 8, … rounds.
        """
        self._first_loss = loss if self._first_loss is None else self._first_loss
        before = self._losses[-1] if self._losses else math.inf
        self._losses = [*self._losses, loss][-LOSSES:]
        came_from, self._came_from = self._came_from, None
        tolerance = self._parts.tolerance
        if came_from is None or tolerance is None:
            return False
        most = tolerance * before if before >= 0 else (2 - tolerance) * before  # as far above a loss below 0
        if loss <= most:
            return False
        self._refusals += 1
        self._quiet_until = round_ + 2**self._refusals
        self.back = came_from
        self._losses[-1] = before  # as if that round had not been
        self.why = f"the drop is taken back: a loss of {loss:.3g} in its first round, {before:.3g} before it"
        return True

    def _ripe_evidence(self, round_: int, cut: int, scores: GradientScores, store: FeatureStore) -> Evidence | None:
        """Evidence to decide on; None while it is too early, and then it is gathered only to ask the policy that.

        Only scores have to ripen: a schedule is obeyed whatever the warm-up.
        """
        warming, settled = self.needs_scores and round_ <= self.settings.warm_up, self._parts.settled
        if self.needs_scores and scores.iterations < MINIMUM_ITERATIONS:
            return None
        if warming and settled is None:
            return None
        evidence = self._evidence(round_, cut, scores, store)
        return None if warming and settled is not None and not settled(evidence) else evidence

    def _evidence(self, round_: int, cut: int, scores: GradientScores, store: FeatureStore) -> Evidence:
        """What the policy sees after a round, but for what is measured; scores and costs only if it needs scores."""
        layers, dropped = self.layers, tuple(self.dropped_scores.values())
        if not self.needs_scores:
            return Evidence(round_, cut, layers, (), dropped, scores.iterations)
        importance = self._trained(scores.importance(), cut)
        return Evidence(
            round_,
            cut,
            layers,
            tuple(importance.values()),
            dropped,
            scores.iterations,
            agreement=tuple(self._trained(scores.agreement(), cut).values()),
            previous=tuple(self._previous[name] for name in importance if name in self._previous),
            waited=self.waited,
            offers=tuple(Offer(self._costs[cut][0] - macs, size) for macs, size in self._costs[cut + 1 :]),
            room=free_bytes(store),
            samples=len(store),
            first_loss=self._first_loss,
            losses=tuple(self._losses),
        )

    def _trained(self, scores: dict[str, float], cut: int) -> dict[str, float]:
        """Scores of the layers from ``cut`` on that there are for a policy."""
        return {name: scores[name] for name in self.split.layers[cut : self.layers]}

    def _note_dropped(self, lower: int, upper: int, evidence: Evidence) -> None:
        """The P' that layers dropped now have; none without scores."""
        scores = evidence.standardised[: upper - lower].tolist()
        self.dropped_scores.update(zip(self.split.layers[lower:upper], scores, strict=False))

    def returns(self, round_: int, lower: int, upper: int, scores: GradientScores) -> None:
        """A thaw is over, layers are dropped again, and the next round stores.

        The P' of now counts, where enough gradients are behind it; else what they had before the thaw.
        """
        self.settling, self.why = True, f"the thaw is over: back to cut {upper}"
        if self.needs_scores and scores.iterations >= MINIMUM_ITERATIONS:
            importance = tuple(self._trained(scores.importance(), lower).values())
            self._note_dropped(lower, upper, Evidence(round_, lower, self.layers, importance))

    def forget(self, cut: int) -> None:
        """Layers from ``cut`` on are trained until dropped anew: what they had when they were counts no more."""
        below = self.split.layers[:cut]
        self.dropped_scores = {name: score for name, score in self.dropped_scores.items() if name in below}
        self._previous, self.settling, self.waited, self._came_from = {}, False, 0, None

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes, as plain data."""
        return {
            "settling": self.settling,
            "dropped_scores": [[name, score] for name, score in self.dropped_scores.items()],
            "last_iterations": self.last_iterations,
            "waited": self.waited,
            "finished": self.finished,
            "asked": self.asked,
            "previous": [[name, p] for name, p in self._previous.items()],
            "rate": self._rate,
            "first_loss": self._first_loss,
            "losses": list(self._losses),
            "came_from": self._came_from,
            "refusals": [self._refusals, self._quiet_until],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.settling, self.dropped_scores = state["settling"], self._by_layer(state["dropped_scores"])
        self.last_iterations, self.waited = state["last_iterations"], state["waited"]
        self.finished = state.get("finished", state["round"])  # earlier releases did not keep it
        self.asked, self._rate = state["asked"], state["rate"]
        self._previous = {name: float(p) for name, p in state["previous"]}
        self._first_loss, self._losses = state["first_loss"], list(state["losses"])
        self._came_from = state["came_from"]
        self._refusals, self._quiet_until = state["refusals"]

    def _by_layer(self, saved: Sequence[Any]) -> dict[str, float]:
        """Scores of dropped layers, by name; earlier releases kept them in order, from the first cut on."""
        if all(isinstance(score, float) for score in saved):
            return dict(zip(self.split.layers[self.settings.cut :], saved, strict=False))
        return {name: float(score) for name, score in saved}


def trained_layers(split: SplitModel) -> int:
    """How many cuts leave something to train above them; all of them where nothing is trained at all."""

    def idle(cut: int) -> bool:
        return not any(parameter.requires_grad for parameter in split.head_parameters(cut).values())

    cuts = range(len(split.layers))
    return bisect.bisect_left(cuts, True, key=idle) or len(cuts)
