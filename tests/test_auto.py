"""The default policy: an absolute test of agreement, costs, and what holds it back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdrop.errors import ConfigError
from streamdrop.policies import AutoPolicy, Evidence, Offer, PaperPolicy, PrefixSumPolicy, policy_from
from streamdrop.store import LmdbStore, MemoryStore
from streamdrop.testing.policies import check_policy
from streamdrop.testing.tuners import check_drop_equals_freeze, labelled_batch, small_tuner

AUTO = AutoPolicy()


def see(agreement, **more):
    layers = len(agreement)
    given = {
        "agreement": tuple(agreement),
        "importance": (0.8,) * layers,
        "samples": 10,
        "first_loss": 2.0,
        "losses": (0.3,),
    }
    return Evidence(9, 0, layers, iterations=40, **{**given, **more})


def test_the_kit_holds():
    check_policy(AUTO)
    check_policy(AutoPolicy(break_even="measured"))


def test_leading_layers_within_chance_are_dropped_and_the_first_that_learns_ends_them():
    assert AUTO(see([0.0, -3.0, 1.9, 2.1, 0.0])) == 3
    assert AUTO(see([2.1, 0.0, 0.0])) == 0
    assert AUTO(see([0.0, 0.0, 9.0])) == 2  # the last layer stays whatever its score
    assert AUTO(see([0.0])) == 0
    assert "layer 1 still learns" in AUTO.explain(see([2.5, 0.0]))


def test_patience_makes_the_test_lenient():
    learning = [2.4, 0.0, 0.0]
    assert [AUTO(see(learning, waited=w)) for w in (0, 3, 4, 5)] == [0, 0, 2, 2]
    said = [AUTO.explain(see([2.52, 0.0], waited=w)) for w in (3, 4, 5)]
    assert [text.rpartition(": ")[2] for text in said[:2]] == [
        "its gradients agree at z 2.52, above 2",
        "its gradients agree at z 2.52, above 2.5",
    ]
    assert "1 layers" in said[2]


@pytest.mark.parametrize(
    ("losses", "at_once", "in_time"),
    [
        ((1.0,), False, False),  # half is still there, nothing to compare with
        ((1.5, 1.0), False, False),
        ((1.9, 1.4, 1.7, 1.3, 1.6, 1.2), False, False),  # falls, with noise upon it
        ((1.3, 1.1, 1.2, 1.15, 1.3, 1.0), False, True),  # falls no more
        ((2.0, 2.2, 2.4), False, True),
        ((1.5, 0.4), True, True),  # four fifths are gone
    ],
)
def test_nothing_is_dropped_while_most_of_the_loss_is_there_and_falls(losses, at_once, in_time):
    assert (AUTO(see([0.0] * 4, losses=losses)) > 0) == at_once
    assert (AUTO(see([0.0] * 4, losses=losses, waited=3)) > 0) == in_time


def test_where_no_loss_is_known_agreement_decides():
    assert AUTO(see([0.0] * 4, first_loss=None, losses=())) == 3


def test_a_loss_below_nothing_is_no_share_of_the_first():
    for first, losses in ((-1.0, (-1.0,)), (-1.0, (-1.0, -3.0)), (0.0, (0.5,))):
        assert AUTO(see([0.0, 0.0, 9.0, 0.0], first_loss=first, losses=losses)) == 2  # agreement alone decides


def test_once_the_loss_is_gone_agreement_holds_nothing_back():
    assert AUTO(see([9.0] * 4, losses=(0.05,))) == 0
    assert AUTO(see([9.0] * 4, losses=(0.04,))) == 3


def offers(*pairs):
    return tuple(Offer(macs, size) for macs, size in pairs)


def test_of_cuts_that_save_about_as_much_the_one_with_the_fewest_bytes_is_taken():
    wide_last = offers((1000, 4), (9500, 8), (10000, 80))
    assert AUTO(see([0.0] * 4, offers=wide_last)) == 2
    assert AUTO(see([0.0] * 4, offers=offers((1000, 4), (5000, 8), (10000, 80)))) == 3  # half the saving is too little


def test_a_cut_that_reads_more_than_it_saves_is_refused_with_its_break_even():
    dear = offers((100, 10), (300, 10), (400, 10))
    assert AUTO(see([0.0] * 4, offers=dear)) == 0
    assert "40 multiply-adds saved per byte, 50 break even" in AUTO.explain(see([0.0] * 4, offers=dear))
    assert AutoPolicy(break_even=39)(see([0.0] * 4, offers=dear)) == 3


def test_a_drop_of_little_work_is_not_worth_its_round_of_storing():
    deep = offers((900, 1), (9500, 1), (10000, 1))
    assert AUTO(see([0.0, 9.0, 0.0, 0.0], offers=deep)) == 0
    assert "1 layers have stopped learning, but are only 9% of the work" in AUTO.explain(
        see([0.0, 9.0, 0.0, 0.0], offers=deep)
    )
    assert AutoPolicy(worth=0.05)(see([0.0, 9.0, 0.0, 0.0], offers=deep)) == 1


def test_a_measured_break_even_is_the_evidences():
    measured = AutoPolicy(break_even="measured")
    dear = offers((100, 10), (300, 10), (400, 10))
    assert measured.measures
    assert not AUTO.measures
    assert measured(see([0.0] * 4, offers=dear, break_even=39.0)) == 3
    assert measured(see([0.0] * 4, offers=dear, break_even=41.0)) == 0


def test_cuts_that_do_not_fit_are_refused():
    sizes = offers((5000, 100), (9500, 50), (10000, 200))
    assert AutoPolicy(max_bytes=600)(see([0.0] * 4, offers=sizes)) == 2
    assert AUTO(see([0.0] * 4, offers=sizes, room=499)) == 0
    assert "500 bytes needed, 499 free" in AUTO.explain(see([0.0] * 4, offers=sizes, room=499))


def test_the_warm_up_ends_when_no_layer_moves():
    still = {"importance": (0.8, 0.81), "previous": (0.805, 0.81)}
    assert AUTO.settled(see([0.0, 0.0], **still))
    assert not AUTO.settled(see([0.0, 0.0], importance=(0.8, 0.9), previous=(0.8, 0.81)))
    assert not AUTO.settled(see([0.0, 0.0], importance=(0.8, 0.8), previous=()))
    unmoved = see([9.0, 0.0], importance=(1.0, 1.0), previous=(1.0, 1.0))  # no gradient in either window
    assert AUTO.settled(unmoved)
    assert not AutoPolicy(settle=0.0).settled(unmoved)


@settings(deadline=None)
@given(
    st.lists(st.floats(-9, 9), min_size=1, max_size=9),
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**6)), min_size=9, max_size=9),
    st.one_of(st.none(), st.integers(0, 10**7)),
)
def test_whatever_it_sees_one_layer_stays_and_it_can_say_why(agreement, waited, pairs, room):
    evidence = see(agreement, waited=waited, offers=offers(*pairs)[: len(agreement) - 1], room=room)
    assert 0 <= AUTO(evidence) < len(agreement)
    assert AUTO.explain(evidence)


@pytest.mark.parametrize(
    "options",
    [
        {"break_even": "often"},
        {"break_even": -1},
        {"patience": -1},
        {"worth": -0.1},
        {"settle": -0.1},
        {"settle": float("nan")},
        {"critical": "x"},
        {"critical": float("inf")},
        {"learned": float("nan")},
        {"learned": -0.2},
        {"fitted": True},
        {"patience": 2.5},
        {"max_bytes": "abc"},
        {"max_bytes": -1},
        {"tolerance": float("nan")},
    ],
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError, match="policy auto"):
        AutoPolicy(**options)


def test_policies_come_from_configuration_with_options():
    assert policy_from("auto") == AUTO
    assert policy_from({"auto": {"critical": 3.0}}) == AutoPolicy(critical=3.0)
    assert policy_from({"paper": {"patience": 2}}) == PaperPolicy(patience=2)
    assert policy_from({"auto": {"critical": "1e-1", "break_even": "measured"}}) == AutoPolicy(
        0.1, break_even="measured"
    )
    with pytest.raises(ConfigError, match="did you mean critical"):
        policy_from({"auto": {"critica": 3.0}})
    with pytest.raises(ConfigError, match="did you mean auto"):
        policy_from("atuo")


@pytest.mark.parametrize("policy", [PaperPolicy(patience=2), PrefixSumPolicy(patience=2)])
def test_the_median_test_is_waived_with_patience(policy):
    stalled = Evidence(9, 1, 5, (0.9, 0.8, 0.1, 0.1), (2.5,), 48)
    assert policy(stalled) == 0
    assert policy(dataclasses.replace(stalled, waited=2)) == 2


# ---------------------------------------------------------------- in the engine


@pytest.mark.parametrize("policy", [AUTO, AutoPolicy(critical=9.0, break_even=0.0, learned=1.0)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_drop_and_freeze_agree_under_auto(policy, on_disk, tmp_path):
    batch = labelled_batch(48)

    def make(strategy):
        store = LmdbStore(tmp_path / strategy) if on_disk else MemoryStore()
        return small_tuner(batch=batch, policy=policy, store=store, strategy=strategy, batch_size=3)

    drop, _ = check_drop_equals_freeze(make, 12)
    assert policy is AUTO or drop[-1].cut > 0
    assert all(set(r.agreement) == set(r.importance) for r in drop)


def test_nothing_is_measured_before_a_decision_is_due():
    class Counted(MemoryStore):
        def get_many(self, keys):
            read.append(len(keys))
            return super().get_many(keys)

    read = []
    policy = AutoPolicy(break_even="measured", settle=0.0)
    tuner = small_tuner(
        batch=labelled_batch(64), policy=policy, store=Counted(), batch_size=2, warm_up=2, average=False
    )
    reads = []
    for _ in range(3):
        read.clear()
        tuner.fit_round()
        reads.append(read.count(64))  # a training batch has 2
    assert tuner.decisions.asked == 3
    assert reads == [0, 0, 2]


def test_a_settled_warm_up_ends_before_its_count():
    batch = labelled_batch(96)
    cuts = {}
    for settle in (0.0, 1.0):
        policy = AutoPolicy(critical=99.0, break_even=0.0, learned=1.0, settle=settle)
        tuner = small_tuner(batch=batch, policy=policy, batch_size=3, warm_up=6)
        cuts[settle] = [tuner.fit_round().cut for _ in range(8)]
        assert tuner.decisions.asked == (7 if settle == 0.0 else 2)
    assert cuts[0.0] == [0] * 7 + [4]
    assert cuts[1.0] == [0, 0] + [4] * 6
