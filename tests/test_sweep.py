"""``streamdrop fit --sweep``: grids of experiments, what becomes of cells that fail, kills and what is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from streamdrop.cli import main
from streamdrop.config import load
from streamdrop.errors import ConfigError, OutputError
from streamdrop.evaluation import sweep as sweeping
from streamdrop.evaluation.experiment import FitConfig
from streamdrop.evaluation.sweep import run_sweep
from streamdrop.evaluation.sweep_config import load_sweep

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs" / "fit").rglob("*.yaml"))
GRID = {
    "name": "grid",
    "data": {"a": "/d/a", "b": "/d/b"},
    "models": ["resnet18", "resnet50"],
    "seeds": [0, 1],
    "strategies": ["sgd", "drop"],
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_loads(path, monkeypatch):
    monkeypatch.setenv("STREAMDROP_DATA", "/d")
    if "models" in yaml.safe_load(path.read_text()):
        assert load_sweep(path).count > 0
    else:
        assert load(path, FitConfig).epochs > 0


def test_the_mini_grid_is_the_papers_at_a_size_for_two_cores(monkeypatch):
    monkeypatch.setenv("STREAMDROP_DATA", "/d")
    sweep = load_sweep(ROOT / "configs" / "fit" / "mini.yaml")
    assert sweep.count == 2 * 7 * 3
    assert {cell.seed for cell in sweep.cells[:14]} == {0}, "every network once before any twice"
    for cell in sweep.cells:
        given = cell.config
        assert (given.train, given.test, given.image_size, given.batch_size) == (512, 1000, 32, 32)
        assert (given.epochs, given.warm_up, given.threads, given.policy) == (20, 3, 1, "auto")


def test_the_paper_divides_the_rate_where_it_says(monkeypatch):
    monkeypatch.setenv("STREAMDROP_DATA", "/d")
    cells = load_sweep(ROOT / "configs" / "fit" / "paper" / "sweep.yaml").cells
    by_name = {cell.dataset: cell.config for cell in cells}
    rates = {name: (c.optimizer.lr, c.optimizer.momentum, c.schedule.milestones) for name, c in by_name.items()}
    assert rates == {"mnist": (0.001, 0.9, ()), "cifar10": (0.1, 0.9, (20,)), "imagenette": (0.01, 0.9, (50,))}
    for name, given in by_name.items():
        single = load(ROOT / "configs" / "fit" / "paper" / f"{name}.yaml", FitConfig)
        for key in (
            "train",
            "test",
            "epochs",
            "warm_up",
            "batch_size",
            "image_size",
            "optimizer",
            "schedule",
            "policy",
        ):
            assert getattr(single, key) == getattr(given, key), (name, key)


def test_later_ones_win_and_mappings_are_merged():
    sweep = load_sweep(
        GRID
        | {
            "base": {"epochs": 2, "optimizer": {"lr": 0.5, "momentum": 0.1}, "policy": {"schedule": {1: 2}}},
            "per_dataset": {"b": {"optimizer": {"lr": 0.25}}},
            "per_model": {"resnet50": {"epochs": 3}},
            "variants": {"fixed": {}, "never": {"policy": "never", "epochs": 4}},
        }
    )
    found = {(c.dataset, c.model, c.variant): c.config for c in sweep.cells if c.seed == 1}
    assert len(found) == 8
    assert sweep.count == 16
    assert found["a", "resnet18", "fixed"].optimizer.lr == 0.5
    assert (found["b", "resnet18", "fixed"].optimizer.lr, found["b", "resnet18", "fixed"].optimizer.momentum) == (
        0.25,
        0.1,
    )
    assert [found["a", "resnet50", v].epochs for v in ("fixed", "never")] == [3, 4]
    assert [found["a", "resnet50", v].policy for v in ("fixed", "never")] == [{"schedule": {1: 2}}, "never"]
    assert found["b", "resnet50", "never"].data == "/d/b"
    assert load_sweep(GRID).cells[0].variant == "auto"
    assert load_sweep(GRID).cells[0].folder == "cells/a/resnet18/auto/seed-0"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"models": []}, "models"),
        ({"seeds": [1, 1]}, "each once"),
        ({"strategies": ["sgd", "drip"]}, "drip"),
        ({"jobs": 0}, "jobs"),
        ({"per_dataset": {"c": {}}}, "holds a, b"),
        ({"per_model": {"resnet19": {}}}, "resnet19"),
        ({"base": {"seed": 3}}, "set by the grid"),
        ({"base": {"epoch": 3}}, "epochs"),
        ({"variants": {"x": {"policy": "papr"}}}, "cell a resnet18 x.*paper"),
        ({"variants": {"../x": {}}}, "separators"),
        ({"variants": {"x": {"policy": {"auto": {"critical": "x"}}}}}, "cell a resnet18 x.*critical"),
        ({"variants": {"x": {"optimizer": {"lr": -1.0}}}}, "cell a resnet18 x.*lr"),
        ({"base": {"optimizer": {"lr": float("nan")}}}, r"base\.optimizer\.lr: expected a finite number"),
        ({"threads": 99_999}, "threads .* at most 1024"),
        ({"model": "resnet18"}, "models"),
    ],
)
def test_a_grid_that_cannot_work_is_refused_before_it_starts(more, words):
    with pytest.raises(ConfigError, match=words):
        load_sweep(GRID | more)


def test_a_gpu_that_is_not_there_is_missed_once_not_in_every_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="finds no GPU"):
        run_sweep(load_sweep(GRID | {"base": {"device": "cuda"}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["c.yaml", "--sweep", "s.yaml"]])
def test_either_an_experiment_or_a_grid(arguments, tmp_path, capsys):
    assert main(["fit", *arguments, "--output", str(tmp_path)]) == 2
    assert "--sweep" in capsys.readouterr().err


# -------------------------------------------------------------------- grids that run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    for name in ("train", "test"):
        labels = np.arange(12) % 3
        images = random.integers(0, 60, (12, 32, 32, 3)) + 80 * labels[:, None, None, None]
        np.savez(folder / f"{name}.npz", images=images.astype(np.uint8), labels=labels)
    return str(folder)


def grid(data, path, **more) -> Path:
    base = {"image_size": 32, "train": 12, "test": 12, "epochs": 2, "warm_up": 1, "batch_size": 6}
    base |= {"policy": {"schedule": {1: 2}}, "checkpoint_seconds": 0}
    values = {**GRID, "data": {"tiny": data}, "models": ["squeezenet1_1"], "strategies": ["drop"], "base": base, **more}
    path.write_text(yaml.safe_dump(values))
    return path


def states(folder: Path) -> list[str]:
    return [cell["status"] for cell in json.loads((folder / "sweep.json").read_text())["cells"]]


@pytest.mark.slow
def test_a_failing_cell_is_noted_and_the_others_finish_and_are_kept(data, tmp_path, capsys, monkeypatch):
    path = grid(data, tmp_path / "s.yaml", models=["resnet81", "squeezenet1_1"], seeds=[0], jobs=2)
    command = ["fit", "--sweep", str(path), "--output", str(tmp_path / "o")]
    assert main(command) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "1 of 2 cells failed" in told.err
    assert "resnet81" in told.out
    assert "tiny" in (tmp_path / "o" / "report.html").read_text()
    sweep = json.loads((tmp_path / "o" / "sweep.json").read_text())
    assert sweep.keys() >= {"name", "hardware", "version", "protocol", "cells"}
    assert sweep["protocol"]["base"]["epochs"] == 2
    failed, done = sweep["cells"]
    assert (failed["status"], done["status"], done["error"]) == ("failed", "done", None)
    assert "did you mean" in failed["error"]
    result = json.loads((tmp_path / "o" / done["result"]).read_text())
    assert result["finished"]
    assert result["config"]["threads"] == 1
    started = []
    monkeypatch.setattr(sweeping._Grid, "_launch", lambda self, cell, core: started.append(cell.model) or Ended(cell))
    run_sweep(load_sweep(path), tmp_path / "o")
    assert started == ["resnet81"], "what is done is kept, what failed is tried again"
    assert run_sweep(load_sweep(path, ["models=[squeezenet1_1]"]), tmp_path / "o").failed == 0, "nothing is left to do"
    run_sweep(load_sweep(path, ["models=[resnet81]", "base.epochs=3"]), tmp_path / "o")
    assert started == ["resnet81"] * 2, "what failed before its first epoch may be corrected"
    with pytest.raises(ConfigError, match="other epochs"):
        run_sweep(load_sweep(path, ["base.epochs=3"]), tmp_path / "o")


def test_a_cell_that_diverged_may_be_corrected(data, tmp_path, monkeypatch):
    path, folder = grid(data, tmp_path / "s.yaml", seeds=[0]), tmp_path / "o"
    (cell,) = load_sweep(path).cells
    (folder / cell.folder).mkdir(parents=True)
    about = {"config": cell.config.plain(), "asked": ["drop"], "finished": True}
    result = about | {"strategies": {"drop": {"status": "diverged", "epochs": []}}}
    (folder / cell.folder / "result.json").write_text(json.dumps(result))
    started = []
    monkeypatch.setattr(sweeping._Grid, "_launch", lambda self, cell, core: started.append(cell.model) or Ended(cell))
    run_sweep(load_sweep(path, ["base.optimizer.lr=0.001", "jobs=1000000000000"]), folder)
    assert started == ["squeezenet1_1"]


def test_names_that_no_folder_can_have_are_told(data, tmp_path):
    path = grid(data, tmp_path / "s.yaml", variants={"a\0b": {}})
    with pytest.raises(OutputError, match="other names"):
        run_sweep(load_sweep(path), tmp_path / "o")


def test_cells_of_several_threads_are_not_pinned_to_one_core():
    assert sweeping._cores(3, threads=2) == [None] * 3
    assert None not in sweeping._cores(3, threads=1) or not hasattr(os, "sched_getaffinity")


class Ended:
    """A cell's process that failed at once."""

    stdin = None
    returncode = 1
    core = None
    started = 0.0

    def __init__(self, cell):
        self.cell, self.process = cell, self

    def poll(self):
        return 1


