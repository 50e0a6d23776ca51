"""A resumed run equals one that was never stopped: in memory, on disk, and killed by the system at any stage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.errors import CheckpointError, ConfigError, OutputError
from streamdrop.policies import PaperPolicy, PrefixSumPolicy, SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.store import LmdbStore, MemoryStore, TieredStore
from streamdrop.testing.tuners import SmallNet, labelled_batch, small_tuner

BATCH = labelled_batch(25)


def resumed(path, policy, store=None, model=None, **options):
    return FineTuner.load(
        path,
        SplitModel(SmallNet() if model is None else model, BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=options.pop("optimizer", lambda p: torch.optim.SGD(p, 0.02, 0.9, weight_decay=1e-3)),
        store=store,
        policy=policy,
        **options,
    )


def state(tuner):
    return {name: tensor.clone() for name, tensor in tuner.split.model.state_dict().items()}


@pytest.mark.parametrize("strategy", ["drop", "freeze", "sgd"])
@pytest.mark.parametrize("policy", [SchedulePolicy({2: 1, 4: 3}), PrefixSumPolicy(), PaperPolicy()])
def test_saved_after_any_round_and_resumed(policy, strategy, tmp_path):
    whole = small_tuner(batch=BATCH, policy=policy, strategy=strategy, batch_size=3)
    reports = []
    for number in range(6):
        whole.save(tmp_path / str(number), extra={"frame": number})
        reports.append(whole.fit_round())
    for number in (1, 3, 4, 5):
        tuner = resumed(tmp_path / str(number), policy)
        assert (tuner.round, tuner.extra) == (number, {"frame": number})
        again = [tuner.fit_round() for _ in range(6 - number)]
        assert [(r.loss, r.cut, r.next_cut) for r in again] == [(r.loss, r.cut, r.next_cut) for r in reports[number:]]
        assert all(torch.equal(t, state(whole)[n]) for n, t in state(tuner).items())


def adam(parameters):
    return torch.optim.AdamW(parameters, 1e-3)


def test_adam_and_a_scheduler_go_on_too(tmp_path):
    def scheduler(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)

    torch.manual_seed(0)
    policy = SchedulePolicy({2: 2})
    whole = FineTuner(
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=adam,
        policy=policy,
        scheduler=scheduler,
    )
    whole.observe(BATCH)
    for _ in range(3):
        whole.fit_round()
    whole.save(tmp_path / "c")
    tuner = resumed(tmp_path / "c", policy, optimizer=adam, scheduler=scheduler)
    assert [whole.fit_round().loss for _ in range(3)] == [tuner.fit_round().loss for _ in range(3)]


class WideNet(SmallNet):
    """With a double-precision part in the middle."""

    def __init__(self):
        super().__init__()
        self.third.double()
        self.last.double()

    def forward(self, x):
        x = self.stem(x)
        x = functional.relu(x + self.second(self.first(x))).double()
        return self.linear(self.last(self.third(x)).mean((2, 3)).float())


KINDS = {
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "Rprop": lambda p: torch.optim.Rprop(p, 1e-3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimisers_state_of_weights_of_several_dtypes_goes_on(kind, tmp_path):
    torch.manual_seed(0)
    whole = FineTuner(
        SplitModel(WideNet(), BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=KINDS[kind],
        policy=PrefixSumPolicy(),
        warm_up=1,
        batch_size=4,
    )
    whole.observe(BATCH)
    for number in range(4):
        whole.save(tmp_path / str(number), extra=0)
        whole.fit_round()
    for number in (1, 3):
        tuner = resumed(tmp_path / str(number), PrefixSumPolicy(), model=WideNet(), optimizer=KINDS[kind])
        for _ in range(4 - number):
            tuner.fit_round()
        assert tuner.scores.importance() == whole.scores.importance()
        assert all(torch.equal(t, state(whole)[n]) for n, t in state(tuner).items())


def test_samples_after_the_checkpoint_are_rolled_back(tmp_path):
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 2}), store=LmdbStore(tmp_path / "s"))
    tuner.fit_round()
    tuner.fit_round()
    tuner.save(tmp_path / "c")
    keys = tuner.store.keys()
    tuner.observe(labelled_batch(4, first=100))
    tuner.store.discard(keys[:5])
    tuner.store.close()
    with LmdbStore(tmp_path / "s") as store:
        assert resumed(tmp_path / "c", SchedulePolicy({1: 2}), store).store.keys() == keys


def test_a_store_ahead_of_its_checkpoint_is_refused_with_the_remedy(tmp_path):
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({2: 2}), store=LmdbStore(tmp_path / "s"))
    tuner.save(tmp_path / "old", extra={})  # with an extra, only the caller writes checkpoints
    for _ in range(3):
        tuner.fit_round()
    tuner.store.close()
    with LmdbStore(tmp_path / "s") as store, pytest.raises(CheckpointError, match=r"ahead.*newest checkpoint"):
        resumed(tmp_path / "old", SchedulePolicy({2: 2}), store)


def other_optimizer(path, store):
    resumed(path, SchedulePolicy(), store, optimizer=adam)


def other_groups(path, store):
    resumed(path, SchedulePolicy(), store, optimizer=lambda p: halves(p, 0))


def other_policy(path, store):
    resumed(path, PaperPolicy(), store)


def impossible_setting(path, store):
    resumed(path, SchedulePolicy(), store, batch_size=0)


REFUSED = [other_optimizer, other_groups, other_policy, impossible_setting]


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("kind", [LmdbStore, TieredStore])
def test_a_refused_load_leaves_the_store_as_it_was(kind, refused, tmp_path):
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy(), store=kind(tmp_path / "s"))
    tuner.fit_round()
    tuner.save(tmp_path / "c")
    tuner.observe(labelled_batch(4, first=100))
    tuner.store.discard(tuner.store.keys()[:5])
    keys = tuner.store.keys()
    with pytest.raises((CheckpointError, ConfigError)):
        refused(tmp_path / "c", tuner.store)
    assert tuner.store.keys() == keys
    tuner.store.close()


@pytest.mark.parametrize("kind", [LmdbStore, TieredStore])
@pytest.mark.parametrize("known", [True, False])
def test_another_store_is_refused_and_left_as_it_was(kind, known, tmp_path, monkeypatch):
    if not known:  # as stores and checkpoints of earlier releases
        monkeypatch.setattr(kind, "identity", "")
    for name, count in (("a", 25), ("b", 20)):
        tuner = small_tuner(batch=labelled_batch(count), policy=SchedulePolicy(), store=kind(tmp_path / name))
        tuner.save(tmp_path / f"{name}.saved")
        tuner.observe(labelled_batch(5, first=10))  # replaces some
        tuner.store.flush()
        tuner.observe(labelled_batch(5, first=100))
        tuner.store.discard(tuner.store.keys()[:3])
        tuner.store.close()
    with kind(tmp_path / "b") as store:
        keys = store.keys()
        reason = "another run filled" if known else "the checkpoint 25: give the store it was saved with"
        with pytest.raises(CheckpointError, match=reason):
            resumed(tmp_path / "a.saved", SchedulePolicy(), store)
        assert store.keys() == keys


@pytest.mark.parametrize("kind", [LmdbStore, TieredStore])
def test_a_store_of_another_run_that_looks_alike_is_refused_a_copy_of_the_own_is_not(kind, tmp_path):
    for name in "ab":
        with kind(tmp_path / name) as store:
            tuner = small_tuner(batch=BATCH, policy=SchedulePolicy(), store=store)
            tuner.fit_round()
            tuner.save(tmp_path / f"saved-{name}")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    with kind(tmp_path / "b") as other, pytest.raises(CheckpointError, match="another run filled"):
        resumed(tmp_path / "saved-a", SchedulePolicy(), other)
    with kind(tmp_path / "copy") as own:
        assert resumed(tmp_path / "saved-a", SchedulePolicy(), own).fit_round().round == 2


def test_a_refused_load_gives_the_model_its_weights_back(tmp_path):
    small_tuner(batch=BATCH, policy=SchedulePolicy()).save(tmp_path / "c")
    model = SmallNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        resumed(tmp_path / "c", SchedulePolicy(), model=model, optimizer=adam)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_store_behind_its_checkpoint_is_promoted(tmp_path):
    policy = SchedulePolicy({1: 2})
    tuner = small_tuner(batch=BATCH, policy=policy, store=LmdbStore(tmp_path / "s"))
    tuner.fit_round()
    tuner.save(tmp_path / "c")  # names cut 2, the store is still at 0
    tuner.store.close()
    with LmdbStore(tmp_path / "s") as store:
        again = resumed(tmp_path / "c", policy, store)
        assert again.fit_round().cut == 2
        assert store.cut == 2


@pytest.mark.parametrize("damage", ["missing", "state", "tensors", "pointer", "newer"])
def test_damaged_checkpoints_are_refused(damage, tmp_path):
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy())
    tuner.save(tmp_path / "c")
    folder = tmp_path / "c" / (tmp_path / "c" / "current").read_text()
    if damage == "missing":
        (tmp_path / "c" / "current").unlink()
    if damage == "state":
        (folder / "state.json").write_text("{")
    if damage == "tensors":
        (folder / "model.safetensors").write_bytes(b"123456789")
    if damage == "pointer":
        (tmp_path / "c" / "current").write_text("state-999999")
    if damage == "newer":
        (folder / "state.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError):
        resumed(tmp_path / "c", SchedulePolicy())


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.02, 0.9)


def saved(path, optimizer=sgd, policy=None, old=False, **options):
    """The folder of a state, after a round; ``old``: without what earlier releases did not keep."""
    tuner = FineTuner(
        SplitModel(SmallNet(), BATCH.images[:2]),
        loss=functional.cross_entropy,
        optimizer=optimizer,
        policy=SchedulePolicy() if policy is None else policy,
        **options,
    )
    tuner.observe(BATCH)
    tuner.fit_round()
    tuner.save(path, extra={"frame": 7})
    folder = path / (path / "current").read_text()
    if old:
        kept = json.loads((folder / "state.json").read_text())
        text = json.dumps({key: value for key, value in kept.items() if key not in ("kinds", "groups", "digests")})
        (folder / "state.json").write_text(text)
        (folder / "digests.json").unlink()
    return folder


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 64
    file.write_bytes(data)


FILES = ["model.safetensors", "optimizer.safetensors", "store.safetensors", "state.json", "digests.json"]


@pytest.mark.parametrize("file", FILES)
def test_one_changed_bit_anywhere_is_refused(file, tmp_path):
    damaged = saved(tmp_path / "c") / file
    size = damaged.stat().st_size
    for at in (3, size // 2, size - 7):
        flip(damaged, at)
        with pytest.raises(CheckpointError, match="damaged"):
            resumed(tmp_path / "c", SchedulePolicy())
        flip(damaged, at)
    assert resumed(tmp_path / "c", SchedulePolicy()).extra == {"frame": 7}


def test_a_changed_pointer_is_refused(tmp_path):
    saved(tmp_path / "c")
    for content in (b"state-\xf0", b"state-\0"):
        (tmp_path / "c" / "current").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            resumed(tmp_path / "c", SchedulePolicy())


def test_a_part_that_is_missing_is_named(tmp_path):
    (saved(tmp_path / "c") / "store.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"damaged \(store.safetensors"):
        resumed(tmp_path / "c", SchedulePolicy())


def test_lost_digests_do_not_make_a_checkpoint_an_old_one(tmp_path):
    folder = saved(tmp_path / "c")
    (folder / "digests.json").unlink()
    flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 7)
    with pytest.raises(CheckpointError, match=r"damaged \(digests.json is missing\)"):
        resumed(tmp_path / "c", SchedulePolicy())


def test_a_checkpoint_of_an_earlier_release_still_loads(tmp_path):
    saved(tmp_path / "c", old=True)
    assert resumed(tmp_path / "c", SchedulePolicy()).extra == {"frame": 7}


def rewritten(folder, without=(), **changes):
    """The state of ``folder`` as an earlier release left it: without some keys, others otherwise, and no digests."""
    kept = {**json.loads((folder / "state.json").read_text()), **changes}
    lacking = {"digests", *without}
    (folder / "state.json").write_text(json.dumps({key: value for key, value in kept.items() if key not in lacking}))
    (folder / "digests.json").unlink()


def test_scores_of_dropped_layers_kept_in_order_are_those_of_the_first_layers(tmp_path):
    folder = saved(tmp_path / "c", cut=1)
    rewritten(folder, dropped_scores=[0.5, -0.25])
    tuner = resumed(tmp_path / "c", SchedulePolicy(), optimizer=sgd)
    layers = tuner.split.layers
    assert tuner.decisions.dropped_scores == {layers[1]: 0.5, layers[2]: -0.25}


@pytest.mark.parametrize("changes", [{"without": ["first_loss"]}, {"thawing": [None, 0, 0, 0, 0, None]}])
def test_a_state_in_a_form_of_long_ago_is_refused(changes, tmp_path):
    rewritten(saved(tmp_path / "c"), **changes)
    with pytest.raises(CheckpointError, match="go on with the release that saved it"):
        resumed(tmp_path / "c", SchedulePolicy())


def test_another_model_is_refused(tmp_path):
    small_tuner(batch=BATCH, policy=SchedulePolicy()).save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="build the same model"):
        resumed(tmp_path / "c", SchedulePolicy(), model=SmallNet(width=5))
    with pytest.raises(CheckpointError, match="other layers"):
        resumed(tmp_path / "c", SchedulePolicy(), model=torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)))


def halves(parameters, first):
    """SGD with weights and biases in groups of their own."""
    return torch.optim.SGD([{"params": parameters[first::2]}, {"params": parameters[1 - first :: 2]}], 0.02, 0.9)


@pytest.mark.parametrize("old", [False, True])
def test_another_kind_of_optimizer_is_refused(old, tmp_path):
    saved(tmp_path / "c", old=old)
    with pytest.raises(CheckpointError, match="does not fit AdamW" if old else r"optimiser SGD, given AdamW: give"):
        resumed(tmp_path / "c", SchedulePolicy(), optimizer=adam)


@pytest.mark.parametrize("old", [False, True])
def test_other_parameter_groups_are_refused(old, tmp_path):
    saved(tmp_path / "c", old=old)
    with pytest.raises(CheckpointError, match=r"groups have \[20\] parameters, given one with \[10, 10\]"):
        resumed(tmp_path / "c", SchedulePolicy(), optimizer=lambda p: halves(p, 0))


def test_parameters_in_another_order_are_refused(tmp_path):
    saved(tmp_path / "c", lambda p: halves(p, 0))
    with pytest.raises(CheckpointError, match=r"stem.0.weight where the optimiser given has stem.0.bias"):
        resumed(tmp_path / "c", SchedulePolicy(), optimizer=lambda p: halves(p, 1))


def test_other_options_of_the_same_optimizer_give_way_to_the_checkpoints(tmp_path):
    saved(tmp_path / "c")
    tuner = resumed(tmp_path / "c", SchedulePolicy(), optimizer=lambda p: torch.optim.SGD(p, 0.5, 0.1))
    assert tuner.rate == 0.02
    tuner.fit_round()


@pytest.mark.parametrize("old", [False, True])
def test_a_policy_whose_scores_were_not_kept_is_refused(old, tmp_path):
    saved(tmp_path / "c", old=old)
    match = r"policy another, without" if old else r"SchedulePolicy, without the gradient scores .* PaperPolicy"
    with pytest.raises(CheckpointError, match=match):
        resumed(tmp_path / "c", PaperPolicy(), optimizer=sgd)


def test_a_policy_without_scores_goes_on_from_a_checkpoint_with_some(tmp_path):
    saved(tmp_path / "c", policy=PaperPolicy())
    assert resumed(tmp_path / "c", SchedulePolicy(), optimizer=sgd).fit_round().round == 2


def test_a_scheduler_that_cannot_take_its_state_is_refused(tmp_path):
    def step(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def two(optimizer):
        return torch.optim.lr_scheduler.ChainedScheduler([step(optimizer), step(optimizer)])

    def one(optimizer):
        return torch.optim.lr_scheduler.ChainedScheduler([step(optimizer)])

    saved(tmp_path / "c", scheduler=two)
    with pytest.raises(CheckpointError, match="the scheduler ChainedScheduler, given StepLR"):
        resumed(tmp_path / "c", SchedulePolicy(), optimizer=sgd, scheduler=step)
    with pytest.raises(CheckpointError, match=r"scheduler's state does not fit ChainedScheduler .* saved with"):
        resumed(tmp_path / "c", SchedulePolicy(), optimizer=sgd, scheduler=one)


def test_a_checkpoint_of_the_other_kind_of_store_is_refused(tmp_path):
    small_tuner(batch=BATCH, policy=SchedulePolicy()).save(tmp_path / "memory")
    with LmdbStore(tmp_path / "s") as store, pytest.raises(CheckpointError, match="in memory"):
        resumed(tmp_path / "memory", SchedulePolicy(), store)
    with LmdbStore(tmp_path / "t") as store:
        small_tuner(batch=BATCH, policy=SchedulePolicy(), store=store).save(tmp_path / "disk")
    with pytest.raises(CheckpointError, match="on disk"):
        resumed(tmp_path / "disk", SchedulePolicy(), MemoryStore())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy())
    with pytest.raises(OutputError, match="choose another folder"):
        tuner.save(tmp_path / "file" / "c")
    with pytest.raises(CheckpointError, match="plain data"):
        tuner.save(tmp_path / "c", extra=object())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_stage_around_a_drop_and_resumed(tmp_path):
    script = Path(__file__).with_name("crash_resume.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    killed = int(done.stdout.split("checked ")[1])
    assert killed >= 10, done.stdout
