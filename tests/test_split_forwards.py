"""What a forward may do that a trace cannot show: it is followed, run as one piece, or refused; never wrong."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, randn

from streamdrop.engine import FineTuner
from streamdrop.errors import TraceError
from streamdrop.policies import SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.testing.splits import check_split
from streamdrop.testing.tuners import check_drop_equals_freeze, labelled_batch

EXAMPLES = {
    "two": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    "zeros": torch.zeros(1, 3, 8, 8),
}


class Three(nn.Module):
    """Three convolutions; ``between`` is what its own forward does after the first."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor] = lambda model, x: x.relu()) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.last, self.between = nn.Linear(3, 3), between
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, self.first(x))
        return self.last(self.third(self.second(x).relu()).mean((2, 3)))


class Frozen(nn.Sequential):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def switched(model: Three, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    x = model.second(x)
    torch.set_grad_enabled(True)
    return x


def without(model: Three, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.second(x)


def inferred(model: Three, x: Tensor) -> Tensor:
    with torch.inference_mode():
        x = model.second(x)
    return x.clone()


@pytest.mark.parametrize("between", [without, switched, inferred])
def test_what_runs_without_gradients_has_none_in_a_head(between) -> None:
    model = Three(between)
    split = check_split(model, EXAMPLES["two"])
    model.zero_grad()
    split.head(0)(EXAMPLES["two"]).sum().backward()
    found = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model(EXAMPLES["two"]).sum().backward()
    assert found == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert "first.weight" not in found
    assert torch.is_grad_enabled()


def test_a_holder_whose_forward_is_without_gradients_is_followed() -> None:
    model = nn.Sequential(Frozen(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3)), nn.Conv2d(3, 3, 3))
    split = check_split(model, EXAMPLES["two"])
    split.head(0)(EXAMPLES["two"]).sum().backward()
    assert model[0][0].weight.grad is None
    assert model[1].weight.grad is not None
    assert split.layers == ("0.0", "0.2", "1")


MIXING = {
    "mean": lambda model, x: x - x.mean(0, keepdim=True),
    "roll": lambda model, x: torch.roll(x, 1, 0),
    "flip": lambda model, x: x.flip(0),
    "count": lambda model, x: x / x.shape[0],
    "position": lambda model, x: x + torch.arange(x.shape[0]).view(-1, 1, 1, 1),
    "noise": lambda model, x: x + torch.rand_like(x),
}


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("name", MIXING)
def test_no_cut_lies_above_what_mixes_samples(name, example) -> None:
    split = SplitModel(Three(MIXING[name]), EXAMPLES[example])
    assert split.layers == ("first", "third"), "second and third can only be dropped together, that is never"


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_cut_lies_above_batch_norm_by_the_batch(example) -> None:
    parts = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)]
    assert SplitModel(nn.Sequential(*parts), EXAMPLES[example]).layers == ("0", "3")
    parts[1] = nn.BatchNorm2d(3)
    assert SplitModel(nn.Sequential(*parts), EXAMPLES[example]).layers == ("0", "2", "3")


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.seen


def written(model: Three, x: Tensor) -> Tensor:
    model.mean.mul_(0.9).add_(x.mean((0, 2, 3)).detach() * 0.1)
    return x


def test_no_cut_lies_above_a_buffer_that_is_written_in_eval_mode() -> None:
    assert SplitModel(Three(written), EXAMPLES["two"]).layers == ("first", "third")
    parts = [nn.Conv2d(3, 3, 3), Counting(), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)]
    assert SplitModel(nn.Sequential(*parts), EXAMPLES["two"]).layers == ("0", "3")


@pytest.mark.parametrize("between", [MIXING["mean"], MIXING["roll"], written])
def test_drop_is_freeze_where_samples_mix(between) -> None:
    batch = labelled_batch(21)

    def make(strategy: str) -> FineTuner:
        torch.manual_seed(0)
        split = SplitModel(Three(between), batch.images[:2])
        tuner = FineTuner(
            split,
            loss=nn.functional.cross_entropy,
            optimizer=lambda parameters: torch.optim.SGD(parameters, 0.05),
            policy=SchedulePolicy({2: 1}),
            strategy=strategy,
            warm_up=1,
            batch_size=8,
        )
        tuner.observe(batch)
        return tuner

    check_drop_equals_freeze(make, 5)


