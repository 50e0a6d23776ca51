from __future__ import annotations

import itertools
import math
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from streamdrop.calibration import calibration_batches
from streamdrop.engine import FineTuner
from streamdrop.errors import ConfigError, DataError, MissingKeyError, StoreVersionError, TrainingError
from streamdrop.feed import Feed
from streamdrop.policies import PaperPolicy, PrefixSumPolicy, SchedulePolicy
from streamdrop.rounds import count_batches, round_batches
from streamdrop.split import SplitModel, run_in_chunks
from streamdrop.store import LmdbStore, MemoryStore, TieredStore
from streamdrop.store.prefetch import Stored
from streamdrop.testing.tuners import SmallNet, check_drop_equals_freeze, labelled_batch, small_tuner
from streamdrop.types import Batch, SampleInfo

BATCH = labelled_batch(25)
NEVER = SchedulePolicy()


def weights(tuner):
    return torch.cat([p.detach().flatten() for p in tuner.split.model.parameters()])


def run(tuner, rounds):
    return [tuner.fit_round() for _ in range(rounds)]


# ---------------------------------------------------------------- the law


@pytest.mark.parametrize("policy", [SchedulePolicy({2: 1, 3: 3, 6: 4}), PaperPolicy(), PrefixSumPolicy()])
@pytest.mark.parametrize("on_disk", [False, True])
def test_drop_and_freeze_end_in_the_same_weights(policy, on_disk, tmp_path):
    def make(strategy):
        store = LmdbStore(tmp_path / strategy) if on_disk else MemoryStore()
        return small_tuner(batch=BATCH, policy=policy, store=store, strategy=strategy, batch_size=3)

    drop, _ = check_drop_equals_freeze(make, 9)
    assert drop[-1].cut > 0


def test_the_law_holds_for_a_batch_that_ends_in_one_sample_and_for_one_sample_stored():
    for count, size in ((9, 8), (9, 4), (1, 4)):
        batch = labelled_batch(count)
        check_drop_equals_freeze(
            lambda s, b=batch, n=size: small_tuner(
                batch=b, policy=SchedulePolicy({1: 2, 3: 4}), strategy=s, batch_size=n
            ),
            5,
        )


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"clip_norm": 0.1}, {"batch_norm": "frozen"}])
def test_the_law_holds_with_options(options):
    policy = SchedulePolicy({2: 2, 3: 3})
    check_drop_equals_freeze(lambda s: small_tuner(batch=BATCH, policy=policy, strategy=s, **options), 5)


# ---------------------------------------------------------------- timing of decisions


def test_a_schedule_is_obeyed_whatever_the_warm_up():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({2: 1, 3: 4}), warm_up=50)
    cuts = [(r.cut, r.next_cut, r.stored) for r in run(tuner, 5)]
    assert cuts == [(0, 0, False), (0, 1, False), (1, 4, True), (4, 4, True), (4, 4, False)]
    assert tuner.cut == tuner.store.cut == 4


def test_the_cut_moves_at_once_and_the_store_in_the_next_round():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}))
    tuner.fit_round()
    assert (tuner.cut, tuner.store.cut) == (3, 0)
    tuner.fit_round()
    assert (tuner.cut, tuner.store.cut) == (3, 3)
    assert tuner.store.version == tuner.split.version(3)


class Recording:
    """Drops one layer whenever it is asked, and remembers when."""

    needs_scores = True

    def __init__(self):
        self.asked = []

    def check(self, layers):
        pass

    def __call__(self, evidence):
        self.asked.append((evidence.round, evidence.cut, evidence.iterations, len(evidence.importance)))
        return 1


