"""YAML to frozen dataclasses: the only reader of YAML.

A schema is any frozen dataclass, nested as deep as needed, or a tuple of them; it stands beside the code it configures.
Unknown keys, wrong types, numbers that are not finite and unset ``${VARIABLES}`` are refused with file, line, path and
the nearest valid key.
A field made by ``overrides_of`` holds some keys of another schema as plain values, one made by ``secret`` is not shown.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from streamdrop.errors import ConfigError
from streamdrop.values import UnfitValue, fitted

T = TypeVar("T")
KeyPath = tuple[str, ...]
_NOTHING = object()
MOST_VALUES = 100_000
"""Values in a configuration; a few lines of aliases of aliases make up billions."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclasses.dataclass(frozen=True)
class _Document:
    """Plain values of a YAML document, where each key stands, and which keys were given beside it (``--set``)."""

    name: str
    values: Any
    lines: dict[KeyPath, int]
    given: list[KeyPath] = dataclasses.field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """``file:line: key.path`` as far as known; ``--set key`` where keys that were given so are all there is.

        Keys below ``path`` that were not the file's are named too: a mistake that shows in the whole may be theirs.
        """
        key = ".".join(path)
        if any(path[: len(given)] == given for given in self.given):
            return f"--set {key}"
        below = ", ".join(".".join(given) for given in self.given if given[: len(path)] == path)
        if path and path not in self.lines and below:
            return f"--set {below}: {key}"
        line = next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)
        place = self.name if line is None or (below and not path) else f"{self.name}:{line}"
        place += f" with --set {below}" if below else ""
        return f"{place}: {key}" if path else place


def load(
    source: str | os.PathLike[str] | Mapping[str, Any] | None, schema: type[T], overrides: Sequence[str] = ()
) -> T:
    """The configuration in ``source`` (a YAML file, a mapping, or None for all defaults) as an instance of ``schema``.

    ``overrides`` are ``"a.b=value"`` with the value in YAML; they win over the source. Raises ConfigError naming
    file, line, key path and the nearest valid key, for every mistake found at once.
    """
    document = _read(source)
    for text in overrides if isinstance(document.values, dict) else ():  # anything else is refused below
        document.given.append(_override(document.values, text, schema))
    problems: list[str] = []
    result = _build(schema, document.values, (), document, problems)
    if problems:
        raise ConfigError("; ".join(problems), problems=problems)
    return typing.cast(T, result)


def overrides_of(schema: type[Any]) -> Any:
    """A field for some of ``schema``'s keys: checked as ``schema`` is, kept as the nested mapping that was given."""
    return dataclasses.field(default_factory=dict, metadata={"overrides": schema})


def secret(default: Any = None) -> Any:
    """A field whose value no message shows, nor the repr of its dataclass."""
    return dataclasses.field(default=default, repr=False, metadata={"secret": True})


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; ``above`` wins, key by key."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys, as ``a.b``, at which two configurations of plain values are not the same, or that one lacks."""
    found: list[str] = []
    for key in (*now, *(key for key in before if key not in now)):
        one, other = (values.get(key, _NOTHING) for values in (before, now))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{key}.{below}" for below in differing_keys(one, other)]
        elif one != other:
            found.append(key)
    return found


def _read(source: str | os.PathLike[str] | Mapping[str, Any] | None) -> _Document:
    if source is None:
        return _Document("configuration", {}, {})
    if isinstance(source, Mapping):
        return _Document("configuration", _plain(source), {})
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"a {type(source).__name__} is no configuration: give a YAML file, a mapping, or None")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML text file ({error}): check the path") from None
    lines: dict[KeyPath, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = {} if node is None else _value(node, (), lines, str(path))
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias within itself: write it out") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{path}{line}: {problem}: correct the YAML there") from None
    return _Document(str(path), values, lines)


def _plain(value: Any) -> Any:
    """A copy of nested mappings and lists that overrides may change."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _value(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> Any:
    """A YAML node as plain values; notes every key's line, refuses duplicate keys, expands variables."""
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > MOST_VALUES:
        raise ConfigError(f"{name}: holds more than {MOST_VALUES} values, aliases counted each time: shorten it")
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            at = f"{name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                raise ConfigError(f"{at}: a list, a mapping or << as a key is not read: write the keys out")
            key = _scalar(key_node, name)
            where = (*path, str(key))
            if key in result:
                raise ConfigError(f"{at}: {'.'.join(where)}: given twice: keep one")
            lines[where] = key_node.start_mark.line + 1
            result[key] = _value(value_node, where, lines, name)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, str(i)), lines, name) for i, item in enumerate(node.value)]
    return _scalar(node, name)


