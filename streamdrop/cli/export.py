"""``streamdrop export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from streamdrop.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from streamdrop.split import SplitModel

SIZE, CLASSES = 224, 1000


def export(options: argparse.Namespace) -> int:
    """Write a tuned model, its tail or its head; print inputs, outputs and the difference found."""
    from streamdrop.export import export as write

    if options.cut is not None and options.part == "whole":
        raise ConfigError("--cut is where a part begins or ends: give --part tail or --part head with it")
    split, example, cut = _tracker(options) if Path(options.source).is_dir() else _classifier(options)
    if options.cut is not None:
        cut = options.cut
    if cut is None and options.part != "whole":
        raise ConfigError(
            f"--part {options.part} needs --cut N: how many of the {len(split.layers)} layers are below it"
        )
    done = write(split, example, options.out, options.part, cut or 0, options.tolerance)
    for what, values in (("input", done.inputs), ("output", done.outputs)):
        print("\n".join(f"{what}: {name} [batch, {', '.join(map(str, shape[1:]))}]" for name, shape in values.items()))
    print(
        f"largest difference to the model: {done.error:.2g} (tolerance {options.tolerance:g})\n{done.part}: {done.path}"
    )
    return 0


def _tracker(options: argparse.Namespace) -> tuple[SplitModel, Tensor, int | None]:
    """The network that a tracking run left in its --store folder, and the run's cut."""
    import torch

    from streamdrop.checkpoint import exists, read_checkpoint
    from streamdrop.config import load
    from streamdrop.tracking.backbones import network_of, split_of
    from streamdrop.tracking.config import TrackerConfig

    if options.model is not None or options.classes is not None or options.size is not None:
        raise ConfigError("--model, --classes and --size are for a file of weights: leave them out for a run's folder")
    folder = Path(options.source)
    parts, state = read_checkpoint(folder / "tracker" if exists(folder / "tracker") else folder)
    extra = state.get("extra")
    if not isinstance(extra, dict) or "configuration" not in extra:
        raise CheckpointError(f"{folder}: not a tracker's: give the --store folder of a run, or weights with --model")
    config = load(extra["configuration"], TrackerConfig)
    network = network_of(config)
    network.load_state_dict(parts["model"])
    generator = torch.Generator().manual_seed(0)
    size = config.search.size
    example = torch.randn(2, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    split = split_of(network, example)
    network.eval()
    return split, example, int(state["cut"])


def _classifier(options: argparse.Namespace) -> tuple[SplitModel, Tensor, int | None]:
    """A network by name with weights from a file, as ``fit --save-weights`` leaves them."""
    import torch

    from streamdrop.evaluation.networks import build_network, layer_rule
    from streamdrop.split import SplitModel

    if options.model is None:
        raise ConfigError(f"{options.source} is no run's folder: for a file of weights give --model NAME too")
    size = options.size or SIZE
    network = build_network(options.model, options.classes or CLASSES, options.source, size).eval()
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return SplitModel(network, example, layer_rule(options.model)), example, None
