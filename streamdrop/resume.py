"""What a FineTuner's checkpoint holds, and how a tuner goes on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamdrop import checkpoint
from streamdrop.alignment import identity_of
from streamdrop.buffers import passing_buffers, write_buffers
from streamdrop.errors import CheckpointError
from streamdrop.split import SplitModel
from streamdrop.store import MemoryStore, Retention
from streamdrop.thawing import ThawPlan
from streamdrop.values import kind_of

if TYPE_CHECKING:
    from streamdrop.engine import FineTuner

State = dict[str, Any]


def snapshot(tuner: FineTuner, mark: int | None, extra: Any, tensors: Mapping[str, Tensor]) -> checkpoint.Snapshot:
    """Everything a tuner needs to go on. Raises CheckpointError for what no checkpoint can hold."""
    _check_members(tuner)
    optimizer: dict[str, Tensor] = {}
    scheduler = tuner.scheduler.state_dict() if tuner.scheduler is not None else None
    state: State = {
        "settings": asdict(tuner.settings),
        "layers": list(tuner.split.layers),
        "round": tuner.round,
        "cut": tuner.cut,
        **tuner.decisions.state(),
        "thawing": tuner.thawing.state(),
        "iterations": tuner.scores.iterations,
        "kinds": {
            "optimizer": kind_of(tuner.optimizer),
            "policy": kind_of(tuner.policy),
            "scheduler": None if tuner.scheduler is None else kind_of(tuner.scheduler),
        },
        "options": _options(tuner),
        "groups": _groups(tuner),
        "optimizer": checkpoint.pack(tuner.optimizer.state_dict(), optimizer),
        "scheduler": None if scheduler is None else checkpoint.pack(scheduler, optimizer, "scheduler"),
        "store": {
            "cut": tuner.store.cut,
            "count": len(tuner.store),
            "mark": mark,
            "identity": identity_of(tuner.store),
        },
        "extra": extra,
    }
    weights, others = _model_state(tuner.split.model)
    plain: dict[str, Tensor] = {}
    if others:  # what modules give by get_extra_state
        state["model_extra"] = checkpoint.pack(others, plain)
    parts: checkpoint.Parts = {
        "model": weights,
        "optimizer": optimizer,
        "scores": tuner.scores.tensors(),
    }
    if plain:
        parts["model_extra"] = plain
    if moved := tuner.moving_buffers.tensors():
        parts["buffers"] = moved
    if means := tuner.cutting.mean.tensors():
        parts["mean"] = means
    if learned := tuner.loss_state.tensors():
        parts["loss"] = learned
    if tensors:
        parts["extra"] = dict(tensors)
    if isinstance(tuner.store, MemoryStore):  # its content dies with the process: the checkpoint carries it
        parts["store"], state["memory"] = tuner.store.state()
        state["retention"] = asdict(tuner.store.retention)
    return checkpoint.take_snapshot(parts, state)


def read(path: object, split: SplitModel) -> tuple[checkpoint.Parts, State]:
    """The checkpoint at ``path``, which the state names too, of a model with these layers. Raises CheckpointError."""
    parts, state = checkpoint.read_checkpoint(str(path))
    if lacking := sorted({"model", "optimizer", "scores"} - parts.keys()):
        raise CheckpointError(f"{path}: the checkpoint lacks its {', '.join(lacking)}: start anew or take a backup")
    if state.get("layers") != list(split.layers):
        raise CheckpointError(f"{path}: saved from a model with other layers: build the model it was saved from")
    return parts, {**state, "path": path}


def _options(tuner: FineTuner) -> State:
    """The plain options of a tuner that are no settings, for ``options_of``."""
    plan, dtype = tuner.thawing.plan, tuner.autocast
    return {
        "thaw": None if plan is None else asdict(plan),
        "autocast": None if dtype is None else str(dtype).removeprefix("torch."),
    }


def options_of(state: State) -> State:
    """The settings and plain options that a checkpoint was saved with, as FineTuner takes them."""
    kept = state.get("options", {})  # earlier releases kept none
    plan, dtype = kept.get("thaw"), kept.get("autocast")
    return {
        **state["settings"],
        "thaw": None if plan is None else ThawPlan(**plan),
        "autocast": None if dtype is None else getattr(torch, dtype),
    }


def store_in_memory(state: State) -> MemoryStore:
    """A store in memory with the retention of the one that a checkpoint carries."""
    return MemoryStore(retention=Retention(**state.get("retention", {})))


def _check_members(tuner: FineTuner) -> None:
    """Raise CheckpointError for trained parameters that would not be in the checkpoint."""
    known = {id(one) for one in (*tuner.split.model.parameters(), *tuner.loss_state.parameters())}
    members = (parameter for group in tuner.optimizer.param_groups for parameter in group["params"])
    for parameter in members:
        if id(parameter) not in known:
            raise CheckpointError(
                f"the optimiser trains a parameter of shape {list(parameter.shape)} that is neither the model's nor "
                "the loss's, so that no checkpoint would carry it: let the loss be a module that holds it"
            )


def _model_state(model: torch.nn.Module) -> tuple[dict[str, Tensor], State]:
    """A model's state: its tensors, and what is none."""
    state = model.state_dict()
    return (
        {name: value for name, value in state.items() if isinstance(value, Tensor)},
        {name: value for name, value in state.items() if not isinstance(value, Tensor)},
    )


