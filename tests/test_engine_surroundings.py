"""What stands around a tuner's law: gradients nobody clears, groups added later, sources prepared wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import streamdrop as sd
from streamdrop.errors import CheckpointError, ConfigError, DataError, StoreError, StoreVersionError, TrainingError
from streamdrop.store import encode_source
from streamdrop.testing.tuners import SmallNet, labelled_batch

BATCH = labelled_batch(25)
SOURCES = {key: encode_source(image, kind="raw") for key, image in zip(BATCH.keys, BATCH.images, strict=True)}
L = torch.optim.lr_scheduler


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.02, 0.9)


def split_of(model: nn.Module | None = None) -> sd.SplitModel:
    torch.manual_seed(0)
    return sd.SplitModel(model or SmallNet(), BATCH.images[:2])


def tuner_of(model: nn.Module | None = None, sources: dict[bytes, bytes] | None = None, **options: Any) -> sd.FineTuner:
    given = {"optimizer": sgd, "policy": sd.SchedulePolicy({1: 2}), "batch_size": 8, **options}
    tuner = sd.FineTuner(split_of(model), loss=F.cross_entropy, **given)
    tuner.observe(BATCH, sources=sources)
    return tuner


def loaded(path: Path, model: nn.Module | None = None, **options: Any) -> sd.FineTuner:
    given = {"optimizer": sgd, "policy": sd.SchedulePolicy({1: 2}), **options}
    return sd.FineTuner.load(path, split_of(model), loss=F.cross_entropy, **given)


def same_weights(one: sd.FineTuner, other: sd.FineTuner) -> bool:
    pairs = zip(one.split.model.state_dict().values(), other.split.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_gradients_of_what_the_optimiser_lacks_do_not_pile_up(tmp_path: Path) -> None:
    options = {
        "optimizer": lambda parameters: torch.optim.SGD(parameters[2:], 0.02, 0.9),
        "policy": sd.PrefixSumPolicy(),
        "warm_up": 99,
    }
    whole = tuner_of(**options)
    whole.fit_round()
    whole.save(tmp_path / "c")
    whole.fit_round()
    resumed = loaded(tmp_path / "c", **options)
    resumed.fit_round()
    assert resumed.scores.importance() == whole.scores.importance()
    assert all(parameter.grad is None for parameter in whole.split.model.parameters())


def test_a_group_added_later_stays_through_drops_and_thaws() -> None:
    tuner = tuner_of(sources=SOURCES)
    added, appended = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    tuner.optimizer.add_param_group({"params": [added]})
    for _ in range(2):
        tuner.fit_round()
    tuner.optimizer.param_groups[0]["params"].append(appended)
    before = len(tuner.optimizer.param_groups[0]["params"])
    tuner.thaw(0)
    groups = [group["params"] for group in tuner.optimizer.param_groups]
    assert any(parameter is appended for parameter in groups[0])
    assert len(groups[0]) > before
    assert groups[1] == [added]
    assert tuner.fit_round().cut == 0


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda x: x[:2], "does not take"),
        (lambda x: x.double(), "does not take"),
        (lambda x: x[None], "does not take"),
        (lambda x: (x, x), "2 tensors"),
        (lambda x: x * float("nan"), "not finite"),
        (lambda x: x[:, : 5 + int(x.sum() * 1000) % 3], "alike"),
    ],
)
@pytest.mark.parametrize("store", [sd.MemoryStore, sd.LmdbStore])
def test_sources_prepared_wrongly_leave_the_store_as_it_was(
    prepare: Callable[[Any], Any], words: str, store: Any, tmp_path: Path
) -> None:
    kept = store(tmp_path / "store") if store is sd.LmdbStore else store()
    tuner = tuner_of(store=kept, sources=SOURCES, prepare=prepare)
    for _ in range(2):
        tuner.fit_round()
    before = [one.clone() for one in kept.get_many(BATCH.keys)]
    with pytest.raises(DataError, match=words):
        tuner.thaw(0)
    assert (tuner.cut, kept.cut) == (2, 2)
    assert all(map(torch.equal, before, kept.get_many(BATCH.keys)))
    tuner.fit_round()


def test_a_planned_thaw_that_fails_is_due_again() -> None:
    tuner = tuner_of(sources=SOURCES, thaw=sd.ThawPlan(every=1), prepare=lambda x: 1 // 0)
    for _ in range(2):
        tuner.fit_round()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            tuner.fit_round()
    assert tuner.thawing.back is None


def test_a_thaw_to_where_nothing_is_dropped_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"thaw\.to is 77.* up to"):
        tuner_of(thaw=sd.ThawPlan(every=1, to=77))


@pytest.mark.parametrize("again", [False, True], ids=["saved", "loaded"])
def test_a_bounded_store_stays_bounded_after_a_checkpoint(again: bool, tmp_path: Path) -> None:
    store = sd.MemoryStore(max_samples=25)
    tuner = tuner_of(store=store)
    tuner.save(tmp_path / "c")
    if again:
        store = sd.MemoryStore(max_samples=25)
        tuner = loaded(tmp_path / "c", store=store)
    for round_ in range(5):
        tuner.observe(labelled_batch(25, first=1000 + 25 * round_, seed=round_))
    tensors, _ = store.state()
    assert sum(len(tensor) for tensor in tensors.values() if tensor.dim() == 4) == len(store) == 25


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: L.SequentialLR(o, [L.LinearLR(o, 0.1, total_iters=3), L.MultiStepLR(o, [1, 2])], [3]),
        lambda o: L.ChainedScheduler([L.MultiStepLR(o, [1, 2, 2]), L.ExponentialLR(o, 0.9)]),
    ],
)
def test_schedulers_of_schedulers_resume(scheduler: Callable[[Any], Any], tmp_path: Path) -> None:
    whole = tuner_of(scheduler=scheduler)
    whole.fit_round()
    whole.save(tmp_path / "c", extra=1)
    rates = [whole.fit_round().lr for _ in range(4)]
    resumed = loaded(tmp_path / "c", scheduler=scheduler)
    assert [resumed.fit_round().lr for _ in range(4)] == rates
    assert same_weights(whole, resumed)


def test_the_rate_told_is_one_that_something_is_trained_at() -> None:
    tuner = tuner_of(
        optimizer=lambda p: torch.optim.SGD([{"params": p[:4], "lr": 0.01}, {"params": p[4:], "lr": 0.001}])
    )
    rates = [tuner.fit_round().lr for _ in range(2)]
    assert rates == [0.01, 0.001], "what the first group trained was dropped"


def test_a_tolerance_means_the_same_for_losses_below_zero() -> None:
    from streamdrop.decisions import Decisions

    class Tolerant:
        tolerance = 1.5
        needs_scores = False

        def __call__(self, evidence: Any) -> int:
            return 0

    decisions = Decisions(Tolerant(), tuner_of().settings, split_of())  # not through rounds: no loss is to order
    taken = []
    for loss in (-8.93, -8.97, -4.0):
        decisions._came_from = 0
        decisions._losses = [-8.93]
        taken.append(decisions.takes_back(loss, 3))
    assert taken == [False, False, True]


def test_targets_of_another_kind_are_refused_before_they_are_stored() -> None:
    tuner = tuner_of(policy=sd.SchedulePolicy({}))
    more = labelled_batch(2, first=99)
    for targets, words in (
        (more.targets.float(), "tensor of float32.*tensor of int64"),
        ((more.targets, more.targets), "tuple of int64, int64"),
    ):
        with pytest.raises(DataError, match=words):
            tuner.observe(sd.Batch(more.keys, more.images, targets))
    assert len(tuner.store) == 25
    tuner.observe(sd.Batch(BATCH.keys, BATCH.images, BATCH.targets.float()))  # all of them anew: nothing is mixed
    tuner.observe(sd.Batch(more.keys, more.images, None))  # a sampler may leave unlabelled samples out
    assert tuner.store.get_targets(BATCH.keys).dtype == torch.float32


class Passing(SmallNet):
    """Moves a buffer that its state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ema", torch.zeros(3), persistent=False)
        self.register_buffer("constant", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.ema.lerp_(x.mean((0, 2, 3)), 0.1)
        return super().forward(x - self.ema.view(1, 3, 1, 1))


@pytest.mark.parametrize("dropped", [True, False])
def test_buffers_that_move_but_are_not_persistent_resume(dropped: bool, tmp_path: Path) -> None:
    policy = sd.SchedulePolicy({2: 2} if dropped else {})
    whole = tuner_of(Passing(), policy=policy)
    for path in ("a", "b"):
        whole.fit_round()
        whole.fit_round()
        whole.save(tmp_path / path)
        model = Passing()
        resumed = loaded(tmp_path / path, model, policy=policy)
        assert torch.equal(model.ema, whole.split.model.ema)
        assert resumed.moving_buffers.tensors().keys() == {"ema"}, "and once more, where it does not move any further"
    assert resumed.fit_round().loss == whole.fit_round().loss
    assert same_weights(whole, resumed)


def test_a_load_that_is_refused_gives_such_buffers_back(tmp_path: Path) -> None:
    whole = tuner_of(Passing())
    whole.fit_round()
    whole.save(tmp_path / "c")
    model = Passing()
    with pytest.raises(CheckpointError, match="optimiser"):
        loaded(tmp_path / "c", model, optimizer=torch.optim.Adam)
    assert not model.ema.any()
    with pytest.raises(CheckpointError, match="buffer ema does not fit"):
        loaded(tmp_path / "c", SmallNet())


class Telling(SmallNet):
    """Has state that is no tensor."""

    told: Any = 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"told": self.told, "scale": torch.tensor([2.0])}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.told = state["told"]
        assert state["scale"].tolist() == [2.0]