def begin(path: Path, output: Path) -> subprocess.Popen[str]:
    """A sweep in a process of its own, its first cell done."""
    command = [sys.executable, "-m", "streamdrop", "fit", "--sweep", str(path), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert "done in" in process.stdout.readline()
    return process


def running_cells(output: Path) -> list[str]:
    """Command lines of processes that work in ``output``."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        lines += [line] if "sweep_cell" in line and str(output) in line else []
    return lines


@pytest.mark.slow
def test_an_interrupted_sweep_ends_its_cells_and_goes_on(data, tmp_path):
    path, output = grid(data, tmp_path / "s.yaml", seeds=[0, 1, 2]), tmp_path / "o"
    process = begin(path, output)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=250)
    assert process.returncode == 130, err
    assert err.count("\n") == 1
    assert running_cells(output) == []
    assert states(output)[0] == "done"
    assert "missing" in states(output)
    kept = (output / "cells/tiny/squeezenet1_1/schedule/seed-0/result.json").read_bytes()
    assert run_sweep(load_sweep(path), output).failed == 0
    assert states(output) == ["done"] * 3
    assert (output / "cells/tiny/squeezenet1_1/schedule/seed-0/result.json").read_bytes() == kept


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc: processes cannot be looked for")
def test_cells_do_not_outlive_a_killed_sweep(data, tmp_path):
    path, output = grid(data, tmp_path / "s.yaml", seeds=[0, 1]), tmp_path / "o"
    process = begin(path, output)
    process.kill()
    process.communicate(timeout=250)
    while running_cells(output):  # each ends by itself, in its own time
        os.sched_yield()
    assert run_sweep(load_sweep(path), output).failed == 0
    assert states(output) == ["done"] * 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc: processes cannot be looked for")
def test_cells_of_a_sweep_in_the_background_end_with_it_too(data, tmp_path):
    base = {"image_size": 32, "train": 12, "test": 12, "epochs": 1_000_000, "warm_up": 1, "batch_size": 6}
    path, output = grid(data, tmp_path / "s.yaml", seeds=[0], base=base, strategies=["sgd"]), tmp_path / "o"
    command = [sys.executable, "-m", "streamdrop", "fit", "--sweep", str(path), "--output", str(output)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),  # as a shell starts "command &"
    )
    try:
        while not list(output.glob("cells/*/*/*/*/result.json")):
            assert process.poll() is None
            os.sched_yield()
    finally:
        process.kill()
        process.wait()
    while running_cells(output):
        os.sched_yield()
