from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdrop.errors import ConfigError
from streamdrop.policies import (
    AutoPolicy,
    Evidence,
    PaperPolicy,
    PolicyParts,
    PrefixSumPolicy,
    SchedulePolicy,
    ask,
    check_policy,
    parts_of,
    policy_from,
)
from streamdrop.testing.policies import check_policy as check_by_kit


def see(importance, cut=0, dropped=(), round_=9):
    return Evidence(round_, cut, cut + len(importance), tuple(importance), tuple(dropped), 48)


@pytest.mark.parametrize("policy", [PaperPolicy(), PrefixSumPolicy(), SchedulePolicy({1: 2, 5: 4}), SchedulePolicy()])
@pytest.mark.parametrize("layers", [1, 7, 8])
def test_every_policy_passes_the_kit(policy, layers):
    if layers == 1 and policy == SchedulePolicy({1: 2, 5: 4}):
        with pytest.raises(ConfigError, match="last is never dropped"):
            check_by_kit(policy, layers)
    else:
        check_by_kit(policy, layers)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.lists(st.floats(-3, 3), max_size=4))
def test_one_layer_always_stays(importance, dropped):
    for policy in (PaperPolicy(), PrefixSumPolicy()):
        assert 0 <= policy(see(importance, len(dropped), dropped)) < len(importance)


def test_paper_takes_the_first_sign_change_and_needs_two_layers():
    assert PaperPolicy()(see([0.9, 0.9, 0.1, 0.1])) == 2
    assert PaperPolicy()(see([0.9, 0.1, 0.1, 0.1])) == 0
    assert PrefixSumPolicy()(see([0.9, 0.1, 0.1, 0.1])) == 1


def test_paper_can_propose_negative_layers_and_prefix_sum_cannot():
    importance = [0.1, 0.1, 0.6, 0.1, 0.6]
    assert PaperPolicy()(see(importance)) == 3
    assert PrefixSumPolicy()(see(importance)) == 0


def test_median_test_holds_back_all_but_the_first_drop():
    importance = [0.9, 0.8, 0.1, 0.1]
    for policy in (PaperPolicy(), PrefixSumPolicy()):
        assert policy(see(importance)) == 2
        assert policy(see(importance, 1, [0.5])) == 2
        assert policy(see(importance, 1, [2.5])) == 0


def test_median_is_over_all_dropped_layers():
    importance = [0.9, 0.8, 0.1, 0.1]
    assert PaperPolicy()(see(importance, 3, [9, 0.1, 0.2])) == 2
    assert PaperPolicy()(see(importance, 4, [9, 9, 0.1, 0.2])) == 0


@pytest.mark.parametrize("importance", [[0.5] * 6, [1.0] * 3, [0.0] * 3, [0.3], [0.1, 0.9]])
def test_nothing_to_drop(importance):
    assert PaperPolicy()(see(importance)) == 0
    assert PrefixSumPolicy()(see(importance)) == 0


def test_schedule_names_cuts_by_round():
    policy = SchedulePolicy({3: 5, 6: 8})
    assert [policy(Evidence(r, c, 10)) for r, c in [(1, 0), (3, 0), (4, 5), (6, 5), (6, 8)]] == [0, 5, 0, 3, 0]


@pytest.mark.parametrize("schedule", [{0: 1}, {3: 5, 4: 2}, {2: -1}])
def test_impossible_schedules_are_refused(schedule):
    with pytest.raises(ConfigError):
        SchedulePolicy(schedule)


def test_a_schedule_that_drops_the_last_layer_is_refused():
    SchedulePolicy({2: 4}).check(5)
    with pytest.raises(ConfigError, match="up to 4"):
        SchedulePolicy({2: 5}).check(5)


def test_policies_by_name():
    assert policy_from("paper") == PaperPolicy()
    assert policy_from("prefix-sum") == PrefixSumPolicy()
    assert policy_from({"schedule": {"4": 10, 5: 19}}) == SchedulePolicy({4: 10, 5: 19})
    assert policy_from("never") == SchedulePolicy()


@pytest.mark.parametrize("spec", ["papper", "", {"schedule": 3}, {"schedule": {"a": 1}}, {}, "schedule", {"paper": 1}])
def test_unknown_policies_are_refused_with_a_hint(spec):
    with pytest.raises(ConfigError, match=r"did you mean|valid|whole numbers"):
        policy_from(spec)


