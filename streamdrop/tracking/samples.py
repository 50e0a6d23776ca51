"""Keys of a target's samples, the store they lie in, and which of them a round learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamdrop.rounds import Sampler
from streamdrop.store import FeatureStore, MemoryStore, TieredStore, remove_store
from streamdrop.streams import sample_key
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.memory import kept


class Keys:
    """Sample keys: ``stream/target/frame`` for search crops, ``stream/target-first/n`` for the first frame's crops."""

    def __init__(self, config: TrackerConfig) -> None:
        self._name, self._target, self._first = config.name, str(config.target), f"{config.target}-first"
        self._first_prefix = sample_key(self._name, self._first, 0)[:-8]

    def frame(self, number: int) -> bytes:
        """The key of a frame's search crop."""
        return sample_key(self._name, self._target, number)

    def first(self, number: int) -> bytes:
        """The key of one of the first frame's crops."""
        return sample_key(self._name, self._first, number)

    def is_first(self, key: bytes) -> bool:
        """Whether the key is one of the first frame's."""
        return key[:-8] == self._first_prefix

    def parted(self, keys: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The first frame's keys, and those of search crops, each in the order given."""
        first = [key for key in keys if self.is_first(key)]
        return first, [key for key in keys if not self.is_first(key)]


def frame_of(key: bytes) -> int:
    """The frame of a search crop's key."""
    return int.from_bytes(key[-8:], "big")


def new_store(config: TrackerConfig) -> FeatureStore:
    """An empty store for a new target. An earlier run's on disk is replaced. Raises StoreError."""
    store = open_store(config)
    if isinstance(store, TieredStore) and (len(store) or store.cut):
        store.close()
        remove_store(store.path)
        store = open_store(config)
    return store


def open_store(config: TrackerConfig) -> FeatureStore:
    """The configured store, bounded to the memory's size (pinned samples stay). Raises StoreError."""
    room = config.first_frame.crops + config.update.memory + 1  # `leaving` chooses before the store has to
    return MemoryStore(max_samples=room) if config.store is None else TieredStore(config.store, max_samples=room)


def first_frame_sampler(batch: int) -> Sampler:
    """Batches of different samples out of all that is stored."""

    def sample(keys: list[bytes], iteration: int, generator: torch.Generator) -> Sequence[bytes]:
        return _some(keys, batch, generator)

    return sample


def update_sampler(config: TrackerConfig, keys_of: Keys) -> Sampler:
    """Batches of remembered samples and the first frame's."""

    def sample(keys: list[bytes], iteration: int, generator: torch.Generator) -> Sequence[bytes]:
        first, recent = keys_of.parted(keys)
        return [*_some(recent, config.update.recent, generator), *_some(first, config.update.first, generator)]

    return sample


def leaving(keys: Sequence[bytes], config: TrackerConfig) -> list[bytes]:
    """Which of a target's remembered samples, oldest first, have to go."""
    update = config.update
    frames = [frame_of(key) for key in keys]
    stay = set(kept(frames, update.memory, update.lasting, config.seed))
    return [key for index, key in enumerate(keys) if index not in stay]


def _some(keys: Sequence[bytes], count: int, generator: torch.Generator) -> list[bytes]:
    order = torch.randperm(len(keys), generator=generator)[:count]
    return [keys[i] for i in order.tolist()]