def _scalar(node: yaml.Node, name: str) -> Any:
    where = f"{name}:{node.start_mark.line + 1}"
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
    except (ValueError, OverflowError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(f"{where}: {str(node.value)[:40]!r} is not what it looks like ({error}): quote it") from None
    return _expand(value, where) if isinstance(value, str) else value


def _expand(text: str, where: str) -> str:
    def replace(match: re.Match[str]) -> str:
        variable = match.group(1)
        if variable not in os.environ:
            raise ConfigError(f"{where}: environment variable {variable} is not set: export {variable}=… first")
        return os.environ[variable]

    return _VARIABLE.sub(replace, text)


def _override(values: dict[str, Any], text: str, schema: type[Any]) -> KeyPath:
    """Put the value of ``a.b=value`` in its place; the path of its key."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: not key=value: write for example --set {_example(schema)}")
    try:
        node = yaml.compose(_expand(value, f"--set {key}") if "${" in value else value, Loader=yaml.SafeLoader)
        parsed = None if node is None else _value(node, (), {}, f"--set {key}")
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"--set {key}: the value {value!r} is not YAML: quote it or correct it") from None
    *parents, last = key.strip().split(".")
    for parent in parents:
        below = values.get(parent)
        if not isinstance(below, dict):
            below = values[parent] = {}
        values = below
    values[last] = parsed
    return (*parents, last)


def _example(schema: type[Any]) -> str:
    for field in dataclasses.fields(schema):
        if isinstance(field.default, (int, float, str)):
            return f"{field.name}={field.default}"
    return "key=value"


def _build(kind: Any, value: Any, path: KeyPath, document: _Document, problems: list[str]) -> Any:
    item = _items_in(kind)
    if item is not None and isinstance(value, (list, tuple)):
        return tuple(_build(item, one, (*path, str(n)), document, problems) for n, one in enumerate(value))
    if item is not None:
        problems.append(f"{document.where(path)}: expected a list, each with keys ({_names(item)}), got {value!r}")
        return None
    nested = _dataclass_in(kind)
    if nested is None or (value is None and nested is not kind):
        return _leaf(kind, value, path, document, problems)
    if not isinstance(value, Mapping):
        problems.append(f"{document.where(path)}: expected keys below it ({_names(nested)}), got {value!r}")
        return None
    return _build_dataclass(nested, value, path, document, problems)


def _build_dataclass(
    kind: Any, value: Mapping[Any, Any], path: KeyPath, document: _Document, problems: list[str]
) -> Any:
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    before = len(problems)
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"valid keys: {_names(kind)}"
            problems.append(f"{document.where((*path, str(key)))}: unknown key: {hint}")
    given: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            given[name] = _field(field, hints[name], value[name], (*path, name), document, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{document.where((*path, name))}: missing: give {name}")
    if len(problems) > before:
        return None
    try:
        return kind(**given)
    except (ValueError, ConfigError) as error:
        problems.append(f"{document.where(path) if path or document.given else document.name}: {error}")
        return None


def _field(
    field: dataclasses.Field[Any], kind: Any, value: Any, path: KeyPath, document: _Document, problems: list[str]
) -> Any:
    if "overrides" in field.metadata:
        _build(field.metadata["overrides"], value, path, document, problems)
        return value
    if field.metadata.get("secret") and value is not None and not isinstance(value, str):
        problems.append(f"{document.where(path)}: expected text (its value is not shown here): put it in quotes")
        return None
    return _build(kind, value, path, document, problems)


def _leaf(kind: Any, value: Any, path: KeyPath, document: _Document, problems: list[str]) -> Any:
    try:
        return fitted(kind, value)
    except UnfitValue as unfit:
        where = document.where((*path, *unfit.path))
        problems.append(f"{where}: expected {unfit.wanted}, got {unfit.value!r}")
        return None


def _dataclass_in(kind: Any) -> Any:
    """The dataclass that ``kind`` is, or the one in ``Dataclass | None``; None for anything else."""
    if dataclasses.is_dataclass(kind):
        return kind
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next((part for part in typing.get_args(kind) if dataclasses.is_dataclass(part)), None)
    return None


def _items_in(kind: Any) -> Any:
    """The dataclass in ``tuple[Dataclass, ...]``; None for anything else."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return arguments[0] if dataclasses.is_dataclass(arguments[0]) else None
    return None


def _names(kind: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(kind))
