"""What can be asked of a stream's worker: each is run in its thread, between two frames."""

from __future__ import annotations

from streamdrop.boxes import as_box
from streamdrop.errors import ConflictError
from streamdrop.service.wanted import Wanted
from streamdrop.service.worker import Worker


def forget(worker: Worker, key: int) -> None:
    """Let go of a target; of one that is not there there is nothing to be done. Raises OutputError; then it is kept."""
    known = key in worker.state.targets
    if known:
        worker.following.forget(key)
    worker.wanted.forgotten(key)
    if known:
        worker.broadcast.tell({"event": "cleared", "target": key, "frame": max(worker.furthest, 0)})


def set_paused(worker: Worker, paused: bool) -> None:
    """Stop to track, or go on; the reader of a file with it."""
    if worker.state.paused != paused:
        worker.state.paused = paused
        if paused:
            worker.capture.hold("paused")
        else:
            worker.capture.release("paused")
        worker.broadcast.written("state", worker.following.write)
        worker.broadcast.tell({"event": "paused" if paused else "resumed", "frame": max(worker.furthest, 0)})


def thaw(worker: Worker) -> None:
    """Learn the targets in sight anew where they are. Raises ConflictError where there is none."""
    state, arrival = worker.state, worker.last
    if arrival is None or not worker.following.learned:
        raise _no_target(worker)
    seen = [key for key in worker.following.ids if not state.targets[key].lost]
    if not seen:
        raise ConflictError(f"{worker.name}: the target is lost: thaw when it is in sight, or draw it anew")
    for key in seen:
        worker.wanted.ask(Wanted(as_box(state.targets[key].box), arrival, "thaw", key))


def save_now(worker: Worker) -> None:
    """Save. Raises ConflictError without a target, OutputError."""
    if not worker.following.learned:
        raise _no_target(worker)
    worker.following.save()


def _no_target(worker: Worker) -> ConflictError:
    return ConflictError(f"{worker.name}: has no target that was learned: draw one first")
