"""A tool's parameters are a JSON Schema, or are refused with the place where they are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from local_vllm.errors import RequestError
from local_vllm.protocol import json_schema
from local_vllm.protocol.json_schema import check_schema

STRING = {"type": "string"}


def finding(schema, **options) -> str:
    with pytest.raises(RequestError) as refused:
        check_schema(Raw(json.dumps(schema).encode()), "p", code="c", **options)
    assert (refused.value.param, refused.value.code) == ("p", "c")
    return str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": STRING, "b": {"type": ["integer", "null"]}}, "required": ["a"]},
        {"type": "object", "properties": {}, "additionalProperties": False},
        {"properties": {"type": STRING, "required": {"type": "boolean"}, "items": True}},
        {"type": "array", "items": STRING, "minItems": 1, "maxItems": 2.0},
        {"items": [STRING, True]},
        {"anyOf": [STRING, {"$ref": "#/$defs/x"}], "$defs": {"x": {"enum": [1, None, "a"]}}},
        {"const": {"type": 3}, "default": {"items": 3}, "examples": [{"type": 3}]},
        {"minimum": 1, "exclusiveMinimum": True, "pattern": "^a", "format": "date", "x-own": 3},
    ],
)
def test_a_schema_passes(schema) -> None:
    check_schema(Raw(json.dumps(schema).encode()), "p", code="c")


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "strin"}, "p.type"),
        ({"type": []}, "p.type"),
        ({"type": ["string", 3]}, "p.type"),
        ({"type": {}}, "p.type"),
        ({"properties": [STRING]}, "p.properties"),
        ({"properties": {"a": "string"}}, "p.properties.a"),
        ({"properties": {"a": {"properties": {"b": {"type": "x"}}}}}, "p.properties.a.properties.b.type"),
        ({"required": "a"}, "p.required"),
        ({"required": [1]}, "p.required"),
        ({"items": "string"}, "p.items"),
        ({"items": [STRING, 3]}, "p.items[1]"),
        ({"anyOf": []}, "p.anyOf"),
        ({"allOf": [STRING, None]}, "p.allOf[1]"),
        ({"enum": []}, "p.enum"),
        ({"additionalProperties": "no"}, "p.additionalProperties"),
        ({"minLength": -1}, "p.minLength"),
        ({"maximum": "9"}, "p.maximum"),
        ({"pattern": 3}, "p.pattern"),
    ],
)
def test_what_is_no_schema_is_named_with_its_place(schema, where) -> None:
    assert f"'{where}'" in finding(schema)


def test_parameters_of_a_function_are_an_object() -> None:
    assert "'p.type'" in finding({"type": "string"}, is_object=True)
    check_schema(Raw(b'{"properties": {}}'), "p", code="c", is_object=True)


@pytest.mark.parametrize("depth", [400, 5000])
@pytest.mark.parametrize("keyword", ["items", "not", "additionalProperties"])
def test_a_schema_that_is_nested_too_deep_is_refused(keyword, depth) -> None:
    schema = b'{"type":"object"' + b',"%b":{"a":1' % keyword.encode() * depth + b"}" * (depth + 1)
    with pytest.raises(RequestError, match="nested too deeply"):
        check_schema(Raw(schema), "p", code="c", is_object=True)


def test_only_schemas_of_a_usual_size_are_remembered() -> None:
    json_schema._first_finding_once.cache_clear()
    for size, remembered in ((1000, 1), (200_000, 1), (2000, 2)):
        check_schema(Raw(json.dumps({"description": "x" * size}).encode()), "p", code="c")
        assert json_schema._first_finding_once.cache_info().currsize == remembered


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "properties", "items", "anyOf", "required", "enum", "minLength", "a"]), inner
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["type", "properties", "items", "allOf", "maxItems", "$defs"]), JSON))
def test_any_object_is_a_schema_or_refused(schema) -> None:
    try:
        check_schema(Raw(json.dumps(schema).encode()), "p", code="c")
    except RequestError as refused:
        assert refused.status == 400
