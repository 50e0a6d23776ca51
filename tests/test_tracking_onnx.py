"""ONNX files as backbone: where they are tapped, the laws of the split, tracking, resuming, what is refused."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from small_tracker import SMALL

from streamdrop import Targets, Track, Tracker, track
from streamdrop.boxes import iou
from streamdrop.errors import ConfigError, ModelError, WeightsError
from streamdrop.export import export
from streamdrop.testing.targets import moving_square, moving_squares
from streamdrop.tracking import TrackerConfig
from streamdrop.tracking.backbones import build_onnx, network_of, split_of
from streamdrop.tracking.config import HeadConfig
from streamdrop.tracking.network import build_network, normalise
from streamdrop.tracking.onnx_backbone import Pixels, read_onnx

onnx = pytest.importorskip("onnx", reason="the extra onnx-backbone has onnx")
onnx2torch = pytest.importorskip("onnx2torch", reason="the extra onnx-backbone has onnx2torch")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CROPS = torch.randn(3, 3, 128, 128, generator=torch.Generator().manual_seed(1))


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's older exporter, the quick one


class Drawing:
    """An ONNX graph, node by node. ``conv``, ``gate`` and ``node`` return the name of their value."""

    def __init__(self) -> None:
        self.random, self.count = np.random.default_rng(0), itertools.count()
        self.nodes: list[Any] = []
        self.numbers: list[Any] = []

    def number(self, values: Any) -> str:
        self.numbers.append(numpy_helper.from_array(np.asarray(values), f"number{next(self.count)}"))
        return str(self.numbers[-1].name)

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = f"value{next(self.count)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def conv(self, value: str, inputs: int, outputs: int, stride: int = 1, kernel: int = 3, name: str = "") -> str:
        weights = self.random.normal(0, (2 / inputs) ** 0.5 / kernel, (outputs, inputs, kernel, kernel))
        pads, shift = [kernel // 2] * 4, self.number(np.zeros(outputs, np.float32))
        parts = value, self.number(weights.astype(np.float32)), shift
        convolved = self.node("Conv", *parts, strides=[stride] * 2, pads=pads, name=name)
        return self.node("Relu", convolved)

    def gate(self, value: str, channels: int) -> str:
        """Squeeze and excitation as it is exported with a batch of one."""
        mean = self.node("GlobalAveragePool", value)
        shape = self.node("Constant", value_ints=[1, channels])
        flat = self.node("Reshape", mean, shape, allowzero=1)
        weights = self.number(self.random.normal(0, 0.3, (channels, channels)).astype(np.float32))
        gates = self.node("Sigmoid", self.node("MatMul", flat, weights))
        return self.node("Mul", value, self.node("Reshape", gates, self.number(np.array([1, channels, 1, 1]))))

    def save(self, path: Path, output: str, shape: Any = (1, 3, 255, 255), inputs: int = 1, opset: int = 20) -> str:
        given = [helper.make_tensor_value_info(f"x{i or ''}", TensorProto.FLOAT, shape) for i in range(inputs)]
        rank = 2 if self.nodes[-1].op_type == "MatMul" else 4
        told = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)
        graph = helper.make_graph(self.nodes, "drawn", given, [told], self.numbers)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
        return str(path)


def small_network(path: Path, name: str = "", **how: Any) -> str:
    """Blocks of 12 channels at stride 8 and 20 at 16, widened inside, with gates, and a head for the export's size."""
    draw = Drawing()
    value = draw.conv(draw.conv("x", 3, 8, 2), 8, 8, 2)
    for inputs, channels in ((8, 12), (12, 20)):
        value = draw.conv(draw.conv(value, inputs, 3 * inputs, kernel=1), 3 * inputs, channels, 2, name=name)
        inside = draw.gate(draw.conv(draw.conv(value, channels, 30, kernel=1), 30, channels), channels)
        value = draw.node("Identity", draw.node("Add", value, inside))
    head = draw.conv(value, 20, 60, kernel=1)
    scores = draw.node("MatMul", draw.node("Flatten", head), draw.number(np.ones((60 * 256, 2), np.float32)))
    return draw.save(path, scores, **how)


