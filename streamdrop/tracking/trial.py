"""Whether training the backbone's upper blocks pays on this stream: tried on what was remembered, judged on the rest.

What the first frame shows of itself does not tell what helps on later ones; the newest frames, held out, do to a
degree (docs/tracking.md). So the head alone and head and blocks are trained for as many steps on the same batches, from
the same weights, and their losses on the held-out frames compared.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from streamdrop.engine import FineTuner
from streamdrop.policies import SchedulePolicy
from streamdrop.rounds import Sampler
from streamdrop.split import SplitModel, run_in_chunks
from streamdrop.store import FeatureStore, MemoryStore, decode_source, encode_source
from streamdrop.thawing import thaw_store
from streamdrop.tracking.arms import Cuts, optimizer_maker
from streamdrop.tracking.backbones import TappedNetwork
from streamdrop.tracking.config import HELD, TrackerConfig
from streamdrop.tracking.eye import as_input
from streamdrop.tracking.labels import score_loss
from streamdrop.tracking.network import TrackerNetwork
from streamdrop.tracking.samples import Keys, frame_of, update_sampler
from streamdrop.types import Activations, Image, RoundReport

_LEARNED = 8  # remembered frames to learn from, at least: with fewer a trial tells nothing
_MOST = 16  # of these, and of the first frame's crops, at most: each passes the lower backbone
_CHUNK = 4
_MARGIN = 0.98  # of the head's loss: what is closer than that is chance
_RISE = 1.5  # of the least loss since the last trial: the stream has drifted
_PACE = 0.2  # share of a round in what the loss is of late
_QUIET = 50  # frames after a trial without another; twice as many after each that did not pay


@dataclass(frozen=True)
class Verdict:
    """Losses on the held-out frames, one each, after training the head alone, and head and upper blocks.

    ``cause``: why it was tried; ``seconds``: what that took.
    """

    steps: int
    head: tuple[float, ...]
    deeper: tuple[float, ...]
    cause: str
    seconds: float

    @property
    def pays(self) -> bool:
        """Whether the deeper training is kept: it leaves less on every frame, and not by a trifle."""
        return self.better == len(self.head) and fmean(self.deeper) < _MARGIN * fmean(self.head)

    @property
    def better(self) -> int:
        """On how many of the held-out frames the deeper training leaves less."""
        return sum(deeper < head for deeper, head in zip(self.deeper, self.head, strict=True))

    def __str__(self) -> str:
        kept = "it pays, the blocks are kept as trained" if self.pays else "it does not pay, the blocks stay dropped"
        deeper, head, frames = fmean(self.deeper), fmean(self.head), len(self.head)
        return (
            f"{self.cause}: {self.steps} steps of deeper training leave a loss of {deeper:.3g} on the last {frames} "
            f"frames, {self.steps} of the head alone {head:.3g}; less on {self.better} of the {frames}: {kept}"
        )


@dataclass
class Drift:
    """When a trial is due, in plain numbers: once early, then when the rounds' loss has risen (the drift monitor).

    ``of_late``: the loss of late; ``least``: its least since the last trial; ``quiet``: the frame before which no
    trial is due; ``refused``: trials in a row that did not pay; ``tried``: trials in all.
    """

    of_late: float | None = None
    least: float | None = None
    quiet: int = 0
    refused: int = 0
    tried: int = 0

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Drift:
        """From ``dataclasses.asdict``."""
        return cls(**{field.name: state[field.name] for field in dataclasses.fields(cls) if field.name in state})

    def note(self, loss: float) -> None:
        """A round's loss."""
        self.of_late = loss if self.of_late is None else self.of_late + _PACE * (loss - self.of_late)
        self.least = self.of_late if self.least is None else min(self.least, self.of_late)

    def due(self, frame: int) -> str | None:
        """Why a trial is due after ``frame``; None: it is not."""
        if frame < self.quiet:
            return None
        if not self.tried:
            return "the first frames are there"
        if self.of_late is None or self.least is None or self.of_late <= _RISE * self.least:
            return None
        return f"the loss has risen from {self.least:.3g} to {self.of_late:.3g}"

    def judged(self, frame: int, pays: bool) -> None:
        """A trial has ended: the monitor starts anew."""
        self.tried += 1
        self.refused = 0 if pays else self.refused + 1
        self.quiet = frame + _QUIET * 2**self.refused
        self.of_late = self.least = None