def test_extra_state_of_modules_goes_with_a_checkpoint(tmp_path: Path) -> None:
    whole = tuner_of(Telling())
    whole.split.model.told = [1, {"a": None}]
    whole.save(tmp_path / "c")
    model = Telling()
    loaded(tmp_path / "c", model)
    assert model.told == [1, {"a": None}]
    whole.split.model.told = object()
    with pytest.raises(CheckpointError, match="not plain data"):
        whole.save(tmp_path / "c")


def test_what_no_checkpoint_holds_is_named(tmp_path: Path) -> None:
    for value, words in (
        (torch.zeros(2, dtype=torch.complex128), "odd .*complex128"),
        (torch.zeros(2).to_sparse(), "odd .*sparse"),
    ):
        model = SmallNet()
        model.register_buffer("odd", value)
        with pytest.raises(CheckpointError, match=words):
            tuner_of(model).save(tmp_path / "c")
    tuner_of(optimizer=lambda p: torch.optim.SGD(p, lr=np.float32(0.01))).save(tmp_path / "d")
    assert loaded(tmp_path / "d").rate == pytest.approx(0.01)


def test_a_loss_that_learns_in_secret_is_not_saved(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(3))
    tuner = sd.FineTuner(
        split_of(), loss=lambda o, y: F.cross_entropy(o * weight, y), optimizer=lambda p: sgd([*p, weight])
    )
    with pytest.raises(CheckpointError, match=r"shape \[3\].*module"):
        tuner.save(tmp_path / "c")


