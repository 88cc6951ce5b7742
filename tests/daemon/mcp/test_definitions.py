"""A stranger's schema: whatever it is, it becomes a small closed schema that is quick to check against, or a reason."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from perdure.daemon.config import BUILT_IN_TOOLS
from perdure.daemon.mcp.definitions import NoToolError, arguments_schema, definition, spec_of, tool_name
from perdure.daemon.mcp.settings import McpTool

NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
KEYWORDS = st.sampled_from(
    ["type", "properties", "required", "$ref", "$defs", "anyOf", "items", "enum", "pattern", "description", "additionalProperties",
     "not", "const", "format", "minimum", "patternProperties", "if", "$dynamicRef", "dependentSchemas"]
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from(["object", "string", "#", "#/$defs/a", "#/properties/a", "(a+)+$", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.sampled_from(["a", "b"]), inner, max_size=4)
    ),
    max_leaves=20,
)


def found(schema, **more):
    return definition({"name": "t", "inputSchema": schema, **more})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYWORDS, VALUES, max_size=5))
def test_any_schema_becomes_a_closed_one_or_a_reason(schema) -> None:
    try:
        made = arguments_schema(found(schema), words=True)
    except NoToolError:
        return
    Draft202012Validator.check_schema(made)
    assert made["additionalProperties"] is False
    assert "'$ref'" not in str(made)
    list(Draft202012Validator(made).iter_errors({"a": 1, "b": "x"}))


@given(NAMES, NAMES)
def test_names_fit_providers_and_never_meet(one: str, other: str) -> None:
    names = [tool_name("server", one), tool_name("server", other)]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
    assert (names[0] == names[1]) == (one == other)
    assert not set(names) & set(BUILT_IN_TOOLS)


def test_references_that_multiply_are_refused_at_once() -> None:
    bomb = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 10} for i in range(20)} | {"a20": {"type": "string"}}
    started = time.monotonic()
    with pytest.raises(NoToolError, match="larger than"):
        arguments_schema(
            found({"type": "object", "properties": {"a": {"$ref": "#/$defs/a0"}}, "$defs": bomb}), words=True
        )
    assert time.monotonic() - started < 30


def test_references_are_put_in_place_and_recursion_ends_in_any_value() -> None:
    schema = {
        "type": "object",
        "properties": {"one": {"$ref": "#/$defs/node"}},
        "$defs": {
            "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "text": {"type": "string"}}}
        },
    }
    made = arguments_schema(found(schema), words=True)
    assert made["properties"]["one"]["properties"] == {"next": {}, "text": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"properties": {"a": {"$ref": "https://example.invalid/x"}}}, "refers elsewhere"),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, "not there"),
        ({"type": "array"}, "no object"),
        ({"type": "object", "required": ["a"]}, "requires an argument"),
        ({"properties": {"a\x1b[2J": {}}}, "is called"),
        ({"properties": {"a": {"enum": list(range(1000))}}}, "enumeration"),
    ],
)
def test_what_cannot_be_checked_is_no_tool(schema, says: str) -> None:
    with pytest.raises(NoToolError, match=says):
        arguments_schema(found(schema), words=True)


def test_the_hash_covers_words_schema_and_claims() -> None:
    base = {"type": "object", "properties": {}}
    hashes = {
        found(base).hash,
        found(base, description="a").hash,
        found(base, description="b").hash,
        found(base, title="b").hash,
        found(base, annotations={"readOnlyHint": True}).hash,
        found(base, outputSchema=base).hash,
        found({**base, "properties": {"a": {}}}).hash,
    }
    assert len(hashes) == 7
    assert found(base, _meta={"at": 1}, icons=[]).hash == found(base).hash  # what changes with every listing


def test_before_acceptance_none_of_its_words_are_shown() -> None:
    words = {"description": "OBEY", "title": "OBEY"}
    schema = {"type": "object", "properties": {"a": {"type": "string", "default": "OBEY", **words}}, **words}
    hostile = found(schema, **words)
    assert "OBEY" not in str(spec_of("s", McpTool(), hostile, accepted=False))
    shown = spec_of("s", McpTool(), found(schema, description="OBEY\u202e\x07"), accepted=True)
    assert shown.description == "OBEY\ufffd\ufffd"
