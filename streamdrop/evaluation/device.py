"""Where an experiment's networks are trained: asked for by name, there or not, the same way every time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from streamdrop.errors import ConfigError

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
"""How torch says so of the CPU's, which has no error of its own: Linux and macOS, Windows."""


def check_device(name: str) -> None:
    """Raises ConfigError where ``name`` (cpu, cuda, cuda:N) is a GPU that torch does not find."""
    if name == "cpu":
        return
    index = int(name.partition(":")[2] or 0)  # torch.device takes no index of more than a few digits
    count = torch.cuda.device_count()
    if not count:
        raise ConfigError(f"device is {name}, but torch {torch.__version__} finds no GPU: give cpu")
    if index >= count:
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


@contextlib.contextmanager
def memory_explained(size: str) -> Iterator[None]:
    """Where memory runs out inside, ConfigError; ``size`` says what was asked for, and names the settings to lower."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise ConfigError(
            f"the GPU's memory does not hold {size}: lower one of these, or take a smaller model"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        raise ConfigError(f"memory does not hold {size}: lower one of these, or take a smaller model") from None
