"""``streamdrop fit``: the paper's experiment on a tiny labelled set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from streamdrop.cli import main
from streamdrop.config import load
from streamdrop.errors import ConfigError, DataError, WeightsError
from streamdrop.evaluation.experiment import FitConfig, run_experiment
from streamdrop.evaluation.networks import build_network, load_weights

CONFIG = Path(__file__).parent.parent / "configs" / "fit" / "cifar10-resnet18.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 24 images for training and 9 for test: the label is the brightness."""
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    for name, count in (("train", 24), ("test", 9)):
        labels = random.integers(0, 3, count)
        images = random.integers(0, 60, (count, 12, 12, 3)) + 80 * labels[:, None, None, None]
        np.savez(folder / f"{name}.npz", images=images.astype(np.uint8), labels=labels)
    return str(folder)


def config(data, **more):
    sizes = {"image_size": 32, "train": 24, "test": 9, "epochs": 4, "warm_up": 1, "batch_size": 8, "same_time": False}
    return load({"data": data, "model": "shufflenet_v2_x0_5", **sizes, **more}, FitConfig)


@pytest.mark.slow
def test_result_holds_what_others_read(data, tmp_path):
    rows = []
    schedule = {"schedule": {1: 10, 3: 30}}
    result = run_experiment(
        config(data, policy=schedule), ["sgd", "freeze", "drop"], tmp_path, lambda s, e, row: rows.append((s, e))
    )
    assert json.loads((tmp_path / "result.json").read_text())["strategies"].keys() == {"sgd", "freeze", "drop"}
    assert rows == [(s, e) for e in (1, 2, 3, 4) for s in ("sgd", "freeze", "drop")]
    assert {"model", "dataset", "seed", "warm_up", "epochs", "hardware"} <= result.keys()
    sgd, freeze, drop = (result["strategies"][s] for s in ("sgd", "freeze", "drop"))
    needed = {"seconds", "accuracy", "forward_macs", "saved_time_percent", "saved_macs_percent", "epochs"}
    assert needed <= drop.keys()
    per_epoch = {"epoch", "seconds", "store_seconds", "loss", "accuracy", "cut", "parameters", "forward_macs"}
    assert per_epoch | {"importance", "magnitude"} <= drop["epochs"][0].keys()
    assert [row["cut"] for row in drop["epochs"]] == [row["cut"] for row in freeze["epochs"]] == [0, 10, 10, 30]
    assert [row["loss"] for row in drop["epochs"]] == [row["loss"] for row in freeze["epochs"]]
    assert drop["accuracy"] == freeze["accuracy"]
    assert [row["cut"] for row in sgd["epochs"]] == [0] * 4
    assert sgd["saved_time_percent"] == sgd["saved_macs_percent"] == freeze["saved_macs_percent"] == 0
    assert 0 < drop["saved_macs_percent"] < 100
    assert 0 <= drop["accuracy"] <= 1
    assert not (tmp_path / "stores").exists()
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws_figures(data, tmp_path, capsys):
    text = CONFIG.read_text().replace("${STREAMDROP_DATA}/cifar10", data).replace("resnet18", "shufflenet_v2_x0_5")
    path = tmp_path / "c.yaml"
    path.write_text(text)
    sets = ["image_size=32", "train=24", "test=9", "epochs=2", "batch_size=8", "policy=paper"]
    status = main(["fit", str(path), "--strategies", "sgd,drop", "--output", str(tmp_path / "out")]
                  + [part for s in sets for part in ("--set", s)])  # fmt: skip
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    assert "saved time" in captured.out
    assert "drop" in captured.out
    for name in ("accuracy-and-time", "parameters-and-macs", "layers"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / "out" / f"{name}.svg").exists()


def test_the_example_configuration_is_the_papers_setting(monkeypatch):
    monkeypatch.setenv("STREAMDROP_DATA", "/d")
    example = load(CONFIG, FitConfig)
    assert (example.data, example.model, example.policy) == ("/d/cifar10", "resnet18", "paper")
    assert (example.train, example.test, example.image_size, example.batch_size) == (1500, 1000, 64, 64)
    assert (example.epochs, example.warm_up) == (16, 3)
    monkeypatch.delenv("STREAMDROP_DATA")
    with pytest.raises(ConfigError, match="STREAMDROP_DATA"):
        load(CONFIG, FitConfig)


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"model": "resnet81"}, ConfigError, "resnet18|resnet"),
        ({"policy": "papr"}, ConfigError, "paper"),
        ({"policy": {"schedule": {2: 999}}}, ConfigError, "never dropped"),
        ({"data": "/nowhere"}, DataError, "train.npz"),
        ({"train": 999}, DataError, "24 images"),
        ({"weights": "/nowhere.pt"}, WeightsError, "no such file"),
        ({"epochs": 0}, ConfigError, "epochs"),
    ],
)
def test_what_cannot_work_is_refused_before_training(data, tmp_path, more, error, words):
    with pytest.raises(error, match=words):
        run_experiment(config(**{"data": data, **more}), ["drop"], tmp_path)


def test_unknown_strategies_and_folders_that_cannot_be_written(data, tmp_path, capsys):
    with pytest.raises(ConfigError, match="sgd, freeze, freeze-full, drop"):
        run_experiment(config(data), ["drip"], tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {data}\nmodle: resnet18\n")
    assert main(["fit", str(path), "--output", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert "c.yaml:2" in err
    assert "model" in err
    path.write_text(f"data: {data}\n")
    assert main(["fit", str(path), "--output", "/proc/x"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_weights_from_a_file(tmp_path):
    model = build_network("shufflenet_v2_x0_5", 3)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    other = build_network("shufflenet_v2_x0_5", 3, str(tmp_path / "w.pt"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(WeightsError, match="not a state dict"):
        load_weights(build_network("shufflenet_v2_x0_5", 4), str(tmp_path / "w.pt"))
    (tmp_path / "bad.pt").write_bytes(os.urandom(100))
    with pytest.raises(WeightsError):
        load_weights(model, str(tmp_path / "bad.pt"))
