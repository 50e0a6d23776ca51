"""Arms side by side: what is run, what is written, what is refused."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from test_evaluation_protocol import REPORT
from test_evaluation_sequences import write_sequence

from streamdrop.boxes import Box
from streamdrop.errors import ConfigError, DataError, ModelError, OutputError
from streamdrop.evaluation import metrics
from streamdrop.evaluation.arms import evaluate, tracker_builder
from streamdrop.evaluation.jobs import schedule
from streamdrop.evaluation.sequences import read_sequences, read_truth
from streamdrop.types import Track


class Drifter:
    """Leaves the first box by ``step`` pixels a frame; a round (cut 3) every second frame when it ``learns``."""

    def __init__(self, step, learns):
        self.step, self.learns = step, learns

    def init(self, image, box):
        self.box, self.frame = box, 0
        return Track(0, box, 1.0, False)

    def update(self, image):
        self.frame += 1
        report = REPORT if self.learns and self.frame % 2 == 0 else None
        moved = Box(self.box.x + self.step * self.frame, *self.box[1:])
        return Track(self.frame, moved, 0.5, False, report=report)


def build(arm, seed):
    return Drifter({"drop": 0.5, "none": 2.0}[arm] + seed / 10, arm == "drop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    for name in ("ant", "bee"):
        write_sequence(folder / name, ["4,4,10,8"] * 5)
    return folder


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    evaluate(folder, ["drop", "none"], seeds=[0, 1], output=output, build=build)
    return output


@pytest.fixture
def results(output):
    return json.loads((output / "results.json").read_text())


def test_results_hold_the_agreed_keys(results):
    assert {"hardware", "arms", "sequences"} <= results.keys()
    assert list(results["arms"]) == ["drop", "none"]
    for arm in results["arms"].values():
        assert {"auc", "precision", "ao", "sr50", "fps", "round_ms"} <= arm.keys()
        assert arm["round_ms"].keys() == {"median", "p99"}
    keys = {"name", "arm", "seed", "frames", "auc", "precision", "ao", "sr50", "fps", "init_s", "rounds", "cuts"}
    assert all(keys <= record.keys() for record in results["sequences"])
    assert len(results["sequences"]) == 2 * 2 * 2


def test_boxes_on_disk_give_the_scores_in_the_results(results, folder, output):
    for record in results["sequences"]:
        boxes = read_truth(output / record["arm"] / f"{record['name']}_{record['seed']}.txt")
        again = metrics.scores(boxes, read_truth(folder / record["name"] / "groundtruth.txt"))
        assert {key: record[key] for key in again} == pytest.approx(again, abs=1e-5)


def test_an_arm_is_the_mean_over_seeds_of_the_mean_over_sequences(results):
    aucs = {
        seed: np.mean([r["auc"] for r in results["sequences"] if (r["arm"], r["seed"]) == ("none", seed)])
        for seed in (0, 1)
    }
    arm = results["arms"]["none"]
    assert arm["auc"] == pytest.approx(np.mean(list(aucs.values())), abs=1e-5)
    assert arm["spread"]["auc"] == pytest.approx(np.std(list(aucs.values()), ddof=1), abs=1e-5)
    assert np.mean(arm["curves"]["success"]) == pytest.approx(arm["auc"], abs=1e-5)


def test_rounds_are_counted_with_their_cost_and_cut(results):
    drop, none = results["arms"]["drop"], results["arms"]["none"]
    assert drop["round_ms"] == {"median": 250, "p99": 250}
    assert drop["rounds"] == 2 * 2 * 2
    assert none["round_ms"] == {"median": None, "p99": None}
    first = next(r for r in results["sequences"] if r["arm"] == "drop")
    assert (first["rounds"], first["cuts"], first["round_frames"]) == (2, [0, 0], [2, 4])


def test_the_table_and_the_page_name_every_arm(folder, tmp_path, capsys):
    evaluate(folder, ["drop", "none"], sequences=["ant"], seeds=[0, 1], output=tmp_path / "out", build=build)
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[2:4]] == ["drop", "none"]
    assert "±" in printed.out
    assert printed.err == ""
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(text in page for text in ("drop", "none", "ant", "Success", "Precision"))
    assert "http" not in page.replace("http-equiv", "")


def test_one_seed_has_no_spread_and_results_no_nan(folder, tmp_path):
    results = evaluate(folder, ["none"], frames=2, output=tmp_path / "out", build=build)
    assert results["arms"]["none"]["spread"]["auc"] is None
    assert results["sequences"][0]["frames"] == 2
    assert "NaN" not in (tmp_path / "out" / "results.json").read_text()


def test_boxes_line_up_with_the_truth_when_the_first_frames_have_none(tmp_path):
    write_sequence(tmp_path / "s" / "ant", ["nan,nan,nan,nan"] * 2 + ["4,4,10,8"] * 3)
    results = evaluate(tmp_path / "s", ["none"], output=tmp_path / "out", build=build)
    boxes = read_truth(tmp_path / "out" / "none" / "ant_0.txt")
    assert np.isnan(boxes).all(axis=1).tolist() == [True, True, False, False, False]
    assert (results["sequences"][0]["start"], results["sequences"][0]["frames"]) == (2, 3)


def test_arms_take_turns(folder):
    jobs = schedule(read_sequences(folder), ["drop", "none"], ["csrt"], [0, 1])
    assert [(job.sequence.name, job.arm, job.seed) for job in jobs] == [
        ("ant", "drop", 0), ("ant", "none", 0), ("ant", "none", 1), ("ant", "drop", 1), ("ant", "csrt", 0),
        ("bee", "drop", 0), ("bee", "none", 0), ("bee", "none", 1), ("bee", "drop", 1), ("bee", "csrt", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"arms": ["dorp"]}, ConfigError, "no arm 'dorp': did you mean 'drop'"),
        ({"arms": []}, ConfigError, "nothing to evaluate"),
        ({"arms": [], "peers": ["csrd"]}, ConfigError, "no rival tracker 'csrd': did you mean 'csrt'"),
        ({"peers": ["nano"]}, ModelError, "give the folder that holds them"),
        ({"seeds": []}, ConfigError, "no seed"),
        ({"frames": 1}, DataError, "at least 2"),
        ({"sequences": ["an"]}, DataError, "did you mean 'ant'"),
    ],
)
def test_bad_requests_are_refused_before_work_starts(folder, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        evaluate(folder, **{"output": tmp_path / "out", **given})
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused_before_work_starts(folder, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        evaluate(folder, ["none"], output=tmp_path / "out", build=build)


def test_a_sequence_that_tells_the_first_box_only_has_no_score(tmp_path, capsys):
    write_sequence(tmp_path / "s" / "ant", ["4,4,10,8", "nan,nan,nan,nan"])
    results = evaluate(tmp_path / "s", ["none"], output=tmp_path / "out", build=build)
    assert {results["sequences"][0][key] for key in ("auc", "precision", "ao", "sr50")} == {None}
    assert results["arms"]["none"]["auc"] is None
    assert capsys.readouterr().out.splitlines()[2].split()[:5] == ["none", "-", "-", "-", "-"]
    write_sequence(tmp_path / "s" / "bee", ["4,4,10,8"] * 5)
    both = evaluate(tmp_path / "s", ["none", "drop"], output=tmp_path / "out", build=build)
    assert both["paired"][0]["auc"]["mean"] < 0
    assert both["paired"][0]["sequences"] == 1
    assert "nan" not in (tmp_path / "out" / "report.html").read_text().lower().split("<script")[0]
    alone = evaluate(tmp_path / "s", ["none"], sequences=["bee"], output=tmp_path / "out", build=build)
    assert both["arms"]["none"]["auc"] == alone["arms"]["none"]["auc"]
    assert both["arms"]["none"]["curves"]["success"] == alone["arms"]["none"]["curves"]["success"]


@pytest.mark.parametrize(("box", "broken", "word"), [("90,4,10,8", False, "outside"), ("4,4,10,8", True, "decoded")])
def test_first_frames_and_boxes_are_looked_at_before_work_starts(tmp_path, box, broken, word):
    write_sequence(tmp_path / "s" / "ant", ["4,4,10,8"] * 3)
    bad = write_sequence(tmp_path / "s" / "bee", [box] * 3)
    if broken:
        min((bad / "color").iterdir()).write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"bee.*{word}"):
        evaluate(tmp_path / "s", ["none"], output=tmp_path / "out", build=build)
    assert not (tmp_path / "out").exists()


def test_frames_are_handed_to_the_tracker_in_colour(tmp_path):
    folder = write_sequence(tmp_path / "s" / "ant", ["4,4,10,8"] * 2, suffix=".png")
    for path in (folder / "color").iterdir():
        cv2.imwrite(str(path), np.full((24, 32, 3), (255, 0, 0), np.uint8))
    seen = []

    class Looker(Drifter):
        def update(self, image):
            seen.append(image[0, 0].tolist())
            return super().update(image)

    evaluate(tmp_path / "s", ["none"], output=tmp_path / "out", build=lambda arm, seed: Looker(1, False))
    assert seen == [[0, 0, 255]]


@pytest.mark.slow
def test_trackers_of_an_evaluation_differ_in_strategy_and_seed_only(tmp_path):
    build = tracker_builder({"store": str(tmp_path / "features")}, ["update.every=7"])
    for arm, seed in (("full", 3), ("none", 4)):
        config = build(arm, seed).config
        assert (config.strategy, config.seed, config.store, config.update.every) == (arm, seed, None, 7)


def test_a_mistake_in_the_trackers_configuration_shows_before_work_starts(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"update\.evry: unknown key: did you mean every"):
        evaluate(folder, ["drop"], output=tmp_path / "out", overrides=["update.evry=7"])


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"writer.lock"}


def test_a_folder_used_again_holds_the_new_results_only(folder, tmp_path):
    output = tmp_path / "out"
    evaluate(
        folder, ["drop", "none"], seeds=[0, 1], output=output, build=build, perturb=1, formats=["got10k", "vot", "mot"]
    )
    kept = {"notes.txt", "drop/mine.txt"}
    for name in kept:
        (output / name).write_text("mine")
    evaluate(folder, ["drop"], sequences=["ant"], output=output, build=build, formats=["got10k"])
    made = {"drop/ant_0.txt", "got10k/drop/ant/ant_001.txt", "got10k/drop/ant/ant_time.txt"}
    assert files_in(output) == {*kept, *made, "report.html", "results.json"}
    assert set(json.loads((output / "results.json").read_text())["files"]) == made
    assert not (output / "none").exists()


def test_an_earlier_evaluation_stays_until_the_first_run_has_ended(folder, tmp_path):
    output = tmp_path / "out"
    evaluate(folder, ["none"], output=output, build=build)
    before = files_in(output)

    def interrupted(arm, seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, ["drop"], output=output, build=interrupted)
    assert files_in(output) == before


@pytest.mark.parametrize("content", ['{"arms": {}}', "[]", "no JSON", '{"files": ["../other.txt", "/etc/hosts", "."]}'])
def test_what_is_no_evaluations_is_never_removed(folder, tmp_path, content):
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / "other.txt").write_text("mine")
    (output / "mine.txt").write_text("mine")
    (output / "results.json").write_text(content)
    evaluate(folder, ["none"], output=output, build=build)
    assert (tmp_path / "other.txt").exists()
    assert (output / "mine.txt").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no lock between processes")
def test_a_folder_that_another_evaluation_writes_to_is_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    held = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(); input()"
    command = [sys.executable, "-c", held, str(tmp_path / "out" / "writer.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(OutputError, match="another run is writing there"):
            evaluate(folder, ["none"], output=tmp_path / "out", build=build)
        other.communicate(b"\n")
    evaluate(folder, ["none"], output=tmp_path / "out", build=build)


def test_a_frame_that_does_not_decode_costs_its_own_sequence_only(tmp_path, capsys):
    for name in ("ant", "bee", "cow"):
        write_sequence(tmp_path / "s" / name, ["4,4,10,8"] * 4)
    broken = sorted((tmp_path / "s" / "bee" / "color").iterdir())[2]
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"bee is left out: .*{broken.name} cannot be decoded: replace it"):
        evaluate(tmp_path / "s", ["drop", "none"], output=tmp_path / "out", build=build)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(one["name"], one["arm"]) for one in results["sequences"]] == [
        ("ant", "drop"), ("ant", "none"), ("cow", "drop"), ("cow", "none")
    ]  # fmt: skip
    assert (tmp_path / "out" / "report.html").exists()
    assert "2 sequences" in capsys.readouterr().out