def test_weights_below_the_cut_that_something_else_writes_to_are_noticed(tmp_path: Path) -> None:
    tuner = tuner_of()
    for _ in range(2):
        tuner.fit_round()
    below = tuner.split.tail_parameters(2).values()
    before = [parameter.detach().clone() for parameter in below]
    with torch.no_grad():
        for parameter in below:
            parameter.add_(0.3)
    for use in (tuner.fit_round, lambda: tuner.save(tmp_path / "c"), tuner.snapshot):
        with pytest.raises(StoreVersionError, match="other tail weights"):
            use()
    with torch.no_grad():
        for parameter, value in zip(below, before, strict=True):
            parameter.copy_(value)
    tuner.fit_round()
    tuner.save(tmp_path / "c")


def test_a_dropped_tuner_notices_another_one_on_its_model() -> None:
    tuner = tuner_of()
    for _ in range(2):
        tuner.fit_round()
    other = sd.FineTuner(tuner.split, loss=F.cross_entropy, optimizer=sgd, policy=sd.SchedulePolicy({}))
    other.observe(BATCH)
    other.fit_round()
    with pytest.raises(StoreVersionError, match="other tail weights"):
        tuner.fit_round()


def test_load_goes_on_with_plan_retention_and_scheduler(tmp_path: Path) -> None:
    options = {"policy": sd.SchedulePolicy({1: 2, 9: 4}), "scheduler": lambda o: L.StepLR(o, 1, 0.5)}
    whole = tuner_of(
        store=sd.MemoryStore(max_samples=25), sources=SOURCES, thaw=sd.ThawPlan(every=2, rounds=3), **options
    )
    for _ in range(4):
        whole.fit_round()
    whole.save(tmp_path / "c", extra=1)
    for scheduler in (None, lambda o: L.ExponentialLR(o, 0.5)):
        with pytest.raises(CheckpointError, match=r"scheduler StepLR, given (none|Exp)"):
            loaded(tmp_path / "c", policy=options["policy"], scheduler=scheduler)
    resumed = loaded(tmp_path / "c", **options)
    reports = [(whole.fit_round(), resumed.fit_round()) for _ in range(8)]
    assert all((a.next_cut, a.loss, a.lr) == (b.next_cut, b.loss, b.lr) for a, b in reports)
    assert {a.next_cut for a, _ in reports} == {0, 2, 4}
    assert same_weights(whole, resumed)
    resumed.observe(labelled_batch(5, first=500))
    assert len(resumed.store) == 25


