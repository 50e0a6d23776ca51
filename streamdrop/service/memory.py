"""Memory that was used for a moment, given back to the machine."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return what this process has freed, where the C library can (glibc); else do nothing.

    Each thread has a heap of its own, which keeps what building a tracker and learning a target needed: 200 MB a
    stream.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
