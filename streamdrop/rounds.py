"""The small parts of an adaptation round: order, seeds, clocks, module modes, the optimiser's parameters."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from streamdrop.errors import DataError, StreamdropError, TrainingError
from streamdrop.nested import leaves, mapped, tensors

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
    order = torch.randperm(len(keys), generator=generator, device="cpu").tolist()
    batches = [[keys[i] for i in order[start : start + size]] for start in range(0, len(keys), size)]
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def round_batches(
    keys: list[bytes], size: int, steps: int | None, sampler: Sampler | None, seed: tuple[int, int]
) -> Iterator[list[bytes]]:
    """The batches of one round: a pass over the keys, or ``steps`` batches from ``sampler`` or repeated passes.

    Raises TrainingError where ``sampler`` gives no keys.
    """
    if sampler is not None:
        for i in range(count_batches(keys, size, steps, sampler)):
            given = sampler(keys, i, generator_of(*seed, i))
            batch = list(given) if isinstance(given, Iterable) else []
            if not batch:
                what = "no keys" if isinstance(given, Iterable) else f"{given!r}, which is no list of keys,"
                raise TrainingError(f"the sampler gave {what} for iteration {i}: it must give at least one")
            yield batch
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


def whole_steps(steps: Any) -> int | None:
    """How many batches a round is told to have, None: one pass. Raises TrainingError unless whole and at least 1."""
    if steps is None:
        return None
    try:
        whole = int(steps)
    except (TypeError, ValueError, OverflowError):  # a word, NaN, inf
        whole = 0
    if whole < 1 or whole != steps:
        raise TrainingError(f"a round of {steps} steps: give a whole number of at least 1, or None for one pass")
    return whole


def count_batches(keys: Sequence[bytes], size: int, steps: int | None, sampler: Sampler | None) -> int:
    """How many batches ``round_batches`` gives."""
    if steps is not None:
        return steps
    if sampler is not None:
        return max(1, len(keys) // size)
    lone = size > 1 and len(keys) > size and len(keys) % size == 1  # it joins the batch before
    return -(-len(keys) // size) - lone


class Clock:
    """Seconds since it was made, and seconds spent in each named part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._stopped = time.perf_counter()
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

    def stop(self) -> None:
        """Let no time pass until ``go_on``."""
        self._stopped = time.perf_counter()

    def go_on(self) -> None:
        """Go on after ``stop``."""
        self._start += time.perf_counter() - self._stopped

    def seconds(self) -> dict[str, float]:
        """All seconds and those of a round's parts, named as in a RoundReport."""
        parts = {f"{name}_seconds": self._parts.get(name, 0.0) for name in ("tail", "write", "read", "train")}
        return {"seconds": self.elapsed, **parts}

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made, those in which it was stopped left out."""
        return time.perf_counter() - self._start


@dataclass
class UnderWay:
    """A round between its beginning and its report. ``source``: the store's cut when it began, ``cut``: the tuner's."""

    batches: Iterator[list[bytes]]
    planned: int
    clock: Clock
    cut: int
    source: int
    batch_size: int
    rate: float
    thawed: bool
    losses: list[float] = field(default_factory=list)
    samples: int = 0

    @property
    def loss(self) -> float:
        """The mean of the losses so far."""
        return math.fsum(self.losses) / len(self.losses)


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


def head_to_train(model: nn.Module, head: nn.Module, frozen: bool) -> None:
    """The head in train mode (its BatchNorm too unless ``frozen``), the rest in eval mode.

    Dropped layers stay as they are so: their BatchNorm statistics are fixed, their dropout is off.
    """
    model.eval()
    head.train()
    if frozen:
        freeze_batch_norm(head)


def has_normalisation(model: nn.Module) -> bool:
    """Whether any module normalises (batch, layer, group, instance, root mean square)."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return any(isinstance(module, kinds) for module in model.modules())


def forget_parameters(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of an optimiser: neither weight decay nor momentum moves them; others keep their state."""
    gone = {id(parameter): parameter for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)
        parameter.grad = None


@contextlib.contextmanager
def one_sample_explained() -> Iterator[None]:
    """BatchNorm's refusal of a single value per channel as a TrainingError with the remedy."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError("BatchNorm cannot train on one sample: observe more, or batch_norm='frozen'") from None


@contextlib.contextmanager
def loss_explained(output: Any, targets: Any) -> Iterator[None]:
    """What torch raises in a loss, of labels that are out of range, say, as a TrainingError of what it was given."""
    try:
        yield
    except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TrainingError(
            f"the loss does not take an output of {shown(tensors(output)) or type(output).__name__} with targets of "
            f"{shown(tensors(targets)) or repr(targets)}: {reason}: observe the targets that it takes"
        ) from error


@contextlib.contextmanager
def inputs_explained(example: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> Iterator[None]:
    """What the model raises on inputs as a DataError of what it was split with, and what came."""
    try:
        yield
    except (StreamdropError, torch.OutOfMemoryError):
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        took = f"it was split with {shown(example)}"
        raise DataError(
            f"the model does not take images of {shown(inputs)} ({took}): {reason}: prepare them as the example"
        ) from error


def shown(given: Iterable[torch.Tensor]) -> str:
    """Dtype and shape of each tensor."""
    return ", ".join(f"{str(one.dtype).removeprefix('torch.')} {list(one.shape)}" for one in given)


def trainable_loss(loss: Any) -> torch.Tensor:
    """What a loss function gave. Raises TrainingError unless it is one number that a backward pass can start from."""
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        shown = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise TrainingError(f"the loss is {shown}: it must be a tensor of one number, such as the mean over the batch")
    if not loss.requires_grad:
        raise TrainingError(
            "the loss depends on no trained parameter: compute it from the model's output, without detach or no_grad, "
            "and leave requires_grad on in the layers that are trained"
        )
    return loss


@torch.no_grad()
def predicted(model: nn.Module, inputs: Sequence[torch.Tensor], size: int, device: torch.device) -> Any:
    """A model's raw outputs for its inputs [N, ...], ``size`` samples at a time, in eval mode: it stays in it."""
    model.eval()
    chunks = zip(*(torch.split(one, size) for one in inputs), strict=True)
    outputs = [model(*(part.to(device) for part in chunk)) for chunk in chunks]
    _check_shared(outputs)
    return mapped(_joined, *outputs)


def _check_shared(outputs: Sequence[Any]) -> None:
    """Raise DataError for numbers, text or arrays in a model's outputs that are not the same for every batch."""
    plain = (int, float, complex, str, np.ndarray, np.generic)
    told = [[np.array(one).tobytes() for one in leaves(output) if isinstance(one, plain)] for output in outputs]
    if any(other != told[0] for other in told[1:]):
        raise DataError(
            "the model's output holds numbers, text or arrays that are no tensors and differ from batch to batch: let "
            "it return tensors [N, ...], or give predict no more images at once than batch_size"
        )


def _joined(*chunks: torch.Tensor) -> torch.Tensor:
    """One tensor of a model's output, chunk after chunk."""
    if len(chunks) > 1 and chunks[0].dim() == 0:
        raise DataError(
            "the model's output holds a tensor without a batch dimension, which several batches cannot share: give "
            "predict no more images at once than batch_size"
        )
    return torch.cat(chunks) if len(chunks) > 1 else chunks[0]
