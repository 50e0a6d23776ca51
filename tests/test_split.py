"""Laws and traps of the split on small hand-made networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamdrop.errors import DataError, ModelError, TraceError
from streamdrop.split import SplitModel, run_in_chunks, transformer_blocks
from streamdrop.testing.splits import check_split
from streamdrop.tracing.observe import observe
from streamdrop.tracing.trace import trace_modes
from streamdrop.tracing.values import Values, storage_of, tensors


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Net(nn.Module):
    """Three convolutions; ``run`` says what to do with them."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 4)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *x):
        return self.run(self, *x)


def in_place(net, x):
    y = net.a(x)
    y.add_(1)
    F.relu_(y)
    z = net.b(y)
    y += z
    w = net.c(y) + z.mul_(2)
    w[:, 0] = 0.5
    w[:, :1] *= 2
    return w + y


def alias(net, x):
    y = net.a(x)
    view = y.view(y.size(0), -1)
    z = net.c(net.b(y))
    view.add_(1)
    return z + y


def writes_input(net, x):
    x.sub_(0.5)
    y = net.b(net.a(F.relu_(x)))
    return net.c(y) + x.mul_(2).mean(1, keepdim=True)


def twice(net, x):
    return net.c(F.relu(net.b(F.relu(net.b(net.a(x))))))


def sizes(net, x):
    n, h, w = x.shape[0], x.shape[2], x.size(3)
    y = net.b(F.max_pool2d(net.a(x), 2))
    y = F.interpolate(net.c(y), size=x.shape[-2:])
    return y.reshape(n, -1, h * w).mean(2) + torch.arange(4).expand(n, 4)


def chunks(net, x):
    left, right = net.a(x).chunk(2, 1)
    parts = torch.split(net.b(torch.cat([right, left], 1)), [1, 3], dim=1)
    return torch.cat([parts[1], *net.c(torch.cat([*parts], 1)).unbind(1)[0].unsqueeze(1).split(1, 1)], 1)