def test_scored_decisions_wait_for_the_warm_up_and_skip_storing_rounds():
    policy = Recording()
    run(small_tuner(batch=labelled_batch(32), policy=policy, warm_up=2, batch_size=1, batch_norm="frozen"), 6)
    assert policy.asked == [(3, 0, 32, 5), (5, 1, 32, 4)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_decision_follows_the_warm_up_however_many_batches_make_a_step(accumulate):
    """15 steps a round: a window that ended after 30 of them would hold 15 at the first decision."""
    policy, batch = Recording(), labelled_batch(30 * accumulate)
    run(small_tuner(batch=batch, policy=policy, warm_up=2, batch_size=2, accumulate=accumulate), 3)
    assert policy.asked == [(3, 0, 45, 5)]


def test_scores_gather_until_thirty_gradients():
    policy = Recording()
    run(small_tuner(batch=labelled_batch(20), policy=policy, warm_up=3, batch_size=2), 7)
    assert policy.asked == [(4, 0, 40, 5), (7, 1, 30, 4)]
    late = Recording()
    run(small_tuner(batch=labelled_batch(20), policy=late, warm_up=0, batch_size=2), 4)
    assert [round_ for round_, *_ in late.asked] == [3]


def test_freeze_moves_the_cut_and_leaves_the_store_and_sgd_moves_neither():
    freeze = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}), strategy="freeze")
    run(freeze, 3)
    assert (freeze.cut, freeze.store.cut) == (3, 0)
    sgd = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}), strategy="sgd")
    run(sgd, 3)
    assert (sgd.cut, sgd.store.cut) == (0, 0)


def test_all_three_are_the_same_until_the_first_drop():
    tuners = [small_tuner(batch=BATCH, policy=SchedulePolicy({4: 3}), strategy=s) for s in ("sgd", "freeze", "drop")]
    for _ in range(4):
        losses = {tuner.fit_round().loss for tuner in tuners}
        assert len(losses) == 1


# ---------------------------------------------------------------- what a drop leaves alone


def test_dropped_parameters_never_move_again_and_others_keep_their_momentum():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({2: 3}))
    run(tuner, 2)
    kept = {p: tuner.optimizer.state[p]["momentum_buffer"].clone() for p in tuner.split.head_parameters(3).values()}
    before = {n: t.clone() for n, t in tuner.split.tail(3).state_dict().items()}
    groups = {id(p) for group in tuner.optimizer.param_groups for p in group["params"]}
    assert groups == {id(p) for p in kept}
    assert all(torch.equal(tuner.optimizer.state[p]["momentum_buffer"], m) for p, m in kept.items())
    run(tuner, 3)
    for name, tensor in tuner.split.tail(3).state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_frozen_batch_norm_keeps_its_statistics():
    for mode, moves in (("train", True), ("frozen", False)):
        tuner = small_tuner(batch=BATCH, policy=NEVER, batch_norm=mode)
        before = tuner.split.model.stem[1].running_mean.clone()
        tuner.fit_round()
        assert torch.equal(before, tuner.split.model.stem[1].running_mean) is not moves


def test_a_round_leaves_the_users_random_state_and_modes_alone():
    tuner = small_tuner(batch=BATCH, policy=NEVER)
    tuner.split.model.eval()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tuner.fit_round()
    assert torch.equal(torch.rand(1), expected)
    assert not any(module.training for module in tuner.split.model.modules())


# ---------------------------------------------------------------- samples


def test_new_samples_pass_the_tail_once_and_train_with_the_rest():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}))
    run(tuner, 2)
    more = labelled_batch(7, first=100, seed=1)
    tuner.observe(more)
    expected = tuner.split.tail(3).eval()(more.images)
    for got, want in zip(tuner.store.get_many(more.keys), expected, strict=True):
        assert torch.equal(got, want)
    assert tuner.fit_round().samples == 32


def test_activations_at_hand_need_no_second_forward():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}))
    run(tuner, 2)
    more = labelled_batch(4, first=100, seed=1)
    tuner.observe_activations(more.keys, tuner.embed(more.images), more.targets)
    twin = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}))
    run(twin, 2)
    twin.observe(more)
    assert tuner.fit_round().loss == twin.fit_round().loss


