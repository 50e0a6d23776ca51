"""The laws on a GPU. Skipped, and said so, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.evaluation.device import same_every_time
from streamdrop.evaluation.networks import build_network, layer_rule
from streamdrop.policies import AutoPolicy, DropPolicy, PaperPolicy, SchedulePolicy
from streamdrop.scores import GradientScores
from streamdrop.split import SplitModel
from streamdrop.store import LmdbStore
from streamdrop.testing.splits import check_split
from streamdrop.testing.tuners import SmallNet, check_drop_equals_freeze, labelled_batch, small_tuner
from streamdrop.thawing import ThawPlan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NETWORKS = ["resnet18", "vgg11_bn_small", "mobilenet_v2", "densenet121"]
PRODUCTS = ["convnext_tiny", "vit_b_16"]
"""Matrix products all through: cuBLAS chooses its kernels by the size of the batch, so last bits depend on it."""
POLICIES = {"schedule": SchedulePolicy({1: 1, 2: 3}), "paper": PaperPolicy(), "auto": AutoPolicy()}


@pytest.fixture(autouse=True)
def _exact():
    with same_every_time("cuda"):
        yield


def built(name: str, size: int = 64) -> nn.Module:
    torch.manual_seed(3)
    return build_network(name, 3, image_size=size).cuda()


@pytest.mark.parametrize("name", NETWORKS + PRODUCTS)
def test_head_after_tail_is_the_model(name):
    check_split(built(name), torch.randn(2, 3, 64, 64, device="cuda"), layer_rule(name))


def made(name: str, policy: DropPolicy, strategy: str, folder: Path) -> FineTuner:
    return small_tuner(
        built(name),
        layers=layer_rule(name),
        batch=labelled_batch(45, size=64),
        policy=policy,
        strategy=strategy,
        batch_size=8,
        store=LmdbStore(folder / strategy),
    )


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_drop_equals_freeze(name, policy, tmp_path):
    drop, _ = check_drop_equals_freeze(lambda strategy: made(name, policy, strategy, tmp_path), 6)
    assert not isinstance(policy, SchedulePolicy) or drop[-1].cut == 3


@pytest.mark.parametrize("name", PRODUCTS)
def test_drop_is_close_to_freeze_where_kernels_depend_on_the_batch(name, tmp_path):
    drop, freeze = (made(name, POLICIES["schedule"], strategy, tmp_path) for strategy in ("drop", "freeze"))
    for _ in range(4):
        assert drop.fit_round().loss == pytest.approx(freeze.fit_round().loss, rel=1e-4)


def test_samples_put_a_few_at_a_time_are_close_to_those_put_at_once():
    """Kernels, and so bits, depend on the size of a pass: drop and freeze agree where both pass the same batches."""
    split = SplitModel(built("resnet18"), torch.randn(2, 3, 64, 64, device="cuda"))
    tuner = FineTuner(split, loss=functional.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.1), cut=7)
    images = torch.randn(64, 3, 64, 64)
    whole = tuner.embed(images)
    for size in (2, 3, 7, 33):
        parts = [tuner.embed(images[start : start + size]) for start in range(0, 64, size)]
        for at, one in enumerate(whole):
            # cuDNN's convolutions round inputs to TF32, ten bits: 0.0035 apart on an H100
            torch.testing.assert_close(torch.cat([part[at] for part in parts]), one, rtol=2e-2, atol=2e-2)


def resumed(path, policy, store) -> FineTuner:
    return FineTuner.load(
        path,
        SplitModel(SmallNet().cuda(), torch.randn(2, 3, 8, 8, device="cuda")),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.02, 0.9, weight_decay=1e-3),
        store=store,
        policy=policy,
    )


@pytest.mark.parametrize("policy", [SchedulePolicy({2: 1, 4: 3}), PaperPolicy()], ids=["schedule", "paper"])
def test_a_resumed_run_equals_one_that_was_never_stopped(policy, tmp_path):
    batch = labelled_batch(25)
    torch.manual_seed(0)
    options = {"policy": policy, "strategy": "drop", "batch_size": 3}
    whole = small_tuner(SmallNet().cuda(), batch=batch, store=LmdbStore(tmp_path / "whole"), **options)
    torch.manual_seed(0)
    first = small_tuner(SmallNet().cuda(), batch=batch, store=LmdbStore(tmp_path / "halves"), **options)
    for _ in range(6):
        whole.fit_round()
    for _ in range(3):
        first.fit_round()
    first.save(tmp_path / "checkpoint")
    first.store.close()
    second = resumed(tmp_path / "checkpoint", policy, LmdbStore(tmp_path / "halves"))
    for _ in range(3):
        second.fit_round()
    ended = second.split.model.state_dict()
    assert all(torch.equal(tensor, ended[name]) for name, tensor in whole.split.model.state_dict().items())


def test_mixed_precision_and_a_thaw():
    tuner = small_tuner(
        built("resnet18"),
        batch=labelled_batch(24, size=64),
        policy=SchedulePolicy({1: 5}),
        strategy="freeze",
        autocast=torch.bfloat16,
        thaw=ThawPlan(every=2, rounds=1),
    )
    reports = [tuner.fit_round() for _ in range(5)]
    assert [r.thawed for r in reports].count(True) >= 1
    assert all(torch.isfinite(torch.tensor(r.loss)) for r in reports)


def test_scores_are_those_of_the_cpu():
    torch.manual_seed(0)
    shapes = {"a": (64, 32, 3, 3), "b": (1000, 512), "c": (7,)}
    sides = {
        device: {name: nn.Parameter(torch.zeros(shape, device=device)) for name, shape in shapes.items()}
        for device in ("cpu", "cuda")
    }
    scores = {device: GradientScores(weights, 5000) for device, weights in sides.items()}
    for _ in range(8):
        for name, shape in shapes.items():
            gradient = torch.randn(shape)
            for device, weights in sides.items():
                weights[name].grad = gradient.to(device)
        for each in scores.values():
            each.update()
    for measure in ("importance", "magnitude", "agreement"):
        cpu, cuda = (getattr(each, measure)() for each in scores.values())
        assert cuda == pytest.approx(cpu, rel=1e-3, abs=1e-4)
