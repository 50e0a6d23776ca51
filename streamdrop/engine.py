"""FineTuner: warm-up → score → decide → store while training → train from the store.

The only caller of ``backward()``.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamdrop import checkpoint, resume
from streamdrop.alignment import align_store
from streamdrop.arguments import (
    check_batch,
    check_options,
    check_plan,
    check_round,
    check_split_and_store,
    checked_callbacks,
    takes_weights,
)
from streamdrop.boundary import Boundary
from streamdrop.buffers import MovingBuffers
from streamdrop.cutting import Cutting
from streamdrop.decisions import Decisions
from streamdrop.diagnosis import explain_divergence
from streamdrop.errors import CheckpointError, TrainingError
from streamdrop.feed import Feed
from streamdrop.interrupts import held
from streamdrop.loss_state import LossState
from streamdrop.policies import AutoPolicy, DropPolicy
from streamdrop.rounds import (
    Clock,
    Sampler,
    UnderWay,
    count_batches,
    head_to_train,
    loss_explained,
    one_sample_explained,
    reseed,
    round_batches,
    seed_of,
    seeded,
    trainable_loss,
    whole_steps,
)
from streamdrop.saving import Saving
from streamdrop.scores import GradientScores
from streamdrop.settings import settings_from
from streamdrop.split import SplitModel
from streamdrop.store import FeatureStore, MemoryStore, StagedCut
from streamdrop.thawing import Prepare, Thawing, ThawPlan
from streamdrop.tracing.kept import modes_kept, recording
from streamdrop.types import Activations, Batch, Inputs, RoundReport, SampleInfo, Target


class FineTuner:
    """Fine-tunes a split model round by round and stops running the layers that have stopped learning.

    ``loss(output, target)`` gives a scalar; if it takes ``sample_weight``, it gets the stored weights [N] too. One that
    learns is a module, whose parameters ``optimizer`` adds to those that it is given: checkpoints carry them.
    ``optimizer(parameters)`` is called once with the trainable parameters in execution order; ``scheduler(optimizer)``,
    if given, makes a learning-rate scheduler stepped once a round (ReduceLROnPlateau by the round's loss). ``policy``
    decides (default: AutoPolicy); ``store`` keeps the samples (default: in memory). ``callbacks`` are called with the
    tuner and each round's report. ``thaw`` plans when dropped layers are trained again, from sources that ``prepare``
    turns into the model's input. ``scoring`` forces gradient scores on, or off where no policy needs them (default: as
    the policy needs). ``autocast`` is a dtype for mixed precision in the head (inexact), off by default. ``settings``
    are the fields of TunerSettings: ``warm_up``, ``strategy`` (sgd, freeze or drop), ``batch_size``, ``seed``,
    ``batch_norm`` (train or frozen), ``cut`` (layers dropped from the start), ``accumulate`` (batches per step),
    ``clip_norm``, ``chunk`` (samples per tail pass, in fours), ``read_ahead`` (batches read from the store while one is
    trained on; 0: in line), ``whole_backward``, ``calibrate``, ``average`` and ``grow_batch`` (see TunerSettings).

    One thread uses a tuner. Dropout draws from the process's generators, which a round seeds: where several tuners
    train in threads of one process, models with dropout are not trained alike on every run.
    Raises ConfigError for settings that cannot work, StoreVersionError for a store of another model.
    """

    def __init__(
        self,
        split: SplitModel,
        *,
        loss: Callable[..., Tensor],
        optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        store: FeatureStore | None = None,
        policy: DropPolicy | None = None,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        callbacks: Sequence[Callable[[FineTuner, RoundReport], None]] = (),
        scoring: bool | None = None,
        autocast: torch.dtype | None = None,
        thaw: ThawPlan | None = None,
        prepare: Prepare | None = None,
        **settings: Any,
    ) -> None:
        self.settings = settings_from(settings)
        check_split_and_store(split, store)
        check_options(autocast, thaw, prepare, scoring)
        self._takes_weights = takes_weights(loss)
        self.split, self.loss, self.callbacks, self.autocast = split, loss, checked_callbacks(callbacks), autocast
        self.store: FeatureStore = MemoryStore() if store is None else store
        self.policy: DropPolicy = AutoPolicy() if policy is None else policy
        self.round = 0
        self._training = False
        self.extra: Any = None
        self.extra_tensors: Mapping[str, Tensor] = {}
        self.device = split.device
        self.decisions = Decisions(self.policy, self.settings, split)
        scoring = self.decisions.needs_scores if scoring is None else scoring
        self.decisions.check(scoring)
        check_plan(thaw, self.decisions.layers)
        self.thawing = Thawing(thaw)
        self._feed = Feed(split, self.store, self.device, self.settings.chunk)
        self._boundary = Boundary(split, self.settings, self._feed.open(self.settings.cut), optimizer, scheduler)
        self.optimizer, self.scheduler = self._boundary.optimizer, self._boundary.scheduler
        self.cutting = Cutting(split, self.store, self._boundary, self.decisions, self.thawing, prepare, scoring)
        self.loss_state = LossState(loss, split.model)
        self.moving_buffers = MovingBuffers(split.model)
        self._saving = Saving(self, self._feed)

    def __reduce__(self) -> str:
        raise CheckpointError("a FineTuner is neither pickled nor copied: save(folder), then FineTuner.load(folder, …)")

    # ---------------------------------------------------------------- samples in

    def observe(
        self,
        batch: Batch,
        info: Mapping[bytes, SampleInfo] | None = None,
        sources: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Put a batch into the store; its images pass the dropped layers here, once.

        ``sources`` are its encoded inputs by key, kept for a thaw. Raises DataError.
        """
        check_batch(batch)
        self._feed.check_images(batch.images)
        self.observe_activations(batch.keys, self.embed(batch.images), batch.targets, info, sources)

    def embed(self, images: Inputs) -> Activations:
        """The activations of images [N, ...] at the store's cut, as ``observe_activations`` takes them.

        A model of several inputs takes a tuple of tensors. Raises DataError.
        """
        return self._feed.embed(images)

    def observe_activations(
        self,
        keys: Sequence[bytes],
        activations: Activations,
        targets: Target | None = None,
        info: Mapping[bytes, SampleInfo] | None = None,
        sources: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Put samples whose activations at the store's cut are at hand: each tensor [N, ...] in the keys' order.

        Raises DataError, and StoreVersionError where another tuner has moved the store.
        """
        self._feed.check(self.cut)
        self._feed.put(keys, activations, targets, info, sources)

    # ---------------------------------------------------------------- one round

    @recording()
    def fit_round(
        self, steps: int | None = None, sampler: Sampler | None = None, deadline: float | None = None
    ) -> RoundReport:
        """Train the head for one pass over the store, or ``steps`` batches from ``sampler``; then decide what to drop.

        ``deadline`` in seconds ends the round after the iteration that passes it. ``sampler`` may be asked for
        ``read_ahead`` batches before their turn. Raises TrainingError when nothing is stored or the loss is not finite.
        """
        check_round(sampler, deadline)
        began = self._begin(steps, sampler)
        moves = self.settings.strategy == "drop"
        with seeded(self.device), modes_kept(self.split.model), self._feed.staged(began.cut, moves) as staged:
            self._head_to_train()
            with contextlib.closing(self._iterations(began, staged, self.settings.read_ahead)) as iterations:
                for _ in iterations:
                    if deadline is not None and began.clock.elapsed >= deadline:
                        break
            if len(began.losses) % self.settings.accumulate:
                self._step()
            taken_back = self.decisions.takes_back(began.loss, self.round)
            promoted = self._feed.commit(staged, began.cut, began.clock) if staged is not None and not taken_back else 0
        return self._finish(began, staged is not None and not taken_back, promoted)

    def round_by_steps(
        self, steps: int, sampler: Sampler, deadline: float | None = None
    ) -> Generator[None, None, RoundReport]:
        """A round of ``steps`` batches in pieces: each ``next`` runs one iteration; the report is what it returns.

        Between two pieces the model may predict, ``save`` may be called, and samples may come and go: batches are drawn
        when their turn comes, from what is stored then. ``deadline`` counts the seconds in iterations only. Close the
        generator to give the rest up. The same samples give the same weights as ``fit_round``. Raises TrainingError,
        also where the round has to move the store (``moving``): that is not done in pieces.
        """
        check_round(sampler, deadline)
        if self.moving:
            raise TrainingError(f"the store moves to cut {self.cut} in the next round: fit_round runs it whole")
        began = self._begin(steps, lambda keys, index, generator: sampler(self.store.keys(), index, generator))
        with contextlib.closing(self._iterations(began, None, 0)) as iterations:
            while True:
                with recording(), seeded(self.device), modes_kept(self.split.model):
                    self._head_to_train()
                    next(iterations, None)
                    if len(began.losses) == began.planned or (deadline is not None and began.clock.elapsed >= deadline):
                        if len(began.losses) % self.settings.accumulate:
                            self._step()
                        break
                began.clock.stop()
                yield
                began.clock.go_on()
        self.decisions.takes_back(began.loss, self.round)
        with recording():
            return self._finish(began, False, 0)

    @property
    def moving(self) -> bool:
        """Whether the next round stores at a new cut while it trains."""
        return self.settings.strategy == "drop" and self.store.cut < self.cut

    @property
    def cut(self) -> int:
        """How many leading layers are no longer trained."""
        return self._boundary.cut

    @property
    def scores(self) -> GradientScores:
        """The gradients' sums over the present window, of the layers that are trained."""
        return self.cutting.scores

    @recording()
    def thaw(self, cut: int = 0) -> None:
        """Train the layers from ``cut`` on again, from the kept sources; their optimiser state starts anew.

        Raises StoreError where a sample has no source, ConfigError for a cut that is not earlier, TrainingError within
        a round.
        """
        if self._training:
            raise TrainingError("a round is under way, whose batches are of its cut: thaw when it is over")
        self.cutting.thaw(cut)

    @property
    def batch_size(self) -> int:
        """Samples a batch, grown as ``grow_batch`` allows."""
        return self._boundary.batch_size

    @property
    def rate(self) -> float:
        """The learning rate of the first parameter group that still trains something, 0.0 where there is none."""
        return self._boundary.rate

    def predict(self, images: Inputs) -> Any:
        """The whole model's raw outputs for images [N, ...]: eval mode, no gradients, modes restored.

        A model of several inputs takes a tuple of tensors. Raises DataError.
        """
        return self._feed.predict(images, self.settings.batch_size)

    # ---------------------------------------------------------------- checkpoints

    def save(
        self,
        path: str | os.PathLike[str],
        extra: Any = None,
        hold: bool = False,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a checkpoint: weights, optimiser, scores, cut, store mark, plain-data ``extra`` and ``tensors``.

        ``load`` gives the last two back, as ``extra`` (as JSON has it: tuples as lists) and ``extra_tensors``.

        The folder at ``path`` is replaced in one step. Before a round that stores at a new cut a checkpoint is written
        by itself, unless the last one held an ``extra``: then save again after each round that moved ``cut``.
        With ``hold`` an earlier checkpoint, in another folder, can still be loaded until ``release`` is called.
        Raises OutputError, CheckpointError, and StoreVersionError where the weights below the store's cut were changed.
        """
        self._saving.save(path, extra, hold, tensors)

    def snapshot(self, extra: Any = None, tensors: Mapping[str, Tensor] | None = None) -> checkpoint.Snapshot:
        """What ``save`` writes. Any thread may write a copy of it; then call ``written`` in this one.

        No round that stores at a new cut may begin in between. Raises CheckpointError, StoreError.
        """
        return self._saving.snapshot(extra, tensors)

    def written(self, taken: checkpoint.Snapshot, path: str | os.PathLike[str], hold: bool = False) -> None:
        """A snapshot is at ``path``, durable: what only earlier ones need can go, unless ``hold``.

        Raises StoreError.
        """
        self._saving.written(taken, path, hold)

    def release(self) -> None:
        """Let go of what only checkpoints before the last one need. Raises StoreError."""
        self._saving.release()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        split: SplitModel,
        *,
        loss: Callable[..., Tensor],
        optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        store: FeatureStore | None = None,
        policy: DropPolicy | None = None,
        **options: Any,
    ) -> FineTuner:
        """The tuner that ``save`` wrote, going on as if it had never stopped.

        Model, loss, optimiser, policy, scheduler and store are given anew; settings, thaw plan, ``autocast`` and the
        retention of a store in memory come from the checkpoint unless given, and so does what a loss has learned.
        Raises CheckpointError when it is missing, damaged, or of another model or store; the model, and a store that
        tells what a rollback would leave, are as they were then.
        """
        check_split_and_store(split, store)
        parts, state = resume.read(path, split)
        with resume.with_weights(split.model, parts, state):
            options = {**resume.options_of(state), **options}
            tuner = cls(split, loss=loss, optimizer=optimizer, policy=policy, **options)
            tuner.moving_buffers.moved |= parts.get("buffers", {}).keys()
            resume.continue_from(tuner, parts, state)
            store = resume.store_in_memory(state) if store is None else store
            with tuner.loss_state.restored(parts.get("loss"), path):
                align_store(store, state, parts, split, path, options.get("prepare"))  # last: it cannot be undone
            tuner._take(store)
        tuner._saving.last = (os.fspath(path), tuner.cut)
        return tuner

    def _take(self, store: FeatureStore) -> None:
        """Go on with this store instead of the one from the start. Raises StoreVersionError."""
        self.store = self._feed.store = self.cutting.store = store
        self._feed.open(store.cut)

    # ---------------------------------------------------------------- inside a round

    def _begin(self, steps: int | None, sampler: Sampler | None) -> UnderWay:
        """The next round, its batches not yet drawn."""
        self._feed.check(self.cut)
        self._feed.check_weights()
        keys = self.store.keys()
        if not keys:
            raise TrainingError("nothing is stored: observe samples before fit_round")
        steps = whole_steps(steps)
        self._saving.before_storing()
        self.round += 1
        self.cutting.begin_round(self.round)
        return UnderWay(
            batches=round_batches(keys, self.batch_size, steps, sampler, (self.settings.seed, self.round)),
            planned=count_batches(keys, self.batch_size, steps, sampler),
            clock=Clock(self.device),
            cut=self.cut,
            source=self.store.cut,
            batch_size=self.batch_size,
            rate=self.rate,
            thawed=self.thawing.back is not None,
        )

    def _head_to_train(self) -> None:
        head_to_train(self.split.model, self.split.head(self.cut), self.settings.batch_norm == "frozen")

    def _iterations(self, began: UnderWay, staged: StagedCut | None, ahead: int) -> Generator[None, None, None]:
        """Every batch through the head, a pause after each; ``began`` notes losses and samples."""
        self._boundary.clear_gradients()
        reading = self._feed.read(began.batches, ahead, self._takes_weights, began.clock)
        with contextlib.closing(reading) as batches, self._within_round():
            for index, batch in enumerate(batches):
                reseed(self.device, seed_of(self.settings.seed, self.round, index))
                activations = self._feed.raised(batch, began.cut, staged, began.clock, self.settings.whole_backward)
                weights = self._feed.weights(batch) if self._takes_weights else None
                with began.clock.part("train"):
                    began.losses.append(self._backward(activations, batch.targets, weights, index))
                    if len(began.losses) % self.settings.accumulate == 0:
                        self._step()
                began.samples += len(batch.keys)
                yield

    @contextlib.contextmanager
    def _within_round(self) -> Iterator[None]:
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def _finish(self, began: UnderWay, stored: bool, promoted: int) -> RoundReport:
        """Decide what to drop after a round, and report."""
        self._feed.round_done()
        self.decisions.last_iterations = -(-len(began.losses) // self.settings.accumulate)  # steps, as scores count
        self._boundary.schedule(began.loss)
        scored = [s or None for s in (self.scores.importance(), self.scores.magnitude(), self.scores.agreement())]
        whole, head = self.split.macs(began.source), self.split.macs(began.cut)
        trained = max(began.clock.seconds()["train_seconds"], 1e-9)
        speed = 3 * head * began.samples / trained
        calibrated = self.cutting.after_round(self.round, began.loss, speed, began.clock)
        self.decisions.finished = self.round
        report = RoundReport(
            round=self.round,
            cut=began.cut,
            next_cut=self.cut,
            loss=began.loss,
            samples=began.samples,
            iterations=len(began.losses),
            **began.clock.seconds(),
            parameters=sum(p.numel() for p in self.split.head_parameters(began.cut).values() if p.requires_grad),
            forward_macs=began.samples * whole + promoted * (whole - head) + calibrated,
            stored=stored,
            cut_short=len(began.losses) < began.planned,
            importance=scored[0],
            magnitude=scored[1],
            agreement=scored[2],
            batch_size=began.batch_size,
            lr=began.rate,
            why=self.decisions.why,
            thawed=began.thawed,
        )
        for callback in self.callbacks:
            callback(self, report)
        return report

    def _backward(self, activations: Activations, targets: Any, weights: Tensor | None, index: int) -> float:
        head = self.split.head(self.cut)
        extra = {} if weights is None else {"sample_weight": weights}
        mixed = torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with mixed:
            with one_sample_explained():
                output = head(activations)
            with loss_explained(output, targets), one_sample_explained():
                given = self.loss(output, targets, **extra)
        loss = trainable_loss(given)
        (loss / self.settings.accumulate).backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())  # after the backward pass: on a GPU this waits
        if not math.isfinite(value):
            why = explain_divergence(self.split, self.cut, self.optimizer, self.settings.clip_norm)
            raise TrainingError(f"round {self.round}, batch {index}: the loss is {value}; {why}")
        return value

    def _step(self) -> None:
        if self.scores.layers:
            self.scores.update()
        if self.settings.clip_norm is not None:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self.settings.clip_norm)
        with held():  # some weights stepped and others not would be no step at all
            self.optimizer.step()
            self.cutting.mean.update()
            self._boundary.clear_gradients()
        if self.settings.whole_backward:
            for parameter in self.split.tail_parameters(self.cut).values():
                parameter.grad = None
