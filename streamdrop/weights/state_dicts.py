"""State dicts from files, without pickle's dangers."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from streamdrop.errors import WeightsError
from streamdrop.weights.folder import resolve


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Tensors by name from ``.safetensors`` or a plain torch file; a name of ``streamdrop weights`` will do.

    Raises WeightsError.
    """
    file = resolve(path)
    if not file.is_file():
        raise WeightsError(f"weights {path}: no such file: give a .safetensors file or a state dict saved by torch")
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, TypeError, AttributeError, ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"weights {path}: not a state dict ({reason}): give one") from None
    except Exception as error:  # torch.load raises pickle's own errors for foreign files
        raise WeightsError(
            f"weights {path}: not a file of tensors ({type(error).__name__}): give a state dict"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights {path}: holds no weights by name: give a state dict")
    return state
