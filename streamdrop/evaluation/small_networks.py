"""Networks for images of 32 px and few cores: torchvision's own parts at small sizes, and one with recurrent cells."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, DenseNet, SwinTransformer, VisionTransformer, vgg
from torchvision.models.convnext import CNBlockConfig

from streamdrop.errors import ConfigError

Builder = Callable[[int, int], nn.Module]
"""(classes, image_size) → a network with random weights."""

VGG_PLANS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}


def vgg_small(plan: str, batch_norm: bool, classes: int) -> nn.Module:
    """A VGG with torchvision's convolutions and one linear layer on their averaged maps: the usual form for CIFAR.

    torchvision's three linear layers cost more than all convolutions at 32 px. Weights start as torchvision's do.
    """
    features = vgg.make_layers(vgg.cfgs[plan], batch_norm=batch_norm)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, module.bias))
    parts = {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1), "classifier": nn.Linear(512, classes)}
    return nn.Sequential(OrderedDict(features=features, **parts))


def vit_mini(classes: int, image_size: int) -> nn.Module:
    """torchvision's vision transformer: patches of 4 px, 6 blocks, 192 wide, 3 heads. Raises ConfigError."""
    if image_size % 4:
        raise ConfigError(
            f"image_size {image_size} does not suit vit_mini, whose patches are 4 px: give a multiple of 4"
        )
    network: nn.Module = VisionTransformer(
        image_size, patch_size=4, num_layers=6, num_heads=3, hidden_dim=192, mlp_dim=384, num_classes=classes
    )
    return network


def swin_mini(classes: int, image_size: int) -> nn.Module:
    """torchvision's Swin transformer: patches of 2 px, windows of 4, three stages of 2 blocks, 48 to 192 wide."""
    network: nn.Module = SwinTransformer([2, 2], 48, [2, 2, 2], [2, 4, 8], [4, 4], num_classes=classes)
    return network


def convnext_mini(classes: int, image_size: int) -> nn.Module:
    """torchvision's ConvNeXt: patches of 4 px, three stages of 2 blocks, 96 to 384 wide.

    The blocks' scale starts at 0.1, not 1e-6: a few epochs from random weights would leave them unused.
    """
    stages = [CNBlockConfig(96, 192, 2), CNBlockConfig(192, 384, 2), CNBlockConfig(384, None, 2)]
    network: nn.Module = ConvNeXt(stages, layer_scale=0.1, num_classes=classes)
    return network


def densenet_mini(classes: int, image_size: int) -> nn.Module:
    """torchvision's DenseNet: three blocks of 4 layers, growth 12, 24 channels from its stem."""
    network: nn.Module = DenseNet(12, (4, 4, 4), 24, num_classes=classes)
    return network


class ConvGruCell(nn.Module):
    """One step of a convolutional GRU: input and state [N, C, H, W] → the next state."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(inputs + width, 2 * width, 3, padding=1)
        self.candidate = nn.Conv2d(inputs + width, width, 3, padding=1)
        self.width = width

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """The state after ``x``."""
        gates = torch.sigmoid(self.gates(torch.cat([x, state], 1)))
        update, reset = gates[:, : self.width], gates[:, self.width :]
        candidate = torch.tanh(self.candidate(torch.cat([x, reset * state], 1)))
        return state + update * (candidate - state)


class ConvGru(nn.Module):
    """A clip's class by convolutional GRUs: images [N, 3 · frames, H, W] → [N, classes]; H and W at least 4.

    A clip [N, frames, 3, H, W] is given as ``clip.flatten(1, 2)``. With one frame the image is shown ``steps`` times.
    Every layer runs over all frames before the next one starts, so that a cut lies between any two of them; the two
    convolutions of a cell take turns and are one layer, dropped together after the cell's last step.
    """

    def __init__(self, classes: int, frames: int = 1, steps: int = 4, width: int = 32, cells: int = 3) -> None:
        super().__init__()
        if frames < 1 or steps < 1 or cells < 1:
            raise ConfigError(f"frames {frames}, steps {steps}, cells {cells}: give whole numbers of at least 1")
        self.frames, self.steps = frames, steps
        self.encoder = nn.ModuleList([_encoding(3, width), _encoding(width, width)])
        self.cells = nn.ModuleList([ConvGruCell(width, width) for _ in range(cells)])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores from the last cell's state after the last frame."""
        sequence = [x[:, 3 * i : 3 * i + 3] for i in range(self.frames)]
        for layer in self.encoder:
            sequence = [layer(frame) for frame in sequence]
        if self.frames == 1:
            sequence = sequence * self.steps
        for cell in self.cells:
            state = torch.zeros_like(sequence[0])
            states = []
            for frame in sequence:
                state = cell(frame, state)
                states.append(state)
            sequence = states
        scores: Tensor = self.classifier(self.avgpool(sequence[-1]).flatten(1))
        return scores


def _encoding(inputs: int, outputs: int) -> nn.Module:
    """Half the resolution: a convolution, BatchNorm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(True))


def _vgg_builder(plan: str, batch_norm: bool) -> Builder:
    return lambda classes, image_size: vgg_small(plan, batch_norm, classes)


SMALL: dict[str, Builder] = {
    **{f"{name}_small": _vgg_builder(plan, False) for name, plan in VGG_PLANS.items()},
    **{f"{name}_bn_small": _vgg_builder(plan, True) for name, plan in VGG_PLANS.items()},
    "vit_mini": vit_mini,
    "swin_mini": swin_mini,
    "convnext_mini": convnext_mini,
    "densenet_mini": densenet_mini,
    "convgru": lambda classes, image_size: ConvGru(classes),
}
"""By name, for ``build_network``."""
