"""Whose round comes when, of several targets that learn on one stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_NEARLY_ONE = 1 - 1e-6  # thirds add up to a little less


@dataclass
class Turns:
    """Targets ``ask`` for rounds; ``next`` says whose is due: that of the one who has waited longest, by id on a tie.

    ``early``: rounds that a target still has to get at once, by id, and parts of rounds; ``owed``: ids that want one
    when there is time; ``last``: the frame of each one's last round.
    """

    early: dict[int, float] = field(default_factory=dict)
    owed: set[int] = field(default_factory=set)
    last: dict[int, int] = field(default_factory=dict)

    def ask(self, key: int, early: float = 0.0) -> None:
        """A target's round is due; of an early one so much. Early ones add up, of others one is owed at most."""
        if early:
            self.early[key] = self.early.get(key, 0.0) + early
        else:
            self.owed.add(key)

    def next(self, frame: int, apart: float) -> int | None:
        """Whose round it is in this frame, taken off the list; None: nobody's.

        Rounds that are not early ones keep ``apart`` frames from those of the other targets.
        """
        early = [key for key, rounds in self.early.items() if rounds > _NEARLY_ONE]
        waiting = early or self.owed
        if not waiting:
            return None
        key = min(waiting, key=lambda one: (self.last.get(one, -1), one))
        if not early and not self._rested(key, frame, apart):
            return None
        if key in self.early:
            self.early[key] = max(self.early[key] - 1, 0.0)
        self.owed.discard(key)
        return key

    def _rested(self, key: int, frame: int, apart: float) -> bool:
        return all(frame - at >= apart for other, at in self.last.items() if other != key)

    def forget(self, key: int) -> None:
        """The target has gone, or begins anew."""
        self.early.pop(key, None)
        self.owed.discard(key)
        self.last.pop(key, None)

    def state(self) -> dict[str, Any]:
        """What ``restored`` takes, as plain data."""
        return {**asdict(self), "owed": sorted(self.owed)}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Turns:
        """Go on where ``state`` was taken."""
        early = {int(key): float(value) for key, value in state["early"].items()}
        last = {int(key): int(value) for key, value in state["last"].items()}
        return cls(early, {int(key) for key in state["owed"]}, last)
