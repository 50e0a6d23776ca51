"""What an ONNX file holds, up to its maps at stride 8 and 16, in a form that a converter takes: checked, cut, tidied.

Nothing of a file's choosing but numbers gets past here: the names in it would become Python code in torch.fx's graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamdrop.errors import ModelError, WeightsError
from streamdrop.tracking.config import STRIDES

PROBE = 128  # pixels: the size at which the shapes of the maps are looked at
_OPSET = 17  # the newest whose operators onnx2torch 1.5 knows all of; newer files are taken back to it
_OLDEST = 9
_JOINS = ("Add", "Concat", "Sum")
INSTALL = "pip install 'streamdrop[onnx-backbone]' (onnx, onnx2torch)"
_EXPORT = "export it anew with torch.onnx.export, its batch size dynamic"

Shapes = Mapping[str, tuple[int | None, ...]]


@dataclass(frozen=True)
class Taps:
    """The values that are the maps at stride 8 and 16, and their channels."""

    names: tuple[str, str]
    channels: tuple[int, int]


def read_model(path: Path, name: str) -> Any:
    """The checked ModelProto of a file with one input [batch, 3, height, width]. Raises WeightsError, ModelError."""
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise WeightsError(f"backbone {name}: needs onnx, which is not installed: {INSTALL}") from None
    if not path.is_file():
        raise WeightsError(f"backbone {name}: no such file: give the path of an ONNX file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # protobuf's, onnx's and the file system's own kinds
        raise WeightsError(f"backbone {name}: not an ONNX network ({words(error)}): give another file") from None
    weights = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    shapes = [[dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (0, 3):
        told = ", ".join("×".join(str(dim or "?") for dim in shape) or "no tensor" for shape in shapes) or "nothing"
        raise ModelError(f"backbone {name}: takes {told}: give a network of one input, batch × 3 × height × width")
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def upto_maps(model: Any, name: str) -> tuple[Any, tuple[int, int]]:
    """The part of a read model up to its two maps, which are its outputs, for any batch size; the maps' channels.

    Raises ModelError where there are no such maps.
    """
    _fold(model.graph)
    _free_batch(model.graph)
    shapes = _shapes(model, name)
    taps = _find(model.graph, shapes, name)
    _cut(model.graph, taps.names)
    _check_numbers(model.graph, name)
    return _renamed(_as_known(model, name)), taps.channels


def _fold(graph: Any) -> None:
    """Constants become initializers; nodes that pass a value on are left out."""
    from onnx import helper

    passed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for place, value in enumerate(node.input):
            node.input[place] = passed.get(value, value)
        told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Identity" and node.domain == "":
            passed[node.output[0]] = node.input[0]
        elif node.op_type == "Constant" and (tensor := _constant(told)) is not None:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _constant(told: Mapping[str, Any]) -> Any:
    """A Constant's attributes as a tensor; None where they are of a rarer kind."""
    from onnx import numpy_helper

    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    for key, value in told.items():
        if key in kinds:
            return numpy_helper.from_array(np.asarray(value, kinds[key]))
    return told.get("value")


def _free_batch(graph: Any) -> None:
    """Reshapes to shapes that begin with the batch size of the export keep that of their input instead."""
    from onnx import numpy_helper

    numbers = {one.name: one for one in graph.initializer}
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
    for index, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[-1] not in numbers or node.input[0] in numbers:
            continue
        shape = numpy_helper.to_array(numbers[node.input[1]]).copy()
        if 0 not in shape:  # else a nought's meaning is left as it is
            kept = [one for one in node.attribute if one.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
            if batch and shape.ndim == 1 and len(shape) and shape[0] == batch:
                shape[0] = 0
                node.input[1] = f"{node.input[1]}/any batch/{index}"
                graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))


def _shapes(model: Any, name: str) -> Shapes:
    """The shapes of all values for one image of PROBE pixels, as far as they can be told."""
    from onnx import shape_inference

    graph = model.graph
    del graph.value_info[:]
    del graph.output[:]
    for dim, value in zip(graph.input[0].type.tensor_type.shape.dim, (1, 3, PROBE, PROBE), strict=True):
        dim.dim_value = value
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    except Exception as error:  # onnx's own kinds
        raise ModelError(f"backbone {name}: cannot be looked into ({words(error)}): {_EXPORT}") from None
    return {
        one.name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in one.type.tensor_type.shape.dim)
        for one in inferred
    }


