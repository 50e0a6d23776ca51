"""Designs of networks that were once refused, or split so that they trained otherwise than the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamdrop.testing.splits import check_split

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Queries(nn.Module):
    """Attention of learned queries, as pooling heads and detectors have it: a view of a weight goes into a module."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 2, 4))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        y, _ = self.attention(self.queries.expand(x.shape[0], -1, -1), x, x)
        return self.second(y)


def test_a_view_of_a_weight_may_go_into_a_module() -> None:
    assert check_split(Queries(), TOKENS, ["first", "attention", "second"]).macs(0) > 0
