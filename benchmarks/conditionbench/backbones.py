"""MobileNetV2 as a worse training would have left it, made from the pretrained weights with a seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import cv2
import torch
import torchvision
from torch import Tensor

import streamdrop as sd
from streamdrop.tracking.network import normalise, read_weights

Weights: TypeAlias = dict[str, Tensor]

_SEED = 0
_NOISE = 0.7  # of a kernel's own standard deviation
_BLOCKS = range(14)  # the stem and the 13 blocks that the tracker uses
_TOP = range(11, 14)  # those that ``drop`` trains by default
_CLIP = Path(__file__).parents[2] / "data_samples" / "clip.mp4"
_PICTURES, _SIDE = 16, 256


def weak(weights: Weights) -> Weights:
    """Every kernel is off by chance."""
    random = torch.Generator().manual_seed(_SEED)
    found = dict(weights)
    for name in kernels(weights, _BLOCKS):
        kernel = weights[name]
        found[name] = kernel + _NOISE * kernel.std() * torch.randn(kernel.shape, generator=random)
    return found


def untrained_top(weights: Weights) -> Weights:
    """The last three blocks know nothing: the numbers of each kernel are there, in any order."""
    return shuffled(weights, _TOP)


def untrained(weights: Weights) -> Weights:
    """No block knows anything, of any domain."""
    return shuffled(weights, _BLOCKS)


def shuffled(weights: Weights, blocks: Iterable[int]) -> Weights:
    """The kernels of some blocks with their numbers in another order: as large as before, without what was learned."""
    random = torch.Generator().manual_seed(_SEED)
    found = dict(weights)
    for name in kernels(weights, blocks):
        kernel = weights[name]
        found[name] = kernel.flatten()[torch.randperm(kernel.numel(), generator=random)].view(kernel.shape)
    return found


def kernels(weights: Weights, blocks: Iterable[int]) -> list[str]:
    """Names of the convolutions' weights in some blocks; those of BatchNorm, which are vectors, are left alone."""
    starts = tuple(f"features.{block}." for block in blocks)
    return [name for name, value in weights.items() if name.startswith(starts) and value.dim() == 4]


BACKBONES: dict[str, Callable[[Weights], Weights]] = {
    "weak backbone": weak,
    "untrained top": untrained_top,
    "untrained backbone": untrained,
}


def backbone(name: str) -> Weights:
    """The weights of a backbone of BACKBONES, as a file of them holds them."""
    made = settled(BACKBONES[name](read_weights()), pictures())
    return {key: value.contiguous() for key, value in made.items()}


def settled(weights: Weights, crops: Tensor) -> Weights:
    """With BatchNorm statistics of these crops: the old ones belong to other kernels, and maps would be of any size."""
    model = torchvision.models.mobilenet_v2()
    names = [key for key in model.state_dict() if key.startswith("features.")]
    own = {key: value for key, value in weights.items() if key.startswith("features.")}
    model.load_state_dict(dict(zip(names, own.values(), strict=True)), strict=False)  # the same order, other names
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean of what is seen
    with torch.no_grad():
        model.features.train()(normalise(crops))
    return {**weights, **dict(zip(own, model.features.state_dict().values(), strict=True))}


def pictures() -> Tensor:
    """Frames of the sample clip, as the network takes crops."""
    with sd.open_stream(_CLIP) as stream:
        chosen = itertools.islice(stream, 0, None, 300 // _PICTURES)
        images = [cv2.resize(sample.image, (_SIDE, _SIDE)) for sample in itertools.islice(chosen, _PICTURES)]
    return torch.stack([torch.from_numpy(image) for image in images])