def test_samples_seen_between_decision_and_storing_are_stored_too():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}))
    tuner.fit_round()
    tuner.observe(labelled_batch(4, first=100, seed=1))
    tuner.fit_round(steps=1)  # sees one batch only: the rest is promoted all the same
    assert (tuner.store.cut, len(tuner.store)) == (3, 29)


def test_weights_of_samples_reach_a_loss_that_takes_them():
    seen = []

    def loss(output, target, sample_weight):
        seen.append(sample_weight)
        return (functional.cross_entropy(output, target, reduction="none") * sample_weight).mean()

    tuner = FineTuner(
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=loss,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        policy=NEVER,
    )
    batch = labelled_batch(4)
    tuner.observe(batch, {batch.keys[0]: SampleInfo(weight=0.25)})
    tuner.fit_round()
    assert sorted(seen[0].tolist()) == [0.25, 1, 1, 1]


def test_weights_of_samples_reach_a_loss_that_is_a_module():
    class Weighted(nn.Module):
        def forward(self, output, target, sample_weight):
            seen.append(sample_weight.tolist())
            return functional.cross_entropy(output, target)

    seen = []
    tuner = FineTuner(
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=Weighted(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.02),
        policy=NEVER,
    )
    tuner.observe(BATCH, {key: SampleInfo(weight=0.5) for key in BATCH.keys})
    tuner.fit_round()
    assert seen == [[0.5] * len(BATCH.keys)]


@pytest.mark.parametrize("loss", ["cross_entropy", None])
def test_a_loss_that_cannot_be_called_is_refused(loss):
    with pytest.raises(ConfigError, match="loss is"):
        FineTuner(SplitModel(SmallNet(), BATCH.images[:2]), loss=loss, optimizer=torch.optim.SGD)


def test_sampler_steps_and_deadline():
    tuner = small_tuner(batch=BATCH, policy=NEVER)
    calls = []

    def sampler(keys, iteration, generator):
        calls.append(iteration)
        chosen = torch.randint(len(keys), (4,), generator=generator)
        return [keys[i] for i in chosen]

    report = tuner.fit_round(steps=3, sampler=sampler)
    assert (report.samples, report.iterations, calls) == (12, 3, [0, 1, 2])
    assert not report.cut_short
    short = tuner.fit_round(steps=5, deadline=0.0)
    assert (short.iterations, short.cut_short) == (1, True)
    assert tuner.fit_round(steps=7).iterations == 7


@pytest.mark.parametrize(("kind", "depth"), [(LmdbStore, 1), (LmdbStore, 3), (TieredStore, 2)])
def test_reading_ahead_changes_nothing(kind, depth, tmp_path):
    def trained(read_ahead):
        with kind(tmp_path / str(read_ahead)) as store:
            policy = SchedulePolicy({1: 2, 3: 4})
            tuner = small_tuner(batch=BATCH, policy=policy, store=store, read_ahead=read_ahead, batch_size=4)
            reports = [*run(tuner, 4), tuner.fit_round(steps=9), tuner.fit_round(steps=3, sampler=pairs)]
            assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
            return weights(tuner), [r.loss for r in reports]

    ahead, in_line = trained(depth), trained(0)
    assert torch.equal(ahead[0], in_line[0])
    assert ahead[1] == in_line[1]


def pairs(keys, iteration, generator):
    return [keys[i] for i in torch.randperm(len(keys), generator=generator)[:2]]


def test_a_deadline_ends_reading_ahead_too(tmp_path):
    drawn = []

    def sampler(keys, iteration, generator):
        drawn.append(iteration)
        return pairs(keys, iteration, generator)

    with LmdbStore(tmp_path / "s") as store:
        tuner = small_tuner(batch=BATCH, policy=NEVER, store=store)
        report = tuner.fit_round(steps=50, sampler=sampler, deadline=0.0)
        assert (report.iterations, report.cut_short, drawn) == (1, True, [0, 1, 2])
        assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
        assert not tuner.fit_round(steps=1, sampler=sampler, deadline=0.0).cut_short
        assert tuner.fit_round(deadline=0.0).cut_short