@contextmanager
def with_weights(model: torch.nn.Module, parts: checkpoint.Parts, state: State) -> Iterator[None]:
    """Inside, and after it, the model has the checkpoint's weights; where it raises, its own again.

    Raises CheckpointError for weights of another model.
    """
    before, buffers = deepcopy(model.state_dict()), dict(passing_buffers(model))
    kept = {name: buffer.clone() for name, buffer in buffers.items()}
    others = checkpoint.unpack(state.get("model_extra", {"items": []}), parts.get("model_extra", {}))
    try:
        _load_weights(model, {**parts["model"], **others}, state["path"])
        write_buffers(buffers, parts.get("buffers", {}), state["path"])
        yield
    except BaseException:
        model.load_state_dict(before)
        write_buffers(buffers, kept, state["path"])
        raise


def _load_weights(model: torch.nn.Module, weights: Mapping[str, Any], path: object) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: the weights do not fit this model ({reason}): build the same model") from None


def continue_from(tuner: FineTuner, parts: checkpoint.Parts, state: State) -> None:
    """Put the checkpoint's optimiser, scores and counters into a tuner built anew. Raises CheckpointError."""
    tuner.cutting.go_on_at(state["cut"])  # before the optimiser's state: rates that grow with the batch are in it
    try:
        tuner.round, tuner.extra, tuner.extra_tensors = state["round"], state["extra"], parts.get("extra", {})
        tuner.decisions.restore(state)
        tuner.thawing.restore(state["thawing"])
    except (KeyError, TypeError, ValueError) as error:  # digests tell damage: this is another release's form
        raise CheckpointError(
            f"{state['path']}: what it says of its rounds is not in this release's form ({error!r}): "
            "go on with the release that saved it, or start anew"
        ) from None
    _restore_optimizer(tuner, parts, state)
    _restore_scores(tuner, parts, state)
    tuner.cutting.mean.restore(parts.get("mean", {}), state["iterations"])


def _restore_optimizer(tuner: FineTuner, parts: checkpoint.Parts, state: State) -> None:
    saved = checkpoint.unpack(state["optimizer"], parts["optimizer"])
    _check_optimizer(tuner, saved, state)
    _load_state(tuner.optimizer, saved, f"{state['path']}: the optimiser's state")
    _restore_dtypes(tuner.optimizer, saved)
    _check_scheduler(tuner, state)
    if tuner.scheduler is not None and state["scheduler"] is not None:
        schedule = checkpoint.unpack(state["scheduler"], parts["optimizer"])
        _load_state(tuner.scheduler, schedule, f"{state['path']}: the scheduler's state")


def _check_optimizer(tuner: FineTuner, saved: State, state: State) -> None:
    """Raise CheckpointError for another class or other parameter groups; torch would find out in a round, or never."""
    kind, kept = kind_of(tuner.optimizer), state.get("kinds", {}).get("optimizer")  # earlier releases kept no kinds
    if kept not in (None, kind):
        raise CheckpointError(f"{state['path']}: saved with the optimiser {kept}, given {kind}: give load {kept}")
    groups = _groups(tuner)
    given, sizes = [len(group) for group in groups], [len(group["params"]) for group in saved["param_groups"]]
    if given != sizes:
        raise CheckpointError(
            f"{state['path']}: saved with an optimiser whose groups have {sizes} parameters, given one with {given}: "
            "make the parameter groups it was saved with"
        )
    for pair in zip(chain(*state.get("groups", ())), chain(*groups), strict=False):
        if pair[0] != pair[1]:
            raise CheckpointError(
                f"{state['path']}: saved with {pair[0]} where the optimiser given has {pair[1]}: put the parameters "
                "into the groups, and the order, that it was saved with"
            )


def _check_scheduler(tuner: FineTuner, state: State) -> None:
    """Raise CheckpointError where the run was saved with a scheduler and is given none, or one of another class."""
    given = None if tuner.scheduler is None else kind_of(tuner.scheduler)
    kept = state.get("kinds", {}).get("scheduler")
    if kept is None and state["scheduler"] is not None:  # of an earlier release
        kept = given or "a scheduler"
    if kept not in (None, given):
        raise CheckpointError(
            f"{state['path']}: saved with the scheduler {kept}, given {given or 'none'}: give load the one it was "
            "saved with (scheduler=)"
        )


def _load_state(into: Any, saved: Any, what: str) -> None:
    try:
        into.load_state_dict(saved)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{what} does not fit {kind_of(into)} ({error!r}): give load the one it was saved with"
        ) from None


def _restore_dtypes(optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Give state the dtype that it was saved in: torch casts it to its parameter's, and a run would go on otherwise."""
    numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for number, parameter in zip(numbers, parameters, strict=True):
        own = optimizer.state[parameter] if number in saved["state"] else {}
        for name, value in saved["state"].get(number, {}).items():
            if isinstance(value, Tensor) and isinstance(own.get(name), Tensor) and own[name].dtype != value.dtype:
                own[name] = value.to(own[name].device)


def _restore_scores(tuner: FineTuner, parts: checkpoint.Parts, state: State) -> None:
    """The window of scores, where this tuner keeps one. Raises CheckpointError where the checkpoint's is another."""
    if not tuner.scores.layers:
        return
    here, there = ({name: t.shape for name, t in kept.items()} for kept in (tuner.scores.tensors(), parts["scores"]))
    if here != there:
        kept, given = state.get("kinds", {}).get("policy", "another"), kind_of(tuner.policy)
        raise CheckpointError(
            f"{state['path']}: saved with the policy {kept}, without the gradient scores that the one given, {given}, "
            "goes on from: give load the policy (and scoring) it was saved with"
        )
    tuner.scores.restore(parts["scores"], state["iterations"])


def _groups(tuner: FineTuner) -> list[list[str]]:
    """The names of the parameters in each of the optimiser's groups."""
    names = {id(parameter): name for name, parameter in tuner.split.model.named_parameters()}
    return [[names.get(id(p), "") for p in group["params"]] for group in tuner.optimizer.param_groups]
