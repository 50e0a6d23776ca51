"""A conformance kit for drop policies."""

from __future__ import annotations

from streamdrop.policies import DropPolicy, Evidence


def check_policy(policy: DropPolicy, layers: int = 8) -> None:
    """Assert what the engine relies on: whole counts that leave a layer, the same answer twice, evidence unchanged."""
    policy.check(layers)
    assert isinstance(policy.needs_scores, bool), "needs_scores says True or False"
    for evidence in _cases(layers):
        before = (evidence.importance, evidence.dropped)
        count = policy(evidence)
        assert isinstance(count, int), f"{count!r} is not a whole number of layers"
        assert 0 <= count < layers - evidence.cut, f"{count} of {layers - evidence.cut} layers leaves none to train"
        assert policy(evidence) == count, "the same evidence must give the same decision"
        assert (evidence.importance, evidence.dropped) == before, "evidence must not be changed"


def _cases(layers: int) -> list[Evidence]:
    rising = tuple(i / layers for i in range(layers))
    shapes = [rising, rising[::-1], (0.5,) * layers, (1.0,) * layers, (0.0,) * layers, (0.9, 0.1) * (layers // 2)]
    cases = []
    for cut in range(layers):
        for shape in shapes:
            dropped = tuple(0.1 * i for i in range(cut))
            cases.append(Evidence(cut + 1, cut, layers, shape[: layers - cut], dropped, 48))
    return cases