def test_a_samplers_mistake_ends_the_round_at_its_batch(tmp_path):
    def sampler(keys, iteration, generator):
        return [b"nowhere"] if iteration == 2 else pairs(keys, iteration, generator)

    with LmdbStore(tmp_path / "s") as store:
        tuner = small_tuner(batch=BATCH, policy=NEVER, store=store)
        before = weights(tuner)
        with pytest.raises(MissingKeyError, match="nowhere"):
            tuner.fit_round(steps=5, sampler=sampler)
        assert not torch.equal(before, weights(tuner))
        assert tuner.fit_round().samples == 25


@pytest.mark.parametrize("sampler", [None, pairs])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_batches_are_counted_without_drawing_them(size, sampler):
    for count, steps in itertools.product((1, 2, 3, 4, 8, 9, 10, 25), (None, 0, 1, 7)):
        keys = BATCH.keys[:count]
        given = list(round_batches(keys, size, steps, sampler, (0, 1)))
        assert len(given) == count_batches(keys, size, steps, sampler)


def test_a_batch_is_on_the_device_before_its_memory_is_used_again(monkeypatch):
    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(True))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    feed = Feed(small_tuner(batch=BATCH, policy=NEVER).split, MemoryStore(), torch.device("meta"), chunk=8)
    for targets in (None, torch.zeros(2), (torch.zeros(2), torch.ones(2))):
        moved = feed.uploaded(Stored([b"a", b"b"], (torch.rand(2, 3),), targets, []))
        parts = targets if isinstance(targets, tuple) else (targets,)
        found = moved.targets if isinstance(targets, tuple) else (moved.targets,)
        assert {t.device.type for t in (*moved.activations, *found) if t is not None} == {"meta"}
        assert [t is None for t in found] == [t is None for t in parts]
    assert len(waited) == 3


def test_encoded_inputs_reach_the_store():
    class Listening(MemoryStore):
        given = None

        def put_many(self, samples, targets=None, info=None, sources=None):
            super().put_many(samples, targets, info)
            self.given = sources

    tuner = small_tuner(batch=BATCH, policy=NEVER, store=Listening())
    assert tuner.store.given is None
    sources = {key: bytes([i]) for i, key in enumerate(BATCH.keys)}
    tuner.observe(BATCH, sources=sources)
    assert tuner.store.given == sources


def test_a_store_hears_once_that_a_round_is_done():
    class Listening(MemoryStore):
        rounds = 0

        def round_done(self):
            self.rounds += 1
            self.cut_then = self.cut

    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}), store=Listening())
    run(tuner, 2)
    assert (tuner.store.rounds, tuner.store.cut_then) == (2, 3)  # after the move


def test_predict_is_the_whole_model_in_eval_mode():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}), batch_size=4)
    run(tuner, 3)
    tuner.split.model.train()
    output = tuner.predict(BATCH.images)
    assert tuner.split.model.training
    model = tuner.split.model.eval()
    with torch.no_grad():
        assert torch.allclose(output, model(BATCH.images), atol=1e-6)
    assert not output.requires_grad


def test_training_learns():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({10: 4}))
    losses = [report.loss for report in run(tuner, 30)]
    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------- statistics of dropped layers


def test_dropped_layers_get_the_statistics_that_their_final_weights_give():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({2: 2}), batch_size=25, calibrate=25)
    run(tuner, 2)
    model = tuner.split.model
    with torch.no_grad():
        out = model.stem[0](BATCH.images)
        assert torch.allclose(model.stem[1].running_mean, out.mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(model.stem[1].running_var, out.var((0, 2, 3)), atol=1e-4)
    last = model.third[1]
    assert last.num_batches_tracked == 2  # above the cut: as training left it
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("options", [{"calibrate": 0}, {"batch_norm": "frozen"}])
def test_statistics_stay_where_calibration_is_off(options):
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({2: 2}), **options)
    run(tuner, 1)
    before = tuner.split.model.stem[1].num_batches_tracked.clone()
    run(tuner, 1)
    after = tuner.split.model.stem[1].num_batches_tracked
    assert after == before + (3 if "calibrate" in options else 0)  # three batches trained, none calibrated


