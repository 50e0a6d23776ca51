"""Memory that was used for a moment, given back to the machine. Where the C library is not glibc nothing is done."""

from __future__ import annotations

import ctypes
from typing import Any

_ARENA_MAX = -8  # of mallopt(3)


def few_heaps(count: int) -> None:
    """Have all threads share so many heaps; to be called before they begin.

    Each would have one of its own, which keeps the most that its thread ever needed: 200 MB a stream.
    """
    limit = _function("mallopt")
    if limit is not None:
        limit(_ARENA_MAX, count)


def give_back() -> None:
    """Return what this process has freed: building a tracker and learning a target need much for a moment."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):
        return None
