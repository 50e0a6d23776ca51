"""The cut, and all that moves with it: which parameters the optimiser trains, and how large a batch may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from streamdrop.arguments import check_makers, check_optimizer, check_scheduler
from streamdrop.errors import ModelError, TrainingError
from streamdrop.growth import growth, scale_rates
from streamdrop.rounds import forget_parameters
from streamdrop.settings import TunerSettings
from streamdrop.split import SplitModel


class Boundary:
    """Where the head begins. Its parameters are in the ``optimizer``, in execution order; those below are not.

    ``optimizer(parameters)`` is called once with all trainable parameters, ``scheduler(optimizer)`` once if given.
    Raises ModelError when nothing can be trained, ConfigError for what makes no optimiser or scheduler of use.
    """

    def __init__(
        self,
        split: SplitModel,
        settings: TunerSettings,
        cut: int,
        optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], Any] | None,
    ) -> None:
        trainable = [p for p in split.head_parameters(0).values() if p.requires_grad]
        if not trainable:
            raise ModelError("no parameter of the model requires a gradient: nothing can be trained")
        check_makers(optimizer, scheduler)
        self._split, self._settings, self.cut = split, settings, cut
        self.optimizer = optimizer(trainable)
        check_optimizer(self.optimizer, trainable)
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        check_scheduler(self.scheduler)
        self._groups: list[list[torch.nn.Parameter]] = []  # all that were ever in each: a thaw brings them back
        self._note_members()
        given = {id(parameter) for group in self._groups for parameter in group}
        self._left_out = [parameter for parameter in trainable if id(parameter) not in given]
        self._grown = 1
        forget_parameters(self.optimizer, split.tail_parameters(cut).values())

    @property
    def batch_size(self) -> int:
        """Samples a batch, grown as ``grow_batch`` allows."""
        return self._settings.batch_size * self._grown

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group that still trains something, 0.0 where there is none."""
        groups = self.optimizer.param_groups
        return float(next((group for group in groups if group["params"]), groups[0]).get("lr", 0.0))

    def clear_gradients(self) -> None:
        """Clear the gradients of all that is trained, and of what the optimiser was not given: they would pile up."""
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self._left_out:
            parameter.grad = None

    def schedule(self, loss: float) -> None:
        """A round of mean ``loss`` is over: the scheduler's next step, if there is one.

        Raises TrainingError where it has none, as OneCycleLR after its last.
        """
        if self.scheduler is None:
            return
        plateau = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        try:
            self.scheduler.step(*([loss] if plateau else []))
        except ValueError as error:
            raise TrainingError(
                f"{type(self.scheduler).__name__} has no learning rate for the round after this one ({error}): it is "
                "stepped once a round: give it as many steps as there are rounds"
            ) from None

    def advance(self, cut: int) -> None:
        """Layers below ``cut`` leave the optimiser for good or until a thaw; the batch may grow."""
        self.cut = cut
        self._note_members()
        forget_parameters(self.optimizer, self._split.tail_parameters(cut).values())
        self._grow()

    def retreat(self, cut: int) -> None:
        """Layers from ``cut`` on are trained again: they come back to their places, with no state.

        What is in no layer's place, such as a loss's own weights, stays.
        """
        self.cut = cut
        self._note_members()
        tail = {id(parameter) for parameter in self._split.tail_parameters(cut).values()}
        for group, members in zip(self.optimizer.param_groups, self._groups, strict=True):
            group["params"] = [parameter for parameter in members if id(parameter) not in tail]
        self._grow()

    def _note_members(self) -> None:
        """Groups, and members of groups, may be added by the caller at any time."""
        for index, group in enumerate(self.optimizer.param_groups):
            known = self._groups[index] if index < len(self._groups) else []
            there = {id(parameter) for parameter in known}
            self._groups[index:] = [[*known, *(p for p in group["params"] if id(p) not in there)]]

    def _grow(self) -> None:
        grown = growth(self._split, self._settings.cut, self.cut, self._settings.grow_batch)
        if grown != self._grown:
            scale_rates(self.optimizer, self.scheduler, grown / self._grown)
            self._grown = grown
