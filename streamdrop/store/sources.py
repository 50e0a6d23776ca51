"""Encoded inputs, kept beside activations: what a thaw trains lower layers from again.

The bytes say themselves what they are. Images are plain PNG or JPEG files; anything else is *raw*: ``SDRAW1``, the
length of a JSON header (4 bytes, little-endian), the header (kind, dtype, shape), the values in C order.
PNG and raw come back bit for bit. JPEG is lossy: what is made again from it is near to what the input gave, not equal.
"""

from __future__ import annotations

import io
import json
import math
import struct
import warnings
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from streamdrop.errors import DataError, StoreCorruptError
from streamdrop.store.layout import byte_view, dtype_name, dtype_named

KINDS = ("png", "jpeg", "raw")

Input: TypeAlias = "npt.NDArray[Any] | torch.Tensor"

_RAW, _PNG, _JPEG = b"SDRAW1", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_END = b"IEND\xaeB`\x82"
_LENGTH = struct.Struct("<I")
_NUMPY_KINDS = "biufcSUMm"
_LARGEST = 150_000_000  # pixels; Pillow refuses to decode what is much larger


def encode_source(image: Input, kind: str = "png", quality: int = 95) -> bytes:
    """An input as bytes that ``decode_source`` reads: a frame, a crop, or a tensor as the model takes it.

    ``kind`` "png" (exact) and "jpeg" (lossy, ``quality`` 1 … 100) take uint8 H×W×3 RGB or H×W grey; "raw" (exact) takes
    a tensor or array of any shape and dtype, bfloat16 too. Raises DataError.
    """
    if kind == "raw":
        return _encode_raw(image)
    if kind not in KINDS:
        raise DataError(f"source kind {kind!r} is not known; valid: {', '.join(KINDS)}")
    if kind == "jpeg" and (not isinstance(quality, int) or not 1 <= quality <= 100):
        raise DataError(f"quality={quality!r} is not a whole number from 1 to 100")
    return _encode_image(_pixels(image, kind), kind, quality)


def decode_source(data: bytes) -> Input:
    """What ``encode_source`` was given, in memory of its own: an image as a uint8 array, raw as array or tensor.

    Any PNG or JPEG file will do: grey ones are H×W, all others H×W×3 RGB, turned as their EXIF orientation says.
    Raises StoreCorruptError.
    """
    data = bytes(data)  # views too; of bytes this is no copy
    if is_raw(data):
        return _decode_raw(data)
    if data[: len(_PNG)] == _PNG or data[: len(_JPEG)] == _JPEG:
        return _decode_image(data)
    raise StoreCorruptError(
        f"a source of {len(data)} bytes is neither PNG, JPEG nor raw: keep inputs as encode_source makes them"
    )


def is_raw(data: bytes) -> bool:
    """Whether a source is a tensor or array as it was, and no image file."""
    return data[: len(_RAW)] == _RAW


def _pixels(image: object, kind: str) -> npt.NDArray[np.uint8]:
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 else image
    remedy = "give uint8 H×W×3 RGB or H×W, or use kind='raw'"
    if not isinstance(array, np.ndarray):
        what = dtype_name(image.dtype) if isinstance(image, torch.Tensor) else type(image).__name__
        raise DataError(f"a {what} is not kept as {kind}: {remedy}")
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not grey_or_rgb or not 0 < array.size <= _LARGEST:
        raise DataError(f"an array of {array.dtype}{list(array.shape)} is not kept as {kind}: {remedy}")
    return array


def _encode_image(pixels: npt.NDArray[np.uint8], kind: str, quality: int) -> bytes:
    import cv2  # four times as quick as Pillow at PNG; both write the same JPEG

    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpeg" else []
    try:
        done, data = cv2.imencode(f".{kind}", np.ascontiguousarray(bgr), options)
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"an image of {list(pixels.shape)} is too large for {kind}: use kind='raw'")
    return data.tobytes()


def _decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    from PIL import Image as pillow  # exact about damage
    from PIL import ImageOps

    if data[: len(_PNG)] == _PNG and _PNG_END not in data:
        raise StoreCorruptError("a PNG source is cut off: observe its sample again")
    try:
        with warnings.catch_warnings(), pillow.open(io.BytesIO(data), formats=("PNG", "JPEG")) as file:
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                raise StoreCorruptError(f"an image source of mode {image.mode} is not 8 bits: keep it as kind='raw'")
            return np.array(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, pillow.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreCorruptError(f"an image source does not decode ({reason}): observe its sample again") from error


def _encode_raw(value: object) -> bytes:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise DataError("a sparse, quantised or meta tensor is not kept as a source: give a dense tensor")
        tensor = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
        return _raw("tensor", dtype_name(tensor.dtype), tensor.shape, byte_view(tensor))
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMPY_KINDS:
        return _raw("array", value.dtype.str, value.shape, value.tobytes())
    what = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise DataError(f"a source that is a {what} cannot be kept: give a tensor or an array of numbers")


def _raw(kind: str, dtype: str, shape: tuple[int, ...], values: bytes | memoryview) -> bytes:
    header = json.dumps({"kind": kind, "dtype": dtype, "shape": list(shape)}).encode()
    return b"".join([_RAW, _LENGTH.pack(len(header)), header, values])


def _decode_raw(data: bytes) -> Input:
    try:
        start = len(_RAW) + _LENGTH.size
        (length,) = _LENGTH.unpack_from(data, len(_RAW))
        header = json.loads(bytes(data[start : start + length]))
        shape = tuple(int(size) for size in header["shape"])
        values = bytearray(data[start + length :])
        if header["kind"] == "tensor":
            return _tensor(values, dtype_named(header["dtype"]), shape)
        return _array(values, str(header["dtype"]), shape)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise StoreCorruptError(f"a raw source does not decode ({error!r}): observe its sample again") from error


def _tensor(values: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    empty = torch.empty((), dtype=dtype, device="cpu")
    _check_size(len(values), empty.element_size(), shape)
    return torch.frombuffer(values, dtype=dtype).reshape(shape) if values else empty.new_empty(shape)


def _array(values: bytearray, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = np.dtype(name)
    if dtype.kind not in _NUMPY_KINDS:
        raise StoreCorruptError(f"a raw source names the dtype {name!r}: observe its sample again")
    _check_size(len(values), dtype.itemsize, shape)
    return np.frombuffer(values, dtype).reshape(shape) if values else np.empty(shape, dtype)


def _check_size(got: int, item: int, shape: tuple[int, ...]) -> None:
    want = math.prod(shape) * item
    if got != want or min(shape, default=0) < 0:
        raise StoreCorruptError(f"a raw source has {got} bytes of values, not {want}: observe its sample again")
