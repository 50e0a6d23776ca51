"""Other backbones: torchvision's classification networks and ONNX files, by their maps at stride 8 and 16.

torchvision brings torch's compiler with it, seconds and 100 MB: it is imported where such a backbone is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from streamdrop.errors import ConfigError, ModelError, WeightsError
from streamdrop.split import SplitModel
from streamdrop.tracking.config import STRIDES, HeadConfig, TrackerConfig
from streamdrop.tracking.network import ScoreHead, TrackerNetwork, build_network
from streamdrop.tracking.onnx_backbone import input_form, opaque_modules, read_onnx
from streamdrop.weights import resolve
from streamdrop.weights.state_dicts import read_state_dict

_PROBE = 128  # pixels: every network that takes more than one size takes this one


class TappedNetwork(nn.Module):
    """Crops [N, 3, S, S] (normalised) → score maps [N, S/8, S/8], from two maps of ``backbone``.

    The weights of its last ``trainable`` convolutions require gradients. ``form`` makes crops what the backbone takes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: tuple[int, int],
        config: HeadConfig,
        trainable: int,
        form: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.form = form
        self.backbone = backbone.requires_grad_(False)
        convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        for convolution in convolutions[len(convolutions) - min(trainable, len(convolutions)) :]:
            convolution.weight.requires_grad_(True)
        self.score = ScoreHead(config, channels)

    def forward(self, crops: Tensor) -> Tensor:
        """Normalised crops to score maps."""
        maps = self.backbone(crops if self.form is None else self.form(crops))
        scores: Tensor = self.score(maps["fine"], maps["coarse"])
        return scores


def network_of(config: TrackerConfig) -> TrackerNetwork | TappedNetwork:
    """The configured network with pretrained backbone in eval mode. Raises ConfigError, ModelError, WeightsError."""
    if config.backbone == "mobilenet_v2":
        return build_network(config.head, config.drop.blocks, config.weights)
    if config.from_file:
        return build_onnx(config.backbone, config.head, config.drop.blocks, config.backbone_input)
    return build_tapped(config.backbone, config.head, config.drop.blocks, config.weights)


def split_of(network: nn.Module, example: Tensor) -> SplitModel:
    """A tracker's network, split. Raises TraceError."""
    return SplitModel(network, example, leaves=opaque_modules(network))


def build_onnx(path: str, config: HeadConfig, trainable: int, form: str) -> TappedNetwork:
    """The network of an ONNX file (or name of ``streamdrop weights``) up to its map at stride 16.

    ``form`` is what it takes, as ``TrackerConfig.backbone_input``. Raises ModelError, WeightsError.
    """
    backbone, channels = read_onnx(resolve(path), path)
    network = TappedNetwork(backbone, channels, config, trainable, input_form(form))
    network.eval()
    return network.to(memory_format=torch.channels_last)


def build_tapped(name: str, config: HeadConfig, trainable: int, weights: str | None) -> TappedNetwork:
    """torchvision's network ``name`` up to its map at stride 16, with ``weights`` (by default those of its name).

    Raises ConfigError for an unknown name, ModelError for a network without such maps, WeightsError.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    model = _model(name)
    taps, channels = find_taps(model, name)
    backbone = create_feature_extractor(model, {taps[0]: "fine", taps[1]: "coarse"})
    _load(backbone, name, weights if weights is not None else name)
    network = TappedNetwork(backbone, channels, config, trainable)
    network.eval()
    return network.to(memory_format=torch.channels_last)


def find_taps(model: nn.Module, name: str) -> tuple[tuple[str, str], tuple[int, int]]:
    """Names of the nodes whose maps have stride 8 and 16, and their channels.

    At each stride it is the last one before the block that leaves it, whose inside is wider or narrower than what
    blocks hand on. Raises ModelError where there are none.
    """
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model.eval()
    try:
        names = get_graph_node_names(model)[1]
        with torch.no_grad():
            values = create_feature_extractor(model, names)(torch.zeros(1, 3, _PROBE, _PROBE))
    except Exception as error:  # whatever a network raises at a size it does not take
        raise ModelError(f"backbone {name}: cannot be looked into ({error}): give another network") from None
    taps = [_last_map(values, _PROBE // stride) for stride in STRIDES]
    if "" in taps:
        raise ModelError(f"backbone {name}: has no maps at strides 8 and 16: give another network")
    return (taps[0], taps[1]), (values[taps[0]].shape[1], values[taps[1]].shape[1])


def _last_map(values: Mapping[str, object], side: int) -> str:
    """The last node of ``side`` cells that is not inside the block with the first smaller map; "" if there is none."""
    smaller = next((node for node, value in values.items() if _is_map(value, side // 2)), "")
    block = ".".join(smaller.split(".")[:2]) + "."
    maps = [node for node, value in values.items() if _is_map(value, side) and not f"{node}.".startswith(block)]
    return maps[-1] if maps else ""


def _is_map(value: object, side: int) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and tuple(value.shape[2:]) == (side, side)


def _model(name: str) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "give a torchvision classification network such as resnet18"
        raise ConfigError(f"backbone {name!r} is not known: {hint}")
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _load(backbone: nn.Module, name: str, weights: str) -> None:
    """Weights of the whole network into the part of it that is used. Raises WeightsError."""
    state = read_state_dict(weights)
    own = backbone.state_dict()
    wrong = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise WeightsError(
            f"weights {weights}: not of {name} ({wrong[0]} is missing or differs in shape): give its own"
        )
    backbone.load_state_dict({key: state[key] for key in own})
