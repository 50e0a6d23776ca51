"""A prior beside what is learned on the stream: made-up networks for its rules, NanoTrack's own where they are here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tracker import SMALL

from streamdrop import Box, Track, Tracker, track
from streamdrop.boxes import iou
from streamdrop.errors import CheckpointError, ConfigError, WeightsError
from streamdrop.evaluation.metrics import success
from streamdrop.evaluation.protocol import one_pass
from streamdrop.evaluation.sequences import read_sequences
from streamdrop.testing.targets import moving_square
from streamdrop.tracking import TrackerConfig
from streamdrop.tracking.config import PriorConfig
from streamdrop.tracking.fusion import Fusion, _between, _difference, _moved
from streamdrop.tracking.prior import Prior, _likeness, find_networks
from streamdrop.types import Image

onnx = pytest.importorskip("onnx", reason="the extra dev has onnx, which makes the networks")
pytest.importorskip("onnxruntime", reason="the extra prior has onnxruntime")

NANOTRACK = Path(os.environ.get("STREAMDROP_DATA", "")) / "peers" / "nanotrack"
SEQUENCES = Path(os.environ.get("STREAMDROP_DATA", "")) / "sequences"
HALF = 24.0  # network pixels from a cell to each side of the boxes that the made-up head proposes


def save(
    path: Path, inputs: dict[str, list[int]], outputs: dict[str, list[int]], nodes: list[Any], **values: Any
) -> Path:
    def describe(shapes: dict[str, list[int]]) -> list[Any]:
        return [onnx.helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v) for k, v in shapes.items()]

    constants = [onnx.numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in values.items()]
    graph = onnx.helper.make_graph(nodes, "made-up", describe(inputs), describe(outputs), constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, str(path))
    return path


def backbone(path: Path, size: int = 255) -> Path:
    """Mean colour of 15×15 pixels around every 16th, as NanoTrack pads."""
    kernel = np.zeros((3, 3, 15, 15))
    kernel[range(3), range(3)] = 1 / 225
    node = onnx.helper.make_node("Conv", ["input", "kernel"], ["output"], strides=[16, 16], pads=[7] * 4)
    return save(path, {"input": [1, 3, size, size]}, {"output": [1, 3, 16, 16]}, [node], kernel=kernel)


def head(path: Path, cells: int = 16) -> Path:
    """Cells whose colour is that of the template's middle are likely; every box reaches as far to all sides."""
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["template", "middle"], ["colour"], kernel_shape=[8, 8]),
        make("Sub", ["features", "colour"], ["apart"]),
        make("Abs", ["apart"], ["distance"]),
        make("Conv", ["distance", "far", "sure"], ["classes"], kernel_shape=[1, 1]),
        make("Conv", ["features", "nothing", "reach"], ["sides"], kernel_shape=[1, 1]),
    ]
    shapes = {"classes": [1, 2, cells, cells], "sides": [1, 4, cells, cells]}
    middle = np.zeros((3, 3, 8, 8))
    middle[range(3), range(3), 3:5, 3:5] = 0.25
    values = {
        "middle": middle,
        "far": np.array([[0.05] * 3, [-0.05] * 3]).reshape(2, 3, 1, 1),
        "sure": [-4.0, 4.0],
        "nothing": np.zeros((4, 3, 1, 1)),
        "reach": [HALF] * 4,
    }
    return save(path, {"template": [1, 3, 8, 8], "features": [1, 3, 16, 16]}, shapes, nodes, **values)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    backbone(folder / "made_backbone.onnx")
    head(folder / "made_head.onnx")
    return folder


def small(networks: Path, **changes: Any) -> Tracker:
    return Tracker.from_config({**SMALL, "prior": {"backbone": str(networks)}, **changes})


def config(networks: Path, **changes: Any) -> TrackerConfig:
    return TrackerConfig(prior=PriorConfig(backbone=str(networks), **changes))


