"""The network that learns on the stream: maps and scores of crops, samples into the store, rounds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from streamdrop.boxes import Box
from streamdrop.checkpoint import Snapshot
from streamdrop.engine import FineTuner
from streamdrop.errors import StreamdropError
from streamdrop.interrupts import held
from streamdrop.store import FeatureStore
from streamdrop.tracking.anchor import Anchor
from streamdrop.tracking.arms import Cuts, engine_settings, optimizer_maker, scheduler_maker
from streamdrop.tracking.backbones import network_of, split_of
from streamdrop.tracking.config import TrackerConfig
from streamdrop.tracking.eye import Eye, Look, as_input
from streamdrop.tracking.first_frame import Example, upright
from streamdrop.tracking.first_training import FirstTraining, Pieces
from streamdrop.tracking.labels import gaussian_label, score_loss
from streamdrop.tracking.samples import Keys, leaving, new_store, open_store, update_sampler
from streamdrop.tracking.threads import both, computing, cores, in_order
from streamdrop.tracking.trial import Drift, Trials, kept_crop, prepared, tries, untried
from streamdrop.types import Activations, Image, RoundReport, SampleInfo

_CHUNK = 4


class Learner:
    """One target's network and what it has learned. ``start`` begins a new target.

    ``alone``: nothing else is to be computed on this machine meanwhile, so that a second core may be used.
    """

    def __init__(self, config: TrackerConfig, alone: bool = True) -> None:
        self._config = config
        self._workers = min(2, cores()) if alone and config.threads == 1 else 1
        size = config.search.size
        with computing(config.threads):
            self._network = network_of(config)
            example = torch.zeros(1, 3, size, size).contiguous(memory_format=torch.channels_last)
            self._split = split_of(self._network, example)
            self._network.eval()
            self._pretrained = {name: value.clone() for name, value in self._network.state_dict().items()}
        self._cuts = Cuts.of(self._split)
        engine_settings(config, self._cuts)["policy"].check(self.layers)  # it is refused before there is a target
        self._keys = Keys(config)
        self._tuner: FineTuner | None = None
        self._first: FirstTraining | None = None
        self._resting: str | None = None
        tried = alone and tries(config)
        self._trials = Trials(config, self._split, self._cuts, self._network, self._keys) if tried else None

    @property
    def layers(self) -> int:
        """How many droppable layers the network has."""
        return len(self._split.layers)

    @property
    def tuner(self) -> FineTuner:
        """The target's FineTuner; only after ``start``."""
        assert self._tuner is not None
        return self._tuner

    @property
    def first(self) -> FirstTraining:
        """The target's training on the first frame; only after ``start``."""
        assert self._first is not None
        return self._first

    @property
    def tries(self) -> bool:
        """Whether deeper training is tried on the stream, and crops are kept for that."""
        return self._trials is not None

    @property
    def resting(self) -> str | None:
        """What the maps are made by, as a digest, where no round will change that any more; None where one may."""
        tuner, maps = self._tuner, self._cuts.maps
        if tuner is None or tuner.settings.strategy != "drop" or min(tuner.cut, tuner.store.cut) < maps:
            return None
        if self._resting is None:
            self._resting = self._split.version(maps)
        return self._resting

    def anchor(self) -> Anchor | None:
        """The head as it stands, for a second opinion later; None where the maps it sees may still change."""
        return Anchor(self._network.score) if self._settled else None

    def restored_anchor(self) -> Anchor | None:
        """The anchor in the checkpoint that was restored."""
        return Anchor.restored(self._network.score, self.tuner.extra_tensors)

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The backbone's weights and buffers by name."""
        return {name: value for name, value in self._network.state_dict().items() if not name.startswith("score.")}

    def start(
        self,
        examples: Sequence[Example],
        fit_boxes: Callable[[Activations], None],
        backbone: Mapping[str, Tensor] | None = None,
    ) -> list[RoundReport]:
        """Learn a new target from the first frame, forgetting the one before; the rounds' reports.

        It begins with ``backbone``, another learner's; None: the pretrained one. ``fit_boxes`` is given the maps of the
        ``upright`` examples; where no round changes those any more it works beside the last one, on a second core.
        Where ``realtime.first`` is set that round is left to ``first.rest``.
        """
        self.close()
        self._network.load_state_dict({**self._pretrained, **(backbone or {})})
        self._network.score.reset(self._config.seed)
        if self._trials is not None:
            self._trials.drift = Drift()
        self._begin(new_store, lambda store: FineTuner(self._split, store=store, **self._options()))
        self._first = FirstTraining(self._config, self._split, self.tuner)
        keys = [self._keys.first(index) for index in range(len(examples))]
        starts = range(0, len(examples), _CHUNK)
        parts = [examples[at : at + _CHUNK] for at in starts]
        embedded = in_order(lambda part: self.tuner.embed(as_input([e.crop for e in part])), parts, self._workers)
        for first, part, activations in zip(starts, parts, embedded, strict=True):
            named = keys[first : first + _CHUNK]
            targets = torch.stack([self._label(each.box) for each in part])
            info = {key: SampleInfo(pinned=True, stream=self._config.name) for key in named}
            sources = {key: kept_crop(each.crop) for key, each in zip(named, part, strict=True)} if self.tries else None
            self.tuner.observe_activations(named, activations, targets, info, sources)
        return self._train_first_frame(examples, fit_boxes)

    @property
    def eye(self) -> Eye:
        """What frames are looked at with: the network as it stands."""
        return Eye.of(self._split, self.tuner.store.cut, self._cuts.maps)

    def weights(self) -> dict[str, Tensor]:
        """A copy of all that rounds train, named as in the network."""
        parameters = self._split.head_parameters(self.tuner.store.cut)
        return {name: value.detach().clone() for name, value in parameters.items()}

    def raised(self, activations: Activations, cut: int) -> Activations:
        """Activations made when the store was at ``cut``, at its present cut."""
        if self.tuner.store.cut == cut:
            return activations
        with torch.no_grad():
            raised: Activations = self._split.step(cut, self.tuner.store.cut)(activations)
        return raised

    def maps(self, crops: Sequence[Image]) -> Activations:
        """The two maps of crops of any one size, by the backbone alone."""
        with torch.no_grad():
            maps: Activations = self._split.tail(self._cuts.maps)(as_input(crops))
        return maps

    def look_at(self, maps: Activations) -> Look:
        """What ``eye`` makes of crops whose maps are known; only where the backbone is ``resting``."""
        cut = self.tuner.store.cut
        with torch.no_grad():
            activations = maps if cut == self._cuts.maps else self._split.step(self._cuts.maps, cut)(maps)
            scores = self._split.head(self._cuts.maps)(maps)
        return activations, maps, scores.numpy()

    def remember(
        self, frame: int, activations: Activations, box: Box | None, weight: float = 1.0, crop: Image | None = None
    ) -> None:
        """Keep a frame's search crop, whose target is at ``box`` (crop pixels), to learn from.

        Where deeper training is tried (``tries``) its pixels are kept too.
        """
        key = self._keys.frame(frame)
        info = {key: SampleInfo(weight=weight, stream=self._config.name)}
        sources = {key: kept_crop(crop)} if self.tries and crop is not None else None
        self.tuner.observe_activations([key], activations, self._label(box)[None], info, sources)
        _, frames = self._keys.parted(self.tuner.store.keys())
        self.tuner.store.discard(leaving(frames, self._config))

    def adapt(self) -> RoundReport:
        """One round on what is remembered; before it deeper training is tried, where that is due."""
        update, trials = self._config.update, self._trials
        verdict = None if trials is None else trials.before_round(self.tuner.store)
        if verdict is not None and verdict.pays:
            self._resting = None
        sampler = update_sampler(self._config, self._keys)
        report = self.tuner.fit_round(steps=update.steps, sampler=sampler, deadline=update.deadline)
        return untried(report, self._config) if trials is None else trials.after_round(report, verdict)

    def snapshot(self, extra: dict[str, Any], tensors: Mapping[str, Tensor]) -> Snapshot:
        """A checkpoint's content, with the caller's plain data and tensors, as the tuner's ``snapshot`` has it."""
        drift = None if self._trials is None else dataclasses.asdict(self._trials.drift)
        return self.tuner.snapshot({**extra, **self.first.state(), "drift": drift}, tensors)

    def round(self) -> Pieces:
        """``adapt`` in pieces; in one where the store has to move."""
        if self.tuner.moving:
            return self.adapt()
        update = self._config.update
        sampler = update_sampler(self._config, self._keys)
        report = yield from self.tuner.round_by_steps(update.steps, sampler, update.deadline)
        return untried(report, self._config)

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Go on from a checkpoint; returns the caller's data. Raises CheckpointError, StoreError."""
        self.close()
        self._begin(open_store, lambda store: FineTuner.load(path, self._split, store=store, **self._options()))
        self._first = FirstTraining(self._config, self._split, self.tuner)
        self._first.restore(self.tuner.extra)
        if self._trials is not None:
            self._trials.drift = Drift.restored(self.tuner.extra.get("drift") or {})
        return dict(self.tuner.extra)

    def _begin(
        self, open_: Callable[[TrackerConfig], FeatureStore], tuner_of: Callable[[FeatureStore], FineTuner]
    ) -> None:
        """A tuner with a store of its own, which is closed again where there is no tuner in the end."""
        with held():  # a store that is open and nobody's stays locked
            store = open_(self._config)
            try:
                self._tuner = tuner_of(store)
            except BaseException:
                with suppress(StreamdropError):  # what was raised first says more
                    store.close()
                raise

    def close(self) -> None:
        """Let go of the target and its store."""
        tuner, self._tuner = self._tuner, None
        self._first = self._resting = None
        if tuner is not None:
            tuner.store.close()

    def _options(self) -> dict[str, Any]:
        return {
            "loss": score_loss,
            "optimizer": optimizer_maker(self._config, self._network),
            "scheduler": scheduler_maker(self._config),
            "prepare": prepared,
            "batch_norm": "frozen",
            "seed": self._config.seed,
            **engine_settings(self._config, self._cuts),
        }

    def _train_first_frame(
        self, examples: Sequence[Example], fit_boxes: Callable[[Activations], None]
    ) -> list[RoundReport]:
        reports = self.first.warm_up()
        if self._settled:
            maps = self._upright_maps(examples)
            last, _ = both(self.first.finish, lambda: fit_boxes(maps), self._workers)
            return [*reports, *last]
        reports += self.first.finish()
        fit_boxes(self._upright_maps(examples))
        return reports

    @property
    def _settled(self) -> bool:
        """Whether no round changes the maps any more."""
        return self.tuner.cut >= self._cuts.maps

    def _upright_maps(self, examples: Sequence[Example]) -> Activations:
        """The maps of the examples in which the target stands upright, as the network now makes them."""
        chosen = list(upright(examples))
        if self.tuner.store.cut <= self._cuts.maps:
            return self._maps(self.tuner.store.get_many([self._keys.first(index) for index in chosen]))
        with torch.no_grad():
            crops = as_input([examples[index].crop for index in chosen])
            maps: Activations = self._split.tail(self._cuts.maps)(crops)
        return maps

    def _maps(self, activations: Activations) -> Activations:
        cut = self.tuner.store.cut
        with torch.no_grad():
            return activations if cut == self._cuts.maps else self._split.step(cut, self._cuts.maps)(activations)

    def _label(self, box: Box | None) -> Tensor:
        return gaussian_label(box, self._config.search.size, self._config.head.sigma)
