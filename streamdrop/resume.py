"""What a FineTuner's checkpoint holds, and how a store is brought to the moment it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from streamdrop import checkpoint
from streamdrop.errors import CheckpointError, StoreError
from streamdrop.split import SplitModel, run_in_chunks
from streamdrop.store import FeatureStore, MemoryStore
from streamdrop.thawing import Prepare, thaw_store

if TYPE_CHECKING:
    from streamdrop.engine import FineTuner

State = dict[str, Any]


def snapshot(tuner: FineTuner, mark: int, extra: Any, tensors: Mapping[str, Tensor]) -> checkpoint.Snapshot:
    """Everything a tuner needs to go on. Raises CheckpointError where ``extra`` is not plain data."""
    optimizer: dict[str, Tensor] = {}
    scheduler = tuner.scheduler.state_dict() if tuner.scheduler is not None else None
    state: State = {
        "settings": asdict(tuner.settings),
        "layers": list(tuner.split.layers),
        "round": tuner.round,
        "cut": tuner.cut,
        **tuner.decisions.state(),
        "thawing": tuner.thawing.state(),
        "iterations": tuner.scores.iterations,
        "optimizer": checkpoint.pack(tuner.optimizer.state_dict(), optimizer),
        "scheduler": None if scheduler is None else checkpoint.pack(scheduler, optimizer, "scheduler"),
        "store": {"cut": tuner.store.cut, "count": len(tuner.store), "mark": mark},
        "extra": extra,
    }
    parts: checkpoint.Parts = {
        "model": tuner.split.model.state_dict(),
        "optimizer": optimizer,
        "scores": tuner.scores.tensors(),
    }
    if means := tuner.cutting.mean.tensors():
        parts["mean"] = means
    if tensors:
        parts["extra"] = dict(tensors)
    if isinstance(tuner.store, MemoryStore):  # its content dies with the process: the checkpoint carries it
        parts["store"], state["memory"] = tuner.store.state()
    return checkpoint.take_snapshot(parts, state)


def read(path: object, split: SplitModel) -> tuple[checkpoint.Parts, State]:
    """The checkpoint at ``path``, its weights loaded into the split model. Raises CheckpointError."""
    parts, state = checkpoint.read_checkpoint(str(path))
    if state.get("layers") != list(split.layers):
        raise CheckpointError(f"{path}: saved from a model with other layers: build the model it was saved from")
    try:
        split.model.load_state_dict(parts["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: the weights do not fit this model ({reason}): build the same model") from None
    return parts, state


def continue_from(tuner: FineTuner, parts: checkpoint.Parts, state: State) -> None:
    """Put the checkpoint's optimiser, scores and counters into a tuner built anew."""
    tuner.round, tuner.extra, tuner.extra_tensors = state["round"], state["extra"], parts.get("extra", {})
    tuner.decisions.restore(state)
    tuner.thawing.restore(state["thawing"])
    tuner.cutting.advance(state["cut"])  # before the optimiser's state: rates that grow with the batch are in it
    tuner.optimizer.load_state_dict(checkpoint.unpack(state["optimizer"], parts["optimizer"]))
    if tuner.scheduler is not None and state["scheduler"] is not None:
        tuner.scheduler.load_state_dict(checkpoint.unpack(state["scheduler"], parts["optimizer"]))
    if tuner.scores.layers:
        tuner.scores.restore(parts["scores"], state["iterations"])
    tuner.cutting.mean.restore(parts.get("mean", {}), state["iterations"])


def align_store(
    store: FeatureStore,
    state: State,
    parts: checkpoint.Parts,
    split: SplitModel,
    path: object,
    prepare: Prepare | None = None,
) -> None:
    """Bring a store to the checkpoint's mark: promote one that is behind, roll back what came later.

    One ahead, or made by later weights, is thawed where its samples have sources, else refused. Raises CheckpointError.
    """
    saved = state["store"]
    if isinstance(store, MemoryStore):
        if "memory" not in state:
            raise CheckpointError(f"{path}: saved with a store on disk: open that store and give it to load")
        store.restore(parts.get("store", {}), state["memory"])
        return
    if "memory" in state:
        raise CheckpointError(
            f"{path}: saved with a store in memory, which it carries: give load a MemoryStore or none"
        )
    # A drop's checkpoint names the new cut before the store flips: a store at either is this checkpoint's own.
    newest = max(saved["cut"], state["cut"]) if state["settings"]["strategy"] == "drop" else saved["cut"]
    ahead = store.cut not in (newest, saved["cut"]) and store.cut > saved["cut"]
    if ahead or (store.cut > 0 and store.version != split.version(store.cut)):
        _thaw(
            store, state, split, prepare, f"{path}: the store is at cut {store.cut}, ahead of the checkpoint's {newest}"
        )
    if store.cut < saved["cut"]:
        step = split.step(store.cut, saved["cut"])
        chunk = state["settings"]["chunk"]
        store.advance(saved["cut"], lambda given: run_in_chunks(step, given, chunk), split.version(saved["cut"]), chunk)
    store.rollback(saved["mark"])
    if len(store) != saved["count"]:
        raise CheckpointError(
            f"{path}: the store holds {len(store)} samples, the checkpoint {saved['count']}: "
            "give the store it was saved with"
        )


def _thaw(store: FeatureStore, state: State, split: SplitModel, prepare: Prepare | None, what: str) -> None:
    """Make a store's activations anew by the checkpoint's own weights."""
    store.rollback(state["store"]["mark"])
    try:
        thaw_store(store, split, state["store"]["cut"], state["settings"]["chunk"], prepare)
    except StoreError as error:
        remedy = "load the newest checkpoint, or start with a new store"
        raise CheckpointError(f"{what}, and cannot be made anew ({error}): {remedy}") from None
