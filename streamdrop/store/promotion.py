"""Other cuts in the durable store: a new generation of rows beside the old one, one flip, then the old one goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor
from typing_extensions import Self

from streamdrop.errors import StoreError
from streamdrop.store.batches import check_chunk, stepped
from streamdrop.store.intake import check_activations, missing
from streamdrop.store.making import Making, pages
from streamdrop.store.protocol import Step
from streamdrop.store.rows import Packer, gather
from streamdrop.store.tables import VALUES
from streamdrop.types import Activations

if TYPE_CHECKING:
    from streamdrop.store.lmdb import LmdbStore


class LmdbStage:
    """A later cut of an LmdbStore in the making; the present one stays readable."""

    def __init__(self, store: LmdbStore, cut: int, version: str) -> None:
        with store.folder.reading() as (tables, state):
            empty = not state.count and not tables.count(b"held")
        self._store = store
        self._needed = state.check_cut(cut, version, empty)
        self._making = Making(store, cut, version) if self._needed else None
        self._done = False

    def put_many(self, samples: Mapping[bytes, Activations]) -> None:
        """Keep activations at the later cut for keys of the store. Raises MissingKeyError, DataError."""
        with self._store.folder.writing():
            self._check_running()
            making = self._making
            if making is None:
                check_activations(samples, None, self._store.now().codec)
            else:
                making.fit(samples)
            with self._store.folder.reading() as (tables, _):
                found = dict(zip(samples, tables.find_each(list(samples)), strict=True))
            if None in found.values():
                raise missing(key for key, seq in found.items() if seq is None)
            if making is not None:
                new = set(making.missing([seq for seq in found.values() if seq is not None]))
                seqs = [seq for seq in found.values() if seq in new]
                making.keep(seqs, {key: tuple(samples[key]) for key, seq in found.items() if seq in new})

    def commit(self, step: Step, chunk: int = 64) -> None:
        """Promote what was not staged with ``step``, then flip. Durable when it returns. Raises DataError."""
        check_chunk(chunk)
        with self._store.folder.writing():
            self._check_running()
            making = self._making
            if making is not None:
                making.record()
                for found, batch in _chunks(self._store, making, chunk):
                    making.take(found, stepped(step, batch, len(found)))
                making.flip(lambda state: state.promoted(making.cut, making.version, making.layout, making.drift))
                self._store.shrink()
            else:
                self._store.flush()  # an earlier one may have got this far and not to its flush
            self._done = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.unstage(self)
        done, self._done = self._done, True
        if self._making is None:
            return
        if done:
            self._making.close()
            return
        try:
            self._making.abandon()
        except StoreError:  # closed, or no room to tidy up: another promotion does it
            if error is None and not self._store.closed:
                raise

    def _check_running(self) -> None:
        if self._done:
            raise StoreError("this promotion is over: start another with stage()")


def _chunks(store: LmdbStore, making: Making, chunk: int) -> Iterator[tuple[list[int], Activations]]:
    """Samples that the new generation lacks, ``chunk`` at a time in order of arrival, held ones too."""
    state = store.now()
    if state.layout is None:
        return
    packer = Packer(state.layout, state.compression)
    columns: Sequence[Tensor] = ()
    for found in pages(store, making, chunk):
        if not columns or len(columns[0]) != len(found):
            columns = packer.layout.allocate(len(found))  # used for one chunk after the other
        with store.folder.environment.errors(0):
            file = store.folder.files.reading(VALUES, state.generation, packer.unit)
            gather(file, packer, found, columns, store.verify)
        yield [seq for seq, _ in found], packer.layout.decode(columns)
