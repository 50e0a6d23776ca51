"""The nouns that every part shares: activations, samples, batches, tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from streamdrop.boxes import Box

Activations: TypeAlias = tuple[torch.Tensor, ...]
"""Tensors crossing a cut: [N, ...] each for a batch, without the N for one sample."""

Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
"""What a model takes of a batch: a tensor [N, ...], or a tuple of them where it takes several."""

Target: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
"""What the loss compares the output with: a tensor or a tuple of tensors."""

Image: TypeAlias = npt.NDArray[np.uint8]
"""uint8 H×W×3, RGB."""


@dataclass(frozen=True)
class Sample:
    """One arrival of a stream.

    ``key`` identifies it in a store; ``image`` is the frame, uint8 H×W×3 RGB (or whatever ``prepare`` made of it);
    ``index`` counts frames of the source from 0 (frames that could not be decoded keep their number);
    ``seconds`` is the presentation time where the source knows it.
    """

    key: bytes
    image: Any
    index: int
    seconds: float | None = None


@dataclass(frozen=True)
class Batch:
    """Labelled samples: ``keys``, ``images`` [N, C, H, W] as the model takes them, ``targets`` [N, ...].

    Any tensor [N, ...] that the model takes will do as images, such as tokens; for a model of several inputs, a tuple
    of tensors.
    """

    keys: Sequence[bytes]
    images: Any
    targets: Target | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class SampleInfo:
    """What the store keeps beside a sample's target, untouched by promotion.

    ``weight`` (≥ 0) scales its loss; ``pinned`` samples are never evicted; ``label`` is the class used by
    class-balanced retention; ``stream`` names where it came from.
    """

    weight: float = 1.0
    pinned: bool = False
    label: int | None = None
    stream: str = ""


@dataclass(frozen=True)
class RoundReport:
    """What one adaptation round did and cost. Seconds are wall-clock; MACs are forward multiply-accumulates.

    ``cut`` is the cut the round trained at; ``next_cut`` the one decided after it. ``samples`` counts samples trained
    on (with repetition). ``tail_seconds`` ran dropped layers, ``write_seconds`` and ``read_seconds`` moved activations,
    ``train_seconds`` ran the head forward, backward and step. ``parameters`` are those still trained.
    ``cut_short`` says that the deadline ended the round early. ``batch_size`` and ``lr`` are those it trained with (the
    first parameter group's rate). ``agreement`` is each layer's z, ``why`` what the policy says about its decision, and
    ``thawed`` whether layers that had been dropped were trained in this round.
    """

    round: int
    cut: int
    next_cut: int
    loss: float
    seconds: float
    samples: int
    iterations: int
    tail_seconds: float
    write_seconds: float
    read_seconds: float
    train_seconds: float
    parameters: int
    forward_macs: int
    stored: bool = False
    cut_short: bool = False
    importance: dict[str, float] | None = None
    magnitude: dict[str, float] | None = None
    agreement: dict[str, float] | None = None
    batch_size: int = 0
    lr: float = 0.0
    why: str = ""
    thawed: bool = False


@dataclass(frozen=True)
class Track:
    """Where the target is in one frame: ``box`` in pixels; ``lost``: only the last known box.

    ``score``, in [0, 1], is meant as the odds that the box overlaps the target by more than one half.
    ``ms`` is the time spent in ``init`` or ``update`` (adaptation rounds included); ``report`` is the round that ran
    after this frame, if one did; ``earlier`` are those that ran before it on the same frame (the first one's warm-up).
    ``put_off``: a round that was due after this frame had no time (see RealtimeConfig); the next learns its samples.
    """

    frame: int
    box: Box
    score: float
    lost: bool
    ms: float = 0.0
    report: RoundReport | None = None
    earlier: tuple[RoundReport, ...] = ()
    put_off: bool = False

    @property
    def reports(self) -> tuple[RoundReport, ...]:
        """Every round that ran after this frame, in order."""
        return self.earlier if self.report is None else (*self.earlier, self.report)