def _find(graph: Any, shapes: Shapes, name: str) -> Taps:
    found = [_last_map(graph, shapes, PROBE // stride) for stride in STRIDES]
    if None in found:
        sides = {shape[2] for shape in shapes.values() if len(shape) == 4 and shape[2] and shape[2] == shape[3]}
        strides = [PROBE // side for side in sorted(sides, reverse=True) if PROBE % side == 0 and side > 1]
        raise ModelError(
            f"backbone {name}: has no maps at strides 8 and 16 (found: {', '.join(map(str, strides)) or 'none'}): give "
            "another network or, where it keeps to one image size, export it with dynamic sizes"
        )
    fine, coarse = (str(one) for one in found)
    return Taps((fine, coarse), (_channels(shapes, fine), _channels(shapes, coarse)))


def _last_map(graph: Any, shapes: Shapes, side: int) -> str | None:
    """The narrowest map of ``side`` cells from the last sum or concatenation on, the later one of equals.

    Exporters keep no blocks, but what blocks hand on is narrower than what they widen it to inside. Only maps beside
    which no other of that size is still needed count: they hold all that is known at that stride. Where nothing is
    ever joined it is the last one. None where there is none.
    """
    maps, last_use = [], {}
    for index, node in enumerate(graph.node):
        if any(_is_map(shapes, one, side // 2) for one in node.output):
            break
        maps += [(index, one, node) for one in node.output if _is_map(shapes, one, side)]
    for index, node in enumerate(graph.node):
        last_use.update(dict.fromkeys(node.input, index))
    ending: list[str] = []
    for index, value, node in reversed(maps):
        if all(last_use.get(other, 0) <= index for at, other, _ in maps if at < index):
            ending.append(value)
        if node.op_type in _JOINS and sum(_is_map(shapes, one, side) for one in node.input) > 1:
            return min(ending, key=lambda one: _channels(shapes, one), default=None)
    return ending[0] if ending else None


def _is_map(shapes: Shapes, value: str, side: int) -> bool:
    shape = shapes.get(value, ())
    return len(shape) == 4 and shape[2:] == (side, side) and shape[1] is not None


def _channels(shapes: Shapes, value: str) -> int:
    return shapes[value][1] or 0


def _cut(graph: Any, outputs: Iterable[str]) -> None:
    """Leave only what the outputs need."""
    from onnx import TensorProto, helper

    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    numbers = [one for one in graph.initializer if one.name in needed]
    del graph.node[:], graph.initializer[:], graph.sparse_initializer[:], graph.quantization_annotation[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(numbers)
    graph.output.extend(helper.make_tensor_value_info(one, TensorProto.FLOAT, None) for one in outputs)


def _check_numbers(graph: Any, name: str) -> None:
    """Refuse weights of other precision than float32."""
    from onnx import TensorProto

    others = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    found = sorted({TensorProto.DataType.Name(one.data_type) for one in graph.initializer if one.data_type in others})
    if found:
        raise ModelError(f"backbone {name}: holds {' and '.join(found).lower()} weights: export it in float32")


def _as_known(model: Any, name: str) -> Any:
    """The same in operators of a version that the converter knows."""
    from onnx import version_converter

    version = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=_OPSET)
    if _OLDEST <= version <= _OPSET:
        return model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return version_converter.convert_version(model, _OPSET)
    except Exception as error:  # onnx's own kinds
        raise ModelError(
            f"backbone {name}: opset {version} cannot be taken to {_OPSET} ({words(error)}): export it with "
            f"opset_version={_OPSET}"
        ) from None


def _renamed(model: Any) -> Any:
    """Nodes by kind and number: a name of the file's choosing would become code."""
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
    return model


def words(error: Exception) -> str:
    """What an error of another library says, in one line of at most 200 letters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
