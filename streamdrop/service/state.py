"""What one stream's folder remembers: the target, where the source was, counters; beside the tracker's checkpoint.

::

    state/NAME/stream.json    this file, replaced in one step
    state/NAME/tracker/       the tracker's checkpoint; of further targets tracker-2/ and so on
    state/NAME/features/      its feature store; features-2/
    state/NAME/events.jsonl   events, boxes.*.txt, video/ as asked for
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamdrop.atomic import replace_text
from streamdrop.boxes import as_box
from streamdrop.errors import BoxError, CheckpointError, OutputError
from streamdrop.service.settings import StreamConfig

log = logging.getLogger("streamdrop")

FORMAT = 2


@dataclass
class TargetState:
    """One target. ``box``: its last place. ``learned``: the checkpoint is its own; else it is to be learned at ``box``.

    ``borrows``: it learned on top of another target's backbone. ``report``: its last round's event.
    """

    box: list[float]
    score: float = 1.0
    lost: bool = False
    learned: bool = False
    borrows: bool = False
    report: dict[str, Any] | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """As others see it: box, score, lost."""
        return {"box": list(self.box), "score": self.score, "lost": self.lost}


@dataclass
class StreamState:
    """``number`` and ``position``: of the next frame. ``targets`` by id; ``newest``: the largest id there ever was.

    ``given``: the configuration's source and boxes, to notice when they change.
    """

    number: int = 0
    position: int = 0
    targets: dict[int, TargetState] = field(default_factory=dict)
    newest: int = 0
    paused: bool = False
    given: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> TargetState | None:
        """The target with the lowest id; None without any."""
        targets = dict(self.targets)  # other threads ask
        return targets[min(targets)] if targets else None

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The targets as others see them, in order: id, box, score, lost."""
        return [{"id": key, **target.shown} for key, target in sorted(dict(self.targets).items())]

    def give(self, key: int, box: Sequence[float]) -> None:
        """A target to be learned."""
        self.targets = {**self.targets, key: TargetState([float(value) for value in box])}
        self.newest = max(self.newest, key)

    def drop(self, key: int) -> None:
        """A target has gone."""
        self.targets = {one: target for one, target in self.targets.items() if one != key}


class StateFolder:
    """One stream's folder. Raises OutputError where it cannot be made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / "stream.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be made ({error.strerror}): choose another state folder") from None

    def tracker(self, key: int) -> Path:
        """Where one target's checkpoint is."""
        return self.path / of_target("tracker", key)

    def forget(self, key: int) -> None:
        """Remove what is kept of a target; of the first its files stay until they are used again."""
        for name in ("tracker", "features") if key > 1 else ():
            shutil.rmtree(self.path / of_target(name, key), ignore_errors=True)

    def read(self) -> StreamState | None:
        """What was last written, None where nothing was. Raises CheckpointError for what is damaged."""
        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
            return _state(values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, BoxError) as error:
            raise CheckpointError(f"{self._file}: damaged ({error}): remove it to start the stream anew") from None

    def read_if_whole(self) -> StreamState | None:
        """What was last written; what is damaged counts as nothing, and the log says so."""
        try:
            return self.read()
        except CheckpointError as error:
            log.error("%s: the stream starts anew", error)
            return None

    def write(self, text: str) -> None:
        """Replace what was written; killed at any point there is the old or the new. Raises OutputError."""
        try:
            replace_text(self._file, text)
        except OSError as error:
            raise OutputError(f"{self._file}: cannot be written ({error.strerror}): free some space") from None


def as_text(state: StreamState) -> str:
    """What the folder's file says of a stream."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(state)})


def of_target(name: str, key: int) -> str:
    """A folder's or file's name for one target: the first's is plain."""
    return name if key == 1 else f"{name}-{key}"


def remembered(before: StreamState | None, stream: StreamConfig) -> StreamState:
    """What was remembered, as far as it is about the source and the boxes that the configuration now names."""
    digest = hashlib.sha256(str(stream.source).encode(errors="surrogatepass")).hexdigest()[:16]
    boxes = stream.boxes
    given = {"source": digest, "boxes": {str(key): list(box) for key, box in boxes.items()}}
    state = before or StreamState()
    if state.given != given:
        if state.given.get("source") != digest or boxes:
            state.position, state.targets = 0, {}  # boxes are those of a file's first frame
            for key, box in boxes.items():
                state.give(key, box)
        state.given = given
    return state


def _state(values: Any) -> StreamState:
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError(f"not of format {FORMAT}")
    targets = {int(key): TargetState(**each) for key, each in values.pop("targets").items()}
    state = StreamState(**values, targets=targets)
    for target in targets.values():
        target.box = list(as_box(target.box))
    for name in ("number", "position", "newest"):
        if not isinstance(getattr(state, name), int) or getattr(state, name) < 0:
            raise ValueError(f"{name} is no whole number")
    if not all(isinstance(part, dict) for part in (state.given, state.counters)):
        raise ValueError("given and counters are no mappings")
    return state
