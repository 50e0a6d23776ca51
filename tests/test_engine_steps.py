"""A round in pieces: what fit_round does, with time for others between two iterations."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
import torch

from streamdrop.engine import FineTuner
from streamdrop.errors import TrainingError
from streamdrop.policies import SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.store import LmdbStore, MemoryStore, read_ahead
from streamdrop.store.prefetch import Stored
from streamdrop.testing.tuners import SmallNet, labelled_batch, small_tuner
from streamdrop.types import RoundReport

BATCH = labelled_batch(25)


def newest(keys: list[bytes], iteration: int, generator: torch.Generator) -> Sequence[bytes]:
    """Four of the eight newest samples, and so of those that came last."""
    return [keys[-8:][i] for i in torch.randperm(min(8, len(keys)), generator=generator)[:4].tolist()]


def in_pieces(tuner: FineTuner, steps: int, deadline: float | None = None) -> tuple[RoundReport, int]:
    tuner.split.model.eval()  # as the caller has it, it is between two pieces
    pieces, count = tuner.round_by_steps(steps, newest, deadline), 0
    while True:
        try:
            next(pieces)
        except StopIteration as ended:
            return ended.value, count + 1
        count += 1
        assert not any(module.training for module in tuner.split.model.modules())
        tuner.predict(BATCH.images[:2])


def weights(tuner: FineTuner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in tuner.split.model.parameters()])


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"strategy": "freeze"}, {"read_ahead": 0}])
def test_a_round_in_pieces_ends_in_the_weights_of_a_whole_one(options: dict[str, object]) -> None:
    whole, pieces = (small_tuner(batch=BATCH, policy=SchedulePolicy({1: 2}), **options) for _ in range(2))
    torch.manual_seed(5)
    for number in range(1, 5):
        report = whole.fit_round(steps=5, sampler=newest)
        if pieces.moving:
            assert number == 2
            other, count = pieces.fit_round(steps=5, sampler=newest), 5
        else:
            other, count = in_pieces(pieces, 5)
        assert count == 5
        assert torch.equal(weights(whole), weights(pieces))
        for name in ("round", "cut", "next_cut", "loss", "samples", "iterations", "cut_short", "forward_macs", "lr"):
            assert getattr(other, name) == getattr(report, name), name
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))  # nobody's random numbers were touched


@pytest.mark.parametrize("on_disk", [False, True])
def test_samples_come_and_go_between_pieces(on_disk: bool, tmp_path: object) -> None:
    store = LmdbStore(f"{tmp_path}/s", max_samples=10) if on_disk else MemoryStore(max_samples=10)
    tuner = small_tuner(batch=labelled_batch(10), policy=SchedulePolicy(), store=store)
    drawn: list[bytes] = []

    def sampler(keys: list[bytes], iteration: int, generator: torch.Generator) -> Sequence[bytes]:
        drawn.extend(newest(keys, iteration, generator))
        return drawn[-4:]

    pieces = tuner.round_by_steps(5, sampler)
    for piece in range(4):
        next(pieces)
        tuner.observe(labelled_batch(10, first=10 * (piece + 1)))  # all others have to go
    with pytest.raises(StopIteration) as ended:
        next(pieces)
    assert ended.value.value.iterations == 5
    assert [int.from_bytes(key, "big") // 10 for key in drawn[::4]] == [0, 1, 2, 3, 4]
    store.close()


def test_a_deadline_counts_the_time_in_pieces_only() -> None:
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy())
    report, count = in_pieces(tuner, 5, deadline=1e-9)
    assert (report.cut_short, report.iterations, count) == (True, 1, 1)
    report, count = in_pieces(tuner, 5, deadline=1e9)
    assert (report.cut_short, report.iterations, count) == (False, 5, 5)
    assert report.train_seconds <= report.seconds


def test_a_round_that_moves_the_store_is_refused() -> None:
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy({1: 2}))
    in_pieces(tuner, 2)
    assert tuner.moving
    with pytest.raises(TrainingError, match="fit_round"):
        next(tuner.round_by_steps(2, newest))
    assert tuner.fit_round(steps=2, sampler=newest).stored
    assert not tuner.moving


def test_nothing_stored_is_refused() -> None:
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy())
    tuner.store.discard(BATCH.keys)
    with pytest.raises(TrainingError, match="nothing is stored"):
        next(tuner.round_by_steps(2, newest))


def test_saved_between_pieces_it_goes_on_with_the_next_round(tmp_path: object) -> None:
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy())
    pieces = tuner.round_by_steps(5, newest)
    next(pieces)
    tuner.save(f"{tmp_path}/c")
    pieces.close()
    split = SplitModel(SmallNet(), BATCH.images[:2])
    again = FineTuner.load(
        f"{tmp_path}/c", split, loss=tuner.loss, optimizer=lambda p: torch.optim.SGD(p, 0.02, 0.9, weight_decay=1e-3),
        policy=SchedulePolicy(),
    )  # fmt: skip
    assert torch.equal(weights(again), weights(tuner))
    reports = [t.fit_round(steps=3, sampler=newest) for t in (tuner, again)]
    assert reports[0].round == reports[1].round == 2
    assert torch.equal(weights(again), weights(tuner))


@pytest.mark.parametrize("failing", [False, True])
def test_what_was_read_is_let_go_of_before_the_round_is_told(failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline leaves batches unread: their reading ends with the round, not when someone lets go of its report."""
    reading: list[object] = []

    def watched(*given: object, **more: object) -> Generator[Stored, None, None]:
        reading.append(given)
        try:
            yield from read_ahead(*given, **more)  # type: ignore[arg-type]
        finally:
            reading.clear()

    def told(tuner: FineTuner, report: RoundReport) -> None:
        assert not reading
        if failing:
            raise TrainingError("of the callback's own")

    monkeypatch.setattr("streamdrop.feed.read_ahead", watched)
    tuner = small_tuner(batch=BATCH, policy=SchedulePolicy(), callbacks=[told])
    pieces = tuner.round_by_steps(5, newest, deadline=1e-9)
    with pytest.raises(TrainingError if failing else StopIteration):
        next(pieces)
    given_up = tuner.round_by_steps(5, newest)
    next(given_up)
    assert reading
    given_up.close()
    assert not reading
