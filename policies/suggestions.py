"""Rules out of answers: the narrowest rules that would have decided as people did, with the evidence and the tests.

A suggestion is never wider than what was approved: it names the very values that a person said yes to, of every argument that was
given, and it is not made where a person said no to something that it would allow."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    args: dict[str, ArgumentPattern] = {}
    for name in approved[0].args:
        pattern = _values([answer.args[name] for answer in approved])
        if pattern is None:
            return None
        args[name] = pattern
    # Several arguments with several values each would allow combinations that nobody saw.
    if sum(isinstance(pattern, OneOf) for pattern in args.values()) > 1:
        return None
    if any(_would_allow(args, answer.args) for answer in group if not answer.approved):
        return None
    absent = [name for name in signature.args_schema.get("properties") or {} if name not in args]
    conditions = [f"task == {json.dumps(task)}", *(f"!given.{variable(name)}" for name in absent)]
    if len({variable(name) for name in (*args, *absent)}) != len(args) + len(absent):
        return None  # an argument that a condition cannot name could carry what nobody saw
    rule = Rule(
        name=f"{signature.name} as answered {len(approved)} times",
        file="suggested.yaml",
        line=2,
        tools=(signature.name,),
        args=args,
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


def _values(values: Sequence[Any]) -> ArgumentPattern | None:
    if any(value is None or isinstance(value, Mapping | list) for value in values):
        return None  # nested values have no matcher that is as narrow as they are
    distinct = list({json.dumps(value): value for value in values}.values())
    if len(distinct) == 1:
        return Equals(distinct[0])
    return OneOf(tuple(distinct)) if len(distinct) <= VALUES_MAX else None


def _would_allow(args: Mapping[str, ArgumentPattern], given: Mapping[str, Any]) -> bool:
    return all(
        given[name]
        in (pattern.values if isinstance(pattern, OneOf) else (pattern.value,) if isinstance(pattern, Equals) else ())
        for name, pattern in args.items()
    )


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