@pytest.mark.parametrize(("samples", "size"), [(25, 8), (9, 8), (256, 8), (1, 1), (25, 1), (0, 8)])
def test_no_batch_of_one_sample_calibrates(samples, size):
    batches = calibration_batches(BATCH.keys, samples, size, 0, 1)
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys) <= min(samples, 25)
    assert all(len(batch) > 1 for batch in batches)
    assert samples < 2 or keys


# ---------------------------------------------------------------- reports


def test_a_report_says_what_the_round_cost():
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}), scoring=True)
    full, storing, short = run(tuner, 3)
    per_sample = [tuner.split.macs(c) for c in (0, 3)]
    calibrating = 24 * (per_sample[0] - per_sample[1])  # once more through what is dropped; never a batch of one
    assert [storing.forward_macs, short.forward_macs] == [25 * per_sample[i] for i in (0, 1)]
    assert full.forward_macs == 25 * per_sample[0] + calibrating
    assert full.parameters == sum(p.numel() for p in tuner.split.model.parameters())
    assert short.parameters == sum(p.numel() for p in tuner.split.head_parameters(3).values())
    assert storing.tail_seconds > 0
    assert storing.write_seconds > 0
    assert short.tail_seconds == 0
    assert set(short.importance) == set(tuner.split.layers[3:])
    parts = full.tail_seconds + full.write_seconds + full.read_seconds + full.train_seconds
    assert 0 < parts <= full.seconds


def test_scheduler_and_callbacks_follow_the_rounds():
    rates, seen = [], []
    tuner = small_tuner(
        batch=BATCH,
        policy=SchedulePolicy({2: 2}),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        callbacks=[lambda t, report: (seen.append(report.round), rates.append(t.optimizer.param_groups[0]["lr"]))],
    )
    run(tuner, 3)
    assert seen == [1, 2, 3]
    assert rates == pytest.approx([0.01, 0.005, 0.0025])


# ---------------------------------------------------------------- bad input


def test_a_plateau_of_the_rounds_loss_lowers_the_rate_and_resumes(tmp_path):
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=9)

    options = {"optimizer": lambda p: torch.optim.SGD(p, 0.02), "loss": functional.cross_entropy}
    tuner = FineTuner(SplitModel(SmallNet(), BATCH.images[:2]), policy=NEVER, scheduler=plateau, **options)
    tuner.observe(BATCH)
    rates = [report.lr for report in run(tuner, 3)]
    assert rates == pytest.approx([0.02, 0.002, 0.0002])
    tuner.save(tmp_path / "checkpoint")
    split = SplitModel(SmallNet(), BATCH.images[:2])
    again = FineTuner.load(
        tmp_path / "checkpoint", split, store=tuner.store, policy=NEVER, scheduler=plateau, **options
    )
    assert run(again, 2)[-1].lr == run(tuner, 2)[-1].lr
    assert torch.equal(weights(again), weights(tuner))


def test_an_optimiser_that_calls_for_the_loss_again_is_refused():
    with pytest.raises(ConfigError, match=r"LBFGS.*closure"):
        FineTuner(SplitModel(SmallNet(), BATCH.images[:2]), loss=functional.cross_entropy, optimizer=torch.optim.LBFGS)


def test_samples_without_targets_train_a_loss_that_needs_none():
    tuner = small_tuner(batch=Batch(BATCH.keys, BATCH.images, None), policy=NEVER)
    tuner.loss = lambda output, target: output.square().mean()
    first, *_, last = (report.loss for report in run(tuner, 8))
    assert last < first


