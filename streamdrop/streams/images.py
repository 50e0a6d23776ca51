"""Image files as a stream: a folder, a printf pattern, a glob, a single file, a file of several pictures."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from streamdrop.errors import StreamError
from streamdrop.pixels import Tones, as_rgb
from streamdrop.streams.stream import Frame
from streamdrop.types import Image

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".gif")
)
"""Endings that a folder's frames may have. A .gif given by itself is a video."""

SEVERAL = frozenset(("PNG", "WEBP", "TIFF"))
"""Pillow's names of the kinds that are videos where they hold several pictures; photos (MPO) that do are not."""

TIMED = 10
"""Pictures whose time on show says how many there are in a second."""

PRINTF = re.compile(r"%(0?)(\d*)d")


def read_image(path: Path) -> Image:
    """One image file as uint8 H×W×3 RGB, upright; of 16 bits in its own range. Raises StreamError."""
    values = _read(path)
    return as_rgb(values, Tones.of(values))


def _read(path: Path) -> npt.NDArray[Any]:
    """uint8 H×W×3 RGB or uint16 H×W, turned the way the EXIF orientation says; raises StreamError."""
    with _reading(path):
        return decode_image(path)


def decode_image(file: IO[bytes] | Path) -> npt.NDArray[Any]:
    """uint8 H×W×3 RGB or uint16 H×W, turned the way the EXIF orientation says; ValueError tells what is wrong."""
    with _decoding(), _opened(file) as opened:
        return _shown(opened)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What Pillow makes of a file that is damaged or no image, as a StreamError."""
    try:
        with _decoding():
            yield
    except ValueError as error:
        raise StreamError(f"image {path} cannot be read ({error}): replace it or leave it out") from error


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """What Pillow makes of bytes that are damaged or no image, as a ValueError that says it in a line."""
    from PIL import Image as pillow

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's word on odd metadata; what matters is raised
            yield
    except (OSError, ValueError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _opened(file: IO[bytes] | Path) -> Any:
    from PIL import Image as pillow

    return pillow.open(file)


def _shown(file: Any) -> npt.NDArray[Any]:
    """The picture that an open file stands at."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(file)
    if upright.mode.startswith(("I", "F")):
        return _whole_numbers(np.asarray(upright))
    return np.asarray(upright.convert("RGB"))


def _whole_numbers(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """16-bit grey, which Pillow hands out as 16 or 32 bits, as uint16; 32-bit floats, taken as 0 … 1, as uint8."""
    if values.dtype.kind == "f":
        return np.asarray(np.clip(np.nan_to_num(values) * 255, 0, 255).astype(np.uint8))
    return np.asarray(np.clip(values, 0, 65535).astype(np.uint16))


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sort key under which img2 stands before img10."""
    parts = re.split(r"(\d+)", path.name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part.lower()) for part in parts]


def files_in_folder(folder: Path) -> list[Path]:
    """The folder's images in natural order; raises StreamError when there are none (it names subfolders that have)."""
    paths = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and _may_be_read(p)]
    if paths:
        return sorted(paths, key=natural_order)
    inner = sorted(p.parent.name for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES)
    remedy = f"did you mean {folder / inner[0]}?" if inner else "give a folder that holds .jpg, .png or other images"
    raise StreamError(f"folder {folder} holds no images: {remedy}")


