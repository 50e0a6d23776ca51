"""Rivals in a process of their own."""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_evaluation_sequences import write_sequence

from streamdrop.errors import ConfigError, DataError, ModelError
from streamdrop.evaluation import metrics, peers
from streamdrop.evaluation.sequences import read_sequence, read_sequences

DATA = os.environ.get("STREAMDROP_DATA")


def environment():
    """The rivals' interpreter; the test is skipped where `make peers` has not been run."""
    try:
        return peers.find_python()
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture
def sequence(tmp_path):
    """A bright textured square that moves 2 pixels a frame to the right."""
    folder = write_sequence(tmp_path / "cup", [f"{30.4 + 2 * i},40.2,24.3,24.4" for i in range(6)], suffix=".png")
    rng = np.random.default_rng(0)
    back, patch = rng.integers(0, 90, (120, 160, 3), np.uint8), rng.integers(120, 255, (24, 24, 3), np.uint8)
    for i, path in enumerate(sorted((folder / "color").iterdir())):
        image = back.copy()
        image[40:64, 30 + 2 * i : 54 + 2 * i] = patch
        cv2.imwrite(str(path), image)
    return read_sequence(folder)


@pytest.mark.slow
def test_a_rival_follows_a_moving_square(sequence):
    run = peers.run_peer("kcf", sequence, environment())
    assert run.boxes[0].tolist() == [30, 40, 24, 24]  # the first box in whole pixels
    assert metrics.overlaps(run.boxes, sequence.truth).min() > 0.6
    assert len(run.ms) == len(sequence)
    assert run.fps > 0
    assert not run.round_ms


@pytest.mark.slow
def test_a_rival_that_gives_up_holds_its_last_box(sequence):
    for path in sequence.frames[3:]:
        cv2.imwrite(str(path), np.zeros((120, 160, 3), np.uint8))
    run = peers.run_peer("kcf", sequence, environment())
    assert run.lost.tolist() == [False] * 3 + [True] * 3
    assert (run.boxes[3:] == run.boxes[2]).all()


def test_a_missing_environment_names_the_remedy(tmp_path):
    with pytest.raises(ModelError, match=r"no environment \.venv-peers .*make peers"):
        peers.find_python([tmp_path])


def test_an_environment_is_found(tmp_path):
    python = tmp_path / ".venv-peers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert peers.find_python([tmp_path]) == python


def test_an_environment_without_opencv_names_the_remedy(sequence, tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('no OpenCV here')")
    with pytest.raises(ModelError, match=r"stopped after 0 of 6 frames \(ImportError: no OpenCV here\).*make peers"):
        peers.run_peer("kcf", sequence, fake(tmp_path))


def test_a_tracker_this_opencv_lacks_is_named(sequence, tmp_path):
    (tmp_path / "cv2.py").write_text("__version__ = '9.9'\nclass error(Exception): pass\ndef setRNGSeed(seed): pass\n")
    with pytest.raises(ModelError, match=r"OpenCV 9\.9 has no TrackerKCF_create: install opencv-contrib"):
        peers.run_peer("kcf", sequence, fake(tmp_path))


@pytest.mark.parametrize("home", ["cv2", "legacy"])
def test_trackers_are_found_wherever_this_opencv_keeps_them(sequence, tmp_path, home):
    toy = "\n".join(
        [
            "class Toy:",
            "    def init(self, image, box): self.box = box",
            "    def update(self, image): return True, self.box",
            "class error(Exception): pass",
            "class legacy: pass",
            "__version__ = '4.5'",
            "def setRNGSeed(seed): pass",
            "from numpy import uint8, zeros",
            "IMREAD_COLOR = IMREAD_ANYDEPTH = 0",
            "broken = lambda path: 'broken' in open(path, errors='ignore').read()",
            "def imread(path, flags): return None if broken(path) else zeros((2, 2, 3), uint8)",
            f"{'TrackerMOSSE_create' if home == 'cv2' else 'legacy.TrackerMOSSE_create'} = Toy",
        ]
    )
    (tmp_path / "cv2.py").write_text(toy)
    assert peers.run_peer("mosse", sequence, fake(tmp_path)).boxes.tolist() == [[30, 40, 24, 24]] * 6
    sequence.frames[4].write_text("broken")
    with pytest.raises(DataError, match=r"00000005\.png cannot be decoded"):
        peers.run_peer("mosse", sequence, fake(tmp_path))


def fake(folder):
    """An interpreter that meets the modules of ``folder`` first."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return script


def test_names_and_models_are_checked_before_work_starts(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'kcf'"):
        peers.check_peers(["kfc"], Path(sys.executable))
    with pytest.raises(ModelError, match="holds no"):
        peers.check_peers(["nano"], Path(sys.executable), tmp_path)
    (tmp_path / "nanov2_backbone.onnx").touch()
    (tmp_path / "nanov2_head.onnx").touch()
    peers.check_peers(["nano", "csrt"], Path(sys.executable), tmp_path)
    assert [Path(p).name for p in peers.find_models("nano", tmp_path)] == ["nanov2_backbone.onnx", "nanov2_head.onnx"]


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="STREAMDROP_DATA is not set: CSRT's known score is not checked")
def test_csrt_scores_what_it_is_known_to_score():
    (sequence,) = read_sequences(Path(str(DATA)) / "sequences", ["dragonbaby"])
    run = peers.run_peer("csrt", sequence, environment())
    assert metrics.success(run.boxes, sequence.truth) == pytest.approx(0.17, abs=0.01)
