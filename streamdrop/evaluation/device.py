"""Where an experiment's networks are trained: asked for by name, there or not, the same way every time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from streamdrop.errors import ConfigError


def check_device(name: str) -> None:
    """Raises ConfigError where ``name`` (cpu, cuda, cuda:N) is a GPU that torch does not find."""
    device = torch.device(name)
    if device.type == "cpu":
        return
    count = torch.cuda.device_count()
    if not count:
        raise ConfigError(f"device is {name}, but torch {torch.__version__} finds no GPU: give cpu")
    if device.index is not None and device.index >= count:
        raise ConfigError(f"device is {name}, but torch finds {count} GPUs: give cuda:0 to cuda:{count - 1}, or cpu")


@contextlib.contextmanager
def same_every_time(name: str) -> Iterator[None]:
    """On a GPU, only cuDNN algorithms inside that add up in the same order every time.

    Without them two runs of the same training differ in their last bits, and strategies could not be compared.
    """
    if torch.device(name).type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
