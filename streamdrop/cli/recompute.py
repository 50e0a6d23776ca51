"""The network that a store's activations are recomputed with, from the raw sources it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamdrop.errors import DataError, ModelError
from streamdrop.evaluation.networks import build_network
from streamdrop.split import SplitModel, run_in_chunks
from streamdrop.store.inspection import Recompute
from streamdrop.store.lmdb import LmdbStore
from streamdrop.store.sources import decode_source, is_raw

CLASSES = 1000
_CHUNK = 64


def recomputer(path: str, model: str, weights: str, classes: int | None) -> tuple[Recompute, str | None]:
    """Sources → activations at the cut of the store at ``path``, and a word where the weights are not the store's.

    Raises DataError where no raw source is kept, ModelError (TraceError: it does not take the sources), ConfigError,
    StoreError.
    """
    with LmdbStore(path, read_only=True) as store:
        cut, version, example = store.cut, store.version, _first_input(store)
    network = build_network(model, classes or CLASSES, weights).eval()
    split = SplitModel(network, example)
    if cut >= len(split.layers):
        raise ModelError(f"{path} is at cut {cut}, {model} has {len(split.layers)} layers: give the store's network")
    tail = split.tail(cut)
    note = None
    if version not in (split.version(cut), ""):
        note = (
            f"the store names version {version}, these weights are {split.version(cut)} where inputs are not prepared"
        )
    return lambda sources: run_in_chunks(tail, (_inputs(sources),), _CHUNK), note


def _first_input(store: LmdbStore) -> torch.Tensor:
    keys = store.keys()
    for at in range(0, len(keys), _CHUNK):
        for source in store.get_sources(keys[at : at + _CHUNK]):
            if source is not None and is_raw(source):
                return _inputs([source])
    raise DataError(
        f"{store.path} keeps no raw sources, so nothing can be recomputed: verify it without --model, or keep inputs "
        "as encode_source(image, 'raw') makes them"
    )


def _inputs(sources: Sequence[bytes]) -> torch.Tensor:
    images = sum(not is_raw(source) for source in sources)
    if images:
        raise DataError(
            f"{images} of {len(sources)} sources are image files, and what prepares them for the network is not known "
            "here: call streamdrop.store.verify with a recompute of your own"
        )
    tensors = [torch.as_tensor(decode_source(source)) for source in sources]
    if len({(tensor.shape, tensor.dtype) for tensor in tensors}) > 1:
        raise DataError(
            "the sources differ in shape or dtype: call streamdrop.store.verify with a recompute of your own"
        )
    return torch.stack(tensors)