def first_keys(keys, index, generator):
    return keys[:4]


@pytest.mark.parametrize("steps", [0, -1, 1.5, math.inf, -math.inf, math.nan, "two"])
def test_a_round_of_no_steps_is_refused_before_it_begins(steps):
    tuner = small_tuner(batch=BATCH, policy=NEVER)
    for begin in (
        lambda: tuner.fit_round(steps=steps),
        lambda: tuner.fit_round(steps=steps, sampler=first_keys),
        lambda: next(tuner.round_by_steps(steps, first_keys)),
    ):
        with pytest.raises(TrainingError, match="at least 1"):
            begin()
    assert tuner.round == 0


@pytest.mark.parametrize("steps", [2, 2.0, np.int64(2), np.float32(2), torch.tensor(2)])
def test_a_whole_number_of_steps_is_taken_whatever_its_type(steps):
    tuner = small_tuner(batch=BATCH, policy=NEVER)
    reports = [tuner.fit_round(steps=steps), tuner.fit_round(steps=steps, sampler=first_keys)]
    pieces = tuner.round_by_steps(steps, first_keys)
    assert len(list(pieces)) == 1  # a pause between the two
    assert [(report.iterations, report.cut_short) for report in reports] == [(2, False)] * 2


def test_a_round_without_samples_is_refused():
    tuner = FineTuner(
        SplitModel(SmallNet(), BATCH.images[:2]), loss=functional.cross_entropy, optimizer=torch.optim.SGD
    )
    with pytest.raises(TrainingError, match="observe"):
        tuner.fit_round()


@pytest.mark.parametrize(
    "batch",
    [
        Batch([b"a"], BATCH.images[:2], BATCH.targets[:2]),
        Batch([b"a", b"b"], BATCH.images[:2], BATCH.targets[:1]),
        Batch([b"a", b"a"], BATCH.images[:2], BATCH.targets[:2]),
        Batch([b"a"], torch.full((1, 3, 8, 8), np.nan), BATCH.targets[:1]),
        Batch([b"a"], np.zeros((1, 3, 8, 8)), BATCH.targets[:1]),
    ],
)
def test_batches_that_cannot_be_used_are_refused_and_nothing_is_stored(batch):
    tuner = small_tuner(batch=BATCH, policy=NEVER)
    with pytest.raises(DataError):
        tuner.observe(batch)
    assert len(tuner.store) == 25


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "drip"},
        {"batch_norm": "half"},
        {"batch_size": 0},
        {"warm_up": -1},
        {"read_ahead": -1},
        {"cut": 9},
        {"policy": SchedulePolicy({3: 5})},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError):
        small_tuner(**{"batch": BATCH, "policy": NEVER, **settings})


def test_a_misspelt_setting_names_the_valid_ones():
    with pytest.raises(TypeError, match=r"warmup.*warm_up"):
        small_tuner(batch=BATCH, policy=NEVER, warmup=3)


def test_a_loss_that_is_not_finite_stops_with_the_round_and_a_remedy():
    tuner = small_tuner(batch=BATCH, policy=NEVER)
    with torch.no_grad():
        tuner.split.model.linear.weight.mul_(1e38)
    with pytest.raises(TrainingError, match=r"round 1.*learning rate"):
        run(tuner, 3)


def test_one_sample_and_batch_norm_in_training_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    tuner = small_tuner(model, batch=labelled_batch(1), policy=NEVER)
    with pytest.raises(TrainingError, match="one sample"):
        tuner.fit_round()


def test_a_store_of_another_model_is_refused(tmp_path):
    first = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}), store=LmdbStore(tmp_path / "s"))
    run(first, 2)
    first.store.close()
    with LmdbStore(tmp_path / "s") as store, pytest.raises(StoreVersionError, match="tail weights"):
        small_tuner(batch=BATCH, policy=NEVER, store=store, seed=9)


