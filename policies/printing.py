"""A policy file as text again: load → print → load is the identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from perdure.policies.reading import UNITS
from perdure.policies.rules import ArgumentPattern, Equals, Glob, InlineTest, OneOf, PolicyFile, Require, Rule


def print_policy(document: PolicyFile) -> str:
    """The file as YAML: one rule or test a line, comments lost."""
    lines = ["version: 1"]
    if document.uses:
        lines.append(f"use: {_flow(list(document.uses))}")
    if document.shadow:
        lines.append("shadow: true")
    lines.append("rules:" if document.rules else "rules: []")
    lines += [f"  - {_flow(rule_data(rule, file_shadow=document.shadow))}" for rule in document.rules]
    if document.tests:
        lines.append("tests:")
        lines += [f"  - {_flow(inline_test_data(test))}" for test in document.tests]
    return "\n".join(lines) + "\n"


def rule_data(rule: Rule, *, file_shadow: bool = False) -> dict[str, Any]:
    """The rule as the plain data that a policy file holds."""
    data: dict[str, Any] = {"name": rule.name, "tools": list(rule.tools)}
    for key, word, values in (
        ("path", "under", rule.under),
        ("host", "in", rule.hosts),
        ("method", "in", rule.methods),
        ("program", "in", rule.programs),
    ):
        if values:
            data[key] = {word: list(values)}
    if rule.args:
        data["args"] = {name: _pattern(pattern) for name, pattern in rule.args.items()}
    if rule.provenance:
        data["provenance"] = {
            name: {sources.quantifier: list(sources.globs)} for name, sources in rule.provenance.items()
        }
    if rule.when is not None:
        data["when"] = rule.when
    if rule.decide is not None:
        data["decide"] = rule.decide
    if rule.require is not None:
        data["require"] = _require(rule.require)
    if rule.expires_seconds is not None:
        data["expires"] = duration(rule.expires_seconds)
    if rule.on_expiry is not None:
        data["on_expiry"] = rule.on_expiry
    if rule.shadow and not file_shadow:
        data["shadow"] = True
    return data


def inline_test_data(test: InlineTest) -> dict[str, Any]:
    """The test as the plain data that a policy file holds."""
    data: dict[str, Any] = {"name": test.name} if test.name else {}
    data |= {"tool": test.tool, "args": dict(test.args)}
    if test.given:
        data["given"] = dict(test.given)
    if test.provenance:
        data["provenance"] = {name: list(sources) for name, sources in test.provenance.items()}
    data["expect"] = test.expect
    if test.by is not None:
        data["by"] = test.by
    return data


def duration(seconds: int) -> str:
    """The shortest spelling of a duration that `expires:` takes."""
    text = ""
    for unit, size in sorted(UNITS.items(), key=lambda item: -item[1]):
        count, seconds = divmod(seconds, size)
        text += f"{count}{unit}" if count else ""
    return text


def _pattern(pattern: ArgumentPattern) -> Any:
    if isinstance(pattern, Equals):
        return pattern.value
    if isinstance(pattern, OneOf):
        return {"in": list(pattern.values)}
    return {"glob": pattern.pattern} if isinstance(pattern, Glob) else {"under": list(pattern.directories)}


def _require(require: Require) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if require.votes_ahead_by:
        texts = {"texts": True} if require.votes_texts else {}
        data["votes"] = {"ahead_by": require.votes_ahead_by, "max": require.votes_max, **texts}
    if require.confidence:
        data["confidence"] = require.confidence
    if require.session_confidence:
        data["session_confidence"] = require.session_confidence
    if require.max_per_hour is not None:
        data["max_per_hour"] = require.max_per_hour
    return data


class _Dumper(yaml.SafeDumper):
    """Every text in double quotes, so that no reader can take it for anything else."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(str, _text)


def _flow(data: Mapping[str, Any] | list[Any]) -> str:
    return yaml.dump(
        data, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000_000
    ).strip()
