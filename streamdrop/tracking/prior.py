"""Networks trained offline on tracking data as a prior: NanoTrack's backbone and head, read from ONNX files.

They see the first frame's target (the template) and a later frame around a place, and propose boxes with a probability
each. Nothing here learns; what is learned on the stream is put on top by ``fusion``.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamdrop.boxes import Box
from streamdrop.errors import CheckpointError, WeightsError
from streamdrop.tracking.config import PriorConfig
from streamdrop.types import Image
from streamdrop.weights import resolve

Floats = npt.NDArray[np.float32]

_TEMPLATE, _SEARCH, _STRIDE = 127, 255, 16  # pixels: NanoTrack's own sizes, with which it was trained
_CONTEXT = 0.5  # of width + height, added to each side of the template's region
_UNLIKE, _WINDOW = 0.138, 0.455  # how fast an unlike shape, and a cell far from the middle, lose (NanoTrack V3's own)
_INSTALL = "pip install 'streamdrop[prior]' (onnxruntime)"
_FILES = "give prior.backbone and prior.head: ONNX files, or a folder or name of `streamdrop weights` that has both"


@dataclass(frozen=True)
class Proposals:
    """What the prior says of one place: ``boxes`` [N, 4] in frame pixels, their ``probability`` [N] in [0, 1].

    ``worth`` [N]: the probability, less for a box of another size or shape than the target had. ``rank`` [N]: the
    worth, less for a cell far from the middle, whose boxes are less exact.
    """

    probability: Floats
    worth: Floats
    rank: Floats
    boxes: npt.NDArray[np.float64]

    @property
    def middles(self) -> npt.NDArray[np.float64]:
        """The boxes' middles, [N, 2]."""
        middles: npt.NDArray[np.float64] = self.boxes[:, :2] + self.boxes[:, 2:] / 2
        return middles


