"""What every feature store does. ``streamdrop.testing.stores.check_store`` asserts it for any implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from typing_extensions import Self

from streamdrop.errors import StoreError
from streamdrop.types import Activations, SampleInfo, Target

Step: TypeAlias = Callable[[Activations], Activations]
"""Batched activations at one cut → batched activations at a later one, sample by sample in the same order."""

Targets: TypeAlias = Mapping[bytes, Any] | Sequence[Any] | torch.Tensor
"""Targets handed in with samples: {key: tensor, tuple of tensors or number}; a list with one per sample; a tensor whose
rows are targets; a tuple of such tensors (as ``get_targets`` returns them)."""

Sources: TypeAlias = Mapping[bytes, bytes]
"""Encoded inputs by key (``encode_source`` makes them): what a thaw trains lower layers from again."""


class OneOfAKind:
    """A store that neither pickle nor copy can double: two would write to one folder, or to one memory."""

    def __reduce__(self) -> str:
        raise StoreError(
            f"a {type(self).__name__} is neither pickled nor copied: open its folder again (read_only=True in another "
            "process); what a MemoryStore holds is carried by FineTuner.save, or by streamdrop.store.exchange"
        )


class StagedCut(Protocol):
    """A later cut that is being written beside the present one, which stays readable. A context manager."""

    def put_many(self, samples: Mapping[bytes, Activations]) -> None:
        """Keep activations at the later cut for keys of the store. Raises MissingKeyError, DataError."""

    def commit(self, step: Step, chunk: int = 64) -> None:
        """Promote what was not staged with ``step``, then flip to the later cut. Durable when it returns."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; without a ``commit`` the store stays as it was."""


@runtime_checkable
class FeatureStore(Protocol):
    """Activations at one cut by sample key, with targets and ``SampleInfo`` that promotion does not touch."""

    @property
    def cut(self) -> int:
        """How many layers the stored activations have passed."""

    @property
    def version(self) -> str:
        """Digest of the tail that made the activations; '' for the model's own input."""

    def put_many(
        self,
        samples: Mapping[bytes, Activations],
        targets: Targets | None = None,
        info: Mapping[bytes, SampleInfo] | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Store samples, all or none. A key that is there is replaced whole and becomes the newest.

        Activations are a tuple of tensors of one sample, without batch dimension; all samples of a cut have the same
        number, shapes and dtypes. A bounded store keeps of old and new what its retention chooses. Raises DataError
        before anything is written, StoreFullError when there is no room.
        """

    def get_many(self, keys: Sequence[bytes]) -> Activations:
        """Activations [N, ...] in the order of ``keys``: own, writable memory, strides ordered as they were stored.

        Raises MissingKeyError naming what is missing.
        """

    def get_targets(self, keys: Sequence[bytes]) -> Target | None:
        """Targets stacked to [N, ...] (tuples: a tuple of them); None when no key has one.

        Raises MissingKeyError; DataError when only some have one or they do not stack.
        """

    def get_info(self, keys: Sequence[bytes]) -> list[SampleInfo]:
        """What is kept beside the targets, in the order of ``keys``. Raises MissingKeyError."""

    def get_sources(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The encoded inputs kept beside the activations, None where none was given. Raises MissingKeyError."""

    def keys(self, stream: str | None = None) -> list[bytes]:
        """All keys, or those of one stream (``SampleInfo.stream``), oldest arrival first."""

    def __len__(self) -> int: ...

    def __contains__(self, key: object) -> bool: ...

    def discard(self, keys: Iterable[bytes]) -> None:
        """Remove samples; keys that are not there are ignored."""

    def flush(self) -> None:
        """Make everything put and discarded so far durable, before returning."""

    def advance(self, cut: int, step: Step, version: str, chunk: int = 64) -> None:
        """Promote every sample to a later cut by running ``step`` on ``chunk`` samples at a time.

        All or none, durable when it returns. The cut and version it already has: nothing happens. Raises StoreError
        for a lower cut, StoreVersionError for another version at the same cut, DataError for a wrong ``step``.
        """

    def stage(self, cut: int, version: str) -> StagedCut:
        """Start writing a later cut beside the present one. Raises as ``advance`` does."""

    def mark(self) -> int:
        """Make all durable and return a mark. From the first mark on, what is removed or replaced is held back."""

    def rollback(self, mark: int) -> None:
        """Undo every put and discard made after ``mark``. Raises StoreError for a mark that cannot be restored.

        A store may also have ``count_at(mark)``: how many samples that would leave, with the same errors. It is asked
        before a checkpoint is loaded, so that another checkpoint's store is refused as it is. So is one whose
        ``identity``, a word that no other store has, is not the one that the checkpoint names.
        """

    def release(self, mark: int) -> None:
        """Forget for good what was removed up to ``mark``; marks before it can no longer be restored."""

    def close(self) -> None:
        """Flush and let go of files and locks. Twice is fine."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
