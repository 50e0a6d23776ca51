"""A model, its tail or its head as a file that runs without streamdrop: ONNX or torch.export, checked.

What is written is read back, run, and compared with the model; a file whose outputs differ is not left behind.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streamdrop.arguments import inputs_of
from streamdrop.errors import ConfigError, ModelError, OutputError
from streamdrop.split import SplitModel
from streamdrop.tracing.kept import modes_kept
from streamdrop.types import Inputs

PARTS = ("whole", "tail", "head")
SUFFIXES = (".onnx", ".pt2")
NEEDS = ("onnx", "onnxscript", "onnxruntime")

Part = Literal["whole", "tail", "head"]
Outputs = list[Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written. ``error`` is the largest difference of outputs found, in units of their largest value;
    ``inputs`` and ``outputs`` are names and shapes, the first dimension being any batch.
    """

    path: Path
    part: str
    cut: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    error: float


def export(
    split: SplitModel,
    example: Inputs,
    path: str | Path,
    part: Part = "whole",
    cut: int = 0,
    tolerance: float = 1e-4,
) -> Exported:
    """Write ``split``'s model, or its tail or head at ``cut``, in eval mode, for batches of any size.

    ``path`` ends in ``.onnx`` (needs the extra ``onnx``) or ``.pt2`` (torch.export); ``example`` is an input [N, ...],
    N ≥ 2, or a tuple of them for a model of several. The file's outputs on the example, and on its first sample alone,
    must be the model's within ``tolerance`` (see Exported). Raises ConfigError, DataError, ModelError (TraceError),
    OutputError.
    """
    path = Path(path)
    given = inputs_of(example)
    _check(path, part, tolerance, len(given[0]))
    with modes_kept(split.model), torch.no_grad():
        split.model.eval()
        module, inputs = _module(split, given, part, cut)
        outputs = _flat(module(*inputs))
        names = _names(part, len(inputs), len(outputs))
        error = _write_checked(module, inputs, path, names, tolerance)
    return Exported(path, part, cut, _shapes(names[0], inputs), _shapes(names[1], outputs), error)


class _Flat(nn.Module):
    """A piece that takes tensors one by one, as a file's inputs are."""

    def __init__(self, piece: nn.Module) -> None:
        super().__init__()
        self.piece = piece

    def forward(self, *tensors: Tensor) -> Any:
        """Run the piece."""
        return self.piece(*tensors)


def _check(path: Path, part: str, tolerance: float, samples: int) -> None:
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path}: no format ends in {path.suffix!r}: give a name that ends in {' or '.join(SUFFIXES)}"
        )
    if part not in PARTS:
        raise ConfigError(f"no part {part!r}: choose from {', '.join(PARTS)}")
    if not tolerance >= 0:
        raise ConfigError(f"a tolerance of {tolerance}: give a number of at least 0")
    if samples < 2:
        raise ConfigError("the example holds one sample: give at least two, so that the batch's size stays free")
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None] if path.suffix == ".onnx" else []
    if missing:
        raise ModelError(f"{path}: ONNX needs {', '.join(missing)}: pip install 'streamdrop[onnx]', or write a .pt2")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no folder: create it first")


def _module(split: SplitModel, given: tuple[Tensor, ...], part: Part, cut: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    if part == "whole":
        return _Flat(split.model).eval(), given
    tail = split.tail(cut)
    if part == "tail":
        return _Flat(tail).eval(), given
    return _Flat(split.head(cut)).eval(), tuple(t.clone() for t in tail(*given))


def _names(part: Part, inputs: int, outputs: int) -> tuple[list[str], list[str]]:
    """``input`` and ``output`` at the model's ends (numbered where several), ``activation_0``, … at the cut."""
    ends = ["input"] if inputs == 1 else [f"input_{i}" for i in range(inputs)]
    first = ends if part != "head" else [f"activation_{i}" for i in range(inputs)]
    if part == "tail":
        return first, [f"activation_{i}" for i in range(outputs)]
    return first, ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]


def _shapes(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in zip(names, tensors, strict=True)}


def _write_checked(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: tuple[list[str], list[str]], tolerance: float
) -> float:
    """Write the file beside ``path`` and move it there once its outputs are the module's; returns their difference."""
    partial = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        run = _write(module, inputs, partial, names)
        error = max(_difference(run, module, rows) for rows in (inputs, tuple(x[:1] for x in inputs)))
        if not error <= tolerance:
            raise ModelError(
                f"{path}: what was exported gives other outputs (largest difference {error:.2g} of their size, "
                f"tolerance {tolerance:g}): it was not kept; raise the tolerance if that will do"
            )
        partial.replace(path)
    except OSError as problem:
        raise OutputError(
            f"{path} cannot be written ({problem.strerror}): give a file in a folder you may write"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return error


def _write(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: tuple[list[str], list[str]]
) -> Callable[[Sequence[Tensor]], Outputs]:
    """Write the file; returns what runs it."""
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in inputs),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
            if path.suffix == ".pt2":
                torch.export.save(program, path)
                loaded = torch.export.load(path).module()
                return lambda tensors: _flat(loaded(*tensors))
            converted: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=names[0], output_names=names[1]
            )
            converted.save(str(path), external_data=False)
        except OSError:
            raise
        except Exception as error:  # torch's exporters raise what their parts raise
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{path.suffix[1:]}: torch cannot export this model ({reason}): try the other format, or "
                             "another part or cut") from None  # fmt: skip
    return _onnx_runner(path)


def _onnx_runner(path: Path) -> Callable[[Sequence[Tensor]], Outputs]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> Outputs:
        feeds = {name: tensor.cpu().contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feeds)]

    return run


def _difference(run: Callable[[Sequence[Tensor]], Outputs], module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The largest difference of an output, in units of its largest value; infinite where shapes or count differ."""
    wanted, found = _flat(module(*inputs)), run(inputs)
    if [t.shape for t in wanted] != [t.shape for t in found]:
        return float("inf")
    pairs = zip(wanted, found, strict=True)
    return max((_apart(one.cpu().double(), other.cpu().double()) for one, other in pairs), default=0.0)


def _apart(own: Tensor, other: Tensor) -> float:
    """The largest difference in units of ``own``'s largest finite value; infinite where only one of them is finite."""
    alike = (own == other) | (own.isnan() & other.isnan())
    gaps = (own - other).abs()[~alike]
    sizes = own[own.isfinite()].abs()
    if not gaps.numel():
        return 0.0
    unit = float(sizes.max()) if sizes.numel() else 0.0
    return float(gaps.nan_to_num(nan=float("inf"), posinf=float("inf")).max()) / (unit or 1.0)


def _flat(output: Any) -> Outputs:
    """The tensors of an output, in order; raises ModelError for what a file cannot give."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (tuple, list)) and all(isinstance(t, Tensor) for t in output):
        return list(output)
    raise ModelError(f"the model gives {type(output).__name__}: only tensors and tuples of them can be exported")
