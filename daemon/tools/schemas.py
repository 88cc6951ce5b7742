"""Shorthand for the argument schemas of the built-in tools."""

from __future__ import annotations

from typing import Any


def args(*required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """A closed object; properties not named as required are optional."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def text(description: str, **more: Any) -> dict[str, Any]:
    """A text argument; `more` are further schema keywords."""
    return {"type": "string", "description": description, **more}


def number(description: str, low: int, high: int) -> dict[str, Any]:
    """A whole number from `low` to `high`."""
    return {"type": "integer", "description": description, "minimum": low, "maximum": high}


def flag(description: str) -> dict[str, Any]:
    """A yes or no."""
    return {"type": "boolean", "description": description}


def path(description: str) -> dict[str, Any]:
    """A file's path."""
    return {"type": "string", "description": f"{description}, relative to the workspace", "minLength": 1}
