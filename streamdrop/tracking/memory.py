"""Which of the frames that a target was seen in are remembered: the last ones, and some of all before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import xxhash

_LAST = 2**64


def kept(frames: Sequence[int], size: int, share: float, seed: int) -> list[int]:
    """Which of ``frames`` (numbers, ascending) stay in a memory of ``size``: indices, ascending.

    A ``share`` of the places is for frames that last, the others (one at least) are for the last ones. A frame n lasts
    with a weight of 1/n: as many from the tenth to the hundredth as from the hundredth to the thousandth. What was
    learned early, close to the box that was given, is never crowded out, however long the video; a sample of all
    frames alike would come to hold nothing but the tracker's own word. Given one by one, or at once, the same stay:
    each frame draws an exponential time of rate 1/n, and the shortest last (Efraimidis and Spirakis 2006).
    """
    lasting = min(int(share * size), size - 1)
    before = max(len(frames) - (size - lasting), 0)
    shortest = sorted(range(before), key=lambda index: _time(frames[index], seed))[:lasting]
    return [*sorted(shortest), *range(before, len(frames))]


def _time(frame: int, seed: int) -> float:
    drawn = xxhash.xxh3_64_intdigest(frame.to_bytes(8, "big"), seed) + 1
    return -math.log(drawn / _LAST) * max(frame, 1)
