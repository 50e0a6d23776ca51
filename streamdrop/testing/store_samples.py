"""What the checks of stores put in, and how they look at what is there."""

# The kit works without pytest, so its rules do not apply.
# ruff: noqa: PT017, PT018

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from streamdrop.store.protocol import FeatureStore
from streamdrop.types import Activations


def sample(seed: int, double: int = 1) -> Activations:
    """Two tensors of one sample, made from its number: float32 [2, 3, 4] in channels-last order and int64 [3]."""
    values = torch.arange(24, dtype=torch.float32).reshape(3, 4, 2).permute(2, 0, 1)
    return (values + 100 * seed) * double, torch.tensor([seed, -seed, 7]) * double


def samples(numbers: Sequence[int]) -> dict[bytes, Activations]:
    """{key: sample} for numbers."""
    return {name(n): sample(n) for n in numbers}


def name(number: int) -> bytes:
    """A key."""
    return b"sample/%d" % number


def doubled(activations: Activations) -> Activations:
    """A step whose outcome is easy to check; keeps shapes and dtypes."""
    return tuple(t * 2 for t in activations)


def assert_holds(store: FeatureStore, numbers: Sequence[int], factor: int = 1) -> None:
    """Assert that exactly these samples are there, in this order of arrival, each with its own values."""
    keys = [name(n) for n in numbers]
    assert store.keys() == keys, f"keys() is {store.keys()}, not {keys}: order of arrival"
    assert len(store) == len(keys), f"len() is {len(store)}, not {len(keys)}"
    assert all(key in store for key in keys), "a key of keys() is not `in` the store"
    if keys:
        for at, tensor in enumerate(store.get_many(keys)):
            expected = torch.stack([sample(n, factor)[at] for n in numbers])
            assert torch.equal(tensor, expected), f"tensor {at} of {keys} is {tensor}, not {expected}"


def assert_streams(store: FeatureStore, streams: Mapping[str, Sequence[int]]) -> None:
    """Assert that these are the samples of each stream, in this order of arrival."""
    for stream, numbers in streams.items():
        keys, found = [name(n) for n in numbers], store.keys(stream=stream)
        assert found == keys, f"keys(stream={stream!r}) is {found}, not {keys}"


@contextlib.contextmanager
def raises(kind: type[BaseException], why: str) -> Iterator[None]:
    """Assert that an error of this kind leaves the block."""
    try:
        yield
    except kind as error:
        assert str(error) and "\n" not in str(error), f"{kind.__name__} needs a message of one line, not {str(error)!r}"
    else:
        raise AssertionError(f"no {kind.__name__}: {why}")


def targets_of(store: FeatureStore, numbers: Sequence[int]) -> torch.Tensor:
    """Targets that are one tensor."""
    target = store.get_targets([name(n) for n in numbers])
    assert isinstance(target, torch.Tensor), f"a tensor target came back as {target!r}"
    return target


def assert_at(store: FeatureStore, cut: int, version: str) -> None:
    """Assert that the store tells this cut and version."""
    assert (store.cut, store.version) == (cut, version), (
        f"the store says cut {store.cut}, version {store.version!r}; it is at cut {cut}, version {version!r}"
    )


def never(batch: Activations) -> Activations:
    """A step that must not run."""
    raise AssertionError("step was called though there was nothing to promote (or to fail on purpose)")