def test_a_store_of_the_same_tail_is_taken_up_where_it_stands(tmp_path):
    first = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 3}), store=LmdbStore(tmp_path / "s"))
    run(first, 2)
    first.store.close()
    with LmdbStore(tmp_path / "s") as store:
        second = FineTuner(
            first.split, loss=functional.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.01), store=store
        )
        assert second.cut == 3
        assert second.fit_round().samples == 25


def test_a_start_cut_is_reached_before_the_first_sample():
    tuner = small_tuner(batch=BATCH, policy=NEVER, cut=2)
    assert (tuner.cut, tuner.store.cut) == (2, 2)
    assert len(tuner.optimizer.param_groups[0]["params"]) == len(tuner.split.head_parameters(2))
    tuner.fit_round()


def test_scored_policies_warn_without_normalisation():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    with pytest.warns(UserWarning, match="normalisation"):
        small_tuner(model, batch=BATCH, policy=PaperPolicy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_tuner(model, batch=BATCH, policy=NEVER)


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_norm": -1.0},
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"warm_up": "3"},
        {"batch_size": 8.5},
        {"accumulate": 1.5},
        {"policy": 3},
    ],
)
def test_values_of_the_wrong_kind_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        small_tuner(batch=BATCH, **{"policy": NEVER, **settings})


@pytest.mark.parametrize("answer", [None, 1.5])
def test_an_answer_that_is_no_count_of_layers_is_refused(answer):
    class Wrong:
        needs_scores = False

        def __call__(self, evidence):
            return answer

    with pytest.raises(ConfigError, match="Wrong returned"):
        small_tuner(batch=BATCH, policy=Wrong()).fit_round()


def test_a_count_may_be_a_tensor():
    class Tensors:
        needs_scores = False

        def __call__(self, evidence):
            return torch.tensor(evidence.round % 2)

    report = small_tuner(batch=BATCH, policy=Tensors()).fit_round()
    assert report.next_cut == 1
    assert type(report.next_cut) is int


def prepared_tuner(store, preparation, policy=None, observe=True):
    torch.manual_seed(0)
    tuner = FineTuner(
        SplitModel(SmallNet(), BATCH.images[:2], preparation=preparation),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.02),
        store=store,
        policy=policy or NEVER,
        batch_size=8,
    )
    if observe:
        tuner.observe(BATCH)
    return tuner


@pytest.mark.parametrize("kind", [MemoryStore, LmdbStore, TieredStore])
@pytest.mark.parametrize("cut", [0, 2])
def test_a_store_of_images_prepared_otherwise_is_refused(kind, cut, tmp_path):
    def store():
        return MemoryStore() if kind is MemoryStore else kind(tmp_path / "store")

    first = prepared_tuner(store(), "224 px", SchedulePolicy({1: cut}))
    for _ in range(2):
        first.fit_round()
    kept, weights = first.store, first.split.model.state_dict()
    assert kept.cut == cut
    if kind is not MemoryStore:
        kept.close()
        kept = store()
    for preparation in ("", "256 px"):
        with pytest.raises(StoreVersionError, match="prepared otherwise"):
            prepared_tuner(kept, preparation, observe=False)
    same = SplitModel(SmallNet(), BATCH.images[:2], preparation="224 px")
    same.model.load_state_dict(weights)
    again = FineTuner(
        same, loss=functional.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.02), store=kept, policy=NEVER
    )
    assert again.cut == cut
    again.fit_round()
    kept.close()


