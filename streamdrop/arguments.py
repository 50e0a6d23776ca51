"""What callers hand to a FineTuner, looked at before anything is done with it."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamdrop.errors import CheckpointError, ConfigError, DataError, TrainingError
from streamdrop.split import SplitModel
from streamdrop.store import FeatureStore
from streamdrop.thawing import ThawPlan
from streamdrop.values import kind_of

_OPTIMIZER = ("param_groups", "state", "step", "zero_grad", "state_dict", "load_state_dict")
"""What is used of an optimiser."""


def check_split_and_store(split: Any, store: Any) -> None:
    """Raise ConfigError for what is no SplitModel, or no store (None: one in memory)."""
    if not isinstance(split, SplitModel):
        raise ConfigError(f"split is {_shown(split)}: give SplitModel(model, example)")
    if store is not None and (isinstance(store, type) or not isinstance(store, FeatureStore)):
        raise ConfigError(
            f"store is {_shown(store)}: give a store, such as MemoryStore() or LmdbStore(folder), or one of your own "
            "with every method of streamdrop.store.FeatureStore (streamdrop.testing.stores.check_store)"
        )


def check_options(autocast: Any, thaw: Any, prepare: Any, scoring: Any) -> None:
    """Raise ConfigError for an option of a FineTuner that is of another kind than it takes."""
    if autocast is not None and autocast not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"autocast is {autocast!r}: give torch.bfloat16, torch.float16, or None for none")
    if thaw is not None and not isinstance(thaw, ThawPlan):
        raise ConfigError(f"thaw is {_shown(thaw)}: give a ThawPlan, such as ThawPlan(every=10)")
    if prepare is not None and not callable(prepare):
        raise ConfigError(f"prepare is {_shown(prepare)}: give a function of a decoded source → the model's input")
    if scoring is not None and not isinstance(scoring, bool):
        raise ConfigError(f"scoring is {scoring!r}: give True, False, or None for what the policy needs")


def check_plan(plan: ThawPlan | None, layers: int) -> None:
    """Raise ConfigError for a thaw to a cut that no drop of so many layers goes beyond."""
    if plan is not None and plan.to > max(0, layers - 2):
        raise ConfigError(
            f"thaw.to is {plan.to}, but of {layers} layers at most {layers - 1} are dropped: give a cut up to "
            f"{max(0, layers - 2)}"
        )


def checked_callbacks(callbacks: Any) -> tuple[Callable[..., None], ...]:
    """The callbacks as a tuple. Raises ConfigError for what are none."""
    given = tuple(callbacks) if isinstance(callbacks, Iterable) else ()
    if not isinstance(callbacks, Iterable) or not all(map(callable, given)):
        raise ConfigError(f"callbacks are {_shown(callbacks)}: give a list of functions (tuner, report)")
    for callback in given:
        if not accepts(callback, 2):
            raise ConfigError(f"callback {kind_of(callback)} cannot be called with (tuner, report): let it take both")
    return given


def check_makers(optimizer: Any, scheduler: Any) -> None:
    """Raise ConfigError unless what makes the optimiser, and the scheduler if there is one, can be called."""
    if not callable(optimizer):
        raise ConfigError(
            f"optimizer is {_shown(optimizer)}: give a function of the parameters, such as "
            "lambda parameters: torch.optim.SGD(parameters, lr=0.01)"
        )
    if scheduler is not None and not callable(scheduler):
        raise ConfigError(
            f"scheduler is {_shown(scheduler)}: give a function of the optimiser, such as "
            "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10)"
        )


def check_optimizer(optimizer: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Raise ConfigError for what is no optimiser of these parameters, or one that calls for a closure."""
    if not all(hasattr(optimizer, name) for name in _OPTIMIZER) or isinstance(optimizer, type):
        raise ConfigError(f"optimizer(parameters) gave {_shown(optimizer)}: it must return a torch.optim.Optimizer")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not held & {id(parameter) for parameter in parameters}:
        raise ConfigError(
            f"{type(optimizer).__name__} holds none of the parameters that optimizer(parameters) was called with: make "
            "it of those"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"{type(optimizer).__name__} computes the loss several times a step, from a closure: a round reads each "
            "batch once; choose an optimiser whose step() needs none"
        )


def check_scheduler(scheduler: Any) -> None:
    """Raise ConfigError for what is no learning-rate scheduler; None is fine."""
    if scheduler is not None and not all(callable(getattr(scheduler, name, None)) for name in ("step", "state_dict")):
        raise ConfigError(f"scheduler(optimizer) gave {_shown(scheduler)}: it must return a learning-rate scheduler")


