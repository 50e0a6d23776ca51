"""Robustness: the same sequence again, from first boxes that are a little off (OTB's spatial robustness)."""

from __future__ import annotations

import zlib

import numpy as np

from streamdrop.boxes import Box

AMOUNT = 0.1
"""By how much a first box is off: its centre in units of its size, and its width and height as factors of 1 ± it."""


def perturbed_box(box: Box, sequence: str, variant: int, amount: float = AMOUNT) -> Box:
    """A first box off by up to ``amount``, drawn from the sequence's name and ``variant`` (≥ 1; 0 is the box itself).

    Every arm and every seed gets the same ones, so that differences are paired.
    """
    if variant == 0:
        return box
    generator = np.random.default_rng([zlib.crc32(sequence.encode()), variant])
    dx, dy, dw, dh = generator.uniform(-amount, amount, 4).tolist()
    x, y = box.centre
    w, h = box.w * (1 + dw), box.h * (1 + dh)
    return Box(x + dx * box.w - w / 2, y + dy * box.h - h / 2, w, h)
