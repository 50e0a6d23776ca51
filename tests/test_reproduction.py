"""The page on reproduction: whole, its verdicts by the rules it states, in step with the result files in docs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from statistics import fmean

import pytest
from fit_results import diverge, make_result, make_sweep

from streamdrop.errors import DataError
from streamdrop.evaluation import claims
from streamdrop.evaluation.claims import CLAIMS
from streamdrop.evaluation.fit_cells import Cell
from streamdrop.evaluation.fit_summary import summarise
from streamdrop.evaluation.markdown import table
from streamdrop.evaluation.paper_numbers import MEAN_SAVED, MOST_LOST, TABLE_1, TABLE_2, TABLE_3, contradictions
from streamdrop.evaluation.reproduction import write_reproduction
from streamdrop.evaluation.reproduction_data import (
    Evidence,
    Grid,
    compact,
    compact_evidence,
    has_batch_norm,
    network_of,
    read_evidence,
)

ROOT = Path(__file__).resolve().parent.parent


def load_script():
    spec = importlib.util.spec_from_file_location("write_reproduction", ROOT / "scripts" / "write_reproduction.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


def cell(model="resnet18", variant="paper", seed=0, dataset="cifar10", saved=None, change=None, **more):
    """A finished cell; ``saved`` sets the percent of time that drop saved, ``change`` edits its summary."""
    summary = summarise(make_result(model, dataset, seed, **more))
    if saved is not None:
        summary["strategies"]["drop"]["saved_time_percent"] = saved
    return Cell(dataset, model, variant, seed, summary=summary | (change or {}))


def evidence(*cells, store=()):
    return Evidence([Grid("mini", "two cores", "1.2", {}, list(cells))], list(store))


def verdict(number, *cells, store=()):
    return CLAIMS[number - 1].verdict(evidence(*cells, store=store))


def test_the_papers_numbers_are_those_of_its_own_summary():
    assert [len(rows) for rows in (TABLE_1, TABLE_2, TABLE_3)] == [9, 12, 7]
    for family, rows in (("vgg", TABLE_1), ("resnet", TABLE_2)):
        assert round(fmean(row.drop_saved for row in rows), 2) == MEAN_SAVED[family]
        for row in rows:
            assert 100 * (row.sgd_minutes - row.drop_minutes) / row.sgd_minutes == pytest.approx(
                row.drop_saved, abs=0.02
            )
            assert row.lost <= MOST_LOST[family] + 1e-9
    for row in TABLE_3:
        assert 100 * (row.sgd - row.drop) / row.sgd == pytest.approx(row.saved, abs=0.05)


def test_the_papers_contradictions_are_worked_out():
    text = "\n".join(contradictions())
    for part in (
        "17.83 % for VGG-11; Table 3: 17.17 %",
        "57.33 % (VGG-19, CIFAR-10)",
        "0.28 to 2.30",
        "3.95 %",
        "4.84 %",
    ):
        assert part in text


def test_with_nothing_measured_every_claim_is_not_tested_and_has_its_command():
    page = write_reproduction(Evidence())
    assert page.count("**not tested**") == 2 * len(CLAIMS)
    assert page.count("not measured yet: `") >= len(CLAIMS)
    assert "Not measured yet: `streamdrop fit --sweep" in page
    assert "| VGG-19 | Imagenette | 80.32 | 78.13 | 4.54 | 65.78 | – |" in page


@pytest.mark.parametrize(
    ("saved", "state"), [(60.0, "reproduced"), (57.4, "reproduced"), (40.0, "partly"), (20.0, "not reproduced")]
)
def test_the_saving_of_time_is_judged_family_by_family(saved, state):
    assert verdict(1, cell("vgg11_bn", saved=saved)).state == state
    assert verdict(1, cell("resnet18", saved=saved)).state == "not tested"
    assert verdict(1, cell("vgg11", saved=saved)).state == "not tested"  # the paper's have BatchNorm
    assert verdict(1, cell("vgg11_bn", "auto", saved=saved)).state == "not tested"
    assert verdict(2, cell("resnet50", saved=saved)).state == state


def test_seeds_are_averaged_before_networks():
    cells = [cell("resnet18", seed=0, saved=60.0), cell("resnet18", seed=1, saved=80.0), cell("resnet50", saved=40.0)]
    assert "saves 55.0 % on average of 2: resnet18 on cifar10 70.0 %" in verdict(2, *cells).why


def test_freezing_is_judged_on_the_papers_kind_and_reports_the_strong_kind():
    found = verdict(3, cell())
    assert found.state == "reproduced"
    assert "saves 3.0 %" in found.why
    assert "saves 24.0 %" in found.why
    assert verdict(3, cell(strategies=("sgd", "freeze", "drop"))).state == "not tested"


@pytest.mark.parametrize(
    ("points", "state"), [((-2.3, 0), "reproduced"), ((-3.0, 0), "partly"), ((-3, -3), "not reproduced")]
)
def test_accuracy_is_judged_by_the_worst_network_then_the_mean(points, state):
    cells = [cell(m, change={"accuracy_difference": p}) for m, p in zip(("vgg11_bn", "vgg16_bn"), points, strict=True)]
    assert verdict(4, *cells).state == state


def test_the_same_accuracy_means_every_epoch():
    assert verdict(5, cell()).state == "reproduced"
    assert verdict(5, cell(), cell(change={"same_as_freeze": False})).state == "partly"
    far = cell(change={"same_as_freeze": False})
    far.summary["strategies"]["freeze"]["accuracy"] -= 0.02
    assert verdict(5, far).state == "not reproduced"
    assert "1 of 2" in verdict(5, cell(), far).why


def macs(model, saved):
    made = cell(model)
    made.summary["strategies"]["drop"]["saved_macs_percent"] = saved
    return made


def test_macs_must_be_saved_everywhere_and_grow_with_depth():
    depths = ("resnet18", "resnet50", "resnet152")
    assert verdict(6, *map(macs, depths, (20, 30, 40))).state == "reproduced"
    assert verdict(6, *map(macs, depths, (40, 30, 20))).state == "partly"
    assert verdict(6, *map(macs, depths, (10, 30, 40))).state == "not reproduced"
    assert verdict(6, macs("resnet18", 30)).state == "partly"  # one depth shows no growth


def test_the_order_of_scores_needs_networks_with_and_without_batch_norm():
    without = cell("vgg11", batch_norm=False)
    assert verdict(7, cell("vgg11_bn"), without).state == "reproduced"
    half = verdict(7, cell("vgg11_bn"))
    assert (half.state, claims.FIG_3 in half.why) == ("partly", True)
    assert verdict(7, cell("vgg11_bn", batch_norm=False), cell("vgg11")).state == "not reproduced"


def test_dropping_one_by_one_is_judged_where_it_is_allowed():
    sizes = {"drops": [[5, 0, 1], [7, 1, 4]]}
    assert verdict(8, cell()).state == "not tested"
    assert "Algorithm 1 forbids" in verdict(8, cell()).why
    assert verdict(8, cell(variant="prefix-sum")).state == "reproduced"
    assert verdict(8, cell(variant="prefix-sum", change=sizes)).state == "not reproduced"


@pytest.mark.parametrize(
    ("costs", "state"), [([1.1, 1.0], "reproduced"), ([1.4], "partly"), ([2.0], "not reproduced"), ([], "not tested")]
)
def test_store_epochs_are_judged_by_their_median(costs, state):
    assert verdict(9, cell(change={"store_cost": costs})).state == state


def rates(**arms):
    names = {"pickle": "pickle per sample", "torch": "torch.save", "npy": "npy files", "disk": "sequential write"}
    return [{"section": "writes, durable", "case": "64 KB", "arm": names.get(a, a), "median": v, "n": 3}
            for a, v in arms.items()]  # fmt: skip


def test_pickle_must_be_faster_than_all_that_is_a_store():
    assert verdict(10, store=rates(pickle=2, torch=1, npy=1, disk=9)).state == "reproduced"
    assert verdict(10, store=rates(pickle=2, torch=1, npy=1, LmdbStore=3)).state == "partly"
    assert verdict(10, store=rates(pickle=2, torch=1, npy=3)).state == "not reproduced"
    assert verdict(10, store=rates(pickle=2)).state == "not tested"


def test_ours_stand_beside_the_papers_tables():
    cells = [cell("vgg11_bn", "paper", seed, saved=10.0 + seed) for seed in (0, 2)]
    page = write_reproduction(evidence(*cells, cell("vgg11_bn", "auto", saved=50.0)))
    row = next(line for line in page.splitlines() if line.startswith("| VGG-11 | CIFAR-10"))
    assert "| mini | 69.00 ± 0.00 | 70.00 ± 0.00 | 3.0 ± 0.0 | 24.0 ± 0.0 | 11.0 ± 1.4 | 70.00 | 50.0 |" in row


def test_the_two_rules_are_compared_on_the_same_experiments():
    cells = [
        cell(variant="paper", saved=20.0),
        cell(variant="prefix-sum", saved=30.0),
        cell("resnet50", "paper", saved=90.0),
    ]
    page = write_reproduction(evidence(*cells))
    assert (
        "Over the 1 experiments that have both: `paper` saves 20.0 % at 1.0 points to sgd, `prefix-sum` saves 30.0 %"
        in page
    )


def test_targets_are_met_or_missed_and_what_held_back_is_told():
    good = {"share_of_bound_percent": 95.0, "dropped_macs_percent": 99.0}
    held = {"share_of_bound_percent": 80.0, "dropped_macs_percent": 60.0, "held_back": "no room on disk"}
    cells = [cell(variant="auto", change=good), cell("vgg11_bn", "auto", change=held)]
    page = write_reproduction(evidence(*cells))
    assert (
        "at least 90 % of the bound saved, on average: **missed**; mean 87.5, least 80.0 (vgg11_bn on cifar10)" in page
    )
    assert "in the same time on every network: met; mean +15.00" in page
    assert "in 60 epochs or more, mean: not measured yet" in page
    assert "- mini: vgg11_bn on cifar10, seed 0: no room on disk" in page


def test_ablations_are_compared_with_the_default_on_the_same_experiments():
    cells = [
        cell(variant="auto", saved=50.0),
        cell("resnet50", "auto", saved=70.0),
        cell(variant="views-4", saved=45.0),
    ]
    page = write_reproduction(evidence(*cells))
    row = next(line for line in page.splitlines() if "`views-4`" in line)
    assert row.startswith("| mini | `views-4` | 1 | 1 | 45.0 |")
    assert row.endswith("| -5.0 | +0.00 |")


def write_sweep(folder):
    cells = [("cifar10", "resnet18", v, seed, "done") for v in ("paper", "auto") for seed in (0, 1)]
    sweep = make_sweep([*cells, ("cifar10", "vgg11_bn", "auto", 0, "failed")])
    for c in sweep["cells"][:-1]:
        result = make_result(c["model"], c["dataset"], c["seed"], policy=c["variant"])
        path = folder / c["result"]
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(diverge(result, "drop", 6) if c["seed"] and c["variant"] == "paper" else result))
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return folder


def test_the_page_from_compact_copies_is_the_page_from_the_results(tmp_path):
    sweep = write_sweep(tmp_path / "sweep")
    (tmp_path / "store").mkdir()
    rows = [row | {"values": [1.0] * 3} for row in rates(pickle=2.0, torch=1.0, npy=1.0)]
    (tmp_path / "store" / "store.json").write_text(json.dumps({"hardware": "two cores", "rows": rows}))
    kept, pages = tmp_path / "kept", [tmp_path / f"{i}.md" for i in range(3)]
    assert SCRIPT.main([str(sweep), str(tmp_path / "store"), "--compact-to", str(kept), "--output", str(pages[0])]) == 0
    assert SCRIPT.main([str(sweep), str(tmp_path / "store"), "--output", str(pages[1])]) == 0
    assert SCRIPT.main([*map(str, sorted(kept.iterdir())), "--output", str(pages[2])]) == 0
    first, *others = (path.read_text() for path in pages)
    assert others == [first, first]
    assert "4 of 5 experiments done" in first
    assert "drop diverged: cifar10 / resnet18 / paper / seed 1" in first
    assert "out of memory" in first
    assert {path.name for path in kept.iterdir()} == {"mini.json", "store-benchmark.json"}
    assert max(len(line) for line in (kept / "mini.json").read_text().splitlines()) < 4096
    assert "/somewhere" not in (kept / "mini.json").read_text()  # a machine's paths are nobody's business


def test_nothing_finished_that_is_kept_is_lost(tmp_path, capsys):
    kept, page = tmp_path / "kept", tmp_path / "page.md"
    first = write_part(tmp_path / "a", [0], cells=[cell(seed=0)])
    second = write_part(tmp_path / "b", [1], cells=[undone(0), cell(seed=1)])
    options = ["--compact-to", str(kept), "--output", str(page)]
    assert SCRIPT.main([str(first), *options]) == 0
    before = (kept / "parts.json").read_bytes()
    assert SCRIPT.main([str(second), *options]) == 1
    assert "would lose 1 finished experiments" in capsys.readouterr().err
    assert (kept / "parts.json").read_bytes() == before
    assert SCRIPT.main([str(kept / "parts.json"), str(second), *options]) == 0
    assert len(json.loads((kept / "parts.json").read_text())["cells"]) == 2
    page.unlink()
    assert SCRIPT.main(["--compact-to", str(tmp_path / "typo"), "--output", str(page)]) == 1
    assert "holds no results" in capsys.readouterr().err
    assert not page.exists()


def test_two_grids_of_one_file_are_refused():
    with pytest.raises(DataError, match="another file of results is called a-b"):
        compact_evidence(Evidence([Grid("a b"), Grid("a-b")]))


def test_a_lone_result_is_evidence_too(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "result.json").write_text(json.dumps(make_result(policy={"schedule": {4: 4}})))
    (grid,) = read_evidence([tmp_path / "one"]).grids
    assert (grid.name, grid.cells[0].variant) == ("one", "schedule 4: 4")


def undone(seed):
    return Cell("cifar10", "resnet18", "paper", seed, "pending")


def write_part(folder, seeds, base=None, cells=()):
    """A compact file of a grid named ``parts``."""
    protocol = {"data": ["mnist"], "seeds": list(seeds), "base": base or {"epochs": 20}}
    content = {"name": "parts", "hardware": "h", "version": "1", "protocol": protocol, "cells": compact(cells)}
    folder.mkdir()
    (folder / "parts.json").write_text(json.dumps(content))
    return folder / "parts.json"


def test_a_grid_measured_in_parts_is_one_grid(tmp_path):
    first, second = [cell(seed=0), undone(1)], [cell(seed=1), undone(2), cell(seed=3)]
    first, second = write_part(tmp_path / "a", [0], cells=first), write_part(tmp_path / "b", [0, 1], cells=second)
    (grid,) = read_evidence([first, second]).grids
    assert grid.protocol == {"data": ["mnist"], "seeds": [0, 1], "base": {"epochs": 20}}
    assert [(one.seed, one.status) for one in grid.cells] == [(0, "done"), (1, "done"), (2, "pending"), (3, "done")]


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    first = write_part(tmp_path / "a", [0], cells=[cell(seed=0)])
    with pytest.raises(DataError, match="parts: parts of it were run with different `base`"):
        read_evidence([first, write_part(tmp_path / "b", [1], base={"epochs": 5})])
    with pytest.raises(DataError, match="seed 0 was measured twice"):
        read_evidence([first, write_part(tmp_path / "c", [0], cells=[cell(seed=0)])])


def test_compact_cells_come_back_as_they_were():
    cells = [cell(), Cell("mnist", "vgg11_bn", "auto", 1, "failed", "why")]
    back = [Cell(**content) for content in json.loads(json.dumps(compact(cells)))]
    assert back[1] == cells[1]
    assert compact(back) == compact(cells)
    assert compact_evidence(Evidence([Grid("a/b c", cells=cells)])).keys() == {"a-b-c"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", None, "cannot be read"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[]", "neither a result nor"),
        (".", None, "holds no"),
    ],
)
def test_what_is_no_result_is_refused(name, content, words, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read_evidence([tmp_path / name])


def test_the_script_says_what_fails_in_one_line(tmp_path, capsys):
    assert SCRIPT.main([str(tmp_path / "none"), "--output", str(tmp_path / "p.md")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "network", "norm"),
    [
        ("vgg11_bn", ("vgg", 11), True),
        ("vgg11_bn_small", ("vgg", 11), True),
        ("vgg11", ("vgg", 11), False),
        ("resnet152", ("resnet", 152), True),
        ("vit_b_16", None, None),
    ],
)
def test_networks_are_known_by_their_names(model, network, norm):
    assert (network_of(model), has_batch_norm(model)) == (network, norm)


def test_bars_in_cells_do_not_break_a_table():
    assert table(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_the_page_in_docs_is_what_the_result_files_give(tmp_path):
    assert SCRIPT.main(["--output", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / "reproduction.md").read_text(), (
        "docs/reproduction.md is not what docs/results gives: run python scripts/write_reproduction.py"
    )


def test_a_run_that_was_cut_short_is_told_and_counted_nowhere(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(make_result() | {"finished": False}))
    found = read_evidence([tmp_path])
    assert [(cell.status, cell.summary) for cell in found.grids[0].cells] == [("unfinished", None)]
    page = write_reproduction(found)
    assert "0 of 1 experiments done" in page
    assert "go on with --resume" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sweep.json", {}),
        ("sweep.json", []),
        ("sweep.json", {"cells": [{}]}),
        ("result.json", {"strategies": {}}),
        ("result.json", {"cells": [{"x": 1}]}),
        ("store.json", {"rows": [{}]}),
        ("store.json", {"rows": [1]}),
    ],
)
def test_what_lacks_parts_of_a_result_is_refused_by_name(name, content, tmp_path):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{tmp_path}.* lacks what a result holds"):
        read_evidence([tmp_path])
