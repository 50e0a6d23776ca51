"""What an application may have set for torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch


@contextmanager
def elsewhere() -> Iterator[None]:
    """Tensors are made on a device that holds no values, as torch.set_default_device("cuda") makes them on a GPU."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "device": elsewhere,
}