def windows(net, x):
    y = net.a(x)
    n, c, h, w = y.shape
    y = y.reshape(n, c, 2, h // 2, w).transpose(1, 2).reshape(-1, c, h // 2, w)
    y = net.b(y).reshape(n, 2, c, h // 2, w).transpose(1, 2).reshape(n, c, h, w)
    return net.c(y)


def structured(net, x):
    y = net.a(x)
    return {"first": y, "rest": [net.c(net.b(y)), (y * 2,)]}


def decides_on_sizes(net, x):
    assert x.dim() == 4
    assert len(x.shape) == 4
    y = net.b(net.a(x))
    if y.shape[2] % 3:
        y = F.pad(y, (0, 0, 0, 3 - y.shape[2] % 3))
    return sum(net.c(y)[:, i] for i in range(y.shape[1])) / int(x.shape[-1])


def by_mode(net, x):
    y = F.dropout(F.relu(net.a(x)), 0.3, training=net.training)
    if net.training:
        y = y + torch.randn(y.shape) + torch.rand(1)
    y = net.c(F.dropout2d(net.b(y), 0.2, net.training))
    return (y, net.aux(y)) if net.training else y


def auxiliary(net, x):
    y = F.relu(net.a(x))
    aux = net.aux(net.drop(y)) if net.training else None
    y = net.drop(net.c(F.relu(net.norm(net.b(y)), inplace=True)))
    return {"out": y, "aux": aux} if net.training else {"out": y}


def own_weights(net, x):
    y = net.b(F.conv2d(F.conv2d(x, net.a.weight, padding=1), net.weight * net.scale, padding=1))
    return net.c(y) * net.scale


class Counting(nn.Module):
    """Writes its own buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4, 1, 1))

    def forward(self, x):
        self.count += 1
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))[:, None, None]
        return x - self.mean


class DropPath(nn.Module):
    def forward(self, x):
        return x * (torch.rand(len(x), 1, 1, 1) > 0.5) if self.training else x


class Gate(nn.Module):
    """Decides on values: no trace can follow."""

    def __init__(self):
        super().__init__()
        self.inner = conv(4, 4)

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else -self.inner(x)


def through(net, x):
    return net.c(net.part(net.b(net.a(x))))


NETS = {
    "in place": lambda: Net(in_place),
    "alias written later": lambda: Net(alias),
    "writes its input": lambda: Net(writes_input),
    "convolution used twice": lambda: Net(twice),
    "sizes read from the input": lambda: Net(sizes),
    "chunks": lambda: Net(chunks),
    "windows": lambda: Net(windows),
    "structured output": lambda: Net(structured),
    "decides on sizes": lambda: Net(decides_on_sizes),
    "functional by mode": lambda: Net(by_mode, aux=conv(4, 2)),
    "auxiliary": lambda: Net(auxiliary, aux=conv(4, 2), norm=nn.BatchNorm2d(4), drop=nn.Dropout(0.3)),
    "own weights": lambda: Net(
        own_weights, weight=nn.Parameter(torch.randn(4, 4, 3, 3)), scale=nn.Parameter(torch.ones(1))
    ),
    "unused": lambda: Net(twice, spare=conv(4, 4), loose=nn.Parameter(torch.ones(3))),
    "buffers": lambda: Net(through, part=Counting()),
    "drop path": lambda: Net(through, part=nn.Sequential(DropPath(), nn.Dropout(0.2, inplace=True))),
    "norms": lambda: Net(through, part=nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.SiLU(True))),
    "spectral": lambda: Net(through, part=nn.utils.parametrizations.spectral_norm(conv(4, 4))),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_laws_on_hand_made_networks(name, training):
    torch.manual_seed(0)
    check_split(NETS[name]().train(training), torch.randn(1, 3, 8, 8), batch=4)


def test_channels_last_and_two_inputs():
    def both(net, x, y, scale=2.0):
        return net.c(net.b(net.a(x)) * scale + net.a(y)) + y.mean((1, 2, 3), keepdim=True)

    example = (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))
    split = check_split(Net(both).to(memory_format=torch.channels_last), example)
    assert split.layers == ("a", "c")  # b lies between two uses of a
    with pytest.raises(DataError, match="takes 2 tensors"):
        split.head(0)(example[0])


def test_layers_used_together_are_one_and_no_cut_lies_between_uses():
    net = Net(lambda net, x: net.c(net.b(net.c(net.a(x)))))
    split = check_split(net, torch.randn(1, 3, 8, 8))
    assert split.layers == ("a", "c")
    assert {id(p) for p in split.layer_parameters("c")} == {id(net.c.weight), id(net.b.weight)}


def test_the_cut_is_after_the_pool_where_least_is_live():
    split = SplitModel(Net(lambda net, x: net.c(net.b(F.max_pool2d(F.relu(net.a(x)), 2)))), torch.randn(2, 3, 8, 8))
    assert split.live_bytes(1) == 4 * 4 * 4 * 4


def test_tied_weights_are_one_layer():
    net = nn.Sequential(conv(3, 4), conv(4, 4), nn.ReLU(True), conv(4, 4), nn.Sequential(conv(4, 4)))
    net[3].weight = net[1].weight
    assert check_split(net, torch.randn(1, 3, 8, 8)).layers == ("0", "3", "4.0")


def test_transformer_encoder_layers_as_units():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = conv(3, 4)
            self.place = nn.Parameter(torch.randn(1, 64, 4))
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True) for _ in range(3))

        def forward(self, x):
            y = self.embed(x).flatten(2).transpose(1, 2) + self.place
            for block in self.blocks:
                y = block(y)
            return y[:, 0]

    split = check_split(Tokens(), torch.randn(1, 3, 8, 8), transformer_blocks)
    assert split.layers == ("blocks.0", "blocks.1", "blocks.2")


def test_an_untraceable_branch_is_named_and_runs_as_a_leaf():
    net = Net(through, part=Gate())
    with pytest.raises(TraceError, match=r"'part' \(Gate\).*leaves=.*layers="):
        SplitModel(net, torch.randn(1, 3, 8, 8))
    assert check_split(net, torch.randn(1, 3, 8, 8), leaves=["part"]).layers == ("a", "b", "part.inner", "c")
    assert check_split(net, torch.randn(1, 3, 8, 8), ["a", "b", "part", "c"]).layers == ("a", "b", "part", "c")


def test_a_size_that_would_be_frozen_is_refused():
    frozen = Net(lambda net, x: net.c(net.b(net.a(x))).reshape(int(x.shape[0]), -1))
    with pytest.raises(TraceError, match="batch size"):
        SplitModel(frozen, torch.randn(1, 3, 8, 8))
    split = SplitModel(Net(decides_on_sizes), torch.randn(1, 3, 8, 8))
    with pytest.raises(TraceError, match=r"for the example .* split again with an example of this size"):
        split.head(0)(torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize(
    ("layers", "message"), [(["a", "bb"], "did you mean 'b'"), ("a", "one string"), (lambda n, m: False, "no layer")]
)
def test_layers_that_are_not_there_are_refused(layers, message):
    with pytest.raises(ModelError, match=message):
        SplitModel(Net(twice), torch.randn(1, 3, 8, 8), layers)


@pytest.mark.parametrize("example", [None, torch.tensor(1.0), (torch.ones(1, 3, 8, 8), torch.ones(2, 3, 8, 8)), "x"])
def test_examples_that_cannot_be_split_on_are_refused(example):
    with pytest.raises(DataError):
        SplitModel(Net(twice), example)


def test_cuts_that_do_not_exist_are_refused():
    split = SplitModel(Net(twice), torch.randn(1, 3, 8, 8))
    for call in (lambda: split.tail(3), lambda: split.head(-1), lambda: split.step(1, 0)):
        with pytest.raises(ModelError):
            call()


def test_pieces_follow_the_models_mode_and_their_own():
    net = Net(by_mode, aux=conv(4, 2))
    split = SplitModel(net, torch.randn(1, 3, 8, 8))
    head, x = split.head(1), split.tail(1).eval()(torch.randn(2, 3, 8, 8))
    assert isinstance(head.train()(x), tuple)
    assert isinstance(head.eval()(x), torch.Tensor)
    net.train()
    assert isinstance(head(x), tuple)
    net.eval()
    assert isinstance(head(x), torch.Tensor)


def test_version_tells_what_the_activations_depend_on():
    net = Net(through, part=nn.BatchNorm2d(4))
    split = SplitModel(net, torch.randn(1, 3, 8, 8))
    versions = [split.version(c) for c in range(3)]
    assert versions[0] == ""
    assert split.version(0, "scaled") != ""
    assert len({*versions, split.version(1, "scaled"), split.version(0, "scaled")}) == 5
    with torch.no_grad():
        net.c.weight.add_(1)
    assert [split.version(c) for c in range(3)] == versions
    with torch.no_grad():
        net.b.bias.add_(1)
    assert split.version(1) == versions[1]
    assert split.version(2) != versions[2]


def test_a_split_may_name_its_preparation_once_for_all_versions():
    x = torch.randn(2, 3, 8, 8)
    plain = SplitModel(Net(through, part=nn.BatchNorm2d(4)), x)
    named = SplitModel(plain.model, x, preparation="ImageNet mean, 224 px")
    assert [named.version(c) for c in range(3)] == [plain.version(c, "ImageNet mean, 224 px") for c in range(3)]
    assert [named.version(c, "") for c in range(3)] == [plain.version(c) for c in range(3)]
    with pytest.raises(ModelError, match="say in words"):
        SplitModel(plain.model, x, preparation=lambda image: image)


def test_buffers_moved_after_the_split_are_followed():
    class Normed(Net):
        def __init__(self):
            super().__init__(lambda net, x: net.c(net.b(net.a(x - net.mean))))
            self.register_buffer("mean", torch.ones(3, 1, 1))

    net = Normed().eval()
    split = SplitModel(net, torch.randn(1, 3, 8, 8))
    head, x = split.head(0), torch.randn(2, 3, 8, 8).double()
    net.double()
    assert torch.equal(head(x), net(x))


def test_chunks_restore_modes_and_refuse_nothing():
    split = SplitModel(Net(through, part=nn.Dropout()), torch.randn(1, 3, 8, 8))
    tail = split.tail(2).train()
    x = torch.randn(5, 3, 8, 8)
    once, again = run_in_chunks(tail, (x,), 2), run_in_chunks(tail, (x,), 64)
    assert torch.equal(once[0], again[0])
    assert all(part.training for part in tail.modules())
    with pytest.raises(DataError, match="no samples"):
        run_in_chunks(tail, (x[:0],), 2)


def outline(net, run):
    """A run's memory by order of appearance: which nodes share it, whatever its addresses."""
    numbers = {storage_of(parameter): index for index, parameter in enumerate(net.parameters())}

    def number(names):
        return sorted(numbers.setdefault(name, len(numbers)) for name in sorted(names, key=lambda n: numbers.get(n, n)))

    return [
        (node.name, len(s.storages), number(s.storages | s.reads), number(s.writes), s.macs)
        for node, s in run.seen.items()
    ]


@pytest.mark.parametrize("run", [in_place, alias, writes_input, twice])
@pytest.mark.parametrize("count", [False, True])
def test_memory_that_is_used_again_is_told_from_what_it_was(run, count, monkeypatch):
    net, x = Net(run), torch.rand(2, 3, 8, 8)
    (trace, _) = trace_modes(net, (x,), ["a", "b", "c"], [])
    sparing = outline(net, observe(trace, net, (x,), False, count=count))
    monkeypatch.setattr(Values, "let_go_after", lambda self, node: None)
    assert sparing == outline(net, observe(trace, net, (x,), False, count=count))


def test_a_split_does_not_hold_all_activations_at_once(monkeypatch):
    most = [0]
    real = Values.hold

    def hold(self, node, value):
        real(self, node, value)
        held = {storage_of(t): t.untyped_storage().nbytes() for v in self.of.values() for t in tensors(v)}
        most[0] = max(most[0], sum(held.values()))

    monkeypatch.setattr(Values, "hold", hold)
    layers = [layer for _ in range(12) for layer in (conv(4, 4), nn.BatchNorm2d(4), nn.ReLU())]
    SplitModel(nn.Sequential(conv(3, 4), *layers), torch.rand(1, 3, 32, 32))
    one = 3 * 4 * 32 * 32 * 4
    assert one <= most[0] <= 4 * one
