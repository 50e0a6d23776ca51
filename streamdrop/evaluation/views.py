"""Augmentation that dropping can keep: a few stored views of each sample, one of them trained on in each pass.

A dropped layer is not run again, so a view must be made before it; with K views a sample's activations take K times
the bytes. The first view is the image as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from streamdrop.errors import ConfigError
from streamdrop.rounds import count_batches, generator_of, shuffled_batches
from streamdrop.types import Batch
from streamdrop.values import check_fields


@dataclass(frozen=True)
class ViewsConfig:
    """``count`` views of each sample: shifted by up to ``shift`` pixels (edges repeated), mirrored where ``flip``.

    Raises ConfigError.
    """

    count: int = 1
    shift: int = 2
    flip: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "views.")
        for name, least, most in (("count", 1, 255), ("shift", 0, 1000)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"views.{name} is {getattr(self, name)}: give a whole number from {least} to {most}")


def view_of(batch: Batch, view: int, config: ViewsConfig, seed: int) -> Batch:
    """A batch's ``view``-th views, 0: the batch itself; which they are depends on ``seed``, the keys and ``view``."""
    if view == 0:
        return batch
    images = [_moved(image, key, view, config, seed) for image, key in zip(batch.images, batch.keys, strict=True)]
    return Batch([view_key(key, view) for key in batch.keys], torch.stack(images), batch.targets)


def view_key(key: bytes, view: int) -> bytes:
    """The key under which a sample's view is stored."""
    return key + b"/view" + bytes([view]) if view else key


def _moved(image: Tensor, key: bytes, view: int, config: ViewsConfig, seed: int) -> Tensor:
    """One image [C, H, W], shifted and mirrored."""
    generator = generator_of(seed, view, *key)
    across, down, mirror = torch.rand(3, generator=generator).tolist()
    left, top = (round(x * 2 * config.shift) for x in (across, down))
    height, width = image.shape[-2:]
    padded = functional.pad(image[None], (config.shift,) * 4, mode="replicate")[0]
    moved = padded[:, top : top + height, left : left + width]
    return moved.flip(-1) if config.flip and mirror < 0.5 else moved.contiguous()


class OneViewEach:
    """A sampler for ``fit_round``: a pass over ``keys``, each in one of ``count`` views, drawn anew every round."""

    def __init__(self, keys: Sequence[bytes], count: int) -> None:
        self._keys, self._count = list(keys), count
        self.size = 1  # samples a batch, set before each round
        self._batches: list[list[bytes]] = []

    @property
    def steps(self) -> int:
        """Batches of a pass."""
        return count_batches(self._keys, self.size, None, None)

    def __call__(self, stored: Sequence[bytes], iteration: int, generator: torch.Generator) -> list[bytes]:
        """The keys of one batch."""
        if iteration == 0:
            batches = shuffled_batches(self._keys, self.size, generator)
            views = torch.randint(self._count, (len(self._keys),), generator=generator).tolist()
            drawn = iter(views)
            self._batches = [[view_key(key, next(drawn)) for key in batch] for batch in batches]
        return self._batches[iteration]
