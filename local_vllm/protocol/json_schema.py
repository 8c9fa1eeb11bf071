"""Whether a JSON document is a JSON Schema: the keywords that engines read have values of the right kind.
What a schema accepts is left to the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Raw

from local_vllm.errors import RequestError

_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_SCHEMAS = frozenset(
    "additionalProperties contains else if items not propertyNames then unevaluatedItems "
    "unevaluatedProperties".split()
)
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_COUNTS = frozenset("maxItems maxLength maxProperties minItems minLength minProperties".split())
_NUMBERS = frozenset({"maximum", "minimum", "multipleOf"})
_TEXTS = frozenset({"$ref", "description", "pattern", "title"})

_decode = msgspec.json.Decoder(dict[str, Any]).decode

# Schemas of more bytes than this are looked at anew each time rather than remembered.
_LARGE = 128 << 10

# (where in the schema, what is wrong)
Finding = tuple[str, str]


def check_schema(schema: Raw, param: str, *, code: str, is_object: bool = False) -> None:
    """Raises RequestError that names the place at fault. `is_object`: it has to describe an object."""
    given = bytes(schema)
    finding = (_first_finding if len(given) > _LARGE else _first_finding_once)(given, is_object)
    if finding is not None:
        where, what = finding
        raise RequestError(f"Invalid schema for '{param}{where}': {what}.", param=param, code=code)


def _first_finding(schema: bytes, is_object: bool) -> Finding | None:
    try:
        found = _decode(schema)
        if is_object and found.get("type", "object") != "object":
            return ".type", f"expected 'object', got {_shown(found['type'])}"
        return next(_findings(found, ""), None)
    except RecursionError:
        return "", "it is nested too deeply"
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        return "", str(problem)


# The schemas of a client's tools come with every request of a conversation.
_first_finding_once = lru_cache(maxsize=512)(_first_finding)


def _findings(schema: Any, where: str) -> Iterator[Finding]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield where, f"expected a schema (an object or a boolean), got {_shown(schema)}"
        return
    for keyword, value in schema.items():
        yield from _findings_of(keyword, value, f"{where}.{keyword}")


def _findings_of(keyword: str, value: Any, where: str) -> Iterator[Finding]:
    if keyword in _SCHEMAS or keyword in _LISTS:
        yield from _schema_or_list(keyword, value, where)
    elif keyword in _NAMED:
        yield from _named(value, where)
    elif (expected := _EXPECTED.get(keyword)) is not None and not expected[1](value):
        yield where, f"expected {expected[0]}, got {_shown(value)}"


def _schema_or_list(keyword: str, value: Any, where: str) -> Iterator[Finding]:
    if keyword in _LISTS and not (isinstance(value, list) and value):
        yield where, f"expected a list of schemas, got {_shown(value)}"
    elif isinstance(value, list) and (keyword in _LISTS or keyword == "items"):
        for number, each in enumerate(value):
            yield from _findings(each, f"{where}[{number}]")
    else:
        yield from _findings(value, where)


def _named(value: Any, where: str) -> Iterator[Finding]:
    if not isinstance(value, dict):
        yield where, f"expected an object of schemas, got {_shown(value)}"
        return
    for name, each in value.items():
        yield from _findings(each, f"{where}.{name}")


def _is_type(value: Any) -> bool:
    return value in _TYPES if isinstance(value, str) else _is_list_of(value, _is_type_name) and bool(value)


def _is_type_name(value: Any) -> bool:
    return isinstance(value, str) and value in _TYPES


def _is_list_of(value: Any, is_one: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_one, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "type": (f"one or several of {', '.join(_TYPES)}", _is_type),
    "required": ("a list of names", lambda value: _is_list_of(value, _is_text)),
    "enum": ("a list of values", lambda value: isinstance(value, list) and bool(value)),
    **dict.fromkeys(_COUNTS, ("a number from 0", _is_count)),
    **dict.fromkeys(_NUMBERS, ("a number", _is_number)),
    **dict.fromkeys(_TEXTS, ("a string", _is_text)),
}


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
