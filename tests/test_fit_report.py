"""Tables, figures and the page of `streamdrop fit`: what they show, and that gaps and failures are shown as such."""

from __future__ import annotations

import re

import pytest
from fit_results import diverge, make_result, make_sweep

from streamdrop.errors import DataError, OutputError
from streamdrop.evaluation.curves import draw_curves, draw_importance_pairs
from streamdrop.evaluation.fit_report import _anchor, write_fit_report
from streamdrop.evaluation.fit_summary import rank_correlation, spread, summarise
from streamdrop.evaluation.fit_tables import format_result, format_seconds, format_sweep
from streamdrop.evaluation.layer_curves import agreement_figure, agreement_threshold, layers_figure


def row_of(text, name):
    return next(line.split() for line in text.splitlines() if line.startswith(name))


def old_result():
    """As the first versions wrote it: three strategies, none of the newer keys."""
    result = make_result(strategies=("sgd", "freeze", "drop"))
    for key in ("layer_names", "batch_size", "train_samples", "image_size", "optimizer", "input_bytes"):
        del result[key]
    for entry in result["strategies"].values():
        for key in ("status", "first_decision", "first_asked", "dropped_macs_percent", "held_back", "stored_bytes"):
            entry.pop(key, None)
        for row in entry["epochs"]:
            del row["agreement"]
    return result


def test_every_variant_has_a_place_of_its_own_in_a_report():
    keys = [("mnist", "resnet18", variant) for variant in ("a-b", "a.b", "a b", "a_b")]
    assert len({_anchor(key) for key in keys}) == len(keys)


def test_the_table_has_the_columns_of_tables_1_to_3():
    text = format_result(make_result())
    assert row_of(text, "sgd ")[1:4] == ["100.0", "s", "69.00"]
    drop = row_of(text, "drop")
    assert drop == ["drop", "56.0", "s", "70.00", "44.0", "%", "26", "M", "48.0", "%", "10", "4/5"]
    assert row_of(text, "freeze ")[4:6] == ["24.0", "%"]
    assert row_of(text, "freeze-full")[4:6] == ["3.0", "%"]
    assert row_of(text, "sgd-same-time")[1:5] == ["30.0", "s", "55.00", "-"]


def test_the_lines_below_it_say_bound_bytes_layers_and_what_held_back():
    result = make_result()
    result["strategies"]["drop"]["held_back"] = "a cut above l3 needs 3 GB"
    text = format_result(result)
    assert "(after epoch 4) would save 60.0 %; drop saved 44.0 % = 73.3 % of it" in text
    assert "+1.00 points to sgd, +15.00 points to sgd given only drop's time" in text
    assert "2,048 bytes per sample at the last cut, the input 12,288 (× 0.17)" in text
    assert "4 of 5 layers, 98.5 % of the droppable" in text
    assert "Held the rest back: a cut above l3 needs 3 GB." in text


def test_a_bound_that_the_result_gives_is_kept():
    result = make_result()
    result["strategies"]["drop"]["bound_time_percent"] = 55.0
    assert summarise(result)["share_of_bound_percent"] == pytest.approx(80.0)
    result["strategies"]["drop"] |= {"bound_time_percent": None, "first_asked": None}
    assert summarise(result)["bound_time_percent"] is None


def test_older_results_and_lone_strategies_have_their_tables():
    assert "would save 60.0 %" in format_result(old_result())
    assert "drop" in format_result(make_result(strategies=("drop",)))
    assert "4/5" in format_result(make_result(strategies=("freeze",)))


def test_a_diverged_arm_is_named_and_saves_nothing():
    text = format_result(diverge(make_result(), "drop", 6))
    assert row_of(text, "drop")[:2] == ["drop", "(diverged)"]
    assert "nan" not in text.lower()
    assert "Accuracy of drop" not in text
    assert "drop saved" not in text
    assert "drop (diverged)" in format_result(diverge(make_result(), "drop", 0))


