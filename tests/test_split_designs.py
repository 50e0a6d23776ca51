"""Designs of networks that were once refused, or split so that they trained otherwise than the model."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamdrop.errors import DataError, TraceError
from streamdrop.nested import mapped
from streamdrop.rounds import predicted
from streamdrop.split import SplitModel
from streamdrop.testing.splits import check_split

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Queries(nn.Module):
    """Attention of learned queries, as pooling heads and detectors have it: a view of a weight goes into a module."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 2, 4))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        y, _ = self.attention(self.queries.expand(x.shape[0], -1, -1), x, x)
        return self.second(y)


def test_a_view_of_a_weight_may_go_into_a_module() -> None:
    assert check_split(Queries(), TOKENS, ["first", "attention", "second"]).macs(0) > 0


class Two(nn.Module):
    """Two convolutions; ``between`` is what its own forward does after the first."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), between
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self, self.first(x)))


def check_gradients(model: nn.Module) -> SplitModel:
    """Assert the laws, and that a head of all layers gets the gradients, and leaves the buffers, of the model."""
    split = check_split(model, IMAGES)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    results = []
    for part in (model.train(), split.head(0)):
        model.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        part(IMAGES.clone()).square().sum().backward()
        found = [p.grad for p in model.parameters()]
        results.append([*found, *(buffer.clone() for buffer in model.buffers())])
    for mine, own in zip(*results, strict=True):
        assert (mine is None) == (own is None)
        assert mine is None or torch.equal(mine, own)
    return split


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        return (x * scale).round() / scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return 2 * gradient, None


def checkpointed(reentrant: bool) -> Callable[[Any, Tensor], Tensor]:
    return lambda model, x: checkpoint(lambda y: y.sigmoid() * y, x, use_reentrant=reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "between",
    [lambda model, x: Rounded.apply(x, 8.0), checkpointed(True), checkpointed(False)],
    ids=["straight-through", "checkpoint-reentrant", "checkpoint"],
)
def test_autograd_functions_keep_their_backward_pass(between: Callable[[Any, Tensor], Tensor]) -> None:
    model = Two(between)
    check_gradients(model)
    assert model.first.weight.grad is not None


def test_an_autograd_function_of_what_no_graph_can_hold_is_refused_beside_layers() -> None:
    class Called(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, function: Any, x: Tensor) -> Tensor:
            return function(x)

    with pytest.raises(TraceError, match="gives Called something that no graph can hold"):
        SplitModel(Two(lambda model, x: Called.apply(torch.relu, x)), IMAGES)


def swapped(model: Two, x: Tensor) -> Tensor:
    view = x[:, :2]
    x += 1
    view *= 2
    return x


def counted(model: Two, x: Tensor) -> Tensor:
    if model.training:
        model.seen += 1
    return x + model.seen.view(-1, 1, 1)


def followed(model: Two, x: Tensor) -> Tensor:
    with torch.no_grad():
        if model.training:
            model.seen.lerp_(x.mean((0, 2, 3)), 0.1)
            model.seen += 1
        x *= 2
        x[:, 0] = x[:, 1]
    return x + model.seen.view(-1, 1, 1)


def sized(model: Two, x: Tensor) -> Tensor:
    count = x.shape[0]
    before = count
    count *= x.shape[1]
    return x.reshape(count, -1).view(before, *x.shape[1:])


@pytest.mark.parametrize("between", [swapped, counted, followed, sized])
def test_augmented_assignments_write_in_place(between: Callable[[Any, Tensor], Tensor]) -> None:
    assert len(check_gradients(Two(between)).layers) == 2


def test_what_is_written_without_gradients_keeps_its_history() -> None:
    def scaled(model: Two, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.mul_(2)

    check_gradients(Two(scaled))


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x.flatten(1) @ x.flatten(1).mT).float().mean() * x


def test_autocast_is_kept_in_one_piece_or_refused_with_the_reason() -> None:
    check_split(nn.Sequential(nn.Conv2d(3, 4, 3), Cast(), nn.Conv2d(4, 4, 3)), IMAGES)

    def cast(model: Two, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.second(x).float().repeat(1, 2, 1, 1)

    with pytest.raises(TraceError, match=r"switches torch\.autocast"):
        SplitModel(Two(cast), IMAGES)


def linear(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def test_layers_inside_a_module_of_torch_that_cannot_be_followed_are_one_unit() -> None:
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    split = check_split(nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 4)), TOKENS, linear)
    assert split.layers == ("0", "1.linear2", "2")
    assert len(split.layer_parameters("1.linear2")) == 3  # out_proj and both linear ones


def test_rows_that_are_as_many_as_samples_by_chance_are_no_batch() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            picked = self.second(x[x[:, 0] > -9])  # all of them
            return self.third(torch.zeros_like(x).index_add(0, (x[:, 0] > -9).nonzero()[:, 0], picked))

    split = SplitModel(Sparse(), torch.rand(2, 4), linear)
    assert split.layers == ("first", "third")


class Fields(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Data:
    first: Tensor
    second: Tensor | None = None


@dataclass
class Outputs(OrderedDict[str, Tensor]):
    """An output as Hugging Face's models give it: a dict of the fields that are there."""

    first: Tensor | None = None
    missing: Tensor | None = None
    second: Tensor | None = None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        self.update({name: value for name, value in given.items() if value is not None})


