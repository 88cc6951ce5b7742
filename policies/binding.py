"""Rules against tools: what a rule names must exist, with the type it is compared with, before the rule is in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perdure.policies.conditions import ConditionMistake, Vocabulary
from perdure.policies.documents import Complaints, Place, nearest, short
from perdure.policies.model import ToolSignature
from perdure.policies.patterns import name_glob
from perdure.policies.rules import ArgumentPattern, Glob, OneOf, PolicyFile, Rule, Under

_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def matched_tools(rule: Rule, signatures: Mapping[str, ToolSignature]) -> list[ToolSignature]:
    """The known tools that the rule is about."""
    return [signature for name, signature in signatures.items() if any(name_glob(glob)(name) for glob in rule.tools)]


def check_rules(document: PolicyFile, signatures: Mapping[str, ToolSignature], complaints: Complaints) -> None:
    """Add every mistake that only shows beside the tools: unknown arguments, wrong types, conditions that do not compile."""
    vocabularies: dict[str, Vocabulary] = {}

    def vocabulary(signature: ToolSignature) -> Vocabulary:
        if signature.name not in vocabularies:
            vocabularies[signature.name] = Vocabulary(signature)
        return vocabularies[signature.name]

    for rule in document.rules:
        tools = matched_tools(rule, signatures)
        _arguments(rule, tools, complaints)
        _condition(rule, tools, vocabulary, complaints)


def _arguments(rule: Rule, tools: list[ToolSignature], complaints: Complaints) -> None:
    for key, names in (("args", rule.args), ("provenance", rule.provenance)):
        for name in names:
            if key == "provenance" and name == "*":
                continue
            for tool in tools:
                known = list(tool.args_schema.get("properties") or {})
                if name not in known:
                    expected = f"an argument of {tool.name}: {', '.join(known) or 'it has none'}{nearest(name, known)}"
                    complaints.add(_place(rule, f"{key}.{name}"), f"the unknown argument {name!r}", expected)
                    break
                if key == "args":
                    _pattern(rule, name, rule.args[name], tool, complaints)
    if rule.under and tools and not any(tool.paths or tool.takes_command for tool in tools):
        complaints.add(_place(rule, "path"), f"`path` for {tools[0].name}", "a tool with a path among its arguments")
    for key, values, argument in (("host", rule.hosts, "url"), ("method", rule.methods, "url")):
        if values and tools and not any(argument in (tool.args_schema.get("properties") or {}) for tool in tools):
            complaints.add(_place(rule, key), f"`{key}` for {tools[0].name}", "a tool with a `url` among its arguments")
    for host in rule.hosts:
        if "://" in host or "/" in host or "*" in host.removeprefix("*.") or ":" in host:
            complaints.add(
                _place(rule, "host"),
                f"the host {short(host)!r}",
                "a host name without scheme, port or path; *.NAME for all below NAME",
            )


def _pattern(rule: Rule, name: str, pattern: ArgumentPattern, tool: ToolSignature, complaints: Complaints) -> None:
    schema = tool.args_schema["properties"][name]
    place = _place(rule, f"args.{name}")
    if isinstance(pattern, Under):
        if name not in tool.paths:
            complaints.add(place, f"`under` for {name!r}", f"a path: {name!r} of {tool.name} is none")
        return
    if not isinstance(schema, Mapping):
        return
    if schema.get("type") == "array" and isinstance(schema.get("items"), Mapping):
        schema = schema["items"]  # a list matches by its elements
    kind = schema.get("type")
    wanted = _KINDS.get(str(kind))
    if isinstance(pattern, Glob):
        if wanted is not None and str not in wanted:
            complaints.add(place, "a glob", f"a comparison for {name!r} of {tool.name}, which is of type {kind}")
        return
    for value in pattern.values if isinstance(pattern, OneOf) else (pattern.value,):
        if wanted is not None and not _is_a(value, wanted):
            complaints.add(
                place,
                f"the {type(value).__name__} {short(str(value))!r}",
                f"a value of type {kind}, as {name!r} of {tool.name} is",
            )
        elif isinstance(schema.get("enum"), list) and value not in schema["enum"]:
            allowed = [str(item) for item in schema["enum"]]
            complaints.add(
                place, f"the value {short(str(value))!r}", f"one of {', '.join(allowed)}{nearest(str(value), allowed)}"
            )


def _is_a(value: Any, wanted: tuple[type, ...]) -> bool:
    return isinstance(value, wanted) and (not isinstance(value, bool) or bool in wanted)


def _condition(
    rule: Rule, tools: list[ToolSignature], vocabulary: Callable[[ToolSignature], Vocabulary], complaints: Complaints
) -> None:
    if rule.when is None:
        return
    # A rule that no known tool matches is still read, so that its spelling is right when the tool comes.
    for tool in tools:
        try:
            vocabulary(tool).compile(rule.when, obligation=rule.require is not None)
        except ConditionMistake as mistake:
            complaints.add(_within(rule, mistake, complaints), mistake.found, mistake.expected)
            return


def _within(rule: Rule, mistake: ConditionMistake, complaints: Complaints) -> Place:
    """The mistake's place in the file, from its place in the condition and the way the condition is quoted."""
    line, column = rule.places["when"]
    source = complaints.lines[line - 1] if line <= len(complaints.lines) else ""
    opening = source[column - 1 : column]
    if opening in {"|", ">"}:  # a block: its lines follow, indented
        first = complaints.lines[line] if line < len(complaints.lines) else ""
        return Place(line + (mistake.line if opening == "|" else 1), len(first) - len(first.lstrip()) + mistake.column)
    if mistake.line > 1:
        return Place(line, column)
    return Place(line, column + mistake.column - 1 + (1 if opening in {"'", '"'} else 0))


def _place(rule: Rule, key: str) -> Place:
    return Place(*(rule.places.get(key) or rule.places.get(key.partition(".")[0]) or (rule.line, 1)))
