"""A sample's bits in dropped layers do not depend on the batch that it is in, nor on its place there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdrop.engine import FineTuner
from streamdrop.policies import SchedulePolicy
from streamdrop.split import run_in_chunks
from streamdrop.testing.tuners import check_drop_equals_freeze, small_tuner
from streamdrop.tracing.places import PlaceFree
from streamdrop.types import Batch


class Made(nn.Module):
    """A module of a function, given the layers too."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def attention(x: Tensor) -> Tensor:
    return (x @ x.mT).softmax(-1) @ x


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "silu": (F.silu, (6, 1, 1)),
    "silu in place": (lambda x: F.silu(x.clone(), inplace=True), (13, 7, 7)),
    "silu, large": (F.silu, (32, 56, 56)),
    "gelu, turned": (lambda x: F.gelu(x.mT, approximate="tanh"), (32, 56)),
    "softplus, sequence first": (lambda x: F.softplus(x.transpose(0, 1)).transpose(0, 1), (13, 7)),
    "sigmoid, with gaps": (lambda x: torch.sigmoid(x[:, ::2]) * x[:, :1], (6, 9, 9)),
    "elu, channels last": (lambda x: F.elu(x.contiguous(memory_format=torch.channels_last)), (6, 9, 9)),
    "powers": (lambda x: x.abs() ** 2.3 + 2.0**x + x.abs().pow(x[:, :1]), (10,)),
    "atan2": (lambda x: torch.atan2(x, x.roll(1, -1)[:, :1]), (3, 7)),
    "softmax of channels": (partial(F.softmax, dim=1), (16, 33, 33)),
    "gated": (lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1), (13, 5)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 9, 6)),
    "attention by hand": (attention, (2, 7, 13)),
}

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "linear on 3": (lambda: nn.Linear(13, 7), (9, 13)),
    "gru": (lambda: Made(lambda x, layer: layer(x)[0], nn.GRU(13, 7, batch_first=True)), (5, 13)),
    "squeezed": (
        lambda: nn.Sequential(nn.Conv2d(13, 10, 1), nn.SiLU(), nn.Conv2d(10, 13, 1), nn.Sigmoid()),
        (13, 1, 1),
    ),
    "convolution": (lambda: nn.Conv2d(6, 11, 3, padding=1), (6, 9, 9)),
    "grouped": (lambda: nn.Conv1d(6, 6, 3, groups=6), (6, 9)),
    "heads": (lambda: Made(lambda x, a: a(x, x, x)[0], nn.MultiheadAttention(30, 3, batch_first=True)), (9, 30)),
    "heads alone": (
        lambda: Made(lambda x, a: a(x, x, x, need_weights=False)[0], nn.MultiheadAttention(30, 3, batch_first=True)),
        (9, 30),
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(30, 3, 50, batch_first=True), (9, 30)),
}


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check_place_free(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = torch.randn(40, *shape, dtype=dtype)
    (wanted,) = run_in_chunks(module.to(dtype), (given,), 64)
    for count in (1, 3, 7, 13, 24, 40):
        for chunk in (4, 12, 64):
            order = torch.randperm(40)[:count]
            (found,) = run_in_chunks(module, (given[order],), chunk)
            assert torch.equal(found, wanted[order]), f"{count} samples in chunks of {chunk}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("threads")
def test_functions_give_a_sample_the_same_bits_at_every_place(name, dtype):
    function, shape = FUNCTIONS[name]
    check_place_free(Made(function), shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("threads")
def test_layers_of_odd_sizes_give_a_sample_the_same_bits_at_every_place(name, dtype):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    check_place_free(make(), shape, dtype)


def test_a_number_of_another_dtype_changes_no_dtype():
    exponent = torch.tensor(1.5, dtype=torch.float64)
    (found,) = run_in_chunks(Made(lambda x: x.abs() ** exponent + exponent.sigmoid()), (torch.randn(5, 3),), 64)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", FUNCTIONS)
def test_run_another_way_functions_say_the_same_but_for_rounding(name):
    function, shape = FUNCTIONS[name]
    given = torch.randn(5, *shape)
    (found,) = run_in_chunks(Made(function), (given,), 64)
    assert torch.allclose(found, function(given), rtol=1e-5, atol=1e-6)


def test_no_function_of_torch_s_rounds_by_place():
    """Measured anew for each that works number by number: a new torch may have others."""
    calls = [call for name in dir(torch.ops.aten) for call in _by_number(name)]
    torch.manual_seed(0)
    assert any(map(_depends_on_place, calls)), "the measurement sees none"
    torch.manual_seed(0)
    with PlaceFree():
        assert not [call.keywords["func"].__name__ for call in calls if _depends_on_place(call)]


def _by_number(name: str) -> Iterator[partial[Any]]:
    """The overloads of a function that works number by number, on as many tensors as it takes; no gradients of any."""
    packet = getattr(torch.ops.aten, name)
    if name.endswith(("_", "_backward")) or not hasattr(packet, "overloads"):
        return
    for overload in packet.overloads():
        func = getattr(packet, overload)
        needed = [a for a in func._schema.arguments if not (a.kwarg_only or a.has_default_value())]
        kinds = [str(a.type) for a in needed]
        known = all(kind in ("Tensor", "number", "Scalar") for kind in kinds)
        if torch.Tag.pointwise in func.tags and known and not any(a.is_out for a in func._schema.arguments):
            yield partial(_called, func=func, kinds=kinds)


def _called(*tensors: Tensor, func: Any, kinds: list[str]) -> Any:
    return func(*(x if kind == "Tensor" else 1.7 for kind, x in zip(kinds, tensors, strict=False)))


def _depends_on_place(call: Callable[..., Any]) -> bool:
    for dtype in (torch.float32, torch.float64):
        for trial in range(6):
            xs = [torch.rand(4, 97, dtype=dtype) * 0.98 + 0.01 for _ in range(4)]
            if trial % 2:
                xs[0] = torch.randn(4, 97, dtype=dtype) * 3
            order = torch.randperm(4)
            try:
                found, moved = call(*xs), call(*(x[order] for x in xs))
            except (RuntimeError, TypeError, NotImplementedError):  # it takes no such numbers
                return False
            if not isinstance(found, Tensor) or found.shape != xs[0].shape:
                return False
            if not torch.equal(found[order].nan_to_num(), moved.nan_to_num()):
                return True
    return False


class Squeezing(nn.Module):
    """Channels weighed by a squeeze of six, as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.down, self.up = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        weights = torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(F.silu(self.second(x * weights)).mean((2, 3)))


def perceptron() -> nn.Module:
    first, second, third = nn.Linear(27, 6), nn.Linear(6, 6), nn.Linear(6, 6)
    return nn.Sequential(nn.Flatten(), first, nn.Softplus(), second, nn.SiLU(), third, nn.ELU(), nn.Linear(6, 5))


@pytest.mark.parametrize(("make", "layers", "size"), [(Squeezing, None, 12), (perceptron, ["1", "3", "5"], 3)])
@pytest.mark.usefixtures("threads")
def test_networks_whose_sizes_fill_no_vectors_drop_as_they_freeze(make, layers, size):
    torch.manual_seed(0)
    images, targets = torch.randn(37, 3, size, size), torch.randint(0, 5, (37,))
    batch = Batch([b"%03d" % i for i in range(37)], images, targets)

    def tuner(strategy: str) -> FineTuner:
        torch.manual_seed(1)
        policy = SchedulePolicy({1: 2})
        return small_tuner(make(), batch=batch, layers=layers, policy=policy, batch_size=8, strategy=strategy)

    check_drop_equals_freeze(tuner, rounds=6)