@dataclass(frozen=True)
class Trial:
    """What both sides of a trial share. ``lower``: the cut below the upper blocks; ``maps``: the one above them.

    ``optimizer`` and ``sampler`` are as FineTuner takes them; ``steps`` each side trains.
    """

    split: SplitModel
    lower: int
    maps: int
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    sampler: Sampler
    steps: int
    seed: int

    def __call__(self, store: FeatureStore, learned: Sequence[bytes], held: Sequence[bytes], cause: str) -> Verdict:
        """Try it on the samples ``learned``, whose sources ``store`` has.

        Where it pays the weights stay as trained, and the store's activations are made anew by them; else, and where
        the trial is broken off, all is as before. Raises StoreError, TrainingError.
        """
        began, kept = time.perf_counter(), False
        parameters = self.split.head_parameters(self.lower)
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            samples, unseen = (self._lowered(store, keys) for keys in (learned, held))
            self._train(store, learned, samples, self.maps)
            head = self._loss(store, unseen, held)
            _put_back(parameters, before)
            self._train(store, learned, samples, self.lower)
            verdict = Verdict(self.steps, head, self._loss(store, unseen, held), cause, time.perf_counter() - began)
            if verdict.pays:
                thaw_store(store, self.split, self.maps, _CHUNK, prepared)
            kept = verdict.pays
        finally:
            if not kept:
                _put_back(parameters, before)
        return verdict

    def _lowered(self, store: FeatureStore, keys: Sequence[bytes]) -> Activations:
        crops = [prepared(decode_source(source)) for source in store.get_sources(keys) if source is not None]
        return run_in_chunks(self.split.tail(self.lower), (torch.stack(crops),), _CHUNK)

    def _train(self, store: FeatureStore, keys: Sequence[bytes], samples: Activations, cut: int) -> None:
        """Train all from ``cut`` on, in a tuner of its own."""
        tuner = FineTuner(
            self.split,
            store=MemoryStore(),
            loss=score_loss,
            optimizer=self.optimizer,
            policy=SchedulePolicy(),
            batch_norm="frozen",
            seed=self.seed,
            strategy="drop",
            cut=cut,
            average=False,
        )
        raised = samples if cut == self.lower else run_in_chunks(self.split.step(self.lower, cut), samples, _CHUNK)
        info = dict(zip(keys, store.get_info(keys), strict=True))
        tuner.observe_activations(keys, raised, store.get_targets(keys), info)
        tuner.fit_round(steps=self.steps, sampler=self.sampler)

    def _loss(self, store: FeatureStore, samples: Activations, keys: Sequence[bytes]) -> tuple[float, ...]:
        targets = store.get_targets(keys)
        assert isinstance(targets, Tensor)
        with torch.no_grad():
            scores = self.split.head(self.lower)(samples)
            each = zip(torch.split(scores, 1), torch.split(targets, 1), strict=True)
            return tuple(float(score_loss(found, wanted, torch.ones(1))) for found, wanted in each)


def tries(config: TrackerConfig) -> bool:
    """Whether deeper training is tried: the policy says so, and rounds run whole, with no clock to end them."""
    return config.if_it_pays and config.realtime.in_line and config.update.deadline is None


class Trials:
    """The trials of one stream: held before a round where one is due, told in its report. ``drift`` says when."""

    def __init__(
        self, config: TrackerConfig, split: SplitModel, cuts: Cuts, network: TrackerNetwork | TappedNetwork, keys: Keys
    ) -> None:
        self.drift = Drift()
        self._keys, self._enough = keys, min(_LEARNED + HELD, config.update.memory)  # all that a small memory holds
        self._trial = Trial(
            split=split,
            lower=cuts.frozen,
            maps=cuts.maps,
            optimizer=optimizer_maker(config, network, config.update.learning_rate),
            sampler=update_sampler(config, keys),
            steps=config.drop.trial,
            seed=config.seed,
        )

    def before_round(self, store: FeatureStore) -> Verdict | None:
        """A trial, where one is due and enough is remembered. Raises StoreError, TrainingError."""
        first, frames = self._keys.parted(store.keys())
        newest = frame_of(frames[-1]) if frames else 0
        cause = self.drift.due(newest) if len(frames) >= self._enough else None
        if cause is None:
            return None
        verdict = self._trial(store, [*first[:_MOST], *frames[-_MOST - HELD : -HELD]], frames[-HELD:], cause)
        self.drift.judged(newest, verdict.pays)
        return verdict

    def after_round(self, report: RoundReport, verdict: Verdict | None) -> RoundReport:
        """The round's report, with the trial before it."""
        self.drift.note(report.loss)
        if verdict is None:
            return report
        seconds = {name: getattr(report, name) + verdict.seconds for name in ("seconds", "train_seconds")}
        return dataclasses.replace(report, why=str(verdict), thawed=verdict.pays, **seconds)


def untried(report: RoundReport, config: TrackerConfig) -> RoundReport:
    """The report of a round for which there are no trials; where they are wanted it says why not."""
    if config.if_it_pays:
        return dataclasses.replace(report, why="deeper training is not tried: rounds make way for frames")
    return report


def kept_crop(crop: Image) -> bytes:
    """A crop as a source, bit for bit."""
    return encode_source(crop, "raw")


def prepared(crop: object) -> Tensor:
    """A crop that was kept as a source, uint8 [S, S, 3] → one sample as the network takes it."""
    return as_input([torch.as_tensor(crop).numpy()])[0]


@torch.no_grad()
def _put_back(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
