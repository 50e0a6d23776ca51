"""``streamdrop fit``: the paper's experiment on a tiny labelled set."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from streamdrop.cli import main
from streamdrop.config import load
from streamdrop.errors import CheckpointError, ConfigError, DataError, OutputError, StreamdropError, WeightsError
from streamdrop.evaluation import fit_arm
from streamdrop.evaluation.claim import claimed
from streamdrop.evaluation.experiment import FitConfig, read_result, run_experiment
from streamdrop.evaluation.fit_config import ScheduleConfig, checked_strategies
from streamdrop.evaluation.fit_result import describe_run
from streamdrop.evaluation.networks import build_network, load_weights
from streamdrop.testing.tuners import SmallNet

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


def interrupted(given, strategies, folder, epoch):
    """A run ended by Ctrl-C once its last strategy's ``epoch`` was told."""

    def interrupt(strategy, number, row):
        if (strategy, number) == (strategies[-1], epoch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(given, strategies, folder, interrupt)


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
    assert sgd["saved_time_percent"] == sgd["saved_macs_percent"] == 0
    assert freeze["saved_macs_percent"] <= 0, "freeze runs every layer, and may run some more where it decides"
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
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    for name in ("accuracy-and-time", "parameters-and-macs", "layers"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / "out" / f"{name}.svg").exists()


def test_the_example_configuration_is_what_its_comment_says(monkeypatch):
    monkeypatch.setenv("STREAMDROP_DATA", "/d")
    example = load(CONFIG, FitConfig)
    assert (example.data, example.model, example.policy) == ("/d/cifar10", "resnet18", "auto")
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


def test_images_of_one_class_are_refused(tmp_path):
    for name, count in (("train", 24), ("test", 9)):
        images = np.zeros((count, 12, 12, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.full(count, 2))
    with pytest.raises(DataError, match="all images read are of one class"):
        run_experiment(config(str(tmp_path)), ["drop"], tmp_path / "o")
    assert not (tmp_path / "o" / "result.json").exists()


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


@pytest.fixture
def other_run(tmp_path):
    """A process that writes to ``tmp_path / "o"``; close its stdin to end it."""
    code = "import sys; from pathlib import Path; from streamdrop.evaluation.claim import claimed\n"
    code += "with claimed(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "o")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="no lock between processes")
def test_a_folder_that_another_run_writes_to_is_refused_and_free_when_that_ends(data, tmp_path, capsys, other_run):
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {data}\n")
    sweep = tmp_path / "s.yaml"
    sweep.write_text(f"name: s\ndata: {{d: {data}}}\nmodels: [resnet18]\nseeds: [0]\nstrategies: [sgd]\n")
    for arguments in ([str(path)], ["--sweep", str(sweep)]):
        assert main(["fit", *arguments, "--output", str(tmp_path / "o")]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "another run is writing there" in err
    threading.Timer(0.2, other_run.stdin.close).start()
    with claimed(tmp_path / "o", patience=30.0):
        assert other_run.wait(30) == 0


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


def small(given: FitConfig, monkeypatch) -> FitConfig:
    """The experiment with a network of milliseconds."""
    monkeypatch.setattr(fit_arm, "build_network", lambda *args, **more: SmallNet())
    return replace(given, image_size=12, policy={"schedule": {2: 2}})


def rows_of(result, *keys):
    return {
        name: [[row[key] for key in keys] for row in entry["epochs"]] for name, entry in result["strategies"].items()
    }


def test_the_same_time_baseline_gets_drops_seconds_and_a_schedule_scaled_to_them(data, tmp_path, monkeypatch):
    given = small(
        config(data, same_time=True, schedule={"kind": "step", "milestones": [2], "factor": 0.5}), monkeypatch
    )
    seconds = {"sgd": [9.0, 4.0, 4.0, 4.0], "drop": [4.0, 4.0, 0.5, 0.4]}
    monkeypatch.setattr(fit_arm.FineTuner, "fit_round", timed(fit_arm.FineTuner.fit_round, seconds))
    result = run_experiment(given, ["sgd", "drop"], tmp_path)
    same = result["strategies"]["sgd-same-time"]
    assert [row["lr"] for row in same["epochs"]] == [0.01, 0.005]  # 8.9 s / 4 s are two epochs, the milestone after one
    assert [row["lr"] for row in result["strategies"]["sgd"]["epochs"]] == [0.01, 0.01, 0.005, 0.005]
    assert same["cut"] == 0
    assert list(result["strategies"]) == ["sgd", "drop", "sgd-same-time"]
    drop = result["strategies"]["drop"]
    assert drop["saved_time_percent"] == pytest.approx(100 * (21 - 8.9) / 21)
    assert (drop["first_decision"], drop["first_asked"]) == (2, 1)
    assert drop["bound_time_percent"] == pytest.approx(100 * (1 - 9 / 21))


def timed(fit_round, seconds):
    """``fit_round`` whose reports say that an epoch took what ``seconds`` has for its strategy, in order."""
    told = {"drop": iter(seconds["drop"]), "sgd": iter([0.0, *seconds["sgd"], 1.0, 1.0])}  # the first: a throwaway

    def wrapped(tuner, *args, **more):
        report = fit_round(tuner, *args, **more)
        return replace(report, seconds=next(told[tuner.settings.strategy]))

    return wrapped


def test_a_result_says_what_was_dropped_and_what_held_the_rest_back(data, tmp_path, monkeypatch):
    result = run_experiment(small(config(data), monkeypatch), ["drop"], tmp_path)
    drop = result["strategies"]["drop"]
    assert result["layer_names"] == ["stem.0", "first.0", "second.1", "third.0", "last"]
    assert (result["layers"], result["batch_size"], result["train_samples"], result["image_size"]) == (5, 8, 24, 12)
    assert result["input_bytes"] == 3 * 12 * 12 * 4
    assert drop["stored_bytes"] == 2 * 4 * 12 * 12 * 4  # main branch and skip
    assert 0 < drop["dropped_macs_percent"] < 95
    assert "SchedulePolicy" in drop["held_back"]
    assert drop["best_accuracy"] == max(row["accuracy"] for row in drop["epochs"])
    assert (drop["status"], drop["error"], result["finished"]) == ("done", None, True)
    assert [row["stored"] for row in drop["epochs"]] == [False, False, True, False]


def test_diverging_training_stops_one_arm_and_keeps_its_last_good_weights(data, tmp_path, monkeypatch, capsys):
    small(config(data), monkeypatch)
    good = {}

    def fit_round(tuner, original=fit_arm.FineTuner.fit_round):
        if tuner.settings.strategy == "drop" and tuner.round == 2:
            good.update({name: tensor.clone() for name, tensor in tuner.split.model.state_dict().items()})
            tuner.split.model.linear.weight.data.fill_(float("nan"))
        return original(tuner)

    monkeypatch.setattr(fit_arm.FineTuner, "fit_round", fit_round)
    path = tmp_path / "c.yaml"
    path.write_text(f"{{data: {data}, image_size: 12, train: 24, test: 9, epochs: 4, warm_up: 1, batch_size: 8}}")
    out = tmp_path / "out"
    assert main(["fit", str(path), "--strategies", "sgd,drop", "--output", str(out)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for words in ("drop diverged in epoch 3", "learning rate", str(out / "drop-last-good.safetensors")):
        assert words in err
    result = read_result(out)
    assert [(n, e["status"], len(e["epochs"])) for n, e in result["strategies"].items()] == [
        ("sgd", "done", 4),
        ("drop", "diverged", 2),
    ]
    kept = load_file(out / "drop-last-good.safetensors")
    assert kept.keys() == good.keys()
    assert all(torch.equal(kept[name], good[name]) for name in good if name != "linear.weight")
    assert torch.isfinite(kept["linear.weight"]).all()


def test_statistics_that_broke_in_the_last_round_are_no_success(data, tmp_path, monkeypatch):
    given = small(config(data), monkeypatch)

    def fit_round(tuner, original=fit_arm.FineTuner.fit_round):
        report = original(tuner)
        if tuner.settings.strategy == "drop" and tuner.round == 4:  # no loss comes after it
            tuner.split.model.linear.weight.data[0, 0] = float("inf")
        return report

    monkeypatch.setattr(fit_arm.FineTuner, "fit_round", fit_round)
    result = run_experiment(given, ["sgd", "drop"], tmp_path, save_weights=True)
    assert [(e["status"], len(e["epochs"])) for e in result["strategies"].values()] == [("done", 4), ("diverged", 3)]
    assert "linear.weight is no longer finite" in result["strategies"]["drop"]["error"]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "drop-last-good.safetensors",
        "sgd.safetensors",
    ]
    kept = load_file(tmp_path / "drop-last-good.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_a_run_that_did_not_end_is_not_thrown_away_and_weights_not_written_are_missed(data, tmp_path, monkeypatch):
    given = small(config(data), monkeypatch)

    interrupted(given, ["sgd"], tmp_path, 2)
    for other in (given, replace(given, epochs=5)):
        with pytest.raises(ConfigError, match="--resume goes on with it"):
            run_experiment(other, ["sgd"], tmp_path)
    run_experiment(given, ["sgd"], tmp_path, resume=True)
    with pytest.raises(ConfigError, match="weights of sgd are gone"):
        run_experiment(given, ["sgd"], tmp_path, resume=True, save_weights=True)


@pytest.mark.parametrize("damaged", ["stores/drop/values-000000.bin", "state/drop/checkpoint/current"])
def test_a_damaged_run_says_what_to_remove_and_is_whole_after_that(data, tmp_path, monkeypatch, damaged):
    given = small(config(data), monkeypatch)

    interrupted(given, ["drop"], tmp_path, 1)
    content = bytearray((tmp_path / damaged).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(StreamdropError, match=f"remove {tmp_path / 'state' / 'drop'} to train"):
        run_experiment(given, ["drop"], tmp_path, resume=True)
    shutil.rmtree(tmp_path / "state" / "drop")
    result = run_experiment(given, ["drop"], tmp_path, resume=True)
    assert result["strategies"]["drop"]["status"] == "done"


def test_data_whose_name_is_no_utf8_can_be_printed(data):
    described = describe_run(config("/somewhere/tiny\udcff"), ["sgd"])
    assert described["dataset"] == r"tiny\udcff"
    json.dumps(described).encode()


def test_an_interrupted_run_goes_on_where_it_was(data, tmp_path, monkeypatch):
    given = small(config(data), monkeypatch)
    run_experiment(given, ["sgd", "drop"], tmp_path / "whole", save_weights=True)

    interrupted(given, ["sgd", "drop"], tmp_path / "cut", 3)
    assert (tmp_path / "cut" / "state" / "drop" / "checkpoint" / "current").is_file()
    before = [row["seconds"] for row in read_result(tmp_path / "cut")["strategies"]["drop"]["epochs"]]
    seen = []
    run_experiment(
        given, ["sgd", "drop"], tmp_path / "cut", lambda s, e, row: seen.append((s, e)), resume=True, save_weights=True
    )
    assert seen == [("sgd", 4), ("drop", 4)]
    whole, cut = (read_result(tmp_path / name) for name in ("whole", "cut"))
    keys = ("epoch", "loss", "accuracy", "cut", "next_cut", "stored", "forward_macs", "lr", "importance")
    assert rows_of(cut, *keys) == rows_of(whole, *keys)
    assert [row["seconds"] for row in cut["strategies"]["drop"]["epochs"]][: len(before)] == before
    for name in ("sgd", "drop"):
        assert (tmp_path / "cut" / f"{name}.safetensors").read_bytes() == (
            tmp_path / "whole" / f"{name}.safetensors"
        ).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "drop.safetensors",
        "result.json",
        "sgd.safetensors",
        "writer.lock",  # nobody's: who holds it, not that it is there, counts
    ]


def test_resuming_a_finished_run_does_nothing_and_another_configuration_is_refused(data, tmp_path, monkeypatch):
    given = small(config(data), monkeypatch)
    first = run_experiment(given, ["sgd"], tmp_path)
    again = run_experiment(given, ["sgd"], tmp_path, lambda *told: pytest.fail("trained again"), resume=True)
    assert again == json.loads(json.dumps(first))
    with pytest.raises(ConfigError, match="other epochs, strategies"):
        run_experiment(replace(given, epochs=5), ["drop"], tmp_path, resume=True)
    started = []
    run_experiment(given, ["sgd"], tmp_path, lambda s, e, row: started.append(e))  # without resume: anew
    assert started == [1, 2, 3, 4]


def test_threads_are_those_asked_for_and_come_back(data, tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), []
    given = replace(small(config(data), monkeypatch), threads=before + 1)
    run_experiment(given, ["sgd"], tmp_path, lambda *told: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_a_baseline_pays_for_scores_only_where_it_is_all_there_is(data, tmp_path, monkeypatch):
    given = small(config(data), monkeypatch)
    alone = run_experiment(given, ["sgd"], tmp_path / "alone")
    beside = run_experiment(given, ["sgd", "drop"], tmp_path / "beside")
    assert alone["strategies"]["sgd"]["epochs"][0]["importance"]
    assert beside["strategies"]["sgd"]["epochs"][0]["importance"] is None
    assert rows_of(alone, "loss")["sgd"] == rows_of(beside, "loss")["sgd"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train": 1}, "train is 1"),
        ({"threads": 0}, "threads"),
        ({"schedule": {"kind": "step"}}, "milestones"),
        ({"schedule": {"kind": "cosine", "milestones": [3]}}, "kind: step"),
        ({"schedule": {"kind": "step", "milestones": [5, 3]}}, "rising"),
        ({"schedule": {"kind": "step", "milestones": [3], "factor": 0}}, "factor"),
        ({"layers": "convs"}, "transformer_blocks"),
        ({"device": "gpu"}, "cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "cpu, cuda or cuda:N"),
        ({"optimizer": {"lr": -1}}, r"optimizer: lr is -1.0: give a number above 0"),
        ({"optimizer": {"lr": 0}}, "lr"),
        ({"optimizer": {"lr": math.nan}}, r"optimizer\.lr: expected a finite number"),
        ({"optimizer": {"momentum": -3}}, "momentum is -3"),
        ({"optimizer": {"momentum": 1}}, "momentum is 1: .* below 1"),
        ({"optimizer": {"momentum": math.inf}}, r"optimizer\.momentum"),
        ({"optimizer": {"weight_decay": -1}}, "weight_decay is -1"),
        ({"optimizer": {"weight_decay": math.nan}}, r"optimizer\.weight_decay"),
        ({"schedule": {"kind": "step", "milestones": [3], "factor": math.inf}}, r"schedule\.factor"),
        ({"seed": 2**64}, "seed .* at most 18446744073709551615"),
        ({"threads": 99_999}, "threads .* at most 1024"),
        ({"image_size": 100_000}, "image_size .* at most 16384"),
        ({"policy": {"auto": {"critical": "x"}}}, "policy auto: critical: expected a number, got 'x'"),
        ({"policy": {"auto": {"learned": math.nan}}}, r"policy\.auto\.learned: expected a finite number"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_at_once(data, more, words):
    with pytest.raises(ConfigError, match=words):
        config(data, **more)


def test_the_largest_seed_is_one_for_torch_too(data, tmp_path, monkeypatch):
    given = replace(small(config(data), monkeypatch), seed=2**64 - 1, epochs=1)
    assert run_experiment(given, ["drop"], tmp_path)["seed"] == 2**64 - 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 240000000000 bytes"),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ],
    ids=["cpu", "gpu", "python"],
)
def test_memory_that_runs_out_names_what_to_lower(data, tmp_path, monkeypatch, error):
    def fail(*given):
        raise error

    given = small(config(data), monkeypatch)
    monkeypatch.setattr(fit_arm, "build_network", fail)
    with pytest.raises(ConfigError, match="does not hold image_size 12 with batch_size 8: lower"):
        run_experiment(given, ["drop"], tmp_path)


def test_another_runtime_error_is_none_of_memory(data, tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("a bug")

    given = small(config(data), monkeypatch)
    monkeypatch.setattr(fit_arm, "build_network", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run_experiment(given, ["drop"], tmp_path)


@pytest.mark.parametrize(
    ("count", "device", "words"),
    [(0, "cuda", "finds no GPU"), (2, "cuda:2", "cuda:0 to cuda:1"), (2, f"cuda:{10**20}", "cuda:0 to cuda:1")],
)
def test_a_gpu_that_is_not_there_is_missed_before_work_starts(data, tmp_path, monkeypatch, count, device, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError, match=words):
        run_experiment(config(data, device=device), ["drop"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_batches_of_one_are_refused_where_batchnorm_is(data, tmp_path):
    with pytest.raises(ConfigError, match="BatchNorm"):
        run_experiment(config(data, batch_size=1), ["drop"], tmp_path)
    assert not (tmp_path / "stores").exists()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("kind", "shares"),
    [("constant", [1, 1, 1, 1]), ("step", [1, 0.1, 0.1, 0.01]), ("cosine", [1, 0.853553391, 0.5, 0.146446609])],
)
def test_schedules_move_the_rate_once_an_epoch(kind, shares):
    schedule = ScheduleConfig(kind, (1, 3) if kind == "step" else ())
    assert [schedule.share(done, 4) for done in range(4)] == pytest.approx(shares)


def test_the_same_time_baseline_needs_what_it_is_compared_with():
    assert checked_strategies(["drop", "sgd"], same_time=True) == ["drop", "sgd", "sgd-same-time"]
    assert checked_strategies(["drop"], same_time=True) == ["drop"]
    assert checked_strategies(["sgd-same-time", "sgd", "drop"], same_time=False)[-1] == "sgd-same-time"
    with pytest.raises(ConfigError, match="needs the seconds"):
        checked_strategies(["sgd", "sgd-same-time"], same_time=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_instants_and_resumed_to_the_same_weights_and_rows(tmp_path):
    script = Path(__file__).parent / "crash_fit.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same=True") == 2


@pytest.fixture
def cut_short(data, tmp_path, monkeypatch):
    """A run interrupted after its second epoch: what goes on with it, and its folder."""
    given = small(config(data), monkeypatch)

    interrupted(given, ["drop"], tmp_path, 3)
    return lambda: run_experiment(given, ["drop"], tmp_path, resume=True), tmp_path


@pytest.mark.parametrize("text", [None, "", "{", "[]", "[" * 100_000, '{"config": {}}'])
def test_going_on_without_a_whole_result_does_not_throw_the_state_away(cut_short, text):
    resume, folder = cut_short
    (folder / "result.json").unlink()
    if text is not None:
        (folder / "result.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json is missing or damaged.* remove .*state"):
        resume()
    assert (folder / "state" / "drop" / "checkpoint" / "current").is_file()


@pytest.mark.parametrize("line", ["5", "[]", "{}", '{"epoch": 1}'])
def test_rows_that_are_none_are_told_and_removing_them_is_enough(cut_short, line):
    resume, folder = cut_short
    rows = folder / "state" / "drop" / "rows.jsonl"
    kept = rows.read_text().splitlines()
    for number in range(2):
        rows.write_text("\n".join([*kept[:number], line, *kept[number + 1 :], ""]))
        with pytest.raises(CheckpointError, match=f"line {number + 1} is not.*remove "):
            resume()
    shutil.rmtree(rows.parent)
    assert resume()["finished"]


def test_samples_that_are_gone_are_told_and_removing_the_state_is_enough(cut_short):
    resume, folder = cut_short
    shutil.rmtree(folder / "stores")
    with pytest.raises(CheckpointError, match=r"samples are gone: remove .*drop"):
        resume()
    shutil.rmtree(folder / "state" / "drop")
    assert resume()["finished"]


def test_a_state_folder_that_cannot_be_made_is_told(data, tmp_path, monkeypatch):
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(OutputError, match=r"state.* cannot be made"):
        run_experiment(replace(small(config(data), monkeypatch), store="memory"), ["sgd"], tmp_path)
