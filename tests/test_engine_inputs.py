"""Models of several inputs, tokens among them, through tuner, thaw and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.errors import DataError, StoreError
from streamdrop.export import export
from streamdrop.policies import SchedulePolicy
from streamdrop.rounds import generator_of, seed_of, shuffled_batches
from streamdrop.split import SplitModel
from streamdrop.store import encode_source
from streamdrop.testing.tuners import check_drop_equals_freeze
from streamdrop.types import Batch

COUNT = 9
KEYS = [b"%d" % n for n in range(COUNT)]


class Mixed(nn.Module):
    """An image, a grey image and a token."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.grey = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)
        self.both, self.tokens, self.linear = nn.Conv2d(8, 4, 3), nn.Embedding(9, 2), nn.Linear(6, 3)

    def forward(self, colour: Tensor, grey: Tensor, token: Tensor) -> Tensor:
        maps = torch.cat([self.colour(colour).relu(), self.grey(grey).relu()], 1)
        output: Tensor = self.linear(torch.cat([self.both(maps).mean((2, 3)), self.tokens(token)], 1))
        return output


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    colour, grey = (torch.randn(COUNT, channels, 7, 7, generator=random) for channels in (3, 1))
    return colour, grey, torch.randint(9, (COUNT,), generator=random)


LABELS = torch.arange(COUNT) % 3


def tuner_of(inputs: tuple[Tensor, ...], strategy: str = "drop", **settings: Any) -> FineTuner:
    torch.manual_seed(0)
    tuner = FineTuner(
        SplitModel(Mixed(), tuple(one[:2] for one in inputs)),
        loss=functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9),
        policy=SchedulePolicy({2: 2}),
        strategy=strategy,
        batch_size=4,
        **settings,
    )
    tuner.observe(Batch(KEYS, inputs, LABELS))
    return tuner


def test_drop_equals_freeze_for_several_inputs(inputs: tuple[Tensor, ...]) -> None:
    drop, _ = check_drop_equals_freeze(lambda strategy: tuner_of(inputs, strategy), 4)
    assert drop[-1].cut == 2


def test_sgd_is_a_plain_loop_for_several_inputs(inputs: tuple[Tensor, ...]) -> None:
    tuner = tuner_of(inputs, "sgd")
    torch.manual_seed(0)
    model = Mixed()
    order = tuner.split.head_parameters(0)
    optimizer = torch.optim.SGD([model.get_parameter(name) for name in order], 0.1, 0.9)
    for round_ in (1, 2):
        tuner.fit_round()
        for index, keys in enumerate(shuffled_batches(KEYS, 4, generator_of(0, round_))):
            torch.manual_seed(seed_of(0, round_, index))
            rows = [int(key) for key in keys]
            optimizer.zero_grad()
            functional.cross_entropy(model(*(one[rows] for one in inputs)), LABELS[rows]).backward()
            optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tuner.split.model.state_dict()[name])


def test_new_samples_pass_the_tail_and_all_are_predicted(inputs: tuple[Tensor, ...]) -> None:
    tuner = tuner_of(inputs)
    for _ in range(3):
        tuner.fit_round()
    tuner.observe(Batch([b"more"], tuple(one[:1] for one in inputs), LABELS[:1]))
    assert tuner.store.cut == 2
    assert len(tuner.embed(inputs)) == len(tuner.store.get_many([b"more"]))
    with torch.no_grad():
        expected = torch.cat([tuner.split.model(*(one[at : at + 4] for one in inputs)) for at in (0, 4, 8)])
    assert torch.equal(tuner.predict(inputs), expected)


def test_several_inputs_are_made_anew_from_one_source(inputs: tuple[Tensor, ...]) -> None:
    def prepare(kept: Tensor) -> tuple[Tensor, ...]:
        return kept[:147].view(3, 7, 7), kept[147:196].view(1, 7, 7), kept[196].long()

    tuner = tuner_of(inputs, prepare=prepare)
    rows = zip(*inputs, strict=True)
    sources = {
        key: encode_source(torch.cat([one.flatten().float() for one in row]), "raw")
        for key, row in zip(KEYS, rows, strict=True)
    }
    tuner.observe(Batch(KEYS, inputs, LABELS), sources=sources)
    for _ in range(3):
        tuner.fit_round()
    tuner.thaw()
    assert all(map(torch.equal, tuner.store.get_many(KEYS), inputs))


def test_a_prepare_that_gives_no_tensor_is_named(inputs: tuple[Tensor, ...]) -> None:
    tuner = tuner_of(inputs, prepare=lambda kept: [1, 2])
    tuner.observe(Batch(KEYS, inputs, LABELS), sources={key: encode_source(torch.zeros(1), "raw") for key in KEYS})
    for _ in range(3):
        tuner.fit_round()
    with pytest.raises(StoreError, match="prepare gave a list"):
        tuner.thaw()


def test_another_number_of_inputs_is_refused(inputs: tuple[Tensor, ...]) -> None:
    tuner = tuner_of(inputs)
    for given, said in [
        (inputs[0], "1 tensors, but the model takes 3: give a tuple of 3"),
        (inputs[:2], "2 tensors, but the model takes 3"),
        ((*inputs[:2], inputs[2][:4]), r"hold \[9, 9, 4\] samples"),
    ]:
        for use in (tuner.predict, tuner.embed, lambda i: tuner.observe(Batch(KEYS, i, LABELS))):
            with pytest.raises(DataError, match=said):
                use(given)


@pytest.mark.parametrize(("part", "cut", "names"), [("whole", 0, "input_2"), ("tail", 2, "input_2"), ("head", 2, "")])
def test_several_inputs_are_exported(
    part: Any, cut: int, names: str, inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    made = export(tuner_of(inputs).split, inputs, tmp_path / "net.pt2", part, cut)
    assert made.error == 0.0
    assert list(made.inputs)[-1] == (names or "activation_1")
