"""Saving on a system that fails, at any call: what was saved before or what is saved now can be loaded, whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faults import FILES, Seam, failing
from small_tracker import SMALL

from streamdrop import checkpoint
from streamdrop.errors import CheckpointError, OutputError
from streamdrop.testing.targets import moving_squares
from streamdrop.tracking import Targets

SEAMS: tuple[Seam, ...] = (*(seam for seam in FILES if seam[1] != "unlink"), (checkpoint, "save_file"))


def save(path: Path, number: int) -> None:
    part = {"model": {"weight": torch.full((3,), float(number))}}
    checkpoint.take_snapshot(part, {"number": number}).write(path)


def load(path: Path) -> int:
    parts, state = checkpoint.read_checkpoint(path)
    assert parts["model"]["weight"].tolist() == [state["number"]] * 3
    return int(state["number"])


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_a_checkpoint_is_the_old_or_the_new_one_and_leaves_no_other(tmp_path: Path, lasting: bool) -> None:
    save(tmp_path, 0)
    at, fired = 0, True
    while fired:
        at += 1
        before = load(tmp_path)
        with failing(SEAMS, at, lasting) as faults:
            try:
                save(tmp_path, at)
                after = [at]
            except OutputError:
                after = [before, at]
        fired = faults.fired
        assert load(tmp_path) in after
        if not lasting:  # else nothing can be removed either
            assert max(tmp_path.glob("state-*")).name == (tmp_path / "current").read_text()
    assert at > 8
    assert len(list(tmp_path.glob("state-*"))) == 1


def test_targets_go_on_where_a_checkpoint_cannot_be_restored(tmp_path: Path) -> None:
    images, truth = moving_squares(3, count=2)
    targets = Targets.from_config(SMALL)
    targets.init(images[0], [one[0] for one in truth])
    targets.save(tmp_path)
    with failing(SEAMS, 12):  # within the second target's
        with pytest.raises(OutputError):
            targets.save(tmp_path)
    assert [folder.name for folder in tmp_path.glob("set-*")] == ["set-000001"]
    damaged = tmp_path / "set-000001" / "2" / "state-000001" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        targets.restore(tmp_path)
    assert targets.ids == (1, 2)
    assert sorted(targets.update(images[1])) == [1, 2]
