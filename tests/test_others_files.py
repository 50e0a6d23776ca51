"""What lies in a folder that streamdrop writes to, and is not its own, is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from streamdrop import checkpoint
from streamdrop.boxes import Box
from streamdrop.config import load
from streamdrop.evaluation.experiment import FitConfig, run_experiment
from streamdrop.service.files import OutputFiles
from streamdrop.service.settings import OutputsConfig
from streamdrop.store import LmdbStore, remove_store
from streamdrop.testing.stores import doubled, samples
from streamdrop.tracking.saved_targets import write_targets
from streamdrop.types import Track

NAMES = (
    "state-of-the-art/paper.tex",
    "state-1/a",
    "state-²/a",
    "state-000001.bak/a",
    "set-pieces/a",
    "values-mine.bin",
)
FIT_NAMES = ("state/texas/a", "stores/corner/a", "state/notes.txt", "stores/notes.txt")


def placed(folder: Path, names: tuple[str, ...]) -> dict[Path, bytes]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return {folder / name: name.encode() for name in names}


def save_checkpoints(folder: Path) -> None:
    for number in range(2):
        checkpoint.take_snapshot({"model": {"w": torch.ones(1)}}, {"number": number}).write(folder)
    assert checkpoint.read_checkpoint(folder)[1]["number"] == 1
    assert len(checkpoint.numbered(folder, "state")) == 1


def save_targets(folder: Path) -> None:
    for number in range(2):
        write_targets(folder, {}, {"number": number})
    assert len(checkpoint.numbered(folder, "set")) == 1


def use_a_store(folder: Path) -> None:
    with LmdbStore(folder) as store:
        store.put_many(samples(range(3)), [1, 2, 3])
        store.advance(2, doubled, "two")
        store.compact()
    remove_store(folder)
    assert not (folder / "data.mdb").exists()


@pytest.mark.parametrize("work", [save_checkpoints, save_targets, use_a_store])
def test_files_with_names_like_ours_are_left_alone(work: Callable[[Path], None], tmp_path: Path) -> None:
    theirs = placed(tmp_path, NAMES)
    work(tmp_path)
    assert {path: path.read_bytes() for path in theirs} == theirs


@pytest.mark.slow
def test_a_fit_leaves_folders_of_its_names_alone(tmp_path: Path) -> None:
    theirs = placed(tmp_path / "out", FIT_NAMES)
    images, labels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8), np.arange(8) % 2
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    small = {"model": "shufflenet_v2_x0_5", "image_size": 32, "train": 8, "test": 8, "epochs": 1, "batch_size": 4}
    config = load({"data": str(tmp_path), "warm_up": 1, "same_time": False, **small}, FitConfig)
    run_experiment(config, ["sgd"], tmp_path / "out")
    assert not (tmp_path / "out" / "state" / "sgd").exists()
    assert {path: path.read_bytes() for path in theirs} == theirs


def test_videos_that_are_not_ours_are_no_old_ones(tmp_path: Path) -> None:
    theirs = placed(tmp_path / "video", ("kept.mp4", "2026.mp4"))
    for _ in range(2):
        files = OutputFiles(OutputsConfig(video_minutes=1, videos=1), tmp_path, 10)
        files.add(0, np.zeros((32, 32, 3), np.uint8), {1: Track(0, Box(1, 2, 3, 4), 1.0, False)})
        files.close()
    assert {path: path.read_bytes() for path in theirs} == theirs
    assert len(list((tmp_path / "video").iterdir())) == 3
