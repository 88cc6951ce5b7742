"""Rules out of answers: the narrowest rules that would have decided as people did, with the evidence and the tests.

A suggestion is never wider than what was approved: it names the very values that a person said yes to, of every argument that was
given, and it is not made where a person said no to something that it would allow."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perdure.policies.commands import analyse
from perdure.policies.conditions import variable
from perdure.policies.model import ToolSignature
from perdure.policies.printing import print_policy
from perdure.policies.rules import ArgumentPattern, Equals, InlineTest, OneOf, PolicyFile, Rule

EVIDENCE_MIN = 2
VALUES_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question that a person answered."""

    escalation: str
    task: str
    tool: str
    args: Mapping[str, Any]
    approved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A rule, the answers that speak for it, and the file (rule and tests) as text. `approvals` counts the yeses."""

    rule: Rule
    approvals: int
    evidence: tuple[str, ...]
    text: str


def suggest(answers: Iterable[Answered], signatures: Mapping[str, ToolSignature]) -> list[Suggestion]:
    """Suggestions, the one with most evidence first. Answers of one tool whose given arguments have the same names are taken
    together; each argument takes the values that were approved, and one that varied without end makes no rule."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Answered]] = defaultdict(list)
    for answer in answers:
        if answer.tool in signatures:
            groups[answer.task, answer.tool, tuple(sorted(answer.args))].append(answer)
    found = [made for (task, tool, _), group in groups.items() if (made := _from_group(task, signatures[tool], group))]
    return sorted(found, key=lambda one: (-one.approvals, one.rule.name))


def _from_group(task: str, signature: ToolSignature, group: Sequence[Answered]) -> Suggestion | None:
    approved = [answer for answer in group if answer.approved]
    if len(approved) < EVIDENCE_MIN:
        return None
    seen = {name: _distinct_values(answer.args[name] for answer in approved) for name in approved[0].args}
    # Several arguments with several values each would allow combinations that nobody saw.
    if (
        any(len(values) > VALUES_MAX for values in seen.values())
        or sum(len(values) > 1 for values in seen.values()) > 1
    ):
        return None
    if any(all(answer.args[name] in seen[name] for name in seen) for answer in group if not answer.approved):
        return None
    if signature.takes_command and any(_cannot_be_allowed(answer.args) for answer in approved):
        return None
    absent = [name for name in signature.args_schema.get("properties") or {} if name not in seen]
    if len({variable(name) for name in (*seen, *absent)}) != len(seen) + len(absent):
        return None  # an argument that a condition cannot name could carry what nobody saw
    conditions = [f"task == {json.dumps(task)}", *(f"!given.{variable(name)}" for name in absent)]
    args: dict[str, ArgumentPattern] = {}
    for name, values in seen.items():
        if all(_is_list_of_texts(value) for value in values):
            at = variable(name)
            conditions += [f"given.{at}", f"args.{at} in {json.dumps(values, ensure_ascii=False)}"]
        elif any(value is None or isinstance(value, Mapping | list) for value in values):
            return None  # nested values have no matcher that is as narrow as they are
        else:
            args[name] = Equals(values[0]) if len(values) == 1 else OneOf(tuple(values))
    rule = Rule(
        name=f"{signature.name} as answered {len(approved)} times",
        file="suggested.yaml",
        line=2,
        tools=(signature.name,),
        args=args,
        programs=("*",) if signature.takes_command else (),  # the command itself is named in full
        when=" && ".join(conditions),
        decide="auto",
    )
    tests = [_test(answer, "auto", line) for line, answer in enumerate(_distinct(approved), start=1)]
    tests.append(
        InlineTest(
            name="another task still asks",
            line=1,
            column=1,
            tool=signature.name,
            args=approved[0].args,
            given={"task": f"not {task}"},
            expect="escalate",
        )
    )
    text = print_policy(PolicyFile(file="suggested.yaml", rules=(rule,), tests=tuple(tests)))
    return Suggestion(
        rule=rule, approvals=len(approved), evidence=tuple(answer.escalation for answer in approved), text=text
    )


def _distinct_values(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text.isprintable() for text in value)


def _cannot_be_allowed(args: Mapping[str, Any]) -> bool:
    """Whether no rule allows the command: something of it cannot be told before it runs, or it writes over a file."""
    command, script = args.get("command"), args.get("script")
    found = analyse(command if isinstance(command, list) else None, script if isinstance(script, str) else None)
    return bool(found.unknown or found.writes)


def _distinct(answers: Sequence[Answered]) -> list[Answered]:
    return list({json.dumps(dict(answer.args), sort_keys=True): answer for answer in answers}.values())[:5]


def _test(answer: Answered, expect: str, line: int) -> InlineTest:
    return InlineTest(
        name=f"answered {answer.escalation}",
        line=line,
        column=1,
        tool=answer.tool,
        args=answer.args,
        given={"task": answer.task},
        expect="auto" if expect == "auto" else "escalate",
    )