def test_minutes_stand_for_long_times():
    assert [format_seconds(s) for s in (None, 600.0, 601.0)] == ["-", "600.0 s", "10.0 min"]


def test_summaries_know_the_course_of_a_run():
    summary = summarise(make_result())
    assert summary["drops"] == [[5, 0, 4]]
    assert summary["store_cost"] == pytest.approx([1.1])
    assert summary["same_as_freeze"] is True
    assert summary["faster_than_freeze"] == pytest.approx(6.0)
    assert summary["score_order"] == pytest.approx(1.0)
    assert summarise(make_result(batch_norm=False))["score_order"] == pytest.approx(-1.0)
    changed = make_result()
    changed["strategies"]["freeze"]["epochs"][-1]["loss"] += 1e-9
    assert summarise(changed)["same_as_freeze"] is False


@pytest.mark.parametrize(
    ("values", "rho"),
    [([1, 2, 3], 1), ([3, 2, 1], -1), ([1, 1, 1], None), ([1, None, 2], None), ([2, 1, 4, 3], 0.6)],
)
def test_rank_correlation(values, rho):
    assert rank_correlation(values) == (rho if rho is None else pytest.approx(rho))


def test_spread_is_over_what_is_known():
    assert spread([None, None]) is None
    assert spread([2.0, None]) == (2.0, None, 1)
    assert spread([1.0, 3.0, None]) == (2.0, pytest.approx(2**0.5), 2)


def sweep_of_four():
    cells = [("cifar10", "resnet18", "auto", seed, status) for seed, status in enumerate(("done", "done", "failed"))]
    sweep = make_sweep([*cells, ("mnist", "vgg11_bn", "paper", 0, "missing")])
    results = [make_result(seed=0), make_result(seed=1)]
    results[1]["strategies"]["drop"]["seconds"] = 46.0
    return sweep, results


def test_a_sweep_has_mean_and_spread_over_seeds_and_says_what_is_missing():
    text = format_sweep(*sweep_of_four())
    assert "2 of 4 cells done" in text
    done = next(line for line in text.splitlines() if line.startswith("cifar10"))
    assert "2 of 3" in done
    assert "49.0 ± 7.1" in done  # 44 and 54 % of the time
    assert "+1.00 ± 0.00" in done
    assert "missing" in next(line for line in text.splitlines() if line.startswith("mnist"))
    assert "failed: cifar10 / resnet18 / auto / seed 2: out of memory" in text
    assert "missing: mnist / vgg11_bn / paper / seed 0" in text


def test_a_diverged_arm_is_left_out_of_the_means_and_said_so():
    sweep, results = sweep_of_four()
    diverge(results[1], "drop", 6)
    text = format_sweep(sweep, results)
    assert " 44.0 " in text
    assert "drop diverged: cifar10 / resnet18 / auto / seed 1: left out of the means" in text