@pytest.mark.parametrize(
    "spec",
    [
        {"auto": {"critical": "high"}},
        {"auto": {"learned": float("nan")}},
        {"auto": {"max_bytes": "abc"}},
        {"auto": {"worth": -1}},
        {"paper": {"patience": "soon"}},
        {"schedule": {4: "ten"}},
    ],
)
def test_options_of_the_wrong_kind_are_refused_when_a_policy_is_made(spec):
    with pytest.raises(ConfigError, match="policy"):
        policy_from(spec)


@pytest.mark.parametrize("schedule", [{"4": 10}, {4: 2.5}, {4: True}, {float("nan"): 1}, 3])
def test_a_schedule_is_of_whole_numbers(schedule):
    with pytest.raises(ConfigError, match="schedule"):
        SchedulePolicy(schedule)


def test_a_schedule_may_be_of_numpys_numbers():
    assert SchedulePolicy({np.int64(2): np.int32(3)}) == SchedulePolicy({2: 3})


@pytest.mark.parametrize("schedule", [{"4": 2.5}, {4: True}, {float("inf"): 1}, {4: None}])
def test_a_schedule_from_configuration_is_not_rounded(schedule):
    with pytest.raises(ConfigError, match="whole numbers"):
        policy_from({"schedule": schedule})


@pytest.mark.parametrize("kind", [PaperPolicy, PrefixSumPolicy])
@pytest.mark.parametrize("patience", [-1, "soon", 1.5])
def test_patience_is_a_count(kind, patience):
    with pytest.raises(ConfigError, match="patience is"):
        kind(patience)


def test_a_mistake_is_said_once_and_with_its_option():
    with pytest.raises(ConfigError) as caught:
        policy_from({"auto": {"patience": -1}})
    assert str(caught.value) == "policy auto: patience is -1: give a number of at least 0"


@pytest.mark.parametrize("policy", [AutoPolicy(), PaperPolicy(), PrefixSumPolicy(), SchedulePolicy()])
def test_ours_can_be_checked_before_there_is_a_tuner(policy):
    policy.check(1)


@pytest.mark.parametrize("policy", [3, "auto", PaperPolicy, {"auto": {}}])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(ConfigError, match="give an object such as AutoPolicy"):
        check_policy(policy)


class Plain:
    """All that a policy must have."""

    def __call__(self, evidence):
        return 0


def with_(**parts):
    """A plain policy with these parts."""
    return type("Mine", (Plain,), parts)()


def test_a_policy_needs_nothing_but_its_decision():
    assert parts_of(Plain()) == parts_of(lambda evidence: 0) == PolicyParts()
    check_by_kit(Plain())


def test_a_policys_own_parts_are_taken_and_none_is_what_it_lacks():
    parts = parts_of(
        with_(needs_scores=False, tolerance=np.float64(1.5), explain=lambda self, evidence: "so", check=None)
    )
    assert (parts.needs_scores, parts.tolerance, parts.explain(see([0.5]))) == (False, 1.5, "so")
    assert parts.check is PolicyParts().check


@pytest.mark.parametrize(
    "parts",
    [
        {"needs_scores": lambda self: False},  # without @property, it was true
        {"measures": "yes"},
        {"settled": True},
        {"explain": "because"},
        {"check": 3},
        {"tolerance": "little"},
        {"tolerance": float("nan")},
        {"scored_weights": 0},
    ],
)
def test_parts_of_another_kind_are_refused_by_name(parts):
    with pytest.raises(
        ConfigError, match=rf"^policy Mine: {next(iter(parts))} is .*: give (true|a (function|number|finite|whole))"
    ):
        parts_of(with_(**parts))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"explain": lambda self, evidence: None}, "one sentence"),
        ({"settled": lambda self, evidence: 1}, "True or False"),
        ({"tolerance": 0.0}, "takes every drop back"),
        ({"__call__": lambda self, evidence: 1.0}, "whole number"),
        ({"__call__": lambda self, evidence: evidence.layers}, "leaves none"),
    ],
)
def test_the_kit_finds_what_the_engine_cannot_use(parts, said):
    with pytest.raises(AssertionError, match=said):
        check_by_kit(with_(**parts))


@pytest.mark.parametrize("answer", [2, True, np.int64(2), np.uint8(1), torch.tensor(1)])
def test_an_answer_may_be_any_whole_number(answer):
    count = ask(lambda evidence: answer, see([0.5] * 4))
    assert type(count) is int
    assert count == int(answer)


@pytest.mark.parametrize("answer", [None, 1.5, "2", torch.tensor(1.0), torch.tensor([1, 2]), 4, -1])
def test_another_answer_is_refused_with_the_policys_name(answer):
    def mine(evidence):
        return answer

    with pytest.raises(ConfigError, match=r"mine .*whole number from 0 to 3"):
        ask(mine, see([0.5] * 4))
