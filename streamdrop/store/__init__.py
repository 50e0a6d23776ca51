"""Where activations are kept: in memory, on disk, or on disk behind a memory; one interface."""

from __future__ import annotations

from streamdrop.store.examination import repair as repair
from streamdrop.store.exchange import export_store as export_store
from streamdrop.store.exchange import import_store as import_store
from streamdrop.store.files import remove_store as remove_store
from streamdrop.store.inspection import store_info as store_info
from streamdrop.store.inspection import verify as verify
from streamdrop.store.lmdb import LmdbStore as LmdbStore
from streamdrop.store.memory import MemoryStore as MemoryStore
from streamdrop.store.prefetch import Stored as Stored
from streamdrop.store.prefetch import read_ahead as read_ahead
from streamdrop.store.protocol import FeatureStore as FeatureStore
from streamdrop.store.protocol import StagedCut as StagedCut
from streamdrop.store.retention import Retention as Retention
from streamdrop.store.sources import decode_source as decode_source
from streamdrop.store.sources import encode_source as encode_source
from streamdrop.store.tiers import TieredStore as TieredStore