def takes_weights(loss: Any) -> bool:
    """Whether a loss, a function or a module, takes ``sample_weight``. Raises ConfigError for what is neither."""
    if isinstance(loss, type) or not callable(loss):
        raise ConfigError(f"loss is {_shown(loss)}: give a function (output, target) → a scalar tensor")
    called = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        weighted = "sample_weight" in inspect.signature(called).parameters
    except ValueError:  # functions in C may not tell
        return False
    if not accepts(called, 2, *(["sample_weight"] if weighted else [])):
        raise ConfigError(f"loss {kind_of(loss)} cannot be called with (output, target): give it these two arguments")
    return weighted


def check_round(sampler: Any, deadline: Any) -> None:
    """Raise TrainingError for a sampler that cannot be called, or a deadline that is no number of seconds."""
    if sampler is not None and not (callable(sampler) and accepts(sampler, 3)):
        raise TrainingError(f"sampler is {_shown(sampler)}: give a function (keys, iteration, generator) → keys")
    try:
        seconds = 0.0 if deadline is None else float(deadline)
    except (TypeError, ValueError, RuntimeError):
        seconds = math.nan
    if math.isnan(seconds) or isinstance(deadline, (bool, str)):
        raise TrainingError(f"a deadline of {deadline!r}: give seconds, or None for none")


def check_batch(batch: Any) -> None:
    """Raise DataError for what is no batch of samples."""
    if not all(hasattr(batch, name) for name in ("keys", "images", "targets")):
        raise DataError(f"observe was given a {type(batch).__name__}: give a Batch(keys, images, targets)")


def inputs_of(images: Any) -> tuple[Tensor, ...]:
    """The tensors [N, ...] that a model is given: one, or a tuple of as many as it takes. Raises DataError."""
    inputs = images if isinstance(images, tuple) and images else (images,)
    for one in inputs:
        if not isinstance(one, Tensor):
            raise DataError(
                f"images are {_shown(one)}, not a tensor [N, C, H, W] (a tuple of tensors for a model of several "
                "inputs): convert them first"
            )
        if one.dim() == 0 or one.layout != torch.strided or one.is_meta:
            raise DataError("images are a single number, sparse or without values: give a dense tensor [N, ...]")
    if len({len(one) for one in inputs}) > 1:
        raise DataError(f"the inputs hold {[len(one) for one in inputs]} samples: give as many of each")
    return inputs


def check_finite(inputs: Iterable[Tensor]) -> None:
    """Raise DataError unless all values are finite."""
    for one in inputs:
        if one.is_floating_point() and not bool(torch.isfinite(one).all()):
            raise DataError("images hold values that are not finite: clean them before observe")


def check_samples(keys: Any, activations: Any, targets: Any) -> tuple[Tensor, ...]:
    """The tensors of ``targets``. Raises DataError for what ``observe_activations`` cannot take."""
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable) or not hasattr(keys, "__len__"):
        raise DataError(f"keys are {_shown(keys)}: give a list with one bytes key for each sample")
    if not isinstance(activations, (tuple, list)) or not activations or not _tensors(activations):
        raise DataError(f"activations are {_shown(activations)}: give a tuple of tensors [N, ...], as embed does")
    parts = () if targets is None else targets if isinstance(targets, tuple) else (targets,)
    if (targets is not None and not parts) or not _tensors(parts):
        raise DataError(
            f"targets are {_shown(targets)}: give a tensor [N, ...] or a tuple of such tensors (of a dict, its values)"
        )
    return parts


def check_saved(path: Any, tensors: Any) -> None:
    """Raise CheckpointError for what a checkpoint cannot be written to, or cannot hold."""
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"a checkpoint at {path!r}: give the path of a folder")
    check_tensors(tensors)


def check_tensors(tensors: Any) -> None:
    """Raise CheckpointError unless ``tensors`` is None or {name: tensor}."""
    fits = tensors is None or (isinstance(tensors, Mapping) and _tensors(tensors.values()))
    if not fits or not all(isinstance(name, str) for name in tensors or ()):
        raise CheckpointError(f"tensors to save are {_shown(tensors)}: give a mapping of names to tensors")


def accepts(function: Callable[..., Any], count: int, *named: str) -> bool:
    """Whether a function can be called with ``count`` arguments and these named ones, as far as it tells."""
    try:
        inspect.signature(function).bind(*range(count), **dict.fromkeys(named))
    except TypeError:
        return False
    except ValueError:  # functions in C may not tell
        return True
    return True


def _tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _shown(value: Any) -> str:
    """What an error calls a value of the wrong kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return repr(value)
    inside = sorted({type(item).__name__ for item in value}) if isinstance(value, (tuple, list)) else []
    return f"a {type(value).__name__}" + (f" of {', '.join(inside)}" if inside else "")
