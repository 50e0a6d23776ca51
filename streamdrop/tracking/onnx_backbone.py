"""A network in an ONNX file as torch module: crops in, its maps at stride 8 and 16 out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from streamdrop.errors import ModelError, WeightsError
from streamdrop.tracking.network import MEAN, STD
from streamdrop.tracking.onnx_graph import INSTALL, PROBE, read_model, upto_maps, words

_RANGES = {"unit-rgb": (1.0, False), "raw-rgb": (255.0, False), "raw-bgr": (255.0, True)}


class Pixels(nn.Module):
    """Crops normalised for ImageNet to ``unit-rgb`` (0 … 1), ``raw-rgb`` or ``raw-bgr`` (0 … 255)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, form: str) -> None:
        super().__init__()
        top, self.reversed = _RANGES[form]
        self.register_buffer("scale", STD * top)
        self.register_buffer("shift", MEAN * top)

    def forward(self, crops: Tensor) -> Tensor:
        """[N, 3, S, S], normalised, to the same in the form."""
        pixels: Tensor = crops * self.scale + self.shift
        return pixels.flip(1) if self.reversed else pixels


class Reshape(nn.Module):
    """Values in another shape: 0 keeps the size that the input has there, -1 takes what is left."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, values: Tensor) -> Tensor:
        """[N, …] to the shape."""
        return values.reshape([values.shape[at] if size == 0 else size for at, size in enumerate(self.shape)])


def read_onnx(path: Path, name: str) -> tuple[nn.Module, tuple[int, int]]:
    """The network of a file up to its maps, in eval mode, and the maps' channels; it gives ``fine`` and ``coarse``.

    ``name`` is what messages call it. Raises WeightsError where the file or the converter is missing, or the file is
    no network; ModelError where it has no such maps, or does what the converter does not know or one image allows only.
    """
    model, channels = upto_maps(read_model(path, name), name)
    network = _converted(model, name)
    outputs = next(node for node in network.graph.nodes if node.op == "output")
    fine, coarse = outputs.args[0]
    outputs.args = ({"fine": fine, "coarse": coarse},)
    _simplify_reshapes(network)
    network.eval()
    _prove_batches(network, name)
    return network, channels


def input_form(form: str) -> Pixels | None:
    """What crops pass first; None where the network takes them as they are."""
    return None if form == "imagenet" else Pixels(form)


def opaque_modules(network: nn.Module) -> list[str]:
    """The converter's own modules, by name, which decide on values and so are run as one piece each."""
    return [name for name, one in network.named_modules() if type(one).__module__.startswith("onnx2torch.")]


def _converted(model: Any, name: str) -> fx.GraphModule:
    try:
        from onnx2torch import convert
    except ImportError:
        raise WeightsError(f"backbone {name}: needs onnx2torch, which is not installed: {INSTALL}") from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore")
            warnings.filterwarnings("error", message=".*differ.*")  # of operators that it does otherwise
            network: fx.GraphModule = convert(model)
    except Exception as error:  # whatever its converters raise
        raise ModelError(
            f"backbone {name}: cannot be converted ({words(error)}): export it anew with simpler operators, or give a "
            "network of torchvision's"
        ) from None
    return network


def _simplify_reshapes(network: fx.GraphModule) -> None:
    """Reshapes to known shapes read them from no tensor: so they can be traced and exported."""
    for node in network.graph.nodes:
        if node.op != "call_module" or type(network.get_submodule(node.target)).__name__ != "OnnxReshape":
            continue
        shape = node.args[1]
        if shape.op == "get_attr":
            setattr(network, node.target, Reshape(tuple(network.get_buffer(shape.target).tolist())))
            node.args = node.args[:1]
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()


def _prove_batches(network: nn.Module, name: str) -> None:
    """Raise ModelError unless images together give what they give one by one."""
    images = torch.rand(2, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            together, alone = network(images), [network(image[None]) for image in images]
    except Exception as error:  # what its modules raise
        raise ModelError(
            f"backbone {name}: does not take two images of {PROBE} pixels ({words(error)}): export it with dynamic "
            "batch and image sizes"
        ) from None
    for key, maps in together.items():
        apart = torch.cat([one[key] for one in alone])
        if maps.shape != apart.shape or not torch.allclose(
            maps, apart, rtol=1e-3, atol=1e-3 * float(apart.abs().max())
        ):
            raise ModelError(f"backbone {name}: images in one batch change each other: export it in eval mode")
