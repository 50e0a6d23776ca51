"""Where activations are kept: in memory, or in LMDB on disk, behind one interface."""

from __future__ import annotations

from streamdrop.store.inspection import store_info as store_info
from streamdrop.store.inspection import verify as verify
from streamdrop.store.lmdb import LmdbStore as LmdbStore
from streamdrop.store.memory import MemoryStore as MemoryStore
from streamdrop.store.protocol import FeatureStore as FeatureStore
from streamdrop.store.protocol import StagedCut as StagedCut
