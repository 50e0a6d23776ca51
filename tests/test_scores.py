"""Equations 1-4 against slow oracles that follow the paper's sums letter by letter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdrop.scores import GradientScores, best_prefix, first_crossing, standardise

scores = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=12)


def slow_importance(g):
    """Eq. 2 with loops; g is [N, M]."""
    above = sum(abs(sum(g[i][j] for j in range(len(g[0])))) for i in range(len(g)))
    below = sum(abs(g[i][j]) for i in range(len(g)) for j in range(len(g[0])))
    return 1.0 if below == 0 else 1 - above / below


def slow_magnitude(g):
    """Eq. 1 with loops."""
    return sum(sum(abs(v) for v in row) for row in g) / len(g)


def feed(gradients, splits):
    """Scores of one layer made of several parameters, fed [N, M] gradients."""
    parts = np.split(gradients, splits)
    weights = [torch.nn.Parameter(torch.zeros(len(part))) for part in parts]
    tracked = GradientScores({"layer": weights})
    for j in range(gradients.shape[1]):
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = torch.tensor(part[:, j], dtype=torch.float32)
        tracked.update()
    return tracked


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 7), st.floats(-1, 1))
def test_importance_and_magnitude_match_the_sums_of_the_paper(seed, n, m, drift):
    g = np.random.default_rng(seed).normal(drift, 1, (n, m))
    tracked = feed(g, [n // 2])
    assert tracked.importance()["layer"] == pytest.approx(slow_importance(g), abs=1e-5)
    assert tracked.magnitude()["layer"] == pytest.approx(slow_magnitude(g), rel=1e-5)
    assert 0 <= tracked.importance()["layer"] <= 1
    assert tracked.iterations == m


def test_gradients_that_agree_score_zero_and_that_cancel_score_one():
    assert feed(np.ones((4, 6)), []).importance()["layer"] == 0
    assert feed(np.array([[1.0, -1.0], [-2.0, 2.0]]), []).importance()["layer"] == 1


def test_no_gradient_at_all_scores_one():
    weight = torch.nn.Parameter(torch.zeros(3))
    tracked = GradientScores({"layer": weight})
    tracked.update()
    assert tracked.importance() == {"layer": 1.0}
    assert tracked.magnitude() == {"layer": 0.0}


def test_independent_steps_score_one_minus_one_over_root_m():
    g = np.random.default_rng(0).normal(size=(4000, 48))
    assert feed(g, []).importance()["layer"] == pytest.approx(1 - 1 / math.sqrt(48), abs=0.01)


def test_reset_keep_and_restore():
    a, b = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    tracked = GradientScores({"a": a, "b": b})
    a.grad, b.grad = torch.ones(2, 2), torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    tracked.update()
    b.grad = -b.grad
    tracked.update()
    tracked.keep(["b"])
    assert tracked.layers == ("b",)
    assert tracked.importance() == {"b": 1.0}
    twin = GradientScores({"b": b})
    twin.restore(tracked.tensors(), tracked.iterations)
    assert (twin.importance(), twin.magnitude(), twin.iterations) == (tracked.importance(), tracked.magnitude(), 2)
    tracked.reset()
    assert (tracked.iterations, tracked.magnitude()) == (0, {"b": 0.0})


@settings(deadline=None)
@given(scores)
def test_standardise_is_eq_3(values):
    z = standardise(torch.tensor(values)).numpy()
    p = np.array(torch.tensor(values).tolist())
    if p.max() == p.min():
        assert not z.any()
    else:
        np.testing.assert_allclose(z, (p - p.mean()) / p.std(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_equal_scores_make_no_candidates_despite_rounding(value):
    assert standardise(torch.full((7,), value)).tolist() == [0.0] * 7


@settings(deadline=None)
@given(scores)
def test_first_crossing_is_eq_4(values):
    z = torch.tensor(values)
    oracle = next((t + 1 for t in range(len(z) - 1) if z[t] > 0 and z[t + 1] < 0), 0)
    assert first_crossing(z) == oracle


@settings(deadline=None)
@given(scores)
def test_best_prefix_is_the_largest_positive_sum(values):
    z = torch.tensor(values, dtype=torch.float64)
    sums = [0.0]
    for value in z.tolist():
        sums.append(sums[-1] + value)
    assert best_prefix(z) == sums.index(max(sums))


@pytest.mark.parametrize(
    ("z", "crossing", "prefix"),
    [
        ([1, -1], 1, 1),
        ([-1, 1], 0, 0),
        ([-1, -2, -3], 0, 0),
        ([0, 0, 0], 0, 0),
        ([1, 0, -1], 0, 1),
        ([-1, 2, -1], 2, 2),
        ([1, -1, 1, -1], 1, 1),
        ([2, -1, 2, -3], 1, 3),
        ([5], 0, 1),
        ([], 0, 0),
    ],
)
def test_corners(z, crossing, prefix):
    assert first_crossing(torch.tensor(z, dtype=torch.float32)) == crossing
    assert best_prefix(torch.tensor(z, dtype=torch.float32)) == prefix


# ---------------------------------------------------------------- agreement beyond chance


def agreement_oracle(gradients):
    """z from its definition, over iterations of flat gradients [M, N]."""
    before = np.zeros(gradients.shape[1])
    products = []
    for g in gradients.astype(np.float64):
        products.append(float(g @ before))
        before = before + g
    squares = sum(c * c for c in products)
    return sum(products) / squares**0.5 if squares else 0.0


def scored(gradients):
    weight = torch.nn.Parameter(torch.zeros(gradients.shape[1:]))
    scores = GradientScores({"layer": weight})
    for g in gradients:
        weight.grad = torch.as_tensor(g, dtype=torch.float32)
        scores.update()
    return scores.agreement()["layer"]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 12), st.floats(-1, 1))
def test_agreement_matches_its_definition(seed, n, m, drift):
    gradients = np.random.default_rng(seed).normal(drift, 1, (m, n)).astype(np.float32)
    assert scored(gradients) == pytest.approx(agreement_oracle(gradients), rel=1e-3, abs=1e-3)


def test_agreement_of_two_tensors_and_of_strided_ones_is_that_of_one():
    gradients = np.random.default_rng(0).normal(0.1, 1, (9, 2, 3, 4, 4)).astype(np.float32)
    first = torch.nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    second = torch.nn.Parameter(torch.zeros(5))
    scores = GradientScores({"layer": [first, second]})
    for g in gradients:
        first.grad = torch.from_numpy(g).to(memory_format=torch.channels_last)
        second.grad = torch.from_numpy(g.reshape(-1)[:5].copy())
        scores.update()
    flat = np.concatenate([gradients.reshape(9, -1), gradients.reshape(9, -1)[:, :5]], axis=1)
    assert scores.agreement()["layer"] == pytest.approx(agreement_oracle(flat), rel=1e-4)


@pytest.mark.parametrize("tails", ["gaussian", "heavy"])
def test_noise_is_within_chance_whatever_its_tails_and_agreement_is_not(tails):
    random = np.random.default_rng(0)
    draw = random.standard_normal if tails == "gaussian" else lambda size: random.standard_t(3, size)
    noise = [scored(draw((48, 200))) for _ in range(100)]
    assert abs(np.mean(noise)) < 0.4
    assert 0.7 < np.std(noise) < 1.4
    assert np.mean([z > 2 for z in noise]) < 0.1
    assert min(scored(0.3 + draw((48, 200))) for _ in range(20)) > 3


def test_steps_that_undo_each_other_agree_less_than_chance():
    assert scored(np.array([[1.0, 2.0], [-1.0, -2.0]] * 20, dtype=np.float32)) < -3


def test_agreement_is_kept_reset_and_restored():
    scores = GradientScores({"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.ones(2))})
    for name, weights in scores._weights.items():
        weights[0].grad = torch.full_like(weights[0], 1.0 if name == "a" else 2.0)
    for _ in range(4):
        scores.update()
    before = scores.agreement()
    other = GradientScores({"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.ones(2))})
    other.restore({name: t.clone() for name, t in scores.tensors().items()}, 4)
    assert other.agreement() == before
    scores.keep(["b"])
    assert scores.agreement() == {"b": before["b"]}
    scores.reset()
    assert scores.agreement() == {"b": 0.0}


def test_scores_of_some_filters_estimate_those_of_all():
    random = np.random.default_rng(1)
    weight = torch.nn.Parameter(torch.zeros(64, 8, 3, 3))
    drift = torch.from_numpy(random.normal(0, 0.1, (64, 8, 3, 3))).float()
    whole, part = GradientScores({"a": weight}), GradientScores({"a": weight}, most=1000)
    for _ in range(40):
        weight.grad = drift + torch.from_numpy(random.standard_normal((64, 8, 3, 3))).float()
        whole.update()
        part.update()
    assert part._signed["a"][0].numel() == 16 * 72  # every fourth of 64 filters
    assert part.importance()["a"] == pytest.approx(whole.importance()["a"], abs=0.02)
    assert part.magnitude()["a"] == pytest.approx(whole.magnitude()["a"], rel=0.05)
    assert min(part.agreement()["a"], whole.agreement()["a"]) > 2


@pytest.mark.parametrize("shape", [(1, 5), (3,), (7, 1000), (2, 3, 1)])
@pytest.mark.parametrize("most", [1, 10, 10**6])
def test_every_parameter_is_followed_whatever_its_shape(shape, most):
    weight = torch.nn.Parameter(torch.zeros(shape))
    scores = GradientScores({"a": weight}, most)
    weight.grad = torch.ones(shape)
    scores.update()
    scores.update()
    assert scores.importance()["a"] == 0.0
    assert scores.magnitude()["a"] == pytest.approx(2.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([None, 9, 40]))
def test_all_at_once_is_one_by_one(seed, most):
    """What a GPU runs, on whatever this is: the same sums, layers forgotten and gradients missing on the way."""
    torch.manual_seed(seed)
    weights = {
        "a": [torch.nn.Parameter(torch.zeros(4, 3)), torch.nn.Parameter(torch.zeros(8, 3, 3))],
        "b": torch.nn.Parameter(torch.zeros(7)),
        "none": (),
        "c": torch.nn.Parameter(torch.zeros(6, 5)),
    }
    both = [GradientScores(weights, most, at_once) for at_once in (False, True)]
    for j in range(6):
        for parameter in (*weights["a"], weights["b"], weights["c"]):
            parameter.grad = torch.randn_like(parameter) + 0.3
        weights["b"].grad = None if j == 2 else weights["b"].grad
        for tracked in both:
            tracked.update()
            if j == 3:
                tracked.keep(["b", "none", "c"])
    for one, other in zip(*(tracked.tensors().values() for tracked in both), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert both[0].importance() == pytest.approx(both[1].importance(), abs=1e-6)
    assert both[0].agreement() == pytest.approx(both[1].agreement(), abs=1e-4)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("most", [None, 12])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float64),
        (torch.float16, torch.float16),
        (torch.complex64, torch.float32),
        (torch.complex128, torch.bfloat16),
    ],
)
def test_weights_of_several_dtypes_score_as_their_gradients_in_float64(dtypes, most, at_once):
    torch.manual_seed(0)
    shapes = {"a": (6, 5), "b": (4, 7)}
    weights = {n: torch.nn.Parameter(torch.zeros(shapes[n], dtype=d)) for n, d in zip(shapes, dtypes, strict=True)}
    oracle = {
        n: torch.nn.Parameter(torch.zeros(torch.view_as_real(w).shape if w.is_complex() else w.shape).double())
        for n, w in weights.items()
    }
    scores, wide = GradientScores(weights, most, at_once), GradientScores(oracle, most, at_once=False)
    for j in range(12):
        for name, weight in weights.items():
            weight.grad = None if (name, j) == ("b", 3) else torch.randn_like(weight) + 0.2
            real = torch.view_as_real(weight.grad) if weight.grad is not None and weight.is_complex() else weight.grad
            oracle[name].grad = None if real is None else real.double()
        scores.update()
        wide.update()
    assert scores.importance() == pytest.approx(wide.importance(), abs=1e-5)
    assert scores.magnitude() == pytest.approx(wide.magnitude(), rel=1e-5)
    assert scores.agreement() == pytest.approx(wide.agreement(), rel=1e-4)


def test_sums_of_small_half_gradients_do_not_stand_still():
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float16))
    scores = GradientScores({"a": weight})
    for _ in range(5000):  # in float16, 2048 + 1 is 2048
        weight.grad = torch.ones_like(weight)
        scores.update()
    assert scores.magnitude()["a"] == 5000
    assert scores.importance()["a"] == 0.0


@pytest.mark.parametrize("at_once", [False, True])
def test_a_sparse_gradient_scores_as_the_dense_one(at_once):
    torch.manual_seed(0)
    sparse, dense = (torch.nn.Parameter(torch.zeros(9, 4)) for _ in range(2))
    both = [GradientScores({"a": weight}, 20, at_once) for weight in (sparse, dense)]
    for _ in range(5):
        dense.grad = torch.randn(9, 4) * (torch.rand(9, 1) > 0.5)
        sparse.grad = dense.grad.to_sparse(1)
        for scores in both:
            scores.update()
    assert both[0].importance() == both[1].importance()
    assert both[0].agreement() == both[1].agreement()
