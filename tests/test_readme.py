"""Every command and every program in the README and in docs/ does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from streamdrop.cli.parser import build_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
SHELL = [
    line.split("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()
]


@pytest.mark.parametrize("line", [part.strip() for line in SHELL for part in line.split("&&") if "streamdrop " in part])
def test_commands_parse(line):
    program, *arguments = shlex.split(line)
    assert program == "streamdrop"
    assert build_parser().parse_args(arguments).command


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    named = {line.split()[1] for line in SHELL if line.startswith("make ")}
    assert named
    assert named <= set(targets)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_programs_run(number, tmp_path, monkeypatch, capsys):
    for name in ("configs", "data_samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    program = PROGRAMS[number]
    if "sd.track(" in program:  # the first second of the clip says it all
        program = program.replace("print(track.frame", "print('frame', track.frame").replace(
            "    for track in", "    import itertools\n    for track in"
        )
        program = re.sub(r"in sd.track\((.*)\):", r"in itertools.islice(sd.track(\1), 5):", program)
    torch.manual_seed(0)
    exec(compile(program, f"README program {number}", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_it_points_to_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
