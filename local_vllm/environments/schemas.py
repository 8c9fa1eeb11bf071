"""JSON schemas of a tool's arguments, as OpenAI's function tools have them: closed, strict where they can be.

Making a schema of Python types is left to pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

Schema = dict[str, Any]

# Keywords whose values are schemas by name, so that their keys are no keywords.
_NAMED = ("properties", "$defs")
# Keywords whose values are no schemas.
_VALUES = ("default", "enum", "const")


def schema_of(
    arguments: TypeAdapter[Any], descriptions: Mapping[str, str], defaults: Mapping[str, Any]
) -> Schema:
    """The schema of an object of arguments. A description that a type brings itself stands."""
    schema: Schema = _tidied(arguments.json_schema())
    schema.setdefault("required", [])
    for name, field in schema.setdefault("properties", {}).items():
        if name in descriptions and "$ref" not in field:
            field.setdefault("description", descriptions[name])
        if name in defaults:
            field.setdefault("default", defaults[name])
    return schema


def can_be_strict(schema: Any) -> bool:
    """OpenAI's rule: every object is closed, and every property of it required."""
    if isinstance(schema, list):
        return all(map(can_be_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" and not _is_strict_object(schema):
        return False
    return all(can_be_strict(value) for name, value in schema.items() if name not in _VALUES)


def _is_strict_object(schema: Schema) -> bool:
    is_closed = schema.get("additionalProperties") is False
    return is_closed and set(schema.get("required", ())) == set(schema["properties"])


def _tidied(schema: Any) -> Any:
    """Without the titles that pydantic makes of names, and with objects of named properties closed."""
    if isinstance(schema, list):
        return [_tidied(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: _named(value) if name in _NAMED else _tidied(value) for name, value in schema.items()}
    kept.pop("title", None)
    if kept.get("type") == "object" and "properties" in kept:
        kept.setdefault("additionalProperties", False)
    return kept


def _named(schemas: Schema) -> Schema:
    return {name: _tidied(schema) for name, schema in schemas.items()}
