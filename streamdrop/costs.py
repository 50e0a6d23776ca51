"""What a store costs here and now: the room that is left for it, and the time that reading takes."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from streamdrop.store import FeatureStore


def free_bytes(store: FeatureStore) -> int | None:
    """Bytes that a store may still take on its disk, a tenth of what is free left; None for a store in memory."""
    path = getattr(getattr(store, "durable", store), "path", None)
    if path is None or not Path(path).exists():
        return None
    return int(shutil.disk_usage(path).free * 0.9)


def seconds_per_byte(store: FeatureStore) -> float:
    """What reading a stored byte costs here and now: the quicker of two batches of 64."""
    keys: Sequence[bytes] = store.keys()[:64]
    best, size = math.inf, 1
    for _ in range(2 if keys else 0):
        start = time.perf_counter()
        size = sum(tensor.nbytes for tensor in store.get_many(keys))
        best = min(best, time.perf_counter() - start)
    return best / max(size, 1) if math.isfinite(best) else 0.0
