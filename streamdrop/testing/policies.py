"""A conformance kit for drop policies."""

from __future__ import annotations

from dataclasses import astuple, replace

from streamdrop.policies import DropPolicy, Evidence, Offer, PolicyParts, parts_of


def check_policy(policy: DropPolicy, layers: int = 8) -> None:
    """Assert what the engine relies on: whole counts that leave a layer, the same answer twice, evidence unchanged.

    So too for the parts that it has of ``PolicyParts``. Raises ConfigError where one of them is of another kind, and
    where the policy refuses so many layers.
    """
    parts = parts_of(policy)
    parts.check(layers)
    assert parts.tolerance is None or parts.tolerance > 0, f"a tolerance of {parts.tolerance} takes every drop back"
    for evidence in _cases(layers, parts.needs_scores):
        before = astuple(evidence)
        count = policy(evidence)
        assert isinstance(count, int), f"{count!r} is not a whole number of layers"
        assert 0 <= count < layers - evidence.cut, f"{count} of {layers - evidence.cut} layers leaves none to train"
        assert policy(evidence) == count, "the same evidence must give the same decision"
        _check_words(parts, evidence)
        assert policy(evidence) == count, "what settled and explain do must not change the decision"
        assert astuple(evidence) == before, "evidence must not be changed"


def _check_words(parts: PolicyParts, evidence: Evidence) -> None:
    said = parts.explain(evidence)
    assert isinstance(said, str), f"explain gave {said!r}: it gives one sentence, or none"
    assert parts.explain(evidence) == said, "the same evidence must be explained alike"
    if parts.settled is not None:
        ends = parts.settled(evidence)
        assert isinstance(ends, bool), f"settled gave {ends!r}: it says True or False"
        assert parts.settled(evidence) == ends, "the same evidence must end the warm-up or not"


def _cases(layers: int, scored: bool) -> list[Evidence]:
    """What the engine shows a policy: without scores and costs unless it is ``scored``."""
    rising = tuple(i / layers for i in range(layers))
    shapes = [rising, rising[::-1], (0.5,) * layers, (1.0,) * layers, (0.0,) * layers, ((0.9, 0.1) * layers)[:layers]]
    cases = []
    for cut in range(layers):
        bare = Evidence(cut + 1, cut, layers, dropped=tuple(0.1 * i for i in range(cut)), iterations=48)
        if not scored:
            cases.append(bare)
            continue
        for shape in shapes:
            seen = replace(bare, importance=shape[: layers - cut])
            cases += [seen, _in_full(seen)]
    return cases


def _in_full(evidence: Evidence) -> Evidence:
    """With all that the engine knows in the middle of a training; layers of high importance agree least."""
    offers = tuple(Offer(10_000 * n, 100) for n in range(1, evidence.layers - evidence.cut))
    return replace(
        evidence,
        agreement=tuple(4.0 * (1.0 - p) for p in evidence.importance),
        previous=evidence.importance,
        waited=evidence.cut,
        offers=offers,
        room=1_000_000,
        samples=100,
        break_even=50.0,
        first_loss=2.0,
        losses=(2.0, 1.0, 0.3),
    )
