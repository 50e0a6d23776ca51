"""When a tuner's checkpoints are written, and what its store must hold back until they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from streamdrop import resume
from streamdrop.arguments import check_saved, check_tensors
from streamdrop.checkpoint import Snapshot
from streamdrop.feed import Feed
from streamdrop.store import MemoryStore

if TYPE_CHECKING:
    from streamdrop.engine import FineTuner


class Saving:
    """A tuner's last checkpoint: ``last`` is where it lies and the cut it names, None before the first."""

    def __init__(self, tuner: FineTuner, feed: Feed) -> None:
        self._tuner, self._feed = tuner, feed
        self.last: tuple[str, int] | None = None
        self._held: int | None = None  # the last one's store mark, while what earlier ones need is kept

    def save(self, path: str | os.PathLike[str], extra: Any, hold: bool, tensors: Mapping[str, Tensor] | None) -> None:
        """What ``FineTuner.save`` does, and raises."""
        check_saved(path, tensors)
        taken = self.snapshot(extra, tensors)
        taken.write(path)
        self.written(taken, path, hold)

    def snapshot(self, extra: Any, tensors: Mapping[str, Tensor] | None) -> Snapshot:
        """What ``FineTuner.snapshot`` gives, and raises."""
        check_tensors(tensors)
        self._feed.check_weights()
        store = self._tuner.store  # one in memory goes with the checkpoint whole: it has nothing to hold back
        mark = None if isinstance(store, MemoryStore) else store.mark()
        return resume.snapshot(self._tuner, mark, extra, tensors or {})

    def written(self, taken: Snapshot, path: str | os.PathLike[str], hold: bool) -> None:
        """What ``FineTuner.written`` does, and raises."""
        self._held = taken.state["store"]["mark"]
        if not hold:
            self.release()
        self._tuner.extra = taken.state["extra"]
        self.last = (os.fspath(path), taken.state["cut"])

    def release(self) -> None:
        """What ``FineTuner.release`` does, and raises."""
        if self._held is not None:
            self._tuner.store.release(self._held)
        self._held = None

    def before_storing(self) -> None:
        """A checkpoint names the new cut before the store flips: a kill after the flip could not resume otherwise.

        Where checkpoints carry something of the caller's, only the caller can write one that fits: see
        ``FineTuner.save``.
        """
        tuner = self._tuner
        if tuner.moving and self.last is not None and self.last[1] != tuner.cut and tuner.extra is None:
            self.save(self.last[0], None, False, None)