class Prior:
    """NanoTrack's networks and the template of one target. ``start`` takes a new target.

    Raises WeightsError when onnxruntime or the files are missing, or the files hold other networks.
    """

    def __init__(self, config: PriorConfig) -> None:
        backbone, head = find_networks(config)
        self._backbone, self._head = _session(backbone), _session(head)
        self._inputs = [one.name for one in self._head.get_inputs()]
        self._template_network = _template_network(backbone)
        _check_networks(self._backbone, self._head, backbone, head)
        self._template: Floats | None = None
        self._filling: tuple[int, ...] = ()

    def start(self, image: Image, box: Box) -> None:
        """Take the target in ``box`` of this frame (uint8 RGB) for the template."""
        self._filling = tuple(int(value) for value in image.mean((0, 1)))
        crop = _crop(image, box.centre, _region(box.w, box.h), _TEMPLATE, self._filling)
        self._template_network.setInput(crop)
        self._template = np.array(self._template_network.forward(), np.float32)

    def look(self, image: Image, box: Box) -> Proposals:
        """What may be the target in a frame, near ``box``: about twice as far as it is long, each way."""
        assert self._template is not None
        region = _region(box.w, box.h)
        scale = region / _TEMPLATE  # frame pixels per pixel of the networks
        crop = _crop(image, box.centre, region * _SEARCH / _TEMPLATE, _SEARCH, self._filling)
        (features,) = self._backbone.run(None, {self._backbone.get_inputs()[0].name: crop})
        classes, sides = self._head.run(None, dict(zip(self._inputs, (self._template, features), strict=True)))
        return _proposals(classes[0], sides[0], box, scale)

    def state(self) -> dict[str, Any]:
        """The template, as text and numbers; ``restore`` takes it back exactly."""
        assert self._template is not None
        text = base64.b64encode(self._template.astype("<f4").tobytes()).decode()
        return {"template": text, "shape": list(self._template.shape), "filling": list(self._filling)}

    def restore(self, state: Any) -> None:
        """Go on with the template whose ``state`` was saved. Raises CheckpointError."""
        try:
            flat = np.frombuffer(base64.b64decode(state["template"]), "<f4").astype(np.float32)
            self._template = flat.reshape(state["shape"])
            self._filling = tuple(state["filling"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the prior's template does not decode ({error}): start anew") from None


def find_networks(config: PriorConfig) -> tuple[Path, Path]:
    """Paths of the backbone and the head. Raises WeightsError."""
    assert config.backbone is not None
    backbone = resolve(config.backbone)
    if backbone.is_dir():
        found = [sorted(backbone.glob(f"*{part}*.onnx")) for part in ("backbone", "head")]
        if any(len(paths) != 1 for paths in found):
            raise WeightsError(f"prior: {backbone} does not hold one *backbone*.onnx and one *head*.onnx: {_FILES}")
        return found[0][0], found[1][0]
    head = None if config.head is None else resolve(config.head)
    for path in (backbone, head):
        if path is not None and not path.is_file():
            raise WeightsError(f"prior: {path}: no such file: {_FILES}")
    if head is None:
        raise WeightsError(f"prior: {backbone} is the backbone alone: {_FILES}")
    return backbone, head


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise WeightsError(f"prior: {path} needs onnxruntime, which is not installed: {_INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds differ by version
        raise WeightsError(f"prior: {path}: not an ONNX network ({type(error).__name__}): {_FILES}") from None


def _template_network(path: Path) -> Any:
    """The backbone for the template's size: the published files fix the search crop's, which OpenCV overlooks."""
    try:
        return cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise WeightsError(f"prior: OpenCV cannot read {path} ({error.err}): {_FILES}") from None


def _check_networks(backbone: Any, head: Any, *paths: Path) -> None:
    """Raise WeightsError for networks of other inputs and outputs."""
    inputs, outputs = backbone.get_inputs(), head.get_outputs()
    cells = outputs[0].shape[-1] if outputs else None
    fits = [tuple(one.shape) for one in inputs] == [(1, 3, _SEARCH, _SEARCH)] and len(head.get_inputs()) == 2
    if not fits or [tuple(one.shape) for one in outputs] != [(1, 2, cells, cells), (1, 4, cells, cells)]:
        raise WeightsError(
            f"prior: {paths[0].name} and {paths[1].name} are not NanoTrack's backbone (1×3×255×255 in) and head "
            f"(two inputs, outputs 1×2×n×n and 1×4×n×n): {_FILES}"
        )


def _region(w: float, h: float) -> float:
    """The side of the square that NanoTrack shows of a target for its template."""
    return math.sqrt((w + _CONTEXT * (w + h)) * (h + _CONTEXT * (w + h)))


def _crop(image: Image, middle: tuple[float, float], side: float, size: int, filling: tuple[int, ...]) -> Floats:
    """A square of the frame in whole pixels as NanoTrack takes it: [1, 3, size, size], BGR, 0 … 255."""
    length = max(round(side), 2)
    x0, y0 = (math.floor(value - length / 2 + 0.5) for value in middle)
    height, width = image.shape[:2]
    left, top = max(0, -x0), max(0, -y0)
    right, bottom = max(0, x0 + length - width), max(0, y0 + length - height)
    part = image[max(0, y0) : max(0, y0 + length), max(0, x0) : max(0, x0 + length)]
    if part.size == 0:
        part = np.full((length, length, 3), filling, np.uint8)
    elif left or top or right or bottom:
        bordered = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT, value=filling)
        part = np.asarray(bordered, np.uint8)
    shown = np.asarray(cv2.resize(part, (size, size)), np.float32)[..., ::-1]
    return np.ascontiguousarray(shown.transpose(2, 0, 1)[None])


def _proposals(classes: Floats, sides: Floats, box: Box, scale: float) -> Proposals:
    """The head's maps, classes [2, n, n] and distances to the four sides [4, n, n], around ``box``."""
    cells = classes.shape[-1]
    logits = classes.reshape(2, -1)
    probability = 1 / (1 + np.exp(np.clip(logits[0] - logits[1], -50, 50)))
    left, top, right, bottom = sides.reshape(4, -1).astype(float)
    places = (np.arange(cells) - cells // 2) * _STRIDE
    x, y = (value.ravel() for value in np.meshgrid(places, places))
    w, h = np.maximum(left + right, 1e-3), np.maximum(top + bottom, 1e-3)
    worth = probability * _likeness(w, h, box.w / scale, box.h / scale)
    rank = (1 - _WINDOW) * worth + _WINDOW * np.outer(np.hanning(cells), np.hanning(cells)).ravel()
    u, v = box.centre
    boxes = np.stack([u + (x - left) * scale, v + (y - top) * scale, w * scale, h * scale], 1)
    return Proposals(probability.astype(np.float32), worth.astype(np.float32), rank.astype(np.float32), boxes)


def _likeness(w: npt.NDArray[Any], h: npt.NDArray[Any], as_w: float, as_h: float) -> npt.NDArray[Any]:
    """NanoTrack's penalty: 1 for boxes of the size and aspect of w × h, less for others."""

    def change(ratio: npt.NDArray[Any]) -> npt.NDArray[Any]:
        either: npt.NDArray[Any] = np.maximum(ratio, 1 / ratio)
        return either

    own = _region(as_w, as_h)
    sizes = np.sqrt((w + _CONTEXT * (w + h)) * (h + _CONTEXT * (w + h)))
    likeness: npt.NDArray[Any] = np.exp(-_UNLIKE * (change((as_w / as_h) / (w / h)) * change(sizes / own) - 1))
    return likeness
