"""Fetching a published data set through torchvision: only where the user asked for it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from streamdrop.errors import DataError

WHAT = {
    "mnist": "MNIST's four files (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-…)",
    "cifar10": "cifar-10-binary.tar.gz",
    "imagenette": "imagenette2-160.tgz",
}
"""What a user without a connection has to fetch, by the name of the folder."""


def set_named(folder: Path) -> str | None:
    """Which published set a folder's last part names, or None."""
    return folder.name.lower() if folder.name.lower() in WHAT else None


def fetch(folder: Path, size: int) -> None:
    """Have torchvision download the set that ``folder`` is named after into it (its checksums verified there).

    Imagenette comes in the smallest published size that is at least ``size`` px. Raises DataError.
    """
    import torchvision.datasets

    name = set_named(folder)
    if name is None:
        raise DataError(f"{folder}: cannot be downloaded: name the folder {', '.join(WHAT)}, or put a data set there")
    before = set(folder.glob("*.tgz"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):  # standard output is the command's own
            if name == "mnist":
                torchvision.datasets.MNIST(str(folder), download=True)
            elif name == "cifar10":
                torchvision.datasets.CIFAR10(str(folder), download=True)
            else:
                published = "160px" if size <= 160 else "320px" if size <= 320 else "full"
                torchvision.datasets.Imagenette(str(folder), size=published, download=True)
    except (RuntimeError, OSError, EOFError, ValueError) as error:  # URLError is an OSError
        for partial in set(folder.glob("*.tgz")) - before:
            partial.unlink(missing_ok=True)  # it would be taken for the set
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{folder}: {name} could not be downloaded ({reason}): fetch {WHAT[name]} elsewhere and put it there"
        ) from error
