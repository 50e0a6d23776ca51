"""What the score head is trained towards, and how its error is weighed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from streamdrop.boxes import Box
from streamdrop.tracking.config import STRIDE

BACKGROUND = 0.05
"""Label below which a cell is background: scores under zero are right there."""


def gaussian_label(box: Box | None, size: int, sigma: float) -> Tensor:
    """A Gaussian at the box's middle (crop pixels), [size / 8, size / 8]; all zeros without a target.

    Its width is ``sigma`` · √(w·h), at least 0.6 cells.
    """
    cells = size // STRIDE
    if box is None:
        return torch.zeros(cells, cells)
    width = max(sigma * box.area**0.5 / STRIDE, 0.6)
    x, y = (value / STRIDE for value in box.centre)
    places = torch.arange(cells) + 0.5
    rows = torch.exp(-0.5 * ((places - y) / width) ** 2)
    columns = torch.exp(-0.5 * ((places - x) / width) ** 2)
    return rows[:, None] * columns[None, :]


def score_loss(output: Tensor, target: Tensor, sample_weight: Tensor) -> Tensor:
    """Hinge-weighted squared error of score maps [N, H, W], the target's cells counting more.

    On background only scores above zero are wrong.
    """
    error = torch.where(target < BACKGROUND, functional.relu(output), output - target)
    weight = 0.1 + target
    each = (error * error * weight).mean((1, 2)) / weight.mean((1, 2))
    return (each * sample_weight).sum() / sample_weight.sum()