class Named(dict[str, Tensor]):
    pass


class Giving(nn.Module):
    """Two convolutions whose outputs are given in a container."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.give = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), give

    def forward(self, x: Tensor) -> Any:
        first = self.first(x)
        return self.give(first, self.second(first))


CONTAINERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda a, b: {1: a, "b": [b, None, 3]},
    "OrderedDict": lambda a, b: OrderedDict(first=a, second=b),
    "defaultdict": lambda a, b: defaultdict(list, first=a, second=b),
    "subclass of dict": lambda a, b: Named(first=a, second=b),
    "namedtuple": Fields,
    "dataclass": Data,
    "dataclass and dict": lambda a, b: Outputs(first=a, second=b),
    "one in the other": lambda a, b: [OrderedDict(out=(a, {"deep": Named(b=b)}))],
}


def described(value: Any) -> Any:
    """A value with its types, tensors as lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    parts = [(name, getattr(value, name)) for name in getattr(value, "__dataclass_fields__", ())]
    parts += list(value.items()) if isinstance(value, dict) else []
    parts += list(enumerate(value)) if isinstance(value, (tuple, list)) else []
    return type(value), [(key, described(part)) for key, part in parts] or repr(value)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_head_gives_what_the_model_gives_in_the_same_container(kind: str) -> None:
    model = Giving(CONTAINERS[kind]).eval()
    split = check_split(model, IMAGES)
    wanted = described(model(IMAGES))
    assert described(split.head(0)((IMAGES,))) == wanted
    assert described(split.head(1)(split.tail(1)(IMAGES))) == wanted
    twice = predicted(model, (torch.cat((IMAGES, IMAGES)),), 2, torch.device("cpu"))
    assert described(mapped(lambda tensor: tensor[2:], twice)) == wanted


class Sized(dict[str, Tensor]):
    def __init__(self, size: int, **items: Tensor) -> None:
        super().__init__(**items)


class Paired(dict[str, Tensor]):
    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__(first=first, second=second)


@pytest.mark.parametrize("give", [lambda a, b: Sized(3, first=a, second=b), Paired])
def test_a_container_that_cannot_be_made_anew_is_refused(give: Callable[[Tensor, Tensor], Any]) -> None:
    with pytest.raises(TraceError, match="cannot be traced"):
        SplitModel(Giving(give), IMAGES)


def test_outputs_without_a_batch_dimension_are_not_joined() -> None:
    model = Giving(lambda a, b: (b, a.mean()))
    assert predicted(model, (IMAGES,), 2, torch.device("cpu"))[1].dim() == 0
    with pytest.raises(DataError, match="batch dimension"):
        predicted(model, (IMAGES,), 1, torch.device("cpu"))
