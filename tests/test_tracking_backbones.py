"""Other backbones: where their maps are tapped, that they track, resume and are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from small_tracker import SMALL

from streamdrop import Track, Tracker, track
from streamdrop.boxes import iou
from streamdrop.errors import ConfigError, ModelError, WeightsError
from streamdrop.split import SplitModel
from streamdrop.testing.targets import moving_square
from streamdrop.tracking import TrackerConfig
from streamdrop.tracking.arms import Cuts
from streamdrop.tracking.backbones import build_tapped, find_taps, network_of
from streamdrop.tracking.config import HeadConfig
from streamdrop.tracking.network import normalise, read_weights


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights that nobody trained, with BatchNorm statistics of such images."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    images = torch.from_numpy(np.stack(moving_square(16)[0]))
    with torch.no_grad():
        model(normalise(images))
    save_file(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "taps", "channels"),
    [
        ("resnet18", ("layer2.1.relu_1", "layer3.1.relu_1"), (128, 256)),
        ("mobilenet_v2", ("features.6.add", "features.13.add"), (32, 96)),
        ("shufflenet_v2_x0_5", None, (48, 96)),
        ("regnet_y_400mf", None, (104, 208)),
        ("efficientnet_b0", None, (40, 112)),
        ("densenet121", None, (512, 1024)),
    ],
)
def test_taps_are_the_ends_of_stages(name: str, taps: Any, channels: Any) -> None:
    found, counts = find_taps(torchvision.models.get_model(name, weights=None), name)
    assert counts == channels
    assert taps is None or found == taps


def test_mobilenet_found_by_looking_is_the_one_built_in(tmp_path: Path) -> None:
    theirs = torchvision.models.mobilenet_v2().features.state_dict(prefix="features.")
    packaged = [value for key, value in read_weights().items() if key.startswith("features.")]
    weights = dict(zip(theirs, packaged, strict=False))  # the same order, other names
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "w.safetensors")
    tapped = build_tapped("mobilenet_v2", HeadConfig(), 3, str(tmp_path / "w.safetensors"))
    own = network_of(TrackerConfig())
    crops = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = tapped.backbone(crops)
        fine = own.lower(crops)  # type: ignore[union-attr, operator]
        coarse = own.upper(fine)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(maps["fine"], fine, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(maps["coarse"], coarse, atol=1e-3, rtol=1e-3)


def test_mobilenet_weights_from_safetensors_are_those_of_the_torch_file(tmp_path: Path) -> None:
    weights = read_weights()
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "w.safetensors")
    read = read_weights(str(tmp_path / "w.safetensors"))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], value) for key, value in weights.items())
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="not a weights file"):
        read_weights(str(tmp_path / "bad.safetensors"))


def test_only_the_last_convolutions_can_be_trained_and_the_maps_cross_the_cut(resnet: str) -> None:
    network = build_tapped("resnet18", HeadConfig(), 2, resnet)
    split = SplitModel(network, torch.zeros(2, 3, 128, 128))
    cuts = Cuts.of(split)
    assert split.layers[cuts.frozen : cuts.maps] == ("backbone.layer3.1.conv1", "backbone.layer3.1.conv2")
    assert split.live_bytes(cuts.maps) == 4 * (128 * 16 * 16 + 256 * 8 * 8)


@pytest.mark.slow
def test_a_head_that_finds_nothing_after_its_steps_gets_more(resnet: str) -> None:
    """On maps that say little the first steps may not have begun to tell: all that follows would be lost."""
    images, truth = moving_square(6)

    def overlap(again: int) -> tuple[float, int]:
        first = {**SMALL["first_frame"], "steps": 80, "again": again}
        settings = {**SMALL, "first_frame": first, "backbone": "resnet18", "weights": resnet, "strategy": "fixed"}
        tracks = list(track(images, Tracker.from_config(settings), truth[0]))
        return float(np.mean(iou([t.box for t in tracks], truth))), len(tracks[0].reports)

    assert overlap(0)[0] < 0.6
    found, rounds = overlap(2)
    assert found > 0.7
    assert rounds in (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["drop", "fixed"])
def test_tracks_and_resumes_with_another_backbone(resnet: str, strategy: str, tmp_path: Path) -> None:
    images, truth = moving_square(8)
    longer = {**SMALL["first_frame"], "steps": 120}  # filters at random take longer to learn from
    settings = {**SMALL, "first_frame": longer, "backbone": "resnet18", "weights": resnet, "strategy": strategy}

    def plain(tracks: list[Track]) -> list[Any]:
        return [(t.frame, t.box, t.score, t.lost) for t in tracks]

    whole = list(track(images, Tracker.from_config(settings), truth[0]))
    assert float(np.mean(iou([t.box for t in whole], truth))) > 0.5
    tracker = Tracker.from_config(settings)
    list(track(images[:4], tracker, truth[0]))
    tracker.save(tmp_path / "checkpoint")
    again = Tracker.from_config(settings)
    again.restore(tmp_path / "checkpoint")
    assert plain([again.update(image) for image in images[4:]]) == plain(whole[4:])


def test_what_cannot_be_a_backbone_is_refused(resnet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDROP_WEIGHTS", str(tmp_path))
    with pytest.raises(ConfigError, match="did you mean resnet18"):
        network_of(TrackerConfig(backbone="resnet-18"))
    with pytest.raises(WeightsError, match="streamdrop weights get resnet18"):
        network_of(TrackerConfig(backbone="resnet18"))
    with pytest.raises(WeightsError, match="no such file"):
        network_of(TrackerConfig(backbone="resnet34"))
    with pytest.raises(WeightsError, match="not of resnet50"):
        network_of(TrackerConfig(backbone="resnet50", weights=resnet))
    with pytest.raises(ModelError, match="backbone vit_b_16"):
        network_of(TrackerConfig(backbone="vit_b_16", weights=resnet))
