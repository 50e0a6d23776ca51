"""A safetensors file: its content, and who may read it."""

import os
import stat

import pytest
import torch
from safetensors import safe_open

from streamdrop.checkpoint import take_snapshot
from streamdrop.safetensors_file import write_tensors


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_file_may_be_read_by_whom_the_user_s_other_files_may_be(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "other.txt").write_text("usual")
        write_tensors(tmp_path / "net.safetensors", {"w": torch.ones(2)}, {"of": "a net"})
        take_snapshot({"model": {"w": torch.ones(2)}}, {}).write(tmp_path / "run")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.get_tensor("w").tolist() == [1, 1]
        assert file.metadata() == {"of": "a net"}


def test_a_file_that_is_written_again_keeps_its_permissions(tmp_path):
    path = tmp_path / "net.safetensors"
    write_tensors(path, {"w": torch.ones(2)})
    path.chmod(0o640)
    write_tensors(path, {"w": torch.zeros(2)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
