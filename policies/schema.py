"""The JSON schema of policy files, for editors. Made from the same tables as the reader, so that both know the same keys."""

from __future__ import annotations

from typing import Any

from perdure.policies.conditions import FACTS
from perdure.policies.reading import DECISIONS

_FACT_TYPES = {"string": "string", "int": "integer", "double": "number", "bool": "boolean"}


def policy_schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) of one policy file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Perdure policy file",
        "type": "object",
        "additionalProperties": False,
        "required": ["version"],
        "properties": {
            "version": {"const": 1},
            "use": {
                **_names(),
                "description": "Files of the shipped library: read-only, workspace-writer, ops, egress, business-hours",
            },
            "shadow": {"type": "boolean", "description": "Evaluated and recorded, not enforced"},
            "rules": {"type": "array", "items": _rule()},
            "tests": {"type": "array", "items": _test()},
        },
    }


def _names() -> dict[str, Any]:
    return {
        "oneOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        ]
    }


def _within(word: str, says: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": says,
        "additionalProperties": False,
        "required": [word],
        "properties": {word: _names()},
    }


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, **more}


def _rule() -> dict[str, Any]:
    scalar = {"type": ["string", "number", "boolean"]}
    pattern = {
        "oneOf": [
            scalar,
            _object(
                {
                    "in": {"type": "array", "items": scalar, "minItems": 1},
                    "glob": {"type": "string"},
                    "under": _names(),
                },
                minProperties=1,
                maxProperties=1,
            ),
        ]
    }
    votes = _object(
        {
            "ahead_by": {"type": "integer", "minimum": 1, "maximum": 100},
            "max": {"type": "integer", "minimum": 1, "maximum": 1000},
            "texts": {"type": "boolean", "description": "Free text is compared, too: a file's contents, a message"},
        },
        required=["ahead_by", "max"],
    )
    return _object(
        {
            "name": {"type": "string", "minLength": 1, "description": "By which people will know the rule"},
            "tools": {**_names(), "description": "Tools by name or glob"},
            "path": _within(
                "under",
                "Directories, relative to the workspace, or globs of them (*, **); compared by components, links followed",
            ),
            "host": _within("in", "Host names; *.NAME for every host below NAME"),
            "method": _within("in", "HTTP methods"),
            "program": _within(
                "in", "Programs by name, by path, or with a subcommand (git log); to allow, every program must be named"
            ),
            "args": {
                "type": "object",
                "additionalProperties": pattern,
                "description": "Arguments: a value, {in: […]}, {glob: …} or {under: …}",
            },
            "provenance": {
                "type": "object",
                "additionalProperties": _object({"any": _names(), "all": _names()}, minProperties=1, maxProperties=1),
            },
            "when": {
                "type": "string",
                "minLength": 1,
                "description": "A condition in CEL over args.NAME, given.NAME, provenance.NAME, tool, effect, host, method and "
                + ", ".join(FACTS),
            },
            "decide": {"enum": list(DECISIONS)},
            "require": _object(
                {
                    "votes": votes,
                    "confidence": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                    "session_confidence": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                    "max_per_hour": {"type": "integer", "minimum": 0},
                },
                minProperties=1,
            ),
            "expires": {"type": "string", "pattern": "^([0-9]{1,6}[smhdw])+$"},
            "on_expiry": {"enum": ["deny", "approve"]},
            "shadow": {"type": "boolean"},
        },
        required=["name", "tools"],
        anyOf=[{"required": ["decide"]}, {"required": ["require"]}],
    )


def _test() -> dict[str, Any]:
    facts = {name: {"type": _FACT_TYPES[fact.type], "description": fact.says} for name, fact in FACTS.items()}
    return _object(
        {
            "name": {"type": "string"},
            "tool": {"type": "string"},
            "args": {"type": "object"},
            "given": _object(facts),
            "provenance": {"type": "object", "additionalProperties": _names()},
            "expect": {"enum": list(DECISIONS)},
            "by": {
                "type": "string",
                "description": "A rule that must have counted; `nothing decides` where none may have",
            },
        },
        required=["tool", "expect"],
    )
