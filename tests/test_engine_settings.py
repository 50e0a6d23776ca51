"""A tuner inside what an application has set for torch, and the errors of a loss."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_settings import SETTINGS, elsewhere

from streamdrop.engine import FineTuner
from streamdrop.errors import TraceError, TrainingError
from streamdrop.policies import AutoPolicy, SchedulePolicy
from streamdrop.split import SplitModel
from streamdrop.store import LmdbStore, MemoryStore, TieredStore, export_store, import_store
from streamdrop.testing.tuners import SmallNet, labelled_batch
from streamdrop.types import Batch, SampleInfo

BATCH = labelled_batch(17)
STORES = {
    "memory": lambda folder: MemoryStore(),
    "lmdb": LmdbStore,
    "int8": lambda folder: LmdbStore(folder, dtype="int8"),
    "tiered": lambda folder: TieredStore(folder, memory_bytes=20_000),
}


def learned(outside, folder, store="memory", policy=None, loss=functional.cross_entropy):
    """Losses of four rounds under a setting, and the weights after them."""
    torch.manual_seed(0)
    model = SmallNet()
    tuner = FineTuner(
        SplitModel(model, BATCH.images[:2]),
        loss=loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.02, 0.9),
        store=STORES[store](folder),
        policy=policy or SchedulePolicy({2: 1, 3: 2}),
        batch_size=4,
        warm_up=1,
    )
    info = {key: SampleInfo(label=i % 3, weight=2.0) for i, key in enumerate(BATCH.keys)}
    with outside():
        tuner.observe(Batch(BATCH.keys, BATCH.images.clone(), BATCH.targets.clone()), info)
        losses = [tuner.fit_round().loss for _ in range(4)]
    tuner.store.close()
    return losses, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("outside", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("store", STORES)
def test_a_tuner_learns_the_same_whatever_is_set_outside(tmp_path, outside, store):
    losses, weights = learned(outside, tmp_path / "a", store)
    expected, others = learned(nullcontext, tmp_path / "b", store)
    assert losses == expected
    assert all(torch.equal(weights[name], others[name]) for name in others)


@pytest.mark.parametrize("outside", SETTINGS.values(), ids=SETTINGS)
def test_so_it_does_where_scores_decide(tmp_path, outside):
    losses, weights = learned(outside, tmp_path, policy=AutoPolicy())
    expected, others = learned(nullcontext, tmp_path, policy=AutoPolicy())
    assert losses == expected
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_a_store_is_taken_elsewhere_while_tensors_are_made_on_another_device(tmp_path):
    with LmdbStore(tmp_path / "store") as store, elsewhere():
        store.put_many({key: (image,) for key, image in zip(BATCH.keys, BATCH.images, strict=True)},
                       dict(zip(BATCH.keys, BATCH.targets, strict=True)))  # fmt: skip
        files = export_store(store, tmp_path / "all.safetensors")
    with LmdbStore(tmp_path / "other") as other, elsewhere():
        import_store(other, files)
        activations, targets = other.get_many(BATCH.keys), other.get_targets(BATCH.keys)
    assert torch.equal(activations[0], BATCH.images)
    assert torch.equal(targets, BATCH.targets)


@pytest.mark.parametrize("outside", SETTINGS.values(), ids=SETTINGS)
def test_a_model_is_split_the_same_whatever_is_set_outside(outside):
    torch.manual_seed(0)
    model = SmallNet().eval()
    with outside():
        split = SplitModel(model, BATCH.images[:2].clone())
    assert split.version(1) == SplitModel(model, BATCH.images[:2]).version(1)
    assert torch.equal(split.head(1)(split.tail(1)(BATCH.images)), model(BATCH.images))


def test_weights_that_can_never_learn_are_refused():
    with torch.inference_mode():
        model = SmallNet()
    with pytest.raises(TraceError, match=r"made under torch\.inference_mode .*build the model outside"):
        SplitModel(model, BATCH.images[:2])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda output, target: functional.cross_entropy(output, target + 99),
            r"output of float32 \[4, .*out of bounds",
        ),
        (lambda output, target: functional.cross_entropy(output, target.float()), r"targets of int64 \[4\]: .*Long"),
        (lambda output, target: nn.CrossEntropyLoss()(output, None), "with targets of int64"),
    ],
)
def test_what_a_loss_does_not_take_is_said_with_shapes(tmp_path, loss, message):
    with pytest.raises(TrainingError, match=message):
        learned(nullcontext, tmp_path, loss=loss)


def test_a_loss_with_a_batch_norm_of_its_own_says_what_one_sample_lacks(tmp_path):
    norm = nn.BatchNorm1d(3)
    with pytest.raises(TrainingError, match="BatchNorm cannot train on one sample"):
        learned(
            nullcontext, tmp_path, loss=lambda output, target: functional.cross_entropy(norm(output[:1]), target[:1])
        )
