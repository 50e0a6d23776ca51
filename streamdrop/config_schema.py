"""A configuration's dataclasses as JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

from pydantic import TypeAdapter

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(schema: type[Any], title: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration dataclass: every key, its type, its default; no other keys."""
    return {"$schema": DIALECT, "title": title, **_object(schema)}


def _object(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    return {
        "type": "object",
        "description": " ".join((inspect.getdoc(kind) or "").split()),
        "properties": {field.name: _property(field, hints[field.name]) for field in fields},
        "required": [
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ],
        "additionalProperties": False,
    }


def _property(field: dataclasses.Field[Any], kind: Any) -> dict[str, Any]:
    if "overrides" in field.metadata:
        return _object(field.metadata["overrides"])
    result = _any(kind)
    if field.default is not dataclasses.MISSING and not field.metadata.get("secret"):
        result = {**result, "default": list(field.default) if isinstance(field.default, tuple) else field.default}
    return result


def _any(kind: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast(type[Any], kind))
    parts = typing.get_args(kind)
    nested = [part for part in parts if dataclasses.is_dataclass(part)]
    if not nested:
        return TypeAdapter(kind).json_schema()
    if typing.get_origin(kind) is tuple:
        return {"type": "array", "items": _any(parts[0])}
    return {"anyOf": [_any(part) if part is not type(None) else {"type": "null"} for part in parts]}
