"""The one error tree.

::

    StreamdropError
    ├── InputError            what the user handed in cannot be used
    │   ├── BoxError          a box: not four finite numbers, no area, outside the frame
    │   ├── StreamError       a source: missing, empty, corrupt, not decodable
    │   └── DataError         arrays or datasets: missing, of wrong shape, dtype or structure
    ├── ConfigError           configuration or arguments: unknown key, wrong type, unset variable
    ├── OutputError           a file or folder cannot be written
    ├── ModelError            a model cannot be used
    │   ├── TraceError        torch.fx cannot follow it, or no cut is possible
    │   └── WeightsError      weights missing, or of another model
    ├── StoreError            a feature store cannot be used
    │   ├── StoreVersionError its activations come from another model, or its format is foreign or newer
    │   ├── StoreLockedError  another process or object is writing it
    │   ├── StoreFullError    the disk (or a limit) leaves no room
    │   ├── StoreCorruptError records do not decode
    │   └── MissingKeyError   keys that are not in the store (also a KeyError)
    ├── TrainingError         a round cannot go on: nothing stored, or a loss that is not finite
    ├── CheckpointError       a checkpoint is missing, incomplete, or of another model or store
    └── ServiceError          the daemon cannot do what was asked
        ├── UnknownError      a stream that it does not have
        └── ConflictError     a request that does not fit the state its stream is in

Every message says what, where, and the remedy, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence


class StreamdropError(Exception):
    """Root of every error that streamdrop raises on purpose."""


class InputError(StreamdropError):
    """What the user handed in cannot be used."""


class BoxError(InputError, ValueError):
    """A box that is not four finite numbers, has no area, or lies outside the frame."""


class StreamError(InputError):
    """A source that is missing, empty, corrupt or not decodable."""


class DataError(InputError, ValueError):
    """Arrays or data sets that are missing, or of wrong shape, dtype or structure."""


class ConfigError(StreamdropError):
    """Configuration or arguments: unknown key, wrong type, unset variable. ``problems``: every mistake by itself."""

    def __init__(self, *args: object, problems: Sequence[str] = ()) -> None:
        super().__init__(*args)
        self.problems = tuple(problems) or tuple(str(argument) for argument in args)


class OutputError(StreamdropError):
    """A file or folder that cannot be written."""


class ModelError(StreamdropError):
    """A model that cannot be used."""


class TraceError(ModelError):
    """A model that torch.fx cannot follow, or that no cut can split."""


class WeightsError(ModelError):
    """Weights that are missing, or of another model."""


class StoreError(StreamdropError):
    """A feature store that cannot be used."""


class StoreVersionError(StoreError):
    """Activations of another model, or a foreign or newer format."""


class StoreLockedError(StoreError):
    """Another process or object is writing the store."""


class StoreFullError(StoreError):
    """The disk, or a limit, leaves no room."""


class StoreCorruptError(StoreError):
    """Records that do not decode."""


class MissingKeyError(StoreError, KeyError):
    """Keys that are not in the store."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TrainingError(StreamdropError):
    """A round that cannot go on: nothing is stored, or the loss is not finite."""


class CheckpointError(StreamdropError):
    """A checkpoint that is missing, incomplete, or of another model or store."""


class ServiceError(StreamdropError):
    """What was asked of the daemon cannot be done."""


class UnknownError(ServiceError):
    """A stream that the daemon does not have."""


class ConflictError(ServiceError):
    """A request that does not fit the state that its stream is in."""