def follow(tracker: Tracker, images: list[Image], box: object) -> list[Track]:
    return list(track(images, tracker, box))


def without_clock(tracks: list[Track]) -> list[Any]:
    return [(t.frame, t.box, t.score, t.lost, t.report and t.report.loss) for t in tracks]


def flat(x: int, y: int, size: int = 32) -> Image:
    """A square of one colour on a ground of another."""
    image = np.full((120, 160, 3), (60, 110, 70), np.uint8)
    image[y : y + size, x : x + size] = (200, 90, 60)
    return image


def test_proposals_are_where_the_template_is_seen_again(networks: Path) -> None:
    prior = Prior(config(networks).prior)
    prior.start(flat(40, 50), Box(40, 50, 32, 32))
    found = prior.look(flat(64, 30), Box(52, 44, 32, 32))
    assert found.probability.shape == (256,)
    likely = found.boxes[found.probability > 0.5]
    assert len(likely) > 4
    np.testing.assert_allclose((likely[:, :2] + likely[:, 2:] / 2).mean(0), (80, 46), atol=2)
    np.testing.assert_allclose(likely[:, 2:], 32 * 2 * HALF / 63.5, rtol=0.02)


def test_likeness_is_one_for_the_same_shape_and_falls_with_any_change() -> None:
    w, h = np.array([30.0, 45.0, 20.0, 45.0, 20.0]), np.array([30.0, 45.0, 20.0, 20.0, 45.0])
    likeness = _likeness(w, h, 30.0, 30.0)
    assert likeness[0] == pytest.approx(1)
    assert (likeness[1:] < 0.95).all()
    assert (likeness > 0).all()
    assert likeness[1] == pytest.approx(likeness[2])  # as much larger as smaller
    assert likeness[3] == pytest.approx(likeness[4])  # as much wider as narrower


def test_a_habit_of_the_prior_is_learned_on_the_first_frame(networks: Path) -> None:
    fusion = Fusion(config(networks))
    fusion.start(flat(64, 44), Box(64, 44, 32, 32))
    habit = fusion.state()["habit"]
    assert habit[0] == pytest.approx(np.log(63.5 / (2 * HALF)), abs=0.06)
    assert habit[1] == pytest.approx(habit[0], abs=0.02)


def test_boxes_between_two_go_from_one_to_the_other() -> None:
    a, b = Box(10, 20, 30, 40), Box(14, 10, 60, 20)
    assert _moved(a, np.array(_difference(b, a))) == pytest.approx(b)
    assert _between(a, b, 0.0) == pytest.approx(a)
    assert _between(a, b, 1.0) == pytest.approx(b)
    middle = _between(a, b, 0.5)
    assert middle.centre == pytest.approx((34.5, 30))
    assert (middle.w, middle.h) == pytest.approx((30 * 2**0.5, 40 / 2**0.5))


def test_tracks_with_a_prior_the_same_on_every_run(networks: Path) -> None:
    images, truth = moving_square(8)
    tracker = small(networks)
    first = follow(tracker, images, truth[0])
    assert float(np.mean(iou([t.box for t in first], truth))) > 0.6
    assert without_clock(follow(tracker, images, truth[0])) == without_clock(first)
    assert without_clock(follow(small(networks), images, truth[0])) == without_clock(first)


def test_a_share_of_zero_leaves_what_is_learned_alone(networks: Path) -> None:
    images, truth = moving_square(6)
    alone = follow(Tracker.from_config(SMALL), images, truth[0])
    silent = follow(small(networks, prior={"backbone": str(networks), "mix": 0.0, "box": 0.0}), images, truth[0])
    for one, other in zip(alone, silent, strict=True):
        assert other.box == pytest.approx(one.box, abs=1e-6)


