"""Classification networks by name, torchvision's and small ones, with random weights or weights from a file."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from streamdrop.errors import ConfigError, WeightsError
from streamdrop.evaluation.small_networks import SMALL
from streamdrop.split import Layers, transformer_blocks
from streamdrop.weights.state_dicts import read_state_dict

TRANSFORMERS = ("vit_", "swin_", "maxvit_")
_SET_ELSEWHERE = {
    "weights": "the experiment's own key weights names a file, nothing is downloaded",
    "num_classes": "the data say how many there are",
    "image_size": "the experiment's own key image_size does",
    "aux_logits": "networks are trained by their main output alone",
    "progress": "nothing is downloaded",
}


def build_network(
    name: str,
    classes: int,
    weights: str | None = None,
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A classification network with ``classes`` outputs; random unless ``weights`` names a file.

    ``name`` is one of torchvision's or of small_networks.SMALL. ``image_size`` in px is for networks that are built for
    one (vision transformers; by default 224, the small ones 32). ``options`` are keywords of torchvision's builder, as
    ``zero_init_residual`` of a ResNet. Randomness comes from torch's global generator. Raises ConfigError for an
    unknown name, or a size or an option that does not suit it, WeightsError for weights that are missing or of another
    network.
    """
    options = options or {}
    if name in SMALL and options:
        raise ConfigError(f"model_options {sorted(options)}: {name} takes none: leave them out")
    for option in sorted(options.keys() & _SET_ELSEWHERE.keys()):
        raise ConfigError(f"model_options.{option} is not to be set ({_SET_ELSEWHERE[option]}): leave it out")
    small = SMALL.get(name)
    model = small(classes, image_size or 32) if small else _from_torchvision(name, classes, image_size, options)
    if weights is not None:
        load_weights(model, weights)
    return model


def network_names() -> list[str]:
    """Every name that ``build_network`` takes."""
    return [*torchvision.models.list_models(module=torchvision.models), *SMALL]


def layer_rule(name: str) -> Layers | None:
    """What SplitModel takes as ``layers`` for this network: blocks for transformers, None (convolutions) for others."""
    return transformer_blocks if name.startswith(TRANSFORMERS) else None


def _from_torchvision(name: str, classes: int, image_size: int | None, chosen: Mapping[str, Any]) -> nn.Module:
    if name not in (names := network_names()):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "give a torchvision classification network such as resnet18"
        raise ConfigError(f"model {name!r} is not known: {hint}")
    builder = torchvision.models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if "aux_logits" in inspect.signature(builder).parameters or name in ("googlenet", "inception_v3"):
        options.update(aux_logits=False, init_weights=True)
    if name.startswith("vit_") and image_size is not None:
        patch = int(name.rsplit("_", 1)[1])
        if image_size % patch:
            raise ConfigError(
                f"image_size {image_size} does not suit {name}: give a multiple of its patches' {patch} px"
            )
        options.update(image_size=image_size)
    try:
        model: nn.Module = builder(**{**options, **chosen})
    except Exception as error:  # builders check their options, if at all, by whatever breaks
        if not chosen:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"model_options {dict(chosen)} do not suit {name} ({reason}): see its builder's keywords"
        ) from None
    return model


def load_weights(model: nn.Module, path: str) -> None:
    """Put a state dict from ``.safetensors`` or a plain torch file into ``model``; a name of ``streamdrop weights``
    will do. Raises WeightsError."""
    state = read_state_dict(path)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"weights {path}: not a state dict of this network ({reason}): give one of it") from None
