"""Every law at every cut of torchvision's networks, with random weights and small inputs."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import streamdrop.split as split_module
from streamdrop.testing.splits import check_split

KWARGS = {
    "vit_b_16": {"image_size": 32},
    "googlenet": {"init_weights": False, "aux_logits": True},
    "inception_v3": {"init_weights": False, "aux_logits": True},
}
SIZES = {"inception_v3": 80, "alexnet": 64, "resnet152": 32, "resnet101": 32, "resnet50": 32, "densenet121": 32}
NAMES = [
    *(f"vgg{n}{bn}" for n in (11, 16, 19) for bn in ("", "_bn")),
    *("resnet18", "resnet50", "resnet101", "resnet152", "mobilenet_v2", "densenet121", "googlenet", "inception_v3"),
    *("efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"),
    *("vit_b_16", "swin_t", "vit_b_16:blocks", "swin_t:blocks", "maxvit:blocks"),
]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "maxvit":
        return torchvision.models.MaxVit((32, 32), 8, 2, [8, 16], [1, 2], 4, 0.2)
    if not name.startswith("vgg"):
        return torchvision.models.get_model(name, weights=None, **KWARGS.get(name, {}))
    with torch.device("meta"):  # its classifier is a hundred million weights
        model = torchvision.models.get_model(name, weights=None)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(512, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10))
    model.features.to_empty(device="cpu")
    for module in model.features:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMES)
def test_laws_at_every_cut(case):
    name, _, rule = case.partition(":")
    size = SIZES.get(name, 32)
    model = make(name).train(len(case) % 2 == 0)
    check_split(
        model,
        torch.randn(1, 3, size, size),
        split_module.transformer_blocks if rule else None,
        batch=3 if size < 64 and len(case) < 9 else 2,
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_macs_are_those_of_torch_flop_counter(name):
    model = make(name).eval()
    split = split_module.SplitModel(model, torch.randn(1, 3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    for cut in (0, len(split.layers) // 2, len(split.layers) - 1):
        with torch.no_grad():
            activations = split.tail(cut)(x)
            with FlopCounterMode(display=False) as counter:
                split.head(cut)(activations)
        assert counter.get_total_flops() == 2 * 2 * split.macs(cut)
    table = split.summary()
    assert all(name in table for name in split.layers)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_chunks_give_a_sample_the_same_bits_in_every_batch(name):
    split = split_module.SplitModel(make(name), torch.randn(1, 3, 32, 32))
    tail, x = split.tail(len(split.layers) - 1), torch.randn(17, 3, 32, 32)
    whole = split_module.run_in_chunks(tail, (x,), 64)
    for count, size in ((1, 8), (2, 8), (9, 4), (16, 16), (17, 2)):
        part = split_module.run_in_chunks(tail, (x[:count],), size)
        assert all(torch.equal(a, b[:count]) for a, b in zip(part, whole, strict=True))
