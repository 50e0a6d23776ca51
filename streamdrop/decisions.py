"""When a policy is asked, on what evidence, and what may come of its answer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.nn import Parameter

from streamdrop.errors import ConfigError
from streamdrop.policies import DropPolicy, Evidence
from streamdrop.rounds import has_normalisation
from streamdrop.scores import GradientScores
from streamdrop.settings import TunerSettings
from streamdrop.split import SplitModel

MINIMUM_ITERATIONS = 30
"""Gradients behind a score before any policy sees it: below that, P is mostly noise."""


@dataclass(frozen=True)
class Decisions:
    """A policy's decisions about a split model; changes nothing itself."""

    policy: DropPolicy
    settings: TunerSettings
    split: SplitModel

    @property
    def needs_scores(self) -> bool:
        """Whether the policy rests on gradient scores."""
        return bool(getattr(self.policy, "needs_scores", True))

    def check(self) -> None:
        """Raise ConfigError for what cannot work for this model; warn of what works badly."""
        layers, asked = len(self.split.layers), self.settings.strategy != "sgd"
        check = getattr(self.policy, "check", None)
        if check is not None and asked:
            check(layers)
        if self.settings.cut > layers - 1:
            raise ConfigError(f"cut {self.settings.cut}: the model has {layers} layers and the last stays")
        if self.needs_scores and asked and not has_normalisation(self.split.model):
            warnings.warn(
                "the model has no normalisation layer: the order of the scores reverses (paper, Fig. 3) and scored "
                "policies drop badly; give a SchedulePolicy",
                stacklevel=3,
            )

    def scored(self, cut: int) -> dict[str, tuple[Parameter, ...]]:
        """The weights whose gradients are scored: those of every layer from ``cut`` on."""
        return {name: self.split.layer_parameters(name) for name in self.split.layers[cut:]}

    def window_is_over(self, scores: GradientScores, round_: int, last_iterations: int) -> bool:
        """Whether scores start anew before a round: once the window is long enough.

        Not so when the first decision, after a round as short as the last, would then come late.
        """
        first = round_ == self.settings.warm_up + 1 and last_iterations < MINIMUM_ITERATIONS
        return scores.iterations >= MINIMUM_ITERATIONS and not first

    def evidence(
        self, round_: int, cut: int, importance: Mapping[str, float] | None, dropped: Sequence[float], iterations: int
    ) -> Evidence:
        """What the policy sees after a round; scores only if it needs them."""
        scores = tuple((importance or {}).values()) if self.needs_scores else ()
        return Evidence(round_, cut, len(self.split.layers), scores, tuple(dropped), iterations)

    def layers_to_drop(self, evidence: Evidence, settling: bool) -> int:
        """How many layers to drop after a round, which stored (``settling``) or not. Raises ConfigError."""
        room = evidence.layers - 1 - evidence.cut
        if self.settings.strategy == "sgd" or room <= 0 or self._too_early(evidence, settling):
            return 0
        count = self.policy(evidence)
        if not 0 <= count <= room:
            raise ConfigError(f"the policy asked to drop {count} of {room + 1} layers: the last one must stay")
        return count

    def _too_early(self, evidence: Evidence, settling: bool) -> bool:
        """Only scores have to ripen: a schedule is obeyed whatever the warm-up."""
        warming = evidence.round <= self.settings.warm_up or evidence.iterations < MINIMUM_ITERATIONS
        return self.needs_scores and (warming or settling)
