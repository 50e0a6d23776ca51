"""Networks by name: small ones hold every law of a split; what cannot be built says why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from streamdrop.engine import FineTuner
from streamdrop.errors import ConfigError, WeightsError
from streamdrop.evaluation.networks import build_network, layer_rule
from streamdrop.evaluation.small_networks import SMALL, ConvGru, ConvGruCell
from streamdrop.policies import SchedulePolicy
from streamdrop.split import SplitModel, transformer_blocks
from streamdrop.testing.splits import check_split
from streamdrop.types import Batch

LAYERS = {
    **{f"vgg{n}{bn}_small": count for n, count in ((11, 8), (13, 10), (16, 13), (19, 16)) for bn in ("", "_bn")},
    "vit_mini": 6,
    "swin_mini": 6,
    "convnext_mini": 9,
    "densenet_mini": 27,
    "convgru": 5,
}


def test_options_reach_the_builder_and_wrong_ones_are_refused():
    assert not build_network("resnet18", 3, options={"zero_init_residual": True}).layer1[0].bn2.weight.any()
    with pytest.raises(ConfigError, match=r"model_options .* do not suit resnet18"):
        build_network("resnet18", 3, options={"zero_init": True})
    with pytest.raises(ConfigError, match="convgru takes none"):
        build_network("convgru", 3, options={"zero_init_residual": True})


@pytest.mark.parametrize("option", ["weights", "num_classes", "image_size", "aux_logits", "progress"])
def test_what_the_experiment_sets_is_no_option_and_nothing_is_downloaded(option):
    with pytest.raises(ConfigError, match=rf"model_options\.{option} is not to be set"):
        build_network("vit_b_16", 3, options={option: "DEFAULT"})


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("resnet18", {"groups": 32}),
        ("resnet18", {"width_per_group": 3}),
        ("resnet18", {"replace_stride_with_dilation": [True]}),
        ("resnet18", {"replace_stride_with_dilation": [True, True, True]}),
        ("vgg11_bn", {"dropout": 2}),
        ("mobilenet_v2", {"round_nearest": 0}),
        ("mobilenet_v2", {"inverted_residual_setting": []}),
    ],
)
def test_whatever_a_builder_raises_is_told(name, option):
    with pytest.raises(ConfigError, match=f"do not suit {name}"):
        build_network(name, 3, options=option)


def made(name, classes=7, **more):
    torch.manual_seed(0)
    return build_network(name, classes, **more)


def test_every_small_network_is_tried_here():
    assert SMALL.keys() == LAYERS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, "mobilenet_v2"])
def test_laws_at_every_cut(name):
    model = made(name)
    with torch.no_grad():  # biases start at zero in some: no law may hold by that
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    split = check_split(model, torch.randn(1, 3, 32, 32), layer_rule(name))
    assert len(split.layers) == LAYERS.get(name, 52)
    with torch.no_grad():
        assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg11_bn_small", "vit_mini", "swin_mini", "convnext_mini", "densenet_mini", "convgru"]
)
def test_drop_and_freeze_end_with_the_same_weights(name):
    images, labels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    ends = []
    for strategy in ("drop", "freeze"):
        model = made(name, 3)
        split = SplitModel(model, images[:2], layer_rule(name))
        tuner = FineTuner(
            split,
            loss=nn.functional.cross_entropy,
            optimizer=lambda parameters: torch.optim.SGD(parameters, 0.01, 0.9),
            policy=SchedulePolicy({1: 2, 3: len(split.layers) - 1}),
            strategy=strategy,
            batch_size=3,
        )
        tuner.observe(Batch([bytes([i]) for i in range(6)], images, labels))
        losses = [tuner.fit_round().loss for _ in range(4)]
        ends.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))


def test_small_vggs_have_torchvisions_convolutions_and_one_linear_layer():
    model = made("vgg16_bn_small")
    with torch.device("meta"):
        theirs = build_network("vgg16_bn", 7)
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items() if name.startswith("features")}
    assert ours == {n: tuple(v.shape) for n, v in theirs.state_dict().items() if n.startswith("features")}
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(module.in_features, module.out_features) for module in linear] == [(512, 7)]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made("vgg11_small").modules())
    spread = [
        m.weight.detach().std() * (m.weight[:, 0].numel() / 2) ** 0.5
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert all(0.9 < float(value) < 1.1 for value in spread)


@pytest.mark.parametrize("name", ["vgg11_small", "vit_mini", "swin_mini", "convnext_mini", "densenet_mini", "convgru"])
def test_random_weights_come_from_torchs_generator(name):
    first, second = made(name), made(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    output = first.eval()(torch.randn(4, 3, 32, 32))
    assert torch.isfinite(output).all()
    assert (output[0] != output[1]).any() or name == "vit_mini"  # torchvision starts its last layer at zero


def test_layer_rules():
    assert layer_rule("vit_mini") is layer_rule("swin_t") is layer_rule("vit_b_16") is transformer_blocks
    assert layer_rule("resnet18") is layer_rule("convnext_mini") is layer_rule("convgru") is None
    split = SplitModel(made("vit_mini"), torch.randn(1, 3, 32, 32), layer_rule("vit_mini"))
    assert split.layers == tuple(f"encoder.layers.encoder_layer_{i}" for i in range(6))


def test_image_sizes():
    assert made("vit_mini", image_size=64)(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    assert made("resnet18", image_size=40)(torch.randn(2, 3, 40, 40)).shape == (2, 7)
    with torch.device("meta"):
        assert build_network("vit_b_16", 7, image_size=48).image_size == 48
        assert build_network("vit_b_16", 7).image_size == 224
    with pytest.raises(ConfigError, match="multiple of 4"):
        build_network("vit_mini", 7, image_size=30)
    with pytest.raises(ConfigError, match="multiple of its patches' 16 px"):
        build_network("vit_b_16", 7, image_size=40)


@pytest.mark.parametrize(
    ("name", "near"), [("vgg11_bn_smal", "vgg11_bn_small"), ("conv_gru", "convgru"), ("x", "such as")]
)
def test_unknown_names_get_a_hint(name, near):
    with pytest.raises(ConfigError, match=f"{name}.*not known: .*{near}"):
        build_network(name, 3)


def test_weights_of_a_small_network_from_a_file(tmp_path):
    model = made("convgru")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    torch.manual_seed(1)
    other = build_network("convgru", 7, str(tmp_path / "w.pt"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(WeightsError):
        build_network("convgru", 8, str(tmp_path / "w.pt"))


# ---------------------------------------------------------------- recurrent cells


def test_a_cell_is_a_gru():
    """On maps of one pixel the middle of each kernel is torch's own GRU cell."""
    torch.manual_seed(0)
    cell, theirs = ConvGruCell(3, 4), nn.GRUCell(3, 4)
    middle = cell.gates.weight[:, :, 1, 1]
    candidate = cell.candidate.weight[:, :, 1, 1]
    x, state = torch.randn(5, 3), torch.randn(5, 4)
    with torch.no_grad():
        # torch's order is reset, update, candidate; its update keeps the state where ours takes the candidate
        theirs.weight_ih.copy_(torch.cat([middle[4:, :3], -middle[:4, :3], candidate[:, :3]]))
        theirs.weight_hh.copy_(torch.cat([middle[4:, 3:], -middle[:4, 3:], candidate[:, 3:]]))
        theirs.bias_ih.copy_(torch.cat([cell.gates.bias[4:], -cell.gates.bias[:4], cell.candidate.bias]))
        theirs.bias_hh.zero_()
        # torch resets after the product with the weights, ours before: the same where the reset gate is open
        for value in (theirs.bias_ih[:4], cell.gates.bias[4:]):
            value.fill_(60.0)
        ours = cell(x[:, :, None, None], state[:, :, None, None])[:, :, 0, 0]
        torch.testing.assert_close(ours, theirs(x, state), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_clips_hold_the_laws_too_and_their_order_counts():
    torch.manual_seed(0)
    model = ConvGru(5, frames=3, width=8)
    split = check_split(model, torch.randn(1, 9, 16, 16))
    assert split.layers == ("encoder.0.0", "encoder.1.0", *(f"cells.{i}.candidate" for i in range(3)))
    clip = torch.randn(2, 3, 3, 16, 16)
    with torch.no_grad():
        forwards, backwards = (model.eval()(part.flatten(1, 2)) for part in (clip, clip.flip(1)))
    assert not torch.allclose(forwards, backwards)


def test_a_convgru_needs_frames():
    with pytest.raises(ConfigError, match="at least 1"):
        ConvGru(5, frames=0)
