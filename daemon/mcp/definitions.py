"""What a server says a tool is: bounded, hashed, named, and turned into a schema that costs nothing to check against.

A definition is a stranger's text. Its references are inlined within bounds (nested references can multiply without end), its
patterns are kept where RE2 takes them (others can cost exponential time), and its words are shown to a planner only once a
person has accepted them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import re2
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from perdure.daemon.mcp.settings import SEPARATOR, McpTool
from perdure.daemon.setting_types import trust_of
from perdure.daemon.tools.model import ToolSpec
from perdure.state.canonical import CannotEncode, canonical, digest
from perdure.state.events import JSON

NAME_CHARACTERS_MAX: Final = 64  # what providers of models take
TOOL_NAME_CHARACTERS_MAX: Final = 128  # what the protocol takes
DEFINITION_BYTES_MAX: Final = 64_000
SCHEMA_NODES_MAX: Final = 2_000
SCHEMA_DEPTH_MAX: Final = 24
ENUM_VALUES_MAX: Final = 500

_KEPT = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
_TOOL_NAME = re.compile(r"[\x21-\x7e]+", re.ASCII)
_DIGEST_CHARACTERS = 8
# What JSON Schema says about a value without naming other schemas, and what holds schemas.
_PLAIN = frozenset(
    [
        "type",
        "enum",
        "const",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
        "uniqueItems",
        "pattern",
        "additionalProperties",
    ]
)
_ONE = frozenset({"items", "additionalProperties", "propertyNames", "not", "contains"})
_LIST = frozenset({"anyOf", "allOf", "oneOf", "prefixItems"})
_WORDS = frozenset({"description", "title", "default", "examples"})
_FORMATS = frozenset({"cidr", "date", "date-time", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})


class NoToolError(ValueError):
    """The definition cannot become a tool here; the message says why."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One tool as its server defines it; `hash` covers everything that a person is asked to accept."""

    tool: str
    raw: Mapping[str, JSON]
    hash: str


def definition(listed: Mapping[str, Any]) -> Definition:
    """The definition that a server listed. Raises NoToolError."""
    raw = {key: listed[key] for key in _KEPT if listed.get(key) is not None}
    tool = raw.get("name")
    if not isinstance(tool, str) or len(tool) > TOOL_NAME_CHARACTERS_MAX or _TOOL_NAME.fullmatch(tool) is None:
        raise NoToolError(
            f"the name {str(tool)[:40]!r} is not 1 to {TOOL_NAME_CHARACTERS_MAX} printable ASCII characters"
        )
    try:
        size = len(canonical(raw))
    except (CannotEncode, RecursionError):
        raise NoToolError("its definition is not plain JSON") from None
    if size > DEFINITION_BYTES_MAX:
        raise NoToolError(f"its definition has {size} bytes, more than {DEFINITION_BYTES_MAX}")
    return Definition(tool, raw, digest(raw))


def tool_name(server: str, tool: str) -> str:
    """What planners and policies call the tool: `SERVER__TOOL`. Where a provider of models would not take the tool's own
    name, it is changed and ends in a part of its hash, so that no two tools meet."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", tool)
    name = f"{server}{SEPARATOR}{plain}"
    if plain == tool and len(name) <= NAME_CHARACTERS_MAX:
        return name
    end = hashlib.sha256(tool.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{name[: NAME_CHARACTERS_MAX - _DIGEST_CHARACTERS - 1]}_{end}"


def spec_of(server: str, settings: McpTool, found: Definition, *, accepted: bool) -> ToolSpec:
    """What others know of the tool. Raises NoToolError. Until a person has accepted it, none of its words are in it."""
    schema = arguments_schema(found, words=accepted)
    if settings.idempotency_key is not None:
        properties = dict(schema["properties"])
        if properties.pop(settings.idempotency_key, None) is None:
            raise NoToolError(f"`idempotency_key` names {settings.idempotency_key!r}, which is no argument of it")
        required = [name for name in schema["required"] if name != settings.idempotency_key]
        schema = {**schema, "properties": properties, "required": required}
    unknown = sorted((set(settings.paths) | set(settings.free_text)) - set(schema["properties"]))
    if unknown:
        raise NoToolError(f"`paths` or `free_text` names {unknown[0]!r}, which is no argument of it")
    said = found.raw.get("description")
    description = f"A tool of the MCP server {server} that nobody has accepted yet."
    if accepted:
        description = (
            _printable(said) if isinstance(said, str) and said.strip() else f"{found.tool} of the MCP server {server}."
        )
    return ToolSpec(
        name=tool_name(server, found.tool),
        description=description,
        args_schema=schema,
        effect=settings.effect,
        source=f"mcp:{server}",
        **trust_of(settings.trusted),
        probeable=settings.probe is not None,
        paths=dict(settings.paths),
        free_text=settings.free_text,
    )


def arguments_schema(found: Definition, *, words: bool) -> dict[str, Any]:
    """The schema of the tool's arguments: one object, closed, without references. Raises NoToolError."""
    schema = found.raw.get("inputSchema")
    if not isinstance(schema, Mapping):
        raise NoToolError("it has no input schema")
    plain = _Plainly(schema, words=words).schema(schema, 0, ())
    try:
        Draft202012Validator.check_schema(plain)
    except (SchemaError, RecursionError):
        raise NoToolError("its input schema is not a JSON Schema") from None
    properties = plain.get("properties", {})
    if plain.get("type", "object") != "object":
        raise NoToolError("its arguments are no object")
    required = [name for name in plain.get("required", []) if name in properties]
    if len(required) != len(plain.get("required", [])):
        raise NoToolError("it requires an argument that it does not describe")
    result = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return result | {key: value for key, value in plain.items() if key in ("anyOf", "allOf", "oneOf")}