def test_a_store_filled_before_preparations_were_named_is_not_taken_for_a_named_one():
    store = prepared_tuner(MemoryStore(), "").store
    with pytest.raises(StoreVersionError, match="prepared otherwise"):
        prepared_tuner(store, "224 px", observe=False)
    assert prepared_tuner(store, "", observe=False).cut == 0


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            lambda output, target: functional.cross_entropy(output, target, reduction="none"),
            r"shape \(8,\): it must be",
        ),
        (lambda output, target: 3.0, "3.0: it must be"),
        (lambda output, target: functional.cross_entropy(output.detach(), target), "no trained parameter"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused(loss, said):
    tuner = small_tuner(batch=BATCH, policy=NEVER)
    tuner.loss = loss
    with pytest.raises(TrainingError, match=said):
        tuner.fit_round()


def test_a_sampler_that_gives_nothing_is_refused():
    with pytest.raises(TrainingError, match="no keys for iteration 0"):
        small_tuner(batch=BATCH, policy=NEVER).fit_round(steps=2, sampler=lambda keys, i, generator: [])


def test_a_target_without_a_batch_dimension_is_refused():
    with pytest.raises(DataError, match=r"lengths \[0, 1\]"):
        small_tuner(batch=BATCH, policy=NEVER).observe(Batch([b"one"], BATCH.images[:1], torch.tensor(3)))


def test_a_calibration_that_is_broken_off_leaves_statistics_that_predict():
    class Failing(MemoryStore):
        left = 4  # three batches of the round, one of the calibration

        def get_many(self, keys):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the disk is gone")
            return super().get_many(keys)

    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 2}), store=Failing())
    with pytest.raises(RuntimeError, match="gone"):
        tuner.fit_round()
    norm = tuner.split.model.stem[1]
    assert int(norm.num_batches_tracked) == 3  # the round's own
    assert not torch.equal(norm.running_var, torch.ones(4))
    assert norm.momentum == 0.1
    assert tuner.predict(BATCH.images).isfinite().all()


def test_scores_cannot_be_off_where_a_policy_would_wait_for_them_for_ever():
    with pytest.raises(ConfigError, match="scoring is off, but policy Recording"):
        small_tuner(batch=BATCH, policy=Recording(), scoring=False)
    small_tuner(batch=BATCH, policy=Recording(), scoring=False, strategy="sgd")  # which asks no policy
    small_tuner(batch=BATCH, policy=NEVER, scoring=False)


def perceptron():
    """Linear layers large enough for kernels that sum otherwise by the number of rows."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 768), nn.ReLU(), nn.Linear(768, 512), nn.ReLU(), nn.Linear(512, 3)
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [3, 4, 16])
def test_drop_equals_freeze_where_linear_layers_are_dropped(size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_drop_equals_freeze(
            lambda strategy: small_tuner(
                perceptron(),
                batch=BATCH,
                layers=["1", "3", "5"],
                policy=SchedulePolicy({1: 2}),
                batch_size=size,
                strategy=strategy,
            ),
            rounds=4,
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["linear", "double", "recurrent", "squeezed"])
def test_a_sample_has_the_same_bits_in_every_batch(kind, threads):
    module, shape = {
        "linear": (lambda: nn.Linear(768, 512), (768,)),
        "double": (lambda: nn.Linear(300, 200).double(), (300,)),
        "recurrent": (lambda: Last(nn.GRU(40, 64, batch_first=True)), (6, 40)),
        "squeezed": (
            lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(96, 24, 1), nn.Conv2d(24, 96, 1)),
            (96, 7, 7),
        ),
    }[kind]
    torch.manual_seed(0)
    layer, before = module(), torch.get_num_threads()
    given = torch.randn(40, *shape, dtype=next(layer.parameters()).dtype)
    torch.set_num_threads(threads)
    try:
        (wanted,) = run_in_chunks(layer, (given,), 64)
        for count in (1, 2, 3, 5, 6, 7, 9, 11, 13, 17, 23, 40):
            for chunk in (2, 7, 16, 64):
                order = torch.randperm(40)[:count]
                (found,) = run_in_chunks(layer, (given[order],), chunk)
                assert torch.equal(found, wanted[order]), f"{count} samples in chunks of {chunk}"
    finally:
        torch.set_num_threads(before)


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]