def test_a_plan_taken_out_within_a_thaw_leaves_the_policy_to_decide(tmp_path: Path) -> None:
    policy = sd.SchedulePolicy({1: 2, 6: 4})
    whole = tuner_of(sources=SOURCES, thaw=sd.ThawPlan(every=1, rounds=9), policy=policy)
    while whole.thawing.back is None:
        whole.fit_round()
    whole.save(tmp_path / "c")
    resumed = loaded(tmp_path / "c", policy=policy, thaw=None)
    for _ in range(6):
        resumed.fit_round()
    assert resumed.cut == 4


def test_autocast_is_gone_on_with(tmp_path: Path) -> None:
    whole = tuner_of(autocast=torch.bfloat16)
    whole.save(tmp_path / "c")
    resumed = loaded(tmp_path / "c")
    assert resumed.autocast is torch.bfloat16
    assert resumed.fit_round().loss == whole.fit_round().loss
    assert loaded(tmp_path / "c", autocast=None).autocast is None


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_samples_replaced_since_a_checkpoint_stand_in_no_thaws_way_once_saved_again(kind: str, tmp_path: Path) -> None:
    store = sd.MemoryStore() if kind == "memory" else sd.LmdbStore(tmp_path / "store")
    tuner = tuner_of(store=store)
    for _ in range(2):
        tuner.fit_round()
    tuner.save(tmp_path / "c")
    tuner.observe(BATCH, sources=SOURCES)
    if kind == "lmdb":  # it can still be rolled back to the checkpoint
        with pytest.raises(StoreError, match="save again"):
            tuner.thaw(0)
        tuner.save(tmp_path / "c")
    tuner.thaw(0)
    assert tuner.store.cut == 0
    assert torch.equal(tuner.store.get_many(BATCH.keys)[0], BATCH.images)


def test_a_thaw_within_a_round_is_refused_and_the_round_goes_on() -> None:
    tuner = tuner_of(sources=SOURCES)
    tuner.fit_round()
    tuner.fit_round()

    def sampler(keys: Any, index: int, generator: Any) -> list[bytes]:
        return list(keys)[:4]

    pieces = tuner.round_by_steps(2, sampler)
    next(pieces)
    with pytest.raises(TrainingError, match="round is under way"):
        tuner.thaw(0)
    assert len(list(pieces)) == 0, "one more iteration ends it"
    pieces = tuner.round_by_steps(2, sampler)
    next(pieces)
    pieces.close()
    tuner.thaw(0)
    assert tuner.cut == 0