def claims(found: Definition) -> dict[str, JSON]:
    """What the server claims about the tool's effects. Shown to people, believed by nobody."""
    annotations = found.raw.get("annotations")
    if not isinstance(annotations, Mapping):
        return {}
    return {str(key): value for key, value in annotations.items() if isinstance(value, bool | str)}


class _Plainly:
    """Rebuilds a schema from the keywords we know, with its own references in place, within bounds."""

    def __init__(self, root: Mapping[str, Any], *, words: bool) -> None:
        self._root = root
        self._words = words
        self._nodes = 0

    def schema(self, node: Any, depth: int, through: tuple[str, ...]) -> dict[str, Any]:
        self._nodes += 1
        if self._nodes > SCHEMA_NODES_MAX or depth > SCHEMA_DEPTH_MAX:
            raise NoToolError(f"its schema is larger than {SCHEMA_NODES_MAX} parts or deeper than {SCHEMA_DEPTH_MAX}")
        if isinstance(node, bool):
            return {} if node else {"not": {}}
        if not isinstance(node, Mapping):
            raise NoToolError("its schema holds something that is no schema")
        result: dict[str, Any] = {}
        reference = node.get("$ref")
        if reference is not None:
            if not isinstance(reference, str) or not reference.startswith("#"):
                raise NoToolError(f"its schema refers elsewhere: {str(reference)[:80]!r}")
            if reference not in through:  # what holds itself is any value from there on; the server checks it
                result |= self.schema(self._referred(reference), depth + 1, (*through, reference))
        for key, value in node.items():
            if key in _ONE and isinstance(value, Mapping):
                result[key] = self.schema(value, depth + 1, through)
            elif key in _LIST and isinstance(value, list):
                result[key] = [self.schema(each, depth + 1, through) for each in value]
            elif key == "properties" and isinstance(value, Mapping):
                result[key] = {_argument(name): self.schema(each, depth + 1, through) for name, each in value.items()}
            elif key in _PLAIN or (self._words and key in _WORDS):
                self._plain(result, key, value)
        return result

    def _plain(self, result: dict[str, Any], key: str, value: Any) -> None:
        if key == "pattern" and not (isinstance(value, str) and _is_re2(value)):
            return
        if key == "format" and not (isinstance(value, str) and value in _FORMATS):
            return
        if key == "enum" and (not isinstance(value, list) or len(value) > ENUM_VALUES_MAX):
            raise NoToolError(f"its schema has an enumeration of more than {ENUM_VALUES_MAX} values")
        result[key] = _printable(value) if key in ("description", "title") and isinstance(value, str) else value

    def _referred(self, reference: str) -> Any:
        node: Any = self._root
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, Mapping) or name not in node:
                raise NoToolError(f"its schema refers to {reference[:80]!r}, which is not there")
            node = node[name]
        return node


def _argument(name: Any) -> str:
    if not isinstance(name, str) or not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise NoToolError(f"an argument is called {str(name)[:40]!r}")
    return name


def _is_re2(pattern: str) -> bool:
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error:
        return False
    return True


def _printable(text: str) -> str:
    """Without what a terminal or a reader would not show: control characters, directions, invisible signs."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)
