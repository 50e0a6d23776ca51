"""A conformance kit for splits: every law at every cut, for a user's own model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from streamdrop.nested import leaves
from streamdrop.split import Layers, SplitModel
from streamdrop.types import Activations


def check_split(
    model: nn.Module, example: Any, layers: Layers | None = None, leaves: Sequence[str] = (), batch: int = 3
) -> SplitModel:
    """Split ``model`` and assert the laws at every cut, on ``batch`` random samples of ``example``'s shape and dtype.

    Whole numbers, such as tokens, are drawn from those in ``example``.

    Bit for bit in eval mode: head after tail is the model, step after tail is the tail, nothing given is written to,
    parameters are partitioned, stored copies do as well; in train mode head(0) is the model. Returns the split.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    split = SplitModel(model, example, layers, leaves)
    assert modes == {name: module.training for name, module in model.named_modules()}, "splitting changed a mode"
    examples = (example,) if isinstance(example, torch.Tensor) else example
    generator = torch.Generator().manual_seed(batch)
    inputs = tuple(_random_like(x, batch, generator) for x in examples)
    model.eval()
    with torch.no_grad():
        _check_cuts(split, inputs)
    _check_training(split, inputs)
    model.eval()
    with torch.no_grad():
        assert_same(split.head(0)(inputs), model(*copies(inputs)), "eval mode after train mode")
    return split


def _random_like(x: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
    shape = (batch, *x.shape[1:])
    if x.is_floating_point() or x.is_complex():
        return torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device)
    return x.flatten()[torch.randint(x.numel(), shape, generator=generator).to(x.device)]


def copies(activations: Activations) -> Activations:
    """Copies as a store gives them back: same values, same strides."""
    return tuple(a.clone() for a in activations)


def flatten(value: Any) -> list[torch.Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [t for item in value for t in flatten(item)] if isinstance(value, (tuple, list)) else []


def assert_same(a: Any, b: Any, what: str) -> None:
    """Assert that two nested values have the same type and the same tensors, numbers, text and arrays, bit for bit."""
    assert type(a) is type(b), f"{what}: {type(a)} is not {type(b)}"
    first, second = list(leaves(a)), list(leaves(b))
    assert len(first) == len(second), f"{what}: {len(first)} values, not {len(second)}"
    for one, other in zip(first, second, strict=True):
        assert type(one) is type(other), f"{what}: {type(one)} is not {type(other)}"
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), f"{what}: differs"
        elif isinstance(one, (int, float, complex, str, np.ndarray)):
            assert np.array(one).tobytes() == np.array(other).tobytes(), f"{what}: {one!r} is not {other!r}"


def _check_cuts(split: SplitModel, inputs: Activations) -> None:
    truth = split.model(*copies(inputs))
    given = copies(inputs)
    activations: Activations = split.tail(0)(*inputs)
    assert_same(activations, inputs, "tail(0)")
    everything = {id(p) for p in split.model.parameters()}
    last = len(split.layers) - 1
    for cut in range(last + 1):
        if cut:
            before = copies(activations)
            after = split.step(cut - 1, cut)(activations)
            assert_same(activations, before, f"activations given to step({cut - 1}, {cut})")
            activations = after
        stored = copies(activations)
        assert [a.stride() for a in stored] == [a.stride() for a in activations], f"strides at cut {cut}"
        assert_same(split.head(cut)(stored), truth, f"head({cut}) after the tail")
        assert_same(stored, activations, f"activations given to head({cut})")
        assert sum(a.nbytes for a in activations) == split.live_bytes(cut) * len(inputs[0]), f"live_bytes({cut})"
        tail, head = split.tail_parameters(cut), split.head_parameters(cut)
        assert not tail.keys() & head.keys(), f"parameters on both sides of cut {cut}"
        assert {id(p) for p in (*tail.values(), *head.values())} == everything, f"parameters missing at cut {cut}"
        assert {id(p) for p in split.tail(cut).parameters()} == {id(p) for p in tail.values()}, f"tail({cut})"
        assert {id(p) for p in split.head(cut).parameters()} == {id(p) for p in head.values()}, f"head({cut})"
        if cut in (1, last // 2, last):
            assert_same(split.tail(cut)(*inputs), activations, f"step after step to cut {cut}")
    assert_same(split.step(0, last)(inputs), activations, "one step to the last cut")
    assert_same(inputs, given, "the input")


def _check_modes(split: SplitModel) -> None:
    """A head's ``train()`` does to its modules what the model's own does, and nothing to others."""
    ends = [module for module in split.model.train().modules() if not list(module.children())]
    trained = {id(module) for module in ends if module.training}
    for cut in (0, len(split.layers) - 1):
        split.model.eval()
        own = {id(module) for module in split.head(cut).train().modules()}
        found = {id(module) for module in ends if module.training}
        same = trained & own <= found <= trained
        assert same, f"head({cut}).train() is not what the model's own train() does to its modules"


def _check_training(split: SplitModel, inputs: Activations) -> None:
    model = split.model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    _check_modes(split)
    model.train()
    results = []
    for part in (model, split.head(0)):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(5)
            try:
                output = part(*copies(inputs))
            except (ValueError, RuntimeError) as error:  # an example too small for auxiliary outputs
                output = type(error)
            results.append((output, {name: value.clone() for name, value in model.state_dict().items()}))
            for name, value in model.state_dict().items():
                value.copy_(state[name])
    if isinstance(results[0][0], type):
        assert results[0][0] is results[1][0], "head(0) and the model fail differently in train mode"
    else:
        assert_same(results[1], results[0], "head(0) in train mode")
