"""The small parts of an adaptation round: order, seeds, clocks, module modes, the optimiser's parameters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

Sampler: TypeAlias = Callable[[list[bytes], int, torch.Generator], Sequence[bytes]]
"""(stored keys, iteration from 0, generator) → the keys of one batch."""


def seed_of(*parts: int) -> int:
    """One 63-bit seed from whole numbers ≥ 0, such as (seed, round, batch): all randomness of a round comes from it."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_of(*parts: int) -> torch.Generator:
    """A CPU generator seeded by ``seed_of``."""
    return torch.Generator().manual_seed(seed_of(*parts))


def shuffled_batches(keys: Sequence[bytes], size: int, generator: torch.Generator) -> list[list[bytes]]:
    """One pass over the keys in random order, in batches of ``size``.

    A last batch of one joins the one before: BatchNorm refuses a single value per channel.
    """
    order = torch.randperm(len(keys), generator=generator).tolist()
    batches = [[keys[i] for i in order[start : start + size]] for start in range(0, len(keys), size)]
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def round_batches(
    keys: list[bytes], size: int, steps: int | None, sampler: Sampler | None, seed: tuple[int, int]
) -> Iterator[list[bytes]]:
    """The batches of one round: a pass over the keys, or ``steps`` batches from ``sampler`` or repeated passes."""
    if sampler is not None:
        count = steps if steps is not None else max(1, len(keys) // size)
        yield from (list(sampler(keys, i, generator_of(*seed, i))) for i in range(count))
        return
    generator = generator_of(*seed)
    done = 0
    while steps is None or done < steps:
        for batch in shuffled_batches(keys, size, generator):
            if done == steps:
                return
            yield batch
            done += 1
        if steps is None:
            return


class Clock:
    """Seconds since it was made, and seconds spent in each named part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter()
        self._parts: dict[str, float] = {}
        self._within = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside towards ``name``; what a part within takes counts there only."""
        start, outer, self._within = time.perf_counter(), self._within, 0.0
        try:
            yield
            if self._device.type == "cuda":  # kernels run behind the host: wait, or their time lands in the next part
                torch.cuda.synchronize(self._device)
        finally:
            elapsed = time.perf_counter() - start
            self._parts[name] = self._parts.get(name, 0.0) + elapsed - self._within
            self._within = outer + elapsed

    def __getitem__(self, name: str) -> float:
        return self._parts.get(name, 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start


@contextlib.contextmanager
def seeded(device: torch.device) -> Iterator[None]:
    """Inside, torch's generators may be seeded at will; the caller's state comes back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def reseed(device: torch.device, seed: int) -> None:
    """Seed the generators that a batch on ``device`` draws from (torch.manual_seed would reach for every device)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every BatchNorm inside into eval mode: its statistics stay as they are."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def has_normalisation(model: nn.Module) -> bool:
    """Whether any module normalises (batch, layer, group, instance)."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    return any(isinstance(module, kinds) for module in model.modules())


def forget_parameters(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of an optimiser: neither weight decay nor momentum moves them; others keep their state."""
    gone = {id(parameter): parameter for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)
        parameter.grad = None


def joined(outputs: Sequence[Any]) -> Any:
    """Chunked outputs as one: tensors along the batch, tuples and dicts part by part."""
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, dict):
        return type(first)((key, joined([output[key] for output in outputs])) for key in first)
    if isinstance(first, (tuple, list)):
        parts = [joined([output[i] for output in outputs]) for i in range(len(first))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first
