"""The way of activations: into the store at its cut, out of it at the tuner's cut, and the store's move between."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamdrop.arguments import check_finite, check_samples, inputs_of
from streamdrop.errors import DataError, StoreVersionError
from streamdrop.rounds import Clock, inputs_explained, predicted, seeded
from streamdrop.split import SplitModel, run_in_chunks
from streamdrop.store import FeatureStore, StagedCut
from streamdrop.store.prefetch import Stored, read_ahead
from streamdrop.tracing.kept import modes_kept
from streamdrop.types import Activations, Inputs, SampleInfo, Target

Writes = tuple[tuple[int, int], ...]


class Feed:
    """Connects a split model with a store; ``chunk`` samples pass dropped layers at a time. Tensors rest on the CPU."""

    def __init__(self, split: SplitModel, store: FeatureStore, device: torch.device, chunk: int) -> None:
        self._split, self.store, self._device, self._chunk = split, store, device, chunk
        self._known: tuple[int, str] | None = None  # cut and version of the store when it was found to be the model's
        self._written: Writes | None = None  # and how the model's weights were written to by then
        self._below: tuple[int, tuple[Tensor, ...]] | None = None  # these weights, by the store's cut
        self._kind: str | None = None  # of the targets that were put last

    def open(self, cut: int) -> int:
        """The cut to start from: the store's own, or a later one asked for. Raises StoreVersionError."""
        store, layers = self.store, len(self._split.layers)
        if store.cut > layers - 1:
            raise StoreVersionError(f"the store is at cut {store.cut}, the model has {layers} layers: use a new store")
        expected = self._split.version(store.cut)
        if store.version != expected and store.cut == 0 and not len(store):  # a new store takes its first model's
            store.advance(0, lambda given: given, expected, self._chunk)
        self._check_version(expected)
        if cut > store.cut:
            store.advance(cut, lambda given: self._promoted(given, cut), self._split.version(cut), self._chunk)
            self._know()
        return store.cut

    def check(self, cut: int) -> None:
        """Raise StoreVersionError where something else has moved the store so that it is of no use at ``cut``."""
        here = (self.store.cut, self.store.version)
        if here[0] > cut:
            raise StoreVersionError(
                f"the store is at cut {here[0]}, but this tuner trains all layers from cut {cut} on: something else "
                "has moved it; give each tuner a store of its own"
            )
        if self._known != here:
            self._check_version(self._split.version(here[0]))

    def check_weights(self) -> None:
        """Raise StoreVersionError where the weights that made what the store holds are others by now.

        They are digested only where they were written to.
        """
        if self._written != self._writes():
            self._check_version(self._split.version(self.store.cut))

    def _writes(self) -> Writes:
        """Of every weight below the store's cut which memory it is, and how often it was written to."""
        cut = self.store.cut
        if self._below is None or self._below[0] != cut:
            tail = self._split.tail(cut)
            self._below = cut, (*tail.parameters(), *tail.buffers())
        return tuple((one.data_ptr(), one._version) for one in self._below[1])

    def _know(self) -> None:
        """The store's content has just been found, or made, to be of this model as it is."""
        self._known, self._written = (self.store.cut, self.store.version), self._writes()

    def _check_version(self, expected: str) -> None:
        store = self.store
        if store.version != expected:
            raise StoreVersionError(
                f"the store's activations at cut {store.cut} were made by other tail weights, or of images prepared "
                f"otherwise (store {store.version[:12] or 'none'}, model {expected[:12] or 'none'}): load the weights "
                "and prepare images as they were made, or use a new store"
            )
        self._know()

    def inputs(self, images: Inputs) -> tuple[Tensor, ...]:
        """What the model takes, as a tuple. Raises DataError unless it is as many tensors of samples as it takes."""
        inputs, takes = inputs_of(images), self._split.inputs
        if len(inputs) != takes:
            hint = f"a tuple of {takes} tensors" if takes > 1 else "one tensor"
            raise DataError(f"images are {len(inputs)} tensors, but the model takes {takes}: give {hint}")
        return inputs

    def check_images(self, images: Inputs) -> None:
        """Raise DataError for images that are not finite, or, the first ones in a store, that the model does not take.

        The first decide what a store may hold.
        """
        inputs = self.inputs(images)
        check_finite(inputs)
        if len(self.store):
            return
        with seeded(self._device):
            self.predict(tuple(one[:2] for one in inputs), 2)

    def predict(self, images: Inputs, size: int) -> Any:
        """The whole model's raw outputs for images [N, ...], ``size`` of them at a time; its modes come back."""
        inputs, model = self.inputs(images), self._split.model
        with inputs_explained(self._split.example, inputs), modes_kept(model):
            return predicted(model, inputs, size, self._device)

    def embed(self, images: Inputs) -> Activations:
        """The activations of images [N, ...] at the store's cut."""
        inputs, tail = self.inputs(images), self._split.tail(self.store.cut)
        with inputs_explained(self._split.example, inputs):
            given = tuple(one.to(self._device, non_blocking=True) for one in inputs)
            return run_in_chunks(tail, given, self._chunk)

    def put(
        self,
        keys: Sequence[bytes],
        activations: Activations,
        targets: Target | None,
        info: Mapping[bytes, SampleInfo] | None,
        sources: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Put samples at the store's cut; every tensor [N, ...] in the keys' order. Raises DataError."""
        parts = check_samples(keys, activations, targets)
        counts = {len(keys), *(len(tensor) if tensor.dim() else 0 for tensor in (*activations, *parts))}
        if len(counts) != 1:
            raise DataError(f"keys, activations and targets have lengths {sorted(counts)}: give one of each per sample")
        if len(set(keys)) != len(keys):
            raise DataError("a key stands twice in one batch: every sample needs a key of its own")
        self._check_targets(keys, targets)
        samples = _unbatched(keys, activations)
        by_key: dict[bytes, Target] | None = None
        if parts:
            wanted = _unbatched(keys, parts)
            by_key = {key: value if isinstance(targets, tuple) else value[0] for key, value in wanted.items()}
        self.store.put_many(samples, by_key, info, sources)

    def _check_targets(self, keys: Sequence[bytes], targets: Target | None) -> None:
        """Raise DataError for targets of another kind than those stored: no batch could hold both.

        Samples without one may stand beside others: a sampler can leave them out.
        """
        kind = _kind(targets)
        if kind in (None, self._kind):
            return
        arriving, there = set(keys), self.store.keys()
        other = next((key for key in there if key not in arriving), None)
        stored = None if other is None else _kind(self.store.get_targets([other]))
        if stored not in (None, kind):
            raise DataError(
                f"targets are {kind}, but those stored are {stored} (sample {other!r}): give them as they are stored, "
                "or use a new store"
            )
        self._kind = kind

    def read(
        self, order: Iterable[Sequence[bytes]], depth: int, info: bool, clock: Clock
    ) -> Generator[Stored, None, None]:
        """The batches of ``order`` at the store's cut, on the device, ``depth`` of them read ahead.

        A batch is valid until the next is asked for. "read" is the time waited for them. Close it when leaving early.
        """
        cuda = self._device.type == "cuda"
        with contextlib.closing(read_ahead(self.store, order, depth, info, pin=cuda)) as reading:
            while True:
                with clock.part("read"):
                    batch = next(reading, None)
                    if batch is not None and cuda:
                        batch = self.uploaded(batch)
                if batch is None:
                    return
                yield batch

    def uploaded(self, batch: Stored) -> Stored:
        """A batch in page-locked memory, copied to the device when this returns."""
        upload = functools.partial(Tensor.to, device=self._device, non_blocking=True)
        targets = batch.targets
        if targets is not None:
            targets = tuple(map(upload, targets)) if isinstance(targets, tuple) else upload(targets)
        moved = Stored(batch.keys, tuple(map(upload, batch.activations)), targets, batch.info)
        torch.cuda.current_stream(self._device).synchronize()  # the buffers are filled again behind our back
        return moved

    def raised(
        self, batch: Stored, cut: int, staged: StagedCut | None, clock: Clock, graph: bool = False
    ) -> Activations:
        """A batch's activations at ``cut``; what the layers in between make of them is staged. ``graph``: theirs."""
        if self.store.cut >= cut:
            return batch.activations
        with clock.part("tail"):
            activations = self._between(batch.activations, cut, graph)
        if staged is not None:
            with clock.part("write"):
                staged.put_many(_unbatched(batch.keys, activations))
        return activations

    def weights(self, batch: Stored) -> Tensor:
        """A batch's loss weights, [N] float32 on the device."""
        return torch.tensor([info.weight for info in batch.info], device=self._device)

    def round_done(self) -> None:
        """Tell a store that writes behind its caller that now is a good time; it does not wait."""
        done = getattr(self.store, "round_done", None)
        if done is not None:
            done()

    @contextlib.contextmanager
    def staged(self, cut: int, moves: bool) -> Iterator[StagedCut | None]:
        """The store's staged writer towards ``cut`` where the store ``moves``; None where it is there already."""
        if not moves or self.store.cut >= cut:
            yield None
            return
        with self.store.stage(cut, self._split.version(cut)) as staged:
            yield staged

    def commit(self, staged: StagedCut, cut: int, clock: Clock) -> int:
        """Flip the store to ``cut``; samples that were not staged pass the layers in between here. Returns how many."""
        promoted = 0

        def step(activations: Activations) -> Activations:
            nonlocal promoted
            promoted += len(activations[0])
            with clock.part("tail"):
                return self._promoted(activations, cut)

        with clock.part("write"):
            staged.commit(step, self._chunk)
        self._know()  # as it was staged: no second digest of the weights
        return promoted

    def _between(self, activations: Activations, cut: int, graph: bool = False) -> Activations:
        """Activations at the store's cut → at ``cut``, on the device."""
        return run_in_chunks(self._split.step(self.store.cut, cut), activations, self._chunk, graph)

    def _promoted(self, activations: Activations, cut: int) -> Activations:
        moved = self._between(tuple(map(self._to_device, activations)), cut)
        return tuple(tensor.cpu() for tensor in moved)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor


def _kind(targets: Target | None) -> str | None:
    """Structure and dtypes of targets, in words; None for none."""
    if targets is None:
        return None
    parts = targets if isinstance(targets, tuple) else (targets,)
    names = ", ".join(str(part.dtype).removeprefix("torch.") for part in parts)
    return f"a tuple of {names}" if isinstance(targets, tuple) else f"a tensor of {names}"


def _unbatched(keys: Sequence[bytes], tensors: Sequence[Tensor]) -> dict[bytes, Activations]:
    """Batched tensors as one tuple per key, on the CPU."""
    host = [tensor.detach().cpu() for tensor in tensors]
    return {key: tuple(tensor[i] for tensor in host) for i, key in enumerate(keys)}