def _may_be_read(path: Path) -> bool:
    """A file, or a link to one that is gone, which has its number as an image that does not decode has."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def files_of_pattern(pattern: str) -> list[Path]:
    """Files whose names fit ``img_%05d.jpg``, in the order of their numbers, wherever these start."""
    path = Path(pattern)
    regex = re.compile("".join(_piece(part) for part in re.split(r"(%0?\d*d)", path.name)))
    numbered = [(int(m.group(1)), p) for p in _siblings(path) if (m := regex.fullmatch(p.name))]
    if not numbered:
        raise StreamError(f"pattern {pattern} matches no file: check the folder and the number of digits")
    return [p for _, p in sorted(numbered)]


def _piece(part: str) -> str:
    number = PRINTF.fullmatch(part)
    if number is None:
        return re.escape(part.replace("%%", "%"))
    zero, width = number.groups()
    return rf"(\d{{{width},}})" if zero and width else r"(\d+)"


def _siblings(path: Path) -> list[Path]:
    return list(path.parent.iterdir()) if path.parent.is_dir() else []


def files_of_glob(pattern: str) -> list[Path]:
    """Images that a glob such as ``shots/*.png`` matches, in natural order."""
    import glob

    paths = [Path(p) for p in glob.glob(pattern) if Path(p).suffix.lower() in SUFFIXES]
    if not paths:
        raise StreamError(f"pattern {pattern} matches no image: check the folder and the ending")
    return sorted(paths, key=lambda p: (str(p.parent), natural_order(p)))


def _read_or_none(path: Path) -> npt.NDArray[Any] | None:
    try:
        return _read(path)
    except StreamError:
        return None


class ImageFiles:
    """Files in order, each a frame; those that do not decode are frames without an image.

    16-bit grey is shown in the range of the first, so that frames stay comparable.
    """

    def __init__(self, paths: list[Path], name: str) -> None:
        """Raises StreamError when no file decodes."""
        self.name = name
        self.fps: float | None = None
        self.length: int | None = len(paths)
        self.live = False
        self.notice: str | None = None
        self._paths = paths
        first = next((values for path in paths if (values := _read_or_none(path)) is not None), None)
        if first is None:
            what = f"image {paths[0]}" if len(paths) == 1 else f"none of the {len(paths)} images of {name}"
            raise StreamError(f"{what} can{'not' if len(paths) == 1 else ''} be read: is it really an image file?")
        self.size: tuple[int, int] | None = (first.shape[1], first.shape[0])
        self._tones = Tones.of(first)

    def frames(self) -> Iterator[Frame]:
        """One frame per file, from the first."""
        for path in self._paths:
            values = _read_or_none(path)
            yield Frame(None if values is None else as_rgb(values, self._tones))

    def close(self) -> None:
        """Nothing is held open."""


class Pictures:
    """One file of several pictures, each a frame: an animated PNG or WebP, the pages of a TIFF.

    Those that do not decode are frames without an image. 16-bit grey is shown in the range of the first.
    """

    def __init__(self, path: Path, count: int) -> None:
        """Raises StreamError when the first does not decode."""
        self.name = path.name
        self.length: int | None = count
        self.live = False
        self.notice: str | None = None
        self._path = path
        values = _read(path)
        self.size: tuple[int, int] | None = (values.shape[1], values.shape[0])
        self._tones = Tones.of(values)
        self.fps: float | None = self._rate()

    def frames(self) -> Iterator[Frame]:
        """One frame per picture, from the first."""
        for values, _ in self._pictures():
            yield Frame(None if values is None else as_rgb(values, self._tones))

    def _pictures(self) -> Iterator[tuple[npt.NDArray[Any] | None, float]]:
        """Every picture, and the milliseconds that it is on show (0: the file does not say)."""
        assert self.length is not None
        with _reading(self._path):
            file = _opened(self._path)
        with file:
            for number in range(self.length):
                values = None
                with contextlib.suppress(StreamError), _reading(self._path):
                    file.seek(number)
                    values = _shown(file)
                yield values, float(file.info.get("duration", 0) or 0)

    def _rate(self) -> float | None:
        """Frames per second on average over the first few; None for a TIFF."""
        times: list[float] = []
        for _, time in itertools.islice(self._pictures(), TIMED):
            if time <= 0:  # a TIFF's pages have none, and need not be decoded
                return None
            times.append(time)
        return 1000 * len(times) / sum(times)

    def close(self) -> None:
        """Nothing is held open."""


def images_in(path: Path) -> ImageFiles | Pictures:
    """An image file by itself: as many frames as it has pictures. Raises StreamError."""
    count = 1
    with contextlib.suppress(StreamError), _reading(path), _opened(path) as file:  # ImageFiles says what is wrong
        count = getattr(file, "n_frames", 1) if file.format in SEVERAL else 1
    return Pictures(path, count) if count > 1 else ImageFiles([path], path.name)
