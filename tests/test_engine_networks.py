"""drop ≡ freeze on real architectures, under a schedule and under the paper's policy, bit for bit in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from streamdrop.policies import PaperPolicy, SchedulePolicy
from streamdrop.split import transformer_blocks
from streamdrop.testing.tuners import check_drop_equals_freeze, labelled_batch, small_tuner


def vgg11_bn() -> nn.Module:
    model = torchvision.models.vgg11_bn(num_classes=3)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Dropout(0.3), nn.Linear(512, 3))
    return model


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 3, 2, 16, 32, dropout=0.1, num_classes=3)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], object]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), None),
    "vgg11_bn": (vgg11_bn, None),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=3, width_mult=0.25), None),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(num_classes=3), None),
    "vit": (vit, transformer_blocks),
}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["schedule", "paper"])
@pytest.mark.parametrize("name", NETWORKS)
def test_drop_equals_freeze(name, policy):
    build, rule = NETWORKS[name]
    batch = labelled_batch(13, size=32)

    def make(strategy):
        torch.manual_seed(3)
        scored = policy == "paper"
        model = build()
        tuner = small_tuner(
            model,
            layers=rule,
            batch=batch,
            policy=PaperPolicy() if scored else SchedulePolicy({1: 1, 2: 2}),
            strategy=strategy,
            warm_up=0,
            batch_size=2 if scored else 4,
        )
        return tuner

    drop, _ = check_drop_equals_freeze(make, 7 if policy == "paper" else 4)
    if policy == "schedule":
        assert drop[-1].cut == 2
