"""The plain numbers of a FineTuner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from streamdrop.errors import ConfigError
from streamdrop.values import check_above, check_fields, check_whole

LEAST = {
    "warm_up": 0,
    "batch_size": 1,
    "seed": 0,
    "cut": 0,
    "accumulate": 1,
    "chunk": 2,
    "read_ahead": 0,
    "grow_batch": 1,
    "calibrate": 0,
}
"""The least that a whole number among the settings may be."""


@dataclass(frozen=True)
class TunerSettings:
    """The plain numbers of a FineTuner; a checkpoint carries them. Raises ConfigError for what cannot work.

    ``whole_backward``: under ``freeze``, gradients flow through frozen layers too and are thrown away, as in the paper.
    ``calibrate``: BatchNorm statistics of layers to be dropped are taken anew from up to so many samples; 0: never.
    ``average``: where a scored policy drops, layers whose steps undo each other take the mean of their weights first.
    ``grow_batch``: batches become up to so many times as large as dropped layers free memory, 1: they stay as they are.
    """

    warm_up: int = 5
    strategy: Literal["sgd", "freeze", "drop"] = "drop"
    batch_size: int = 256
    seed: int = 0
    batch_norm: Literal["train", "frozen"] = "train"
    cut: int = 0
    accumulate: int = 1
    clip_norm: float | None = None
    chunk: int = 64
    read_ahead: int = 2
    whole_backward: bool = False
    calibrate: int = 256
    average: bool = True
    grow_batch: int = 1

    def __post_init__(self) -> None:
        _check_choices(self)
        check_fields(self)
        for name, least in LEAST.items():
            check_whole(name, getattr(self, name), least)
        if self.clip_norm is not None:
            check_above("clip_norm", self.clip_norm, 0.0)


def _check_choices(settings: TunerSettings) -> None:
    if settings.strategy not in ("sgd", "freeze", "drop"):
        raise ConfigError(f"strategy {settings.strategy!r} is not known: choose sgd, freeze or drop")
    if settings.batch_norm not in ("train", "frozen"):
        raise ConfigError(f"batch_norm {settings.batch_norm!r} is not known: choose train or frozen")


def settings_from(given: dict[str, Any]) -> TunerSettings:
    """Settings from keyword arguments. Raises TypeError for an unknown name, ConfigError for a bad value."""
    valid = list(TunerSettings.__dataclass_fields__)
    wrong = [name for name in given if name not in valid]
    if wrong:
        raise TypeError(f"FineTuner has no setting {', '.join(wrong)}: choose from {', '.join(valid)}")
    return TunerSettings(**given)