@pytest.fixture
def small(tmp_path: Path) -> str:
    return small_network(tmp_path / "small.onnx")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The built-in backbone, exported with everything fixed."""
    path = tmp_path_factory.mktemp("onnx") / "mobilenet.onnx"
    network = build_network(HeadConfig(), 3)
    whole = torch.nn.Sequential(network.lower, network.upper, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.onnx.export(whole, (torch.zeros(1, 3, 224, 224),), path, dynamo=False)
    return str(path)


def test_maps_are_what_blocks_hand_on_and_do_not_depend_on_the_batch(small: str) -> None:
    network, channels = read_onnx(Path(small), small)
    assert channels == (12, 20)
    with torch.no_grad():
        together = network(CROPS)
        alone = [network(crop[None]) for crop in CROPS]
    assert [tuple(together[key].shape) for key in ("fine", "coarse")] == [(3, 12, 16, 16), (3, 20, 8, 8)]
    torch.testing.assert_close(together["coarse"], torch.cat([one["coarse"] for one in alone]))


def test_maps_are_those_of_the_file_itself(small: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network, _ = read_onnx(Path(small), small)
    wanted = onnx.load(small)
    sums = [node.output[0] for node in wanted.graph.node if node.op_type == "Add"]
    wanted.graph.output.extend(helper.make_tensor_value_info(one, TensorProto.FLOAT, None) for one in sums)
    image = np.random.default_rng(0).normal(size=(1, 3, 255, 255)).astype(np.float32)
    truth = onnxruntime.InferenceSession(wanted.SerializeToString()).run(sums, {"x": image})
    with torch.no_grad():
        maps = network(torch.from_numpy(image))
    for key, values in zip(("fine", "coarse"), truth, strict=True):
        np.testing.assert_allclose(maps[key].numpy(), values, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", (128, 256)), ("mobilenet_v3_small", (24, 48)), ("efficientnet_b0", (40, 112))],
)
def test_taps_of_exported_networks(name: str, channels: Any, tmp_path: Path) -> None:
    network = torchvision.models.get_model(name, weights=None).eval()
    free = {"x": {0: "batch", 2: "height", 3: "width"}}
    example = (torch.zeros(1, 3, 224, 224),)
    torch.onnx.export(network, example, tmp_path / "net.onnx", dynamo=False, input_names=["x"], dynamic_axes=free)
    assert read_onnx(tmp_path / "net.onnx", name)[1] == channels


@pytest.mark.slow
def test_the_newer_exporter_gives_the_same_maps(tmp_path: Path) -> None:
    network = torchvision.models.resnet18().eval()
    example = (torch.zeros(1, 3, 224, 224),)
    torch.onnx.export(network, example, tmp_path / "net.onnx", dynamo=True, external_data=False, verbose=False)
    read, channels = read_onnx(tmp_path / "net.onnx", "net")
    assert channels == (128, 256)
    with torch.no_grad():
        stem = network.maxpool(network.relu(network.bn1(network.conv1(CROPS))))
        fine = network.layer2(network.layer1(stem))
        torch.testing.assert_close(read(CROPS)["fine"], fine, atol=1e-3, rtol=1e-3)


def test_head_of_tail_is_the_model_at_every_cut(small: str) -> None:
    network = build_onnx(small, HeadConfig(), 2, "raw-bgr")
    split = split_of(network, torch.zeros(1, 3, 128, 128))
    network.eval()
    with torch.no_grad():
        truth = network(CROPS)
        for cut in range(len(split.layers)):
            assert torch.equal(split.head(cut)(split.tail(cut)(CROPS)), truth), f"cut {cut}"
        for lower, upper in itertools.pairwise(range(len(split.layers))):
            raised = split.step(lower, upper)(split.tail(lower)(CROPS))
            assert all(map(torch.equal, raised, split.tail(upper)(CROPS)))
    trained = [name for name, one in network.backbone.named_parameters() if one.requires_grad]
    assert len(trained) == 2


@pytest.mark.slow
def test_what_was_tuned_can_be_exported_again(small: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = build_onnx(small, HeadConfig(), 2, "unit-rgb")
    split = split_of(network, torch.zeros(1, 3, 128, 128))
    network.eval()
    done = export(split, CROPS, tmp_path / "again.onnx")
    assert done.error < 1e-4


@pytest.mark.parametrize(("form", "top", "reverse"), [("unit-rgb", 1, 1), ("raw-rgb", 255, 1), ("raw-bgr", 255, -1)])
def test_pixels_as_a_network_takes_them(form: str, top: float, reverse: int) -> None:
    crops = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    wanted = crops.permute(0, 3, 1, 2)[:, ::reverse] if reverse > 0 else crops.flip(3).permute(0, 3, 1, 2)
    torch.testing.assert_close(Pixels(form)(normalise(crops)), wanted * (top / 255), atol=1e-4 * top, rtol=0)


def plain(tracks: list[Track]) -> list[Any]:
    return [(t.frame, t.box, t.score, t.lost) for t in tracks]


@pytest.mark.slow
def test_a_file_tracks_as_the_network_it_was_made_from(pretrained: str) -> None:
    images, truth = moving_square(8)
    settings = {**SMALL, "strategy": "fixed"}
    found = [
        list(track(images, Tracker.from_config(one), truth[0]))
        for one in (settings, settings | {"backbone": pretrained})
    ]
    boxes = [np.array([t.box for t in tracks]) for tracks in found]
    assert float(np.mean(iou(boxes[1], truth))) > 0.6
    assert float(iou(boxes[0], boxes[1]).min()) > 0.9


@pytest.mark.slow
def test_goes_on_to_the_same_boxes_after_a_checkpoint(pretrained: str, tmp_path: Path) -> None:
    images, truth = moving_square(8)
    settings = {**SMALL, "backbone": pretrained}
    tracker = Tracker.from_config(settings)
    whole = list(track(images, tracker, truth[0]))
    assert whole[-1].report is None or whole[-1].report.cut > 30  # the backbone was dropped
    list(track(images[:4], tracker, truth[0]))
    tracker.save(tmp_path / "checkpoint")
    again = Tracker.from_config(settings)
    again.restore(tmp_path / "checkpoint")
    assert plain([again.update(image) for image in images[4:]]) == plain(whole[4:])


@pytest.mark.slow
def test_several_targets_share_the_network_of_a_file(pretrained: str) -> None:
    images, truth = moving_squares(6)
    targets = Targets.from_config({**SMALL, "backbone": pretrained})
    targets.init(images[0], [boxes[0] for boxes in truth])
    for image in images[1:]:
        tracks = targets.update(image)
    for key, boxes in enumerate(truth, 1):
        assert float(iou(tracks[key].box, boxes[-1])) > 0.5


def test_names_in_a_file_do_not_become_code(tmp_path: Path) -> None:
    name = 'a", exec("owned = 1")) or getattr(self, "b'
    network, _ = read_onnx(Path(small_network(tmp_path / "net.onnx", name=name)), "net")
    assert "owned" not in network.code  # type: ignore[operator]
    draw = Drawing()
    path = draw.save(tmp_path / "one.onnx", draw.conv("x", 3, 4, 2, name=name), opset=17)
    assert 'exec("owned = 1")' in onnx2torch.convert(onnx.load(path)).code  # why names are replaced


def test_older_files_and_free_batches_are_taken_too(tmp_path: Path) -> None:
    draw = Drawing()
    fine = draw.conv(draw.conv(draw.conv("x", 3, 4, 2), 4, 4, 2), 4, 6, 2)
    path = draw.save(tmp_path / "net.onnx", draw.conv(fine, 6, 9, 2), shape=("batch", 3, "h", "w"), opset=8)
    assert read_onnx(Path(path), path)[1] == (6, 9)


def _half(path: Path) -> str:
    draw = Drawing()
    narrow = draw.node("Cast", _strided(draw, 2, 2, 2), to=TensorProto.FLOAT16)
    added = draw.node("Add", narrow, draw.number(np.float16([[[[1]]]])))
    return draw.save(path, draw.conv(draw.node("Cast", added, to=TensorProto.FLOAT), 4, 4, 2))


def _strided(draw: Drawing, *strides: int) -> str:
    value = "x"
    for index, stride in enumerate(strides):
        value = draw.conv(value, 3 if index == 0 else 4, 4, stride)
    return value


def _too_fine(path: Path) -> str:
    draw = Drawing()
    return draw.save(path, _strided(draw, 2, 2, 2))


def _two_inputs(path: Path) -> str:
    draw = Drawing()
    return draw.save(path, _strided(draw, 2, 2, 2, 2), inputs=2)


def _channels_last(path: Path) -> str:
    draw = Drawing()
    turned = draw.node("Transpose", "x", perm=[0, 3, 1, 2])
    draw.nodes.append(helper.make_node("Identity", [turned], ["y"]))
    return draw.save(path, draw.conv("y", 3, 4, 2), shape=(1, 255, 255, 3))


def _unknown_operator(path: Path) -> str:
    draw = Drawing()
    wide = draw.conv("x", 3, 4, 2)
    odd = draw.node("Shrink", wide, lambd=0.5)
    return draw.save(path, draw.conv(draw.conv(draw.conv(odd, 4, 4, 2), 4, 4, 2), 4, 4, 2))


def _mixes_the_batch(path: Path) -> str:
    draw = Drawing()
    value = _strided(draw, 2, 2, 2)
    mean = draw.node("ReduceMean", value, draw.number(np.array([0])), keepdims=1)
    mixed = draw.node("Sub", value, draw.node("Mul", mean, draw.number(np.float32([0.5]))))
    return draw.save(path, draw.conv(mixed, 4, 4, 2))


def _one_size(path: Path) -> str:
    draw = Drawing()
    value = _strided(draw, 2, 2, 2)
    flat = draw.node("Reshape", value, draw.number(np.array([1, 4, 1024])))
    return draw.save(path, draw.conv(draw.node("Reshape", flat, draw.number(np.array([1, 4, 32, 32]))), 4, 4, 2))


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (_too_fine, ModelError, r"no maps at strides 8 and 16 \(found: 2, 4, 8\)"),
        (_two_inputs, ModelError, "takes 1×3×255×255, 1×3×255×255: give a network of one input"),
        (_channels_last, ModelError, r"takes 1×255×255×3: give a network of one input, batch × 3"),
        (_unknown_operator, ModelError, "cannot be converted .*Shrink.*: export it anew"),
        (_mixes_the_batch, ModelError, "images in one batch change each other"),
        (_half, ModelError, "holds float16 weights: export it in float32"),
        (_one_size, ModelError, "where it keeps to one image size, export it with dynamic sizes"),
        (lambda path: path.write_text("no network"), WeightsError, "not an ONNX network"),
        (lambda path: path.write_bytes(b""), WeightsError, "not an ONNX network"),
        (lambda path: None, WeightsError, "no such file: give the path of an ONNX file"),
    ],
)
def test_a_file_that_cannot_be_a_backbone_is_refused(draw: Any, error: Any, message: str, tmp_path: Path) -> None:
    draw(tmp_path / "net.onnx")
    with pytest.raises(error, match=message):
        network_of(TrackerConfig(backbone=str(tmp_path / "net.onnx")))


@pytest.mark.parametrize("module", ["onnx", "onnx2torch"])
def test_what_is_not_installed_is_named(module: str, small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(WeightsError, match=rf"needs {module}, .*pip install 'streamdrop\[onnx-backbone\]'"):
        network_of(TrackerConfig(backbone=small))


def test_settings_that_do_not_fit_a_file_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights is w.pt, but net.onnx has its own: leave weights out"):
        TrackerConfig(backbone="net.onnx", weights="w.pt")
    with pytest.raises(ConfigError, match=r"backbone_input is raw-bgr, but resnet18 is no ONNX file"):
        TrackerConfig(backbone="resnet18", backbone_input="raw-bgr")
