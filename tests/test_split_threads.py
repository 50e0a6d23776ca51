"""A model split while other threads run theirs: neither notices the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamdrop.split import SplitModel
from streamdrop.testing.tuners import SmallNet, labelled_batch
from streamdrop.tracing import observe

IMAGES = labelled_batch(3).images


class Meanwhile(nn.Module):
    """Two layers; between them ``work`` runs, where it is given."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        self.first, self.second, self.work = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), work

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(x)
        self.work()
        output: Tensor = self.second(maps)
        return output


def test_what_another_thread_runs_is_no_part_of_a_trace() -> None:
    other = SmallNet().eval()
    with torch.no_grad():
        expected = other(IMAGES)
    found: list[Any] = []

    def work() -> None:
        with torch.no_grad():
            found.extend((other(IMAGES), torch.ones(2), other.training))
            other.note = 3  # type: ignore[assignment]

    def beside() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    split = SplitModel(Meanwhile(beside), IMAGES)
    assert split.layers == ("first", "second")
    assert len(found) % 3 == 0
    for output, ones, training in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert torch.equal(output, expected)
        assert type(ones) is Tensor
        assert training is False


def test_two_traces_leave_torch_as_it_was() -> None:
    places = [(nn.Module, "__call__"), (nn.Module, "__setattr__"), (torch, "zeros"), (torch.autograd.Function, "apply")]
    before = [getattr(owner, name) for owner, name in places]
    made: list[SplitModel] = []
    other = SmallNet()  # not in the thread: its weights are drawn
    threads: list[threading.Thread] = []

    def start() -> None:
        if not threads:
            threads.append(threading.Thread(target=lambda: made.append(SplitModel(other, IMAGES))))
            threads[0].start()

    SplitModel(Meanwhile(start), IMAGES)
    for thread in threads:
        thread.join()
    assert [len(split.layers) for split in made] == [5]
    assert [getattr(owner, name) for owner, name in places] == before


class Noisy(nn.Module):
    """Noise and two layers above it, with no cut between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.first(x + x.new_empty(x.shape).normal_()))
        return output


@pytest.fixture
def bystander() -> Iterator[None]:
    """Another thread that is there all the time."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.usefixtures("bystander")
def test_what_other_threads_draw_is_not_taken_for_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawing() -> None:
        thread = threading.Thread(target=lambda: nn.Conv2d(3, 4, 3))
        thread.start()
        thread.join()

    def beside_others(*args: Any) -> Any:
        drawing()
        return call(*args)

    alone = SplitModel(Meanwhile(lambda: None), IMAGES)
    call = observe.call
    monkeypatch.setattr(observe, "call", beside_others)
    assert SplitModel(Meanwhile(drawing), IMAGES).summary() == alone.summary()


def test_what_a_model_draws_itself_is_seen_beside_other_threads(request: pytest.FixtureRequest) -> None:
    alone = SplitModel(Noisy(), IMAGES)
    request.getfixturevalue("bystander")
    assert len(alone.layers) == 1
    assert SplitModel(Noisy(), IMAGES).layers == alone.layers
