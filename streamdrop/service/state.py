"""What one stream's folder remembers: the target, where the source was, counters; beside the tracker's checkpoint.

::

    state/NAME/stream.json    this file, replaced in one step
    state/NAME/tracker/       the tracker's checkpoint
    state/NAME/features/      its feature store
    state/NAME/events.jsonl   events, boxes.*.txt, video/ as asked for
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamdrop.atomic import replace_text
from streamdrop.boxes import as_box
from streamdrop.errors import BoxError, CheckpointError, OutputError
from streamdrop.service.settings import StreamConfig

log = logging.getLogger("streamdrop")

FORMAT = 1


@dataclass
class StreamState:
    """``number`` and ``position``: of the next frame. ``box``: the target's last place, None without a target.

    ``learned``: the tracker's checkpoint is this target's; else the target is to be learned at ``box``.
    ``given``: the configuration's source and box, to notice when they change. ``report``: the last round's event.
    """

    number: int = 0
    position: int = 0
    box: list[float] | None = None
    score: float = 1.0
    lost: bool = False
    learned: bool = False
    paused: bool = False
    given: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] | None = None

    @property
    def target(self) -> dict[str, Any] | None:
        """The target as others see it: box, score, lost; None without one."""
        box = self.box
        return None if box is None else {"box": list(box), "score": self.score, "lost": self.lost}


class StateFolder:
    """One stream's folder. Raises OutputError where it cannot be made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tracker = path / "tracker"
        self._file = path / "stream.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be made ({error.strerror}): choose another state folder") from None

    def read(self) -> StreamState | None:
        """What was last written, None where nothing was. Raises CheckpointError for what is damaged."""
        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
            return _state(values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, BoxError) as error:
            raise CheckpointError(f"{self._file}: damaged ({error}): remove it to start the stream anew") from None

    def read_if_whole(self) -> StreamState | None:
        """What was last written; what is damaged counts as nothing, and the log says so."""
        try:
            return self.read()
        except CheckpointError as error:
            log.error("%s: the stream starts anew", error)
            return None

    def write(self, state: StreamState) -> None:
        """Replace what was written; killed at any point there is the old or the new. Raises OutputError."""
        try:
            replace_text(self._file, json.dumps({"format": FORMAT, **dataclasses.asdict(state)}))
        except OSError as error:
            raise OutputError(f"{self._file}: cannot be written ({error.strerror}): free some space") from None


def remembered(before: StreamState | None, stream: StreamConfig) -> StreamState:
    """What was remembered, as far as it is about the source and the box that the configuration now names."""
    digest = hashlib.sha256(str(stream.source).encode()).hexdigest()[:16]
    given = {"source": digest, "box": None if stream.box is None else list(stream.box)}
    state = before or StreamState()
    if state.given != given:
        elsewhere = state.given.get("source") != digest
        if elsewhere:
            state.position = 0
        if elsewhere or given["box"] is not None:
            state.box, state.learned, state.lost = None if stream.box is None else list(stream.box), False, False
        state.given = given
    return state


def _state(values: Any) -> StreamState:
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError(f"not of format {FORMAT}")
    state = StreamState(**values)
    if state.box is not None:
        state.box = list(as_box(state.box))
    for name in ("number", "position"):
        if not isinstance(getattr(state, name), int) or getattr(state, name) < 0:
            raise ValueError(f"{name} is no frame")
    if not all(isinstance(part, dict) for part in (state.given, state.counters)):
        raise ValueError("given and counters are no mappings")
    return state
