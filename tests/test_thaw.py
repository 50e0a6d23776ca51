"""Thaw plans, batches that grow, the paper's kind of freezing, windows across learning rates, and broken training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler as schedules

from streamdrop.engine import FineTuner
from streamdrop.errors import CheckpointError, ConfigError, StoreError, TrainingError
from streamdrop.growth import growth, scale_rates
from streamdrop.policies import SchedulePolicy
from streamdrop.scores import standardise
from streamdrop.split import SplitModel
from streamdrop.store import LmdbStore, MemoryStore, TieredStore, encode_source
from streamdrop.testing.tuners import SmallNet, check_drop_equals_freeze, labelled_batch, small_tuner
from streamdrop.thawing import Thawing, ThawPlan
from streamdrop.types import Batch

BATCH = labelled_batch(25)
SOURCES = {key: encode_source(image, "raw") for key, image in zip(BATCH.keys, BATCH.images, strict=True)}
PLAN = ThawPlan(every=2, rounds=2)


def make(strategy="drop", store=None, sources=SOURCES, policy=None, lr=0.02, optimizer=torch.optim.SGD, **options):
    torch.manual_seed(0)
    tuner = FineTuner(
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=lambda p: optimizer(p, lr, momentum=0.9) if optimizer is torch.optim.SGD else optimizer(p, lr),
        store=MemoryStore() if store is None else store,
        policy=SchedulePolicy({1: 2, 2: 4}) if policy is None else policy,
        strategy=strategy,
        **{"batch_size": 8, **options},
    )
    tuner.observe(BATCH, sources=sources)
    return tuner


def weights(tuner):
    return {name: tensor.clone() for name, tensor in tuner.split.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_a_plan_alternates_head_only_rounds_with_whole_model_rounds():
    tuner = make(thaw=PLAN)
    reports = [tuner.fit_round() for _ in range(11)]
    assert [r.cut for r in reports] == [0, 2, 4, 4, 4, 0, 0, 4, 4, 4, 0]
    assert [r.thawed for r in reports] == [r.round in (6, 7, 11) for r in reports]
    assert [r.stored for r in reports] == [r.round in (2, 3, 8) for r in reports]
    assert [r.why.split(":")[0] for r in reports[3:8]] == ["", "thawed", "", "the thaw is over", ""]


@pytest.mark.parametrize(
    ("schedule", "cuts"),
    [
        ({1: 2, 4: 4}, [0, 2, 2, 2, 0, 0, 4, 4, 4, 0]),  # due after the round that thaws
        ({1: 2, 5: 4}, [0, 2, 2, 2, 0, 0, 4, 4, 4, 0]),  # after a thawed round
        ({1: 2, 6: 4}, [0, 2, 2, 2, 0, 0, 4, 4, 4, 0]),  # after the last of them
        ({1: 2, 4: 3, 6: 4}, [0, 2, 2, 2, 0, 0, 4, 4, 4, 0]),
        ({1: 2, 7: 4}, [0, 2, 2, 2, 0, 0, 2, 4, 4, 4]),
    ],
)
def test_a_cut_scheduled_for_a_thawed_round_is_where_the_thaw_returns_to(schedule, cuts, tmp_path):
    tuner, froze = (make(kind, thaw=PLAN, policy=SchedulePolicy(schedule)) for kind in ("drop", "freeze"))
    for number in range(10):
        tuner.save(tmp_path / str(number), extra=0)
        tuner.fit_round()
    assert [froze.fit_round().cut for _ in range(10)] == cuts
    assert same(weights(tuner), weights(froze))
    for number in range(10):
        again = resumed(tmp_path / str(number), thaw=PLAN, policy=SchedulePolicy(schedule))
        assert [again.fit_round().cut for _ in range(10 - number)] == cuts[number:]
        assert same(weights(again), weights(tuner))


def test_a_schedule_does_not_undo_a_thaw_that_was_asked_for():
    tuner = make(policy=SchedulePolicy({1: 3}))
    tuner.fit_round()
    tuner.thaw(0)
    assert [tuner.fit_round().cut for _ in range(3)] == [0, 0, 0]


def test_a_plan_may_wait_for_a_plateau_and_ends_after_most():
    tuner = make(thaw=ThawPlan(plateau=2, rounds=1, to=1, most=1), lr=1e-9, policy=SchedulePolicy({1: 3}))
    assert [tuner.fit_round().cut for _ in range(9)] == [0, 3, 3, 3, 3, 1, 3, 3, 3]


def test_a_risen_loss_thaws_until_the_policy_drops_anew():
    thawing = Thawing(ThawPlan(rise=2.0, to=1))
    seen = []
    for loss in (1.0, 0.5, 1.2, 0.6, 1.1, 1.3):  # twice the least, but not running; then it is
        seen.append(thawing.next_cut(3, loss, moving=False))
        again = Thawing(thawing.plan)
        again.restore(thawing.state())
        thawing = again  # a resumed run goes on counting
    assert seen == [None, None, None, None, None, 1]
    assert thawing.back is None
    assert thawing.next_cut(1, 5.0, moving=False) is None  # nothing is dropped that could be thawed


def test_a_negative_loss_has_a_plateau_and_no_rise():
    flat, rising = Thawing(ThawPlan(plateau=2)), Thawing(ThawPlan(rise=1.5))
    losses = (-1.0, -1.005, -1.0, -1.0)
    assert [flat.next_cut(3, loss, moving=False) for loss in losses[:3]] == [None, None, 0]
    assert [rising.next_cut(3, loss, moving=False) for loss in losses] == [None] * 4
    falling = Thawing(ThawPlan(plateau=2))
    assert [falling.next_cut(3, loss, moving=False) for loss in (-1.0, -1.1, -1.2, -1.3)] == [None] * 4


def test_a_stream_that_changes_is_learned_by_all_layers_again():
    tuner = make(thaw=ThawPlan(rise=1.02), policy=SchedulePolicy({2: 3}))
    for _ in range(8):
        tuner.fit_round()
    assert tuner.cut == 3
    shuffled = Batch([b"new" + key for key in BATCH.keys], BATCH.images.flip(0), BATCH.targets)
    tuner.observe(
        shuffled,
        sources={b"new" + key: source for key, source in zip(BATCH.keys, list(SOURCES.values())[::-1], strict=True)},
    )
    cuts = [tuner.fit_round().next_cut for _ in range(3)]
    assert 0 in cuts
    assert tuner.store.cut == tuner.cut == 0


@pytest.mark.parametrize("kind", [MemoryStore, LmdbStore, TieredStore])
@pytest.mark.parametrize("to", [0, 1])
def test_drop_and_freeze_agree_through_thaws(kind, to, tmp_path):
    def tuner(strategy):
        store = MemoryStore() if kind is MemoryStore else kind(tmp_path / strategy)
        return make(strategy, store, thaw=ThawPlan(every=2, rounds=2, to=to))

    drop, _ = check_drop_equals_freeze(tuner, 10)
    assert any(r.thawed for r in drop)


class DropsFour:
    """Scored; drops four layers once, and remembers what it saw of those dropped."""

    def __init__(self):
        self.dropped = []

    def __call__(self, evidence):
        self.dropped.append(evidence.dropped)
        return 0 if evidence.dropped else 4


@pytest.mark.parametrize("strategy", ["drop", "freeze"])
@pytest.mark.parametrize(("size", "known"), [(2, True), (8, False)])
def test_layers_that_a_thaw_drops_again_have_the_scores_of_then(strategy, size, known):
    """12 iterations a round, three of them thawed, are enough for new scores; 3 are not: those before it stay."""
    plan = ThawPlan(every=2 if known else 20, rounds=3, to=1, most=1)
    policy = DropsFour()
    tuner = make(strategy, policy=policy, thaw=plan, batch_size=size, warm_up=0, average=False)
    reports = []
    while not any(report.thawed for report in reports) or tuner.thawing.back is not None:
        before = dict(tuner.decisions.dropped_scores)
        reports.append(tuner.fit_round())
    assert reports[-1].next_cut == 4
    layers, scores = tuner.split.layers, tuner.decisions.dropped_scores
    assert list(scores) == list(layers[:4])
    assert scores[layers[0]] == before[layers[0]]
    now = standardise(torch.tensor(list(reports[-1].importance.values()), dtype=torch.float64)).tolist()
    assert [scores[name] for name in layers[1:4]] == (now[:3] if known else [before[name] for name in layers[1:4]])


def test_thawed_layers_train_again_and_come_back_to_their_places_in_the_optimiser():
    tuner = make(policy=SchedulePolicy({1: 3}))
    names = [len(group["params"]) for group in tuner.optimizer.param_groups]
    for _ in range(3):
        tuner.fit_round()
    stem = tuner.split.model.stem[0].weight
    frozen = stem.detach().clone()
    tuner.fit_round()
    assert torch.equal(stem, frozen)
    tuner.thaw()
    assert [len(group["params"]) for group in tuner.optimizer.param_groups] == names
    assert tuner.optimizer.param_groups[0]["params"][0] is stem
    assert tuner.store.cut == tuner.cut == 0
    tuner.fit_round()
    assert not torch.equal(stem, frozen)


def test_a_thaw_that_cannot_be_changes_nothing():
    tuner = make(sources=None, policy=SchedulePolicy({1: 3}))
    with pytest.raises(ConfigError, match="earlier"):
        tuner.thaw(0)
    for _ in range(2):
        tuner.fit_round()
    with pytest.raises(StoreError, match="source"):
        tuner.thaw(0)
    assert tuner.cut == tuner.store.cut == 3
    tuner.fit_round()


def test_a_planned_thaw_that_cannot_be_is_said_every_time_and_never_told_as_done():
    tuner = make(sources=None, policy=SchedulePolicy({1: 3}), thaw=ThawPlan(every=1, rounds=2))
    reports = [tuner.fit_round() for _ in range(2)]
    before = weights(tuner)
    for _ in range(3):
        with pytest.raises(StoreError, match="source"):
            tuner.fit_round()
        assert (tuner.cut, tuner.store.cut, tuner.thawing.back) == (3, 3, None)
    assert not same(weights(tuner), before)  # the head went on
    for key, source in SOURCES.items():
        activations = tuple(part[0] for part in tuner.store.get_many([key]))
        tuner.store.put_many({key: activations}, {key: tuner.store.get_targets([key])[0]}, sources={key: source})
    reports += [tuner.fit_round() for _ in range(3)]
    assert [(r.cut, r.next_cut, r.thawed) for r in reports[2:]] == [(3, 0, False), (0, 0, True), (0, 3, True)]


def test_sources_that_are_images_need_prepare():
    def image(key):
        return encode_source(
            (BATCH.images[BATCH.keys.index(key)].permute(1, 2, 0) * 40 + 90).clamp(0, 255).byte(), "png"
        )

    pictures = {key: image(key) for key in BATCH.keys}
    tuner = make(sources=pictures, policy=SchedulePolicy({1: 3}))
    for _ in range(2):
        tuner.fit_round()
    with pytest.raises(StoreError, match="prepare"):
        tuner.thaw(0)
    prepared = make(
        sources=pictures,
        policy=SchedulePolicy({1: 3}),
        prepare=lambda array: torch.from_numpy(array).permute(2, 0, 1).float().sub(90).div(40),
    )
    for _ in range(2):
        prepared.fit_round()
    prepared.thaw(1)
    assert prepared.fit_round().cut == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"plateau": 0},
        {"rise": 1.0},
        {"rise": float("nan")},
        {"every": 1, "rounds": 0},
        {"every": 1, "to": -1},
        {"every": "3"},
        {"every": 2.5},
        {"every": True},
        {"every": 1, "to": 1.5},
    ],
)
def test_plans_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError):
        ThawPlan(**options)


# ---------------------------------------------------------------- resuming


def resumed(path, store=None, **options):
    return FineTuner.load(
        path,
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, 0.02, momentum=0.9),
        store=store,
        **{"policy": SchedulePolicy({1: 2, 2: 4}), **options},
    )


def test_saved_after_any_round_of_a_plan_and_resumed(tmp_path):
    whole = make(thaw=PLAN, grow_batch=4)
    for number in range(11):
        whole.save(tmp_path / str(number), extra=0)
        whole.fit_round()
    for number in range(11):
        tuner = resumed(tmp_path / str(number), thaw=PLAN)
        for _ in range(11 - number):
            tuner.fit_round()
        assert same(weights(tuner), weights(whole)), f"resumed after round {number}"


def test_resumed_before_the_cut_that_the_run_began_at(tmp_path):
    whole = make(cut=2, policy=SchedulePolicy({4: 3}))
    whole.thaw(0)
    whole.fit_round()
    whole.save(tmp_path / "saved", extra=0)
    tuner = resumed(tmp_path / "saved", policy=SchedulePolicy({4: 3}))
    assert (tuner.cut, tuner.store.cut) == (0, 0)
    for _ in range(4):
        whole.fit_round()
        tuner.fit_round()
    assert same(weights(tuner), weights(whole))


@pytest.mark.parametrize("later", range(1, 8))
def test_a_store_that_went_on_without_a_checkpoint_is_made_anew_from_its_sources(later, tmp_path):
    """The disk holds what rounds after the checkpoint left: later cuts, thawed cuts, the same cut by other weights."""
    whole = make(store=LmdbStore(tmp_path / "whole"), thaw=PLAN)
    for _ in range(12):
        whole.fit_round()
    tuner = make(store=LmdbStore(tmp_path / "store"), thaw=PLAN)
    for _ in range(4):
        tuner.fit_round()
    tuner.save(tmp_path / "saved", extra=0)
    for _ in range(later):
        tuner.fit_round()
    tuner.store.close()
    again = resumed(tmp_path / "saved", LmdbStore(tmp_path / "store"), thaw=PLAN)
    for _ in range(8):
        again.fit_round()
    assert same(weights(again), weights(whole))


def test_a_store_ahead_without_sources_is_refused(tmp_path):
    tuner = make(store=LmdbStore(tmp_path / "store"), sources=None)
    tuner.fit_round()
    tuner.save(tmp_path / "saved", extra=0)
    for _ in range(3):
        tuner.fit_round()
    tuner.store.close()
    with pytest.raises(CheckpointError, match="source"):
        resumed(tmp_path / "saved", LmdbStore(tmp_path / "store"))


# ---------------------------------------------------------------- batches that grow


@pytest.mark.parametrize(("kind", "power"), [(torch.optim.SGD, 1.0), (torch.optim.AdamW, 0.5)])
def test_batches_grow_with_the_memory_that_dropping_frees_and_rates_with_them(kind, power):
    tuner = make(policy=SchedulePolicy({1: 4}), grow_batch=2, optimizer=kind, lr=0.01)
    first = tuner.fit_round()
    second = tuner.fit_round()
    assert (first.batch_size, second.batch_size) == (8, 16)
    assert second.lr == pytest.approx(first.lr * 2**power)
    assert (first.iterations, second.iterations) == (3, 2)


def test_growth_is_a_bounded_power_of_two_and_never_shrinks_with_the_cut():
    split = SplitModel(SmallNet(), BATCH.images[:2])
    grown = [growth(split, 0, cut, 64) for cut in range(5)]
    assert grown == sorted(grown)
    assert set(grown) <= {1, 2, 4, 8, 16, 32, 64}
    assert grown[0] == 1 < grown[-1]
    assert [growth(split, 0, cut, 1) for cut in range(5)] == [1] * 5


def test_a_scheduler_goes_on_from_the_scaled_rate():
    tuner = make(
        policy=SchedulePolicy({2: 4}),
        grow_batch=2,
        scheduler=lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3], 0.1),
    )
    rates = [tuner.fit_round().lr for _ in range(5)]
    assert rates == pytest.approx([0.02, 0.02, 0.04, 0.004, 0.004])


class Stepped:
    """A ReduceLROnPlateau whose loss never falls."""

    def __init__(self, scheduler: schedules.ReduceLROnPlateau) -> None:
        self.parts = self._schedulers = [scheduler]

    def step(self) -> None:
        self.parts[0].step(1.0)


SCHEDULES = {
    "lambda": lambda o: schedules.LambdaLR(o, lambda n: 0.9**n),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 20),
    "cosine, to a rate": lambda o: schedules.CosineAnnealingLR(o, 12, eta_min=0.01),
    "warm restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 4, eta_min=0.01),
    "averaging": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=8),
    "plateau": lambda o: Stepped(schedules.ReduceLROnPlateau(o, factor=0.5, patience=0, min_lr=0.01)),
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=20),
    "cyclic": lambda o: schedules.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "one after another": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=4), schedules.LambdaLR(o, lambda n: 0.9**n)], [8]
    ),
    "at once": lambda o: schedules.ChainedScheduler([schedules.ConstantLR(o, 0.5, 3), schedules.ExponentialLR(o, 0.9)]),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_scheduler_goes_on_at_the_scaled_rates(kind):
    def rates(scaled):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.05, momentum=0.9)
        scheduler, found = SCHEDULES[kind](optimizer), []
        for number in range(16):
            if scaled and number == 5:
                scale_rates(optimizer, scheduler, 2.0)
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    plain = rates(False)
    assert rates(True) == pytest.approx([*plain[:5], *(2 * rate for rate in plain[5:])])


# ---------------------------------------------------------------- drops on trial


class Hasty:
    """Drops two layers whenever asked; takes back what makes the loss rise at all."""

    needs_scores = False
    tolerance = 0.01

    def check(self, layers):
        pass

    def __call__(self, evidence):
        return 2


@pytest.mark.parametrize("kind", [MemoryStore, LmdbStore, TieredStore])
def test_a_drop_that_makes_the_loss_rise_is_taken_back_and_tried_again_later(kind, tmp_path):
    def tuner(strategy):
        store = MemoryStore() if kind is MemoryStore else kind(tmp_path / strategy)
        return make(strategy, store, policy=Hasty())

    drop, freeze = check_drop_equals_freeze(tuner, 9)
    assert [r.cut for r in drop] == [0, 2, 0, 0, 2, 0, 0, 0, 0]
    assert drop[8].next_cut == 2
    assert not any(r.stored for r in drop)
    assert "taken back" in drop[1].why
    assert "asked again" in drop[2].why
    assert [r.loss for r in drop] == [r.loss for r in freeze]


def test_a_thaw_ends_a_trial():
    tuner = make(policy=Hasty())
    assert tuner.fit_round().next_cut == 2
    tuner.thaw(1)
    report = tuner.fit_round()  # its loss is above the tolerance, yet nothing is on trial
    assert (report.cut, report.next_cut) == (1, 3)


def test_what_dropped_layers_had_is_forgotten_by_layer():
    store = MemoryStore()
    tuner = make(store=store, policy=SchedulePolicy({1: 3}))
    for _ in range(2):
        tuner.fit_round()
    torch.manual_seed(0)
    again = FineTuner(
        tuner.split, loss=functional.cross_entropy, optimizer=torch.optim.SGD, store=store, policy=SchedulePolicy()
    )
    assert again.cut == 3
    again.decisions.dropped_scores = {again.split.layers[3]: 0.5, again.split.layers[4]: 0.7}
    again.decisions.forget(4)
    assert again.decisions.dropped_scores == {again.split.layers[3]: 0.5}


def test_a_trial_is_resumed_wherever_it_was_saved(tmp_path):
    whole = make(policy=Hasty())
    for number in range(8):
        whole.save(tmp_path / str(number), extra=0)
        whole.fit_round()
    for number in range(8):
        again = resumed(tmp_path / str(number), policy=Hasty())
        for _ in range(8 - number):
            again.fit_round()
        assert same(weights(again), weights(whole)), f"resumed after round {number}"


# ---------------------------------------------------------------- the paper's freezing


def test_freezing_with_a_whole_backward_pass_ends_in_the_same_weights():
    cut_short, whole = make("freeze"), make("freeze", whole_backward=True)
    for _ in range(5):
        cut_short.fit_round()
        whole.fit_round()
    assert same(weights(cut_short), weights(whole))
    assert all(p.grad is None for p in whole.split.tail_parameters(4).values())


def pointwise():
    """Three 1×1 convolutions: PyTorch runs them otherwise from 16 samples on, on one thread."""
    torch.manual_seed(0)
    norms = [nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()) for width in (8, 8)]
    layers = [nn.Conv2d(3, 8, 1), norms[0], nn.Conv2d(8, 8, 1), norms[1], nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("threads", [1, 2])
def test_so_it_does_in_large_batches(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        options = {"batch": BATCH, "policy": SchedulePolicy({1: 2}), "batch_size": 24}
        drop = small_tuner(pointwise(), **options, strategy="drop")
        freeze = small_tuner(pointwise(), **options, strategy="freeze", whole_backward=True)
        assert [drop.fit_round().loss for _ in range(4)] == [freeze.fit_round().loss for _ in range(4)]
    finally:
        torch.set_num_threads(before)
    assert same(weights(drop), weights(freeze))


# ---------------------------------------------------------------- windows and rates


def test_gradients_at_different_learning_rates_are_not_scored_together():
    class Ask:
        needs_scores = True

        def __init__(self):
            self.seen = []

        def check(self, layers):
            pass

        def __call__(self, evidence):
            self.seen.append((evidence.round, evidence.iterations))
            return 0

    policy = Ask()
    tuner = make(
        policy=policy,
        batch_size=2,
        warm_up=0,
        scheduler=lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [4], 0.1),
    )
    for _ in range(7):
        tuner.fit_round()
    assert policy.seen == [(3, 36), (7, 36)]  # rounds 1-3; round 4 starts a window that the change ends; rounds 5-7


# ---------------------------------------------------------------- broken training


def test_a_rate_that_is_far_too_high_is_named_with_the_layer():
    tuner = make(policy=SchedulePolicy(), lr=1e30)
    with pytest.raises(
        TrainingError, match=r"round 1, batch \d: the loss is (nan|inf).*layer .*learning rate \(now 1e\+30\)"
    ):
        tuner.fit_round()


def test_a_gradient_that_is_not_finite_is_named_nearest_to_the_output():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.second = nn.Conv2d(4, 3, 3)

        def forward(self, x):
            return self.second(self.first(x).relu()).mean((2, 3))

    model = Broken()
    tuner = FineTuner(
        SplitModel(model, BATCH.images[:2]),
        loss=lambda output, target: functional.cross_entropy(output, target) * float("nan"),
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        policy=SchedulePolicy(),
        batch_size=8,
    )
    tuner.observe(BATCH)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(TrainingError, match="first gradient that is not finite is at layer second"):
        tuner.fit_round()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def diverging(**options):
    """A tuner whose classifier alone learns at a rate far too high, in a group of its own."""
    torch.manual_seed(0)

    def optimizer(parameters):
        *body, weight, bias = parameters
        return torch.optim.SGD([{"params": body}, {"params": [weight, bias], "lr": 1e30}], 1e-9)

    tuner = FineTuner(
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=optimizer,
        policy=SchedulePolicy(),
        batch_size=8,
        **options,
    )
    tuner.observe(BATCH)
    return tuner


def test_the_rate_told_is_that_of_the_group_that_broke():
    with pytest.raises(
        TrainingError, match=r"at linear \(no layer of the split\): lower the learning rate \(now 1e\+30\), or check"
    ):
        diverging().fit_round()


def test_clipping_is_told_of_where_it_is_set():
    tuner = diverging(clip_norm=5.0)
    tuner.loss = lambda output, target: output.sum() * float("nan")
    with pytest.raises(TrainingError, match=r"\(now 1e\+30\) or clip_norm \(now 5\), or check the targets"):
        tuner.fit_round()


def test_weights_that_broke_are_named_before_any_gradient():
    tuner = diverging()
    with torch.no_grad():
        tuner.split.model.first[1].bias[0] = float("nan")
    with pytest.raises(
        TrainingError, match=r"the weights of first\.1 \(no layer of the split\) are no longer.*1e-09\)"
    ):
        tuner.fit_round()


def test_where_nothing_is_at_fault_all_rates_are_told():
    tuner = diverging()
    tuner.loss = lambda output, target: torch.tensor(float("inf"), requires_grad=True)
    with pytest.raises(TrainingError, match=r"weights are finite: lower the learning rate \(now 1e-09, 1e\+30\)"):
        tuner.fit_round()