def test_restore_goes_on_to_the_same_boxes(networks: Path, tmp_path: Path) -> None:
    images, truth = moving_square(8)
    whole = without_clock(follow(small(networks), images, truth[0]))
    tracker = small(networks)
    follow(tracker, images[:4], truth[0])
    tracker.save(tmp_path / "checkpoint")
    again = small(networks)
    again.restore(tmp_path / "checkpoint")
    assert without_clock([again.update(image) for image in images[4:]]) == whole[4:]


def test_a_damaged_state_is_refused(networks: Path) -> None:
    images, truth = moving_square(1)
    fusion = Fusion(config(networks))
    fusion.start(images[0], truth[0])
    state = fusion.state()
    for damage in ({"habit": [1]}, {"template": "?"}, {"shape": [5]}):
        with pytest.raises(CheckpointError):
            fusion.restore({**state, **damage})
    with pytest.raises(CheckpointError):
        fusion.restore(None)


def test_a_target_out_of_the_frame_and_one_of_a_pixel_give_finite_boxes(networks: Path) -> None:
    images, _ = moving_square(3)
    tracker = small(networks)
    for box in ((-30, -20, 60, 50), (100, 60, 1, 1), (-100, -100, 900, 900)):
        assert all(np.isfinite(t.box).all() for t in follow(tracker, images, box))


def test_files_are_given_one_by_one_or_as_a_folder(networks: Path) -> None:
    both = networks / "made_backbone.onnx", networks / "made_head.onnx"
    assert find_networks(PriorConfig(backbone=str(networks))) == both
    assert find_networks(PriorConfig(backbone=str(both[0]), head=str(both[1]))) == both


def test_what_is_missing_or_wrong_is_refused_with_the_remedy(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone_file, head_file = str(networks / "made_backbone.onnx"), str(networks / "made_head.onnx")
    with pytest.raises(WeightsError, match=r"backbone alone: give prior\.backbone and prior\.head"):
        Prior(PriorConfig(backbone=backbone_file))
    with pytest.raises(WeightsError, match=r"gone\.onnx: no such file"):
        Prior(PriorConfig(backbone=backbone_file, head=str(tmp_path / "gone.onnx")))
    with pytest.raises(WeightsError, match=r"gone\.onnx: no such file"):
        Prior(PriorConfig(backbone=str(tmp_path / "gone.onnx")))
    with pytest.raises(WeightsError, match="does not hold one"):
        Prior(PriorConfig(backbone=str(tmp_path)))
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(WeightsError, match="not an ONNX network"):
        Prior(PriorConfig(backbone=backbone_file, head=str(tmp_path / "text.onnx")))
    with pytest.raises(WeightsError, match="are not NanoTrack's backbone"):
        Prior(PriorConfig(backbone=head_file, head=backbone_file))
    monkeypatch.setenv("STREAMDROP_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(WeightsError, match="streamdrop weights get nanotrack-v3"):
        Prior(PriorConfig(backbone="nanotrack-v3"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WeightsError, match=r"pip install 'streamdrop\[prior\]'"):
        Prior(PriorConfig(backbone=str(networks)))


def test_a_head_without_a_backbone_and_a_share_above_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="no backbone"):
        PriorConfig(head="head.onnx")
    with pytest.raises(ConfigError, match="mix is 2"):
        PriorConfig(mix=2.0)
    with pytest.raises(ConfigError, match="box is -1"):
        PriorConfig(box=-1.0)


@pytest.mark.slow
@pytest.mark.skipif(not (NANOTRACK.is_dir() and SEQUENCES.is_dir()), reason="no STREAMDROP_DATA with NanoTrack's")
def test_nanotrack_as_prior_on_real_video() -> None:
    files = {part: str(NANOTRACK / f"nanov3_{part}.onnx") for part in ("backbone", "head")}
    (sequence,) = read_sequences(SEQUENCES, ["bag"], 40)
    run = one_pass(Tracker.from_config({"prior": files}), sequence)
    assert success(run.boxes, sequence.truth) > 0.7
