"""BatchNorm statistics made to fit the weights of layers that are about to be dropped.

While a layer trains, its running statistics trail behind its weights. Dropped, it is run in eval mode for good: what
it then gives can be far from what the layers above were trained on (a ResNet-50 dropped early ends at a loss above that
of chance). So the statistics are taken anew, once, by the final weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from streamdrop.rounds import generator_of, shuffled_batches
from streamdrop.split import SplitModel, run_in_chunks
from streamdrop.store import FeatureStore


@torch.no_grad()
def calibrate(
    split: SplitModel, store: FeatureStore, lower: int, upper: int, batches: Sequence[list[bytes]], chunk: int
) -> int:
    """Take the statistics of every BatchNorm between two cuts anew from stored samples; returns multiply-adds run.

    Each is the plain mean over the batches (Wu and Johnson 2021, section 3: PreciseBN). Dropout and the like stay off.
    """
    between = split.step(lower, upper).train()  # norms that the model itself keeps in eval mode stay in it
    norms = [m for m in between.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms or not batches:
        return 0
    done = 0
    split.model.eval()
    with _gathering(norms):
        for keys in batches:
            activations = tuple(tensor.to(split.device) for tensor in store.get_many(keys))
            if store.cut < lower:
                activations = run_in_chunks(split.step(store.cut, lower), activations, chunk)
            between(activations)
            done += len(keys) * (split.macs(store.cut) - split.macs(upper))
    return done


def calibration_batches(keys: Sequence[bytes], samples: int, size: int, *seed: int) -> list[list[bytes]]:
    """Up to ``samples`` stored keys, chosen by ``seed``, in batches of ``size``; none of a single sample."""
    width = max(size, 2)
    order = [key for batch in shuffled_batches(keys, width, generator_of(*seed)) for key in batch][:samples]
    batches = [order[start : start + width] for start in range(0, len(order), width)]
    return [batch for batch in batches if len(batch) > 1]


@contextlib.contextmanager
def _gathering(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Inside, the norms use their batch's statistics and keep the mean of all; their options come back.

    Where that is broken off, so do their statistics: of no batch, or a few, a model would predict nonsense.
    """
    momenta = [norm.momentum for norm in norms]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        yield
    except BaseException:
        for buffer, was in zip(buffers, before, strict=True):
            buffer.copy_(was)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
