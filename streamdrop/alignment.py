"""How a store is brought to the moment at which a checkpoint was written."""

from __future__ import annotations

from typing import Any

from streamdrop import checkpoint
from streamdrop.errors import CheckpointError, StoreError
from streamdrop.split import SplitModel, run_in_chunks
from streamdrop.store import FeatureStore, MemoryStore
from streamdrop.thawing import Prepare, thaw_store

State = dict[str, Any]


def align_store(
    store: FeatureStore,
    state: State,
    parts: checkpoint.Parts,
    split: SplitModel,
    path: object,
    prepare: Prepare | None = None,
) -> None:
    """Bring a store to the checkpoint's mark: promote one that is behind, roll back what came later.

    One ahead, or made by later weights, is thawed where its samples have sources, else refused. What is refused stays
    as it was. Raises CheckpointError, StoreError.
    """
    _check_kind(store, state, path)
    if isinstance(store, MemoryStore):
        store.restore(parts.get("store", {}), state["memory"])
        return
    _check_identity(store, state, path)
    _check_samples(store, state, path)
    _to_cut(store, state, split, path, prepare)
    store.rollback(state["store"]["mark"])
    _check_count(len(store), state, path)


def _check_kind(store: FeatureStore, state: State, path: object) -> None:
    if isinstance(store, MemoryStore) and "memory" not in state:
        raise CheckpointError(f"{path}: saved with a store on disk: open that store and give it to load")
    if not isinstance(store, MemoryStore) and "memory" in state:
        raise CheckpointError(
            f"{path}: saved with a store in memory, which it carries: give load a MemoryStore or none"
        )


def identity_of(store: FeatureStore) -> str:
    """A word that no other store has, '' where a store has none."""
    return str(getattr(store, "identity", ""))


def _check_identity(store: FeatureStore, state: State, path: object) -> None:
    """Marks and keys of another run's store may look alike; its samples are others."""
    here, saved = identity_of(store), state["store"].get("identity", "")  # earlier releases kept none
    if here and saved and here != saved:
        raise CheckpointError(
            f"{path}: saved with store {saved[:8]}, given {here[:8]}, which another run filled: give the folder of the "
            "store it was saved with, or a copy of it"
        )


def _check_samples(store: FeatureStore, state: State, path: object) -> None:
    """Raise before a rollback what would be raised after it, where the store can tell how many samples it leaves."""
    count_at = getattr(store, "count_at", None)
    if count_at is not None:
        _check_count(count_at(state["store"]["mark"]), state, path)


def _check_count(count: int, state: State, path: object) -> None:
    if count != state["store"]["count"]:
        raise CheckpointError(
            f"{path}: the store holds {count} samples, the checkpoint {state['store']['count']}: "
            "give the store it was saved with"
        )


def _to_cut(store: FeatureStore, state: State, split: SplitModel, path: object, prepare: Prepare | None) -> None:
    """Thaw or promote a store that is not at a cut of the checkpoint's, or not of its weights."""
    saved, chunk = state["store"]["cut"], state["settings"]["chunk"]
    # A drop's checkpoint names the new cut before the store flips: a store at either is this checkpoint's own.
    newest = max(saved, state["cut"]) if state["settings"]["strategy"] == "drop" else saved
    ahead = store.cut not in (newest, saved) and store.cut > saved
    if ahead or (store.cut > 0 and store.version != split.version(store.cut)):
        what = f"{path}: the store is at cut {store.cut}, ahead of the checkpoint's {newest}"
        _thaw(store, saved, chunk, split, prepare, what)
    if store.cut < saved:
        step = split.step(store.cut, saved)
        store.advance(saved, lambda given: run_in_chunks(step, given, chunk), split.version(saved), chunk)


def _thaw(store: FeatureStore, cut: int, chunk: int, split: SplitModel, prepare: Prepare | None, what: str) -> None:
    """Make a store's activations anew by the checkpoint's own weights."""
    try:
        thaw_store(store, split, cut, chunk, prepare)
    except StoreError as error:
        remedy = "load the newest checkpoint, or start with a new store"
        raise CheckpointError(f"{what}, and cannot be made anew ({error}): {remedy}") from None
