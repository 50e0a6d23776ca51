"""A model, its tail and its head as files: what they give, what is refused, what is left behind."""

import pytest
import torch
from torch import nn

import streamdrop.export as exporting
from streamdrop.cli import main
from streamdrop.errors import ConfigError, ModelError, OutputError
from streamdrop.evaluation.networks import build_network
from streamdrop.export import export
from streamdrop.split import SplitModel

CUT = 2


class Net(nn.Module):
    """Two branches cross its cuts; dropout and BatchNorm tell eval mode from train mode."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.side = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.mix, self.drop, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.5), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.mix(torch.relu(self.side(x)))
        return self.last(self.drop(x.mean((2, 3))))


@pytest.fixture(scope="module")
def split():
    torch.manual_seed(0)
    model = Net()
    model.norm.running_mean.normal_()
    return SplitModel(model, torch.rand(2, 3, 8, 8))


@pytest.fixture
def example():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def load(path):
    """What runs a file: tensors in, a list of tensors out."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda *tensors: exporting._flat(module(*tensors))
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda *tensors: [
        torch.from_numpy(v) for v in session.run(None, {n: t.numpy() for n, t in zip(names, tensors, strict=True)})
    ]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_tail_then_head_give_what_the_whole_model_gives_for_any_batch(split, example, tmp_path, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    split.model.train()
    done = {part: export(split, example, tmp_path / f"{part}{suffix}", part, CUT) for part in exporting.PARTS}
    assert split.model.training  # modes are as they were
    split.model.eval()
    whole, tail, head = (load(done[part].path) for part in exporting.PARTS)
    for images in (example, torch.rand(5, 3, 8, 8), torch.rand(1, 3, 8, 8)):
        wanted = split.model(images).detach()
        assert torch.allclose(whole(images)[0], wanted, atol=1e-5)
        activations = tail(images)
        assert len(activations) == len(done["tail"].outputs) == len(done["head"].inputs)
        assert torch.allclose(head(*activations)[0], wanted, atol=1e-5)
    assert done["head"].inputs == done["tail"].outputs
    assert list(done["whole"].inputs.items()) == [("input", (2, 3, 8, 8))]
    assert max(one.error for one in done.values()) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {one.path.name for one in done.values()}


def test_a_file_that_gives_other_outputs_is_not_kept(split, example, tmp_path, monkeypatch):
    write = exporting._write

    def off(*arguments):
        run = write(*arguments)
        return lambda tensors: [tensor + 0.01 for tensor in run(tensors)]

    monkeypatch.setattr(exporting, "_write", off)
    with pytest.raises(ModelError, match=r"gives other outputs \(largest difference 0\.01.*tolerance 0\.0001\)"):
        export(split, example, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("own", "other", "apart"),
    [
        ([1e-6, -2e-6], [0.0, 0.0], 1.0),  # small outputs are measured against themselves
        ([200.0, 1.0], [200.0, 3.0], 0.01),
        ([1.0, 2.0], [1.0, NAN], INF),
        ([1.0, NAN], [1.0, 0.0], INF),
        ([1.0, INF], [1.0, -INF], INF),
        ([NAN, -INF, 4.0], [NAN, -INF, 4.0], 0.0),  # what a mask left out is left out in the file too
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_outputs_are_compared_in_units_of_their_own_size_and_none_is_let_through(own, other, apart):
    module = nn.Identity()
    found = exporting._difference(lambda _: [torch.tensor(other)], module, (torch.tensor(own),))
    assert found == pytest.approx(apart, rel=1e-5)


def test_an_older_file_stands_until_the_new_one_is_checked(split, example, tmp_path, monkeypatch):
    (tmp_path / "net.pt2").write_bytes(b"older")
    monkeypatch.setattr(exporting, "_difference", lambda *_: float("nan"))
    with pytest.raises(ModelError, match="not kept"):
        export(split, example, tmp_path / "net.pt2")
    assert (tmp_path / "net.pt2").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"path": "net.pth"}, ConfigError, r"no format ends in '\.pth': .*\.onnx or \.pt2"),
        ({"path": "nowhere/net.pt2"}, OutputError, "nowhere is no folder"),
        ({"part": "middle"}, ConfigError, "no part 'middle'"),
        ({"part": "head", "cut": 9}, ModelError, "cut 9 is not in"),
        ({"example": torch.rand(1, 3, 8, 8)}, ConfigError, "at least two"),
        ({"tolerance": float("nan")}, ConfigError, "tolerance"),
    ],
)
def test_what_cannot_be_exported_is_refused(split, example, tmp_path, changes, error, message):
    given = {"example": example, "path": "net.pt2"} | changes
    with pytest.raises(error, match=message):
        export(split, given.pop("example"), tmp_path / given.pop("path"), **given)


def test_onnx_without_its_packages_says_what_to_install(split, example, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "NEEDS", ("onnx_that_is_not_there",))
    with pytest.raises(ModelError, match=r"pip install 'streamdrop\[onnx\]', or write a \.pt2"):
        export(split, example, tmp_path / "net.onnx")


def test_a_model_that_gives_no_tensors_is_refused():
    with pytest.raises(ModelError, match="the model gives dict"):
        exporting._flat({"out": torch.zeros(1)})


@pytest.mark.slow
def test_the_command_exports_what_an_experiment_saved(tmp_path, capsys):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = build_network("resnet18", 3)
    save_file(model.state_dict(), tmp_path / "drop.safetensors")
    command = ["export", str(tmp_path / "drop.safetensors"), str(tmp_path / "head.pt2"), "--part", "head"]
    command += ["--model", "resnet18", "--classes", "3", "--size", "32"]
    assert main(command) == 2
    assert "--part head needs --cut N: how many of the 20 layers" in capsys.readouterr().err
    assert main([*command, "--cut", "19"]) == 0
    out = capsys.readouterr().out
    assert "input: activation_0 [batch, 512, 1, 1]" in out
    assert "output: output [batch, 3]" in out
    assert (tmp_path / "head.pt2").stat().st_size < 12e6  # not the whole model


@pytest.mark.slow
def test_the_command_exports_what_a_tracking_run_learned(tmp_path, capsys):
    from test_cli import QUICK

    from streamdrop.config import load as configure
    from streamdrop.testing.targets import moving_square
    from streamdrop.tracking import Tracker, TrackerConfig

    images, boxes = moving_square(frames=3)
    tracker = Tracker(configure(None, TrackerConfig, QUICK))
    tracker.init(images[0], boxes[0])
    tracker.save(tmp_path / "run" / "tracker")
    tracker.close()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "head.pt2"), "--part", "head"]) == 0
    assert "largest difference" in capsys.readouterr().out
    head = load(tmp_path / "head.pt2")
    maps = torch.rand(3, 32, 16, 16), torch.rand(3, 96, 8, 8)
    learned = tracker._learner._network.score.eval()
    assert torch.allclose(head(*maps)[0], learned(*maps), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.safetensors"], "give --model NAME too"),
        (["."], "no checkpoint here"),
        ([".", "--model", "resnet18"], "leave them out for a run's folder"),
        ([".", "--cut", "3"], "give --part tail or --part head"),
    ],
)
def test_a_source_that_is_none_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", arguments[0], "out.pt2", *arguments[1:]]) in (1, 2)
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