def test_results_that_do_not_fit_the_cells_are_refused():
    sweep, results = sweep_of_four()
    with pytest.raises(DataError, match="1 results for 2 finished cells"):
        format_sweep(sweep, results[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("result", "agreement"),
    [
        (make_result(), True),
        (old_result(), False),
        (diverge(make_result(), "drop", 6), True),
        (diverge(make_result(), "sgd", 0), True),
    ],
    ids=["whole", "old", "diverged", "diverged-at-once"],
)
def test_every_figure_is_drawn_as_png_and_svg(result, agreement, tmp_path):
    names = {"accuracy-and-time", "accuracy-over-seconds", "parameters-and-macs", "layers"}
    names |= {"agreement"} if agreement else set()
    written = draw_curves(result, tmp_path)
    assert {path.name for path in written} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all(path.stat().st_size > 5000 for path in written)


def test_nothing_positive_and_odd_names_warn_nobody(tmp_path, recwarn):
    result = make_result(dataset="数据 $x_$", strategies=("drop",), layers=2, epochs=2)
    for row in result["strategies"]["drop"]["epochs"]:
        row["magnitude"] = dict.fromkeys(row["magnitude"], 0.0)
    assert layers_figure(result).axes[0].get_yscale() == "linear"
    assert draw_curves(result, tmp_path)
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.slow
def test_the_pair_of_figure_3_shares_its_scale(tmp_path):
    pair = make_result("vgg11_bn"), make_result("vgg11", batch_norm=False)
    written = draw_importance_pairs([*pair, make_result("resnet18")], tmp_path)
    assert [path.suffix for path in written] == [".png", ".svg"]
    assert all("vgg11_bn" in path.name and path.stat().st_size > 5000 for path in written)
    assert not draw_importance_pairs(pair[:1], tmp_path)


def test_many_layers_have_a_colour_bar_that_counts_and_few_one_that_names():
    for layers, labels in ((5, ["l0", "l1", "l2", "l3", "l4"]), (155, ["1", "155"])):
        figure = layers_figure(make_result(layers=layers))
        bar = figure.axes[-1]
        shown = [text.get_text() for text in bar.get_yticklabels()]
        assert [shown[0], shown[-1]] == [labels[0], labels[-1]]
        assert len(shown) <= 12
        assert not figure.legends
        assert len(figure.axes[0].lines) == layers


def test_the_threshold_is_drawn_where_the_policy_tells_it():
    result = make_result(policy={"auto": {"critical": 2.5}})
    assert agreement_threshold(result) == 2.5
    without = ("paper", {"schedule": {"4": 4}}, None, "a policy of another version")
    assert [agreement_threshold(make_result(policy=policy)) for policy in without] == [None] * 4
    lines = {
        layer: len(agreement_figure(r).axes[0].lines)
        for layer, r in (("with", result), ("no", make_result(policy="paper")))
    }
    assert lines == {"with": 6, "no": 5}


def test_figures_that_cannot_be_written_say_where(tmp_path):
    with pytest.raises(OutputError, match=r"accuracy-and-time\.png cannot be written"):
        draw_curves(make_result(), tmp_path / "nowhere")


def page_of(tmp_path, *given, **more):
    write_fit_report(tmp_path / "r.html", *given, **more)
    return (tmp_path / "r.html").read_text()


def test_the_page_needs_nothing_else_and_shows_every_part(tmp_path):
    page = page_of(tmp_path, [make_result()], title="<b>x</b>")
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert not re.findall(r"https?://|url\(|@import|<link", page)
    assert "<b>x</b>" not in page
    for text in ("Time saved by drop", "44.0 %", "73.3 %", "+1.00", "+15.00", "Test accuracy (Fig. 5)",
                 "Seconds per epoch (Fig. 5)", "Forward MACs per epoch", "Parameters trained", "Cut: layers dropped",
                 "Magnitude (Fig. 1)", "Importance P (Fig. 3)", "Every epoch of drop", "0 → 4", "stores"):  # fmt: skip
        assert text in page, text


@pytest.mark.parametrize("result", [old_result(), diverge(make_result(), "drop", 6), diverge(make_result(), "drop", 0),
                                    make_result(strategies=("freeze",))])  # fmt: skip
def test_the_page_takes_what_there_is(result, tmp_path):
    page = page_of(tmp_path, [result])
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    assert "None" not in page


def test_the_page_of_a_sweep_links_its_table_to_its_sections(tmp_path):
    page = page_of(tmp_path, sweep_of_four()[1], sweep_of_four()[0])
    assert "2 of 4 cells done" in page
    assert "49.0 ± 7.1" in page
    assert "out of memory" in page
    assert page.count('id="cifar10-resnet18-auto"') == 1
    assert 'href="#cifar10-resnet18-auto"' in page
    assert 'style="width:49.0%"' in page


def test_a_page_on_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="no results"):
        write_fit_report(tmp_path / "r.html", [])
    with pytest.raises(OutputError, match="cannot be written"):
        write_fit_report(tmp_path / "nowhere" / "r.html", [make_result()])