def test_a_buffer_that_is_replaced_beside_layers_is_refused() -> None:
    def replaced(model: Three, x: Tensor) -> Tensor:
        model.mean = model.mean * 0.9 + x.mean((0, 2, 3)).detach() * 0.1
        return x

    with pytest.raises(TraceError, match=r"assigns 'mean'.*in place"):
        SplitModel(Three(replaced), EXAMPLES["two"])


def test_chance_that_a_trace_would_freeze_is_refused_or_runs_as_a_leaf() -> None:
    def noisy(model: Any, x: Tensor) -> Tensor:
        return x + randn(1, 3, 1, 1) if model.training else x

    def layer_drop(model: Three, x: Tensor) -> Tensor:
        return x + model.second(x) if model.training and random.random() < 0.5 else x

    class Noise(nn.Module):
        forward = noisy

    for between in (noisy, layer_drop):
        with pytest.raises(TraceError, match="draws random numbers"):
            SplitModel(Three(between), EXAMPLES["two"])
    split = check_split(nn.Sequential(nn.Conv2d(3, 3, 3), Noise(), nn.Conv2d(3, 3, 3)), EXAMPLES["two"])
    split.model.train()
    assert not torch.equal(split.head(0)(EXAMPLES["two"]), split.head(0)(EXAMPLES["two"]))


def test_scripted_modules_are_one_piece() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))
    check_split(nn.Sequential(nn.Conv2d(3, 3, 3), scripted, nn.Conv2d(3, 3, 3)), EXAMPLES["two"])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.LazyBatchNorm2d(), nn.Conv2d(3, 3, 3)), "no shape yet"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)).to("meta"), "meta device"),
    ],
)
def test_weights_that_are_not_there_are_named(module, message) -> None:
    with pytest.raises(TraceError, match=message):
        SplitModel(module, EXAMPLES["two"])


def test_the_kit_takes_double_and_tokens() -> None:
    check_split(Three().double(), EXAMPLES["two"].double())
    tokens = nn.Sequential(nn.Embedding(7, 4), nn.Conv1d(5, 5, 1), nn.Conv1d(5, 5, 1))
    check_split(tokens, torch.tensor([[0, 6, 3, 2, 1]]))


def test_strides_that_change_with_the_batch_are_no_mixing() -> None:
    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.contiguous(memory_format=torch.channels_last if len(x) > 2 else torch.contiguous_format)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Strided(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    assert SplitModel(model, EXAMPLES["two"], leaves=["1"]).layers == ("0", "2", "3")


def test_numbers_of_the_samples_mix_nothing_by_themselves() -> None:
    def numbered(model: nn.Module, x: Tensor) -> Tensor:  # as Hugging Face's attention masks are looked up
        rows = torch.arange(x.shape[0], device=x.device)
        return x[rows]

    assert check_split(Three(numbered), EXAMPLES["two"]).layers == ("first", "second", "third")


class Ranging(nn.Module):
    """Notes the range of what it sees, as quantisation's observers do: its buffers begin without a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.least.resize_(x.shape[1]).copy_(x.detach().amin((0, 2, 3)))
        return x


def test_a_buffer_that_takes_a_shape_when_it_is_written_is_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), Ranging(), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    split = SplitModel(model, EXAMPLES["two"], leaves=["1"])
    assert split.layers == ("0", "2", "3")
    assert model[1].least.shape == (0,)


@pytest.mark.parametrize("kind", ["compiled", "scripted"])
def test_what_a_compiler_made_of_a_model_is_refused_with_the_remedy(kind) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = (
            torch.compile(Three(None)) if kind == "compiled" else torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3)))
        )
    with pytest.raises(TraceError, match=f"{kind[:6]}.* split the one (that )?it was made of"):
        SplitModel(model, EXAMPLES["two"])
