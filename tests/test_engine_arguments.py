"""Arguments of the wrong kind: named with the remedy before anything is done, and nothing is stored or trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from streamdrop.engine import FineTuner
from streamdrop.errors import CheckpointError, ConfigError, DataError, TraceError, TrainingError
from streamdrop.policies import SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.store import MemoryStore
from streamdrop.testing.tuners import SmallNet, labelled_batch, small_tuner
from streamdrop.types import Batch, SampleInfo

BATCH = labelled_batch(6)
NEVER = SchedulePolicy()
KEYS, IMAGES, TARGETS = BATCH.keys, BATCH.images, BATCH.targets
SGD = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)


def tuner_of(**parts: Any) -> FineTuner:
    split = SplitModel(SmallNet(), IMAGES[:2])
    usual: dict[str, Any] = {
        "loss": functional.cross_entropy,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, 0.01),
        "policy": NEVER,
    }
    return FineTuner(**{"split": split, **usual, **parts})


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("split", SmallNet(), "give SplitModel"),
        ("loss", nn.CrossEntropyLoss, "the class CrossEntropyLoss"),
        ("loss", lambda output: output.sum(), r"called with \(output, target\)"),
        ("loss", nn.Flatten(), r"called with \(output, target\)"),
        ("optimizer", SGD, "a function of the parameters"),
        ("optimizer", None, "a function of the parameters"),
        ("optimizer", lambda parameters: None, "gave None: it must return"),
        ("optimizer", lambda parameters: SGD, "none of the parameters"),
        ("scheduler", torch.optim.lr_scheduler.StepLR(SGD, 1), "a function of the optimiser"),
        ("scheduler", lambda optimizer: 3, "gave 3: it must return"),
        ("callbacks", print, "a list of functions"),
        ("callbacks", [3], "a list of int: give"),
        ("callbacks", [lambda report: None], r"called with \(tuner, report\)"),
        ("store", MemoryStore, "the class MemoryStore"),
        ("store", "folder", "store is 'folder'"),
        ("store", {}, "store is a dict"),
        ("autocast", "bfloat16", "give torch.bfloat16"),
        ("autocast", torch.int8, "give torch.bfloat16"),
        ("thaw", {"every": 2}, "give a ThawPlan"),
        ("prepare", 2, "a function of a decoded source"),
        ("scoring", "yes", "give True, False"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused(part: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tuner_of(**{part: value})


def test_parts_that_are_called_otherwise_will_do() -> None:
    class Loss(nn.Module):
        def forward(self, *given: torch.Tensor, sample_weight: torch.Tensor) -> torch.Tensor:
            return (functional.cross_entropy(*given, reduction="none") * sample_weight).mean()

    told: list[int] = []
    tuner = tuner_of(
        loss=Loss(),
        callbacks=(c for c in [lambda *given: told.append(given[1].round)]),
        scheduler=lambda optimizer: None,
    )
    tuner.observe(BATCH)
    tuner.fit_round(sampler=lambda *given: (key for key in given[0]), deadline=torch.tensor(60.0))
    assert told == [1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"deadline": "1"}, "deadline of '1'"),
        ({"deadline": float("nan")}, "deadline of nan"),
        ({"deadline": True}, "deadline of True"),
        ({"sampler": [b"1"]}, "sampler is a list"),
        ({"sampler": lambda keys: keys}, r"\(keys, iteration, generator\)"),
        ({"sampler": lambda keys, index, generator: None}, "gave None, which is no list"),
        ({"sampler": lambda keys, index, generator: 3}, "gave 3, which is no list"),
    ],
)
def test_a_round_of_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    tuner = small_tuner(batch=BATCH, policy=NEVER)
    before = tuner.split.model.linear.weight.clone()  # type: ignore[union-attr,operator]
    with pytest.raises(TrainingError, match=said):
        tuner.fit_round(**given)
    with pytest.raises(TrainingError, match=said):
        next(tuner.round_by_steps(**{"steps": 1, "sampler": lambda keys, index, generator: keys, **given}))
    assert torch.equal(tuner.split.model.linear.weight, before)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    "targets",
    [
        [0] * 6,
        np.zeros(6),
        {"boxes": TARGETS},
        [TARGETS, TARGETS],
        (TARGETS, (TARGETS, TARGETS)),
        (),
        "abcdef",
    ],
)
def test_targets_are_tensors_or_a_tuple_of_them(targets: Any) -> None:
    tuner = tuner_of()
    with pytest.raises(DataError, match=r"targets are .*: give a tensor \[N, ...\] or a tuple"):
        tuner.observe(Batch(KEYS, IMAGES, targets))
    assert len(tuner.store) == 0


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((KEYS, IMAGES, TARGETS), "observe was given a tuple"),
        (None, "observe was given a NoneType"),
        (Batch(KEYS, torch.tensor(1.0), TARGETS), "a single number"),
        (Batch(KEYS, IMAGES.to_sparse(), TARGETS), "sparse"),
        (Batch(KEYS, [IMAGES], TARGETS), "a list of Tensor"),
        (Batch(None, IMAGES, TARGETS), "keys are None"),  # type: ignore[arg-type]
        (Batch((key for key in KEYS), IMAGES, TARGETS), "keys are a generator"),  # type: ignore[arg-type]
    ],
)
def test_a_batch_of_another_kind_is_refused(batch: Any, said: str) -> None:
    tuner = tuner_of()
    with pytest.raises(DataError, match=said):
        tuner.observe(batch)
    assert len(tuner.store) == 0


@pytest.mark.parametrize("images", [IMAGES.numpy(), [IMAGES], None])
def test_what_is_no_tensor_is_neither_embedded_nor_predicted(images: Any) -> None:
    tuner = tuner_of()
    for use in (tuner.embed, tuner.predict):
        with pytest.raises(DataError, match=r"images are .*, not a tensor"):
            use(images)


@pytest.mark.parametrize("activations", [IMAGES, (), (IMAGES.numpy(),), None])
def test_activations_are_a_tuple_of_tensors(activations: Any) -> None:
    with pytest.raises(DataError, match=r"activations are .*: give a tuple of tensors"):
        tuner_of().observe_activations(KEYS, activations, TARGETS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"info": [SampleInfo()] * 6}, "info is a list"),
        ({"info": {KEYS[0]: SampleInfo(weight="1")}}, "weight '1'"),  # type: ignore[arg-type]
        ({"info": {KEYS[0]: SampleInfo(label="cat")}}, "label 'cat'"),  # type: ignore[arg-type]
        ({"info": {KEYS[0]: SampleInfo(stream=3)}}, "stream 3"),  # type: ignore[arg-type]
        ({"sources": [b"1"] * 6}, "sources is a list"),
    ],
)
def test_what_is_kept_beside_samples_is_checked(given: dict[str, Any], said: str) -> None:
    tuner = tuner_of()
    with pytest.raises(DataError, match=said):
        tuner.observe(BATCH, **given)
    assert len(tuner.store) == 0


def test_infos_of_numpy_numbers_will_do() -> None:
    tuner = tuner_of()
    tuner.observe(BATCH, info={KEYS[0]: SampleInfo(np.float32(0.5), label=np.int64(3))})  # type: ignore[arg-type]
    assert tuner.store.get_info(KEYS[:1]) == [SampleInfo(0.5, label=3)]


@pytest.mark.parametrize("cut", ["0", None, 0.0])
def test_a_thaw_to_no_cut_is_refused(cut: Any) -> None:
    with pytest.raises(ConfigError, match="thaw to cut"):
        tuner_of(cut=2).thaw(cut)


@pytest.mark.parametrize("given", [{"path": 3}, {"tensors": {"a": 3}}, {"tensors": [IMAGES]}, {"tensors": {1: IMAGES}}])
def test_a_checkpoint_of_what_it_cannot_hold_is_refused(given: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"give (the path|a mapping)"):
        tuner_of().save(**{"path": tmp_path / "checkpoint", **given})
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("extra", [{1: "a"}, {"seen": [{"frames": {None: 2}}]}, {True: 1}])
def test_an_extra_with_keys_that_would_come_back_as_text_is_refused(extra: Any, tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"the key (1|None|True) in extra.*use text"):
        tuner_of().save(tmp_path / "checkpoint", extra)
    assert not (tmp_path / "checkpoint").exists()


def test_load_names_a_split_or_store_of_another_kind(tmp_path: Any) -> None:
    tuner_of().save(tmp_path)
    usual: dict[str, Any] = {"loss": functional.cross_entropy, "optimizer": lambda p: torch.optim.SGD(p, 0.01)}
    with pytest.raises(ConfigError, match="give SplitModel"):
        FineTuner.load(tmp_path, SmallNet(), **usual)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the class MemoryStore"):
        FineTuner.load(tmp_path, SplitModel(SmallNet(), IMAGES[:2]), store=MemoryStore, **usual)


def test_a_scheduler_without_a_further_step_says_so() -> None:
    tuner = tuner_of(scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=2))
    tuner.observe(BATCH)
    for _ in range(2):
        tuner.fit_round()
    with pytest.raises(TrainingError, match=r"OneCycleLR has no learning rate.*as many steps as there are rounds"):
        tuner.fit_round()


def test_hooks_of_the_model_itself_are_named() -> None:
    model = SmallNet()
    model.register_forward_hook(lambda module, given, output: output * 2)
    with pytest.raises(TraceError, match="forward hooks of its own"):
        SplitModel(model, IMAGES[:2])
    model = SmallNet()
    model.last.register_forward_hook(lambda module, given, output: output * 2)
    split = SplitModel(model.eval(), IMAGES[:2])
    with torch.no_grad():
        assert torch.equal(split.head(3)(split.tail(3)(IMAGES)), model(IMAGES))


@pytest.mark.parametrize("images", [IMAGES.mul(9).byte(), IMAGES.double(), IMAGES[:, :1], IMAGES[:, 0]])
def test_first_images_that_the_model_does_not_take_leave_the_store_as_it_was(images: torch.Tensor) -> None:
    tuner = tuner_of()
    state = torch.get_rng_state()
    with pytest.raises(DataError, match=r"the model does not take images of .*: prepare them as the example"):
        tuner.observe(Batch(KEYS, images, TARGETS))
    assert torch.equal(torch.get_rng_state(), state)
    assert tuner.split.model.training
    tuner.observe(BATCH)  # another shape or dtype would be refused, had these been stored
    tuner.fit_round()


@pytest.mark.parametrize("images", [IMAGES.mul(9).byte(), IMAGES.double(), IMAGES[:, :1], IMAGES[:, 0]])
def test_images_that_the_model_does_not_take_are_shown_beside_the_example(images: torch.Tensor) -> None:
    tuner = tuner_of(cut=2)
    tuner.observe(BATCH)
    came = rf"{str(images.dtype)[6:]} \[{', '.join(map(str, images.shape))}\]"
    uses: list[Callable[[], Any]] = [
        lambda: tuner.predict(images),
        lambda: tuner.embed(images),
        lambda: tuner.observe(Batch([b"new"] * len(images), images, TARGETS)),
    ]
    for use in uses:
        with pytest.raises(DataError, match=rf"{came} \(it was split with float32 \[2, 3, 8, 8\]\): .*prepare"):
            use()
    assert len(tuner.store) == len(KEYS)


class Told(SmallNet):
    """A network that says something beside its logits."""

    def __init__(self, told: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.told = told

    def forward(self, x: torch.Tensor) -> Any:
        """[N, 3, H, W] → ([N, classes], what is told)."""
        output = super().forward(x)
        return output, self.told(output)


def test_what_is_told_beside_outputs_is_the_same_for_every_batch_or_refused() -> None:
    for told, fits in ((lambda y: "net", True), (lambda y: None, True), (lambda y: y.detach().numpy(), False)):
        tuner = tuner_of(split=SplitModel(Told(told), IMAGES[:2]), batch_size=4)
        assert len(tuner.predict(IMAGES[:4])[0]) == 4
        if fits:
            assert tuner.predict(IMAGES)[1] == told(IMAGES)
            continue
        with pytest.raises(DataError, match="no tensors and differ from batch to batch"):
            tuner.predict(IMAGES)
