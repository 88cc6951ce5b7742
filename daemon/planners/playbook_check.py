"""Checks a playbook before it runs: every expression compiles, uses only names that exist by then, and has a place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jsonschema import Draft202012Validator

from perdure.daemon.planners import expressions
from perdure.daemon.planners.expressions import ExpressionFault, Fault
from perdure.daemon.planners.playbook import SLOT_NAMES, condition
from perdure.daemon.tools.arguments import formats, in_words
from perdure.errors import Problem
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.tasks import Step, Task
    from perdure.daemon.tools.model import ToolSpec

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_playbook(task: Task, tools: Mapping[str, ToolSpec] | None = None) -> list[Problem]:
    """Every mistake in the steps of a playbook that can be found without running it, in the order of the steps. Arguments are
    checked for those of `tools` that are the operator's own or built in: what a server says of its tools may change at any
    time, and must not keep a daemon from starting."""
    problems: list[Problem] = []
    declared = {"last", *(f"slot.{name}" for name in SLOT_NAMES)}
    saved_by = _first_saves(task.steps)
    for number, step in enumerate(task.steps, start=1):
        names = frozenset(declared | ({"item", "index"} if step.for_each is not None else set()))
        checker = _StepChecker(task, step, number, names, saved_by)
        if step.for_each is not None:
            problems += checker.for_each(step.for_each, frozenset(declared))
        if step.when is not None:
            problems += checker.when(step.when)
        for name, value in step.args.items():
            problems += checker.texts(f"args.{name}", value, names)
        spec = tools.get(step.do) if tools is not None else None
        if spec is not None and not spec.source.startswith("mcp:"):
            problems += checker.arguments(spec.args_schema)
        if step.save is not None:
            problems += checker.save(step.save)
            declared.add(step.save)
    return problems


def _first_saves(steps: tuple[Step, ...]) -> dict[str, int]:
    first: dict[str, int] = {}
    for number, step in enumerate(steps, start=1):
        if step.save is not None:
            first.setdefault(step.save, number)
    return first


class _StepChecker:
    """One step's mistakes, with their places in the task's file."""

    def __init__(self, task: Task, step: Step, number: int, names: frozenset[str], saved_by: dict[str, int]) -> None:
        self.task, self.step, self.number, self.names, self.saved_by = task, step, number, names, saved_by

    def when(self, when: str) -> list[Problem]:
        source = condition(when)
        if not source.strip():
            return [self._problem(when, Fault("an empty `when`"), "a condition, or no `when` at all")]
        found = expressions.faults(source, self.names)
        if found:
            return [self._told(source, fault, self.names) for fault in found]
        kind = expressions.result_type(source, self.names)
        if kind not in ("BOOL", "DYN"):
            return [self._problem(source, Fault(f"`when` of type {kind}"), "a condition that is true or false")]
        return []

    def for_each(self, for_each: JSON, names: frozenset[str]) -> list[Problem]:
        if isinstance(for_each, list):
            return self.texts("for_each", for_each, names)
        if not isinstance(for_each, str):
            return [
                self._problem("for_each", Fault(f"for_each: {for_each!r}"), "a list, or one `${…}` that gives a list")
            ]
        problems = self.texts("for_each", for_each, names)
        if problems:
            return problems
        hole = expressions.parse(for_each).whole
        if hole is None:
            return [
                self._problem(for_each, Fault(f"for_each: `{for_each}`"), "a list, or one `${…}` that gives a list")
            ]
        kind = expressions.result_type(hole.source, names)
        if kind != "DYN" and not kind.startswith("LIST"):
            return [self._problem(hole.source, Fault(f"for_each of type {kind}"), "an expression that gives a list")]
        return []

    def texts(self, where: str, value: JSON, names: frozenset[str]) -> list[Problem]:
        problems: list[Problem] = []
        for text in _texts(value):
            try:
                holes = expressions.parse(text).holes
            except ExpressionFault as error:
                expected = "`${expression}`; write `$${` for the two characters themselves"
                problems += [self._problem(error.source, fault, expected, where) for fault in error.faults]
                continue
            for hole in holes:
                problems += [self._told(hole.source, fault, names) for fault in expressions.faults(hole.source, names)]
        return problems

    def arguments(self, schema: Mapping[str, JSON]) -> list[Problem]:
        """Names that the tool does not know, names that it needs, and values without `${…}` that it would refuse."""
        tool, args = self.step.do, self.step.args
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        needed = required if isinstance(required, list) else []
        problems = []
        for name, value in args.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                one_of = f"one of {', '.join(known)}" if known else "none: it takes no arguments"
                expected = f"`{near[0]}`, or another {one_of}" if near else one_of
                problems.append(self._problem(f"{name}:", Fault(f"the unknown argument `{name}` of {tool}"), expected))
                continue
            wrong = _refused(name, value, known[name])
            if wrong is not None:
                problems.append(self._problem(f"{name}:", Fault(wrong), f"an argument that {tool} takes"))
        missing = [str(name) for name in needed if name not in args]
        if missing:
            found = Fault(f"{tool} without {', '.join(f'`{name}`' for name in missing)}")
            problems.append(self._problem(tool, found, f"all that {tool} needs: {', '.join(map(str, needed))}"))
        return problems

    def save(self, name: str) -> list[Problem]:
        if _NAME.fullmatch(name) is None:
            return [self._problem(name, Fault(f"save: {name!r}"), "a name of letters, digits and _")]
        if name in expressions.RESERVED:
            return [
                self._problem(name, Fault(f"save: {name}"), "a name that expressions do not use for something else")
            ]
        return []

    def _told(self, source: str, fault: Fault, names: frozenset[str]) -> Problem:
        if fault.name is None:
            return self._problem(source, fault, "a CEL expression")
        root = fault.name.partition(".")[0]
        found = Fault(f"the unknown name `{fault.name}`", fault.line, fault.column, fault.name)
        if root in ("item", "index") and root not in names:
            return self._problem(source, found, f"`{root}` only inside a step with for_each")
        if root in self.saved_by:
            expected = (
                f"a name saved by an earlier step than this one ({self.number}); step {self.saved_by[root]} saves it"
            )
            return self._problem(source, found, expected)
        candidates = sorted(names)
        wanted = fault.name if root == "slot" else root
        near = difflib.get_close_matches(wanted, candidates, n=1)
        one_of = f"one of {', '.join(candidates)}"
        return self._problem(source, found, f"`{near[0]}`, or another {one_of}" if near else one_of)

    def _problem(self, source: str, fault: Fault, expected: str, where: str = "") -> Problem:
        line, column, source_line = self._place(source, fault)
        found = f"{fault.reason} in {where}" if where else fault.reason
        return Problem(str(self.task.path), line, column, found, expected, source_line)

    def _place(self, source: str, fault: Fault) -> tuple[int, int, str]:
        """The line and column of a fault in the file. The step begins at its line; where YAML wrote the expression
        differently (escapes, folding) only the step's line is known."""
        lines = self.task.text.split("\n")
        wanted = source.split("\n", maxsplit=1)[0]
        for index in range(max(self.step.line - 1, 0), len(lines)):
            start = lines[index].find(wanted)
            if start < 0 or not wanted:
                continue
            line = index + fault.line - 1
            if fault.line == 1:
                return line + 1, start + fault.column, lines[line]
            if line < len(lines) and len(parts := source.split("\n")) >= fault.line:
                indent = lines[line].find(parts[fault.line - 1])
                return line + 1, max(indent, 0) + fault.column, lines[line]
        first = lines[self.step.line - 1] if 0 < self.step.line <= len(lines) else ""
        return self.step.line, len(first) - len(first.lstrip()) + 1, first


def _refused(name: str, value: JSON, schema: JSON) -> str | None:
    """Why a tool would refuse an argument of this value, in words; None where it would not, or where only its run shows it."""
    try:
        if any(template.holes for template in expressions.templates(value)):
            return None
        literal = expressions.filled(value, {})
    except ExpressionFault:  # told already, with its place
        return None
    validator = Draft202012Validator({"properties": {name: schema}}, format_checker=formats)
    return next((in_words(error) for error in validator.iter_errors({name: literal})), None)


def _texts(value: JSON) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for element in value:
            yield from _texts(element)
    elif isinstance(value, dict):
        for element in value.values():
            yield from _texts(element)
