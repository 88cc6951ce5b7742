"""What is allowed in policy files and yet probably not meant: rules that can never matter, and rules that nothing proves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from perdure.policies.binding import matched_tools
from perdure.policies.conditions import FACTS
from perdure.policies.decisions import PolicySet
from perdure.policies.documents import nearest
from perdure.policies.inline_tests import action_of
from perdure.policies.model import Facts
from perdure.policies.patterns import is_glob, is_under, lexical, name_glob
from perdure.policies.rules import Rule

_ARGUMENT = re.compile(r"\bargs\.(\w+)")


@dataclass(frozen=True, slots=True, order=True)
class Lint:
    """One remark. `code` is stable for machines: no-tool, any-program, not-given, unreachable, shadowed, shadowed-deny, overlap,
    missing-test, no-tests."""

    file: str
    line: int
    code: str
    says: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.says} [{self.code}]"


def lints(policies: PolicySet) -> list[Lint]:
    """Every remark on the policies, in order of place. Rules are compared by what they name; conditions only if equal."""
    found = (_tools, _any_program, _not_given, _covered, _untested)
    return sorted({lint for look in found for lint in look(policies)})


def _tools(policies: PolicySet) -> Iterator[Lint]:
    known = list(policies.signatures)
    for rule in policies.rules:
        if not matched_tools(rule, policies.signatures):
            hint = "".join(nearest(glob, known) for glob in rule.tools[:1])
            yield Lint(
                rule.file,
                rule.line,
                "no-tool",
                f"{rule.name!r} is about {', '.join(rule.tools)}, and there is no such tool{hint}",
            )
            continue
        for glob in rule.tools:
            if not any(name_glob(glob)(tool) for tool in known):
                yield Lint(
                    rule.file,
                    rule.line,
                    "no-tool",
                    f"{rule.name!r} names {glob!r}, and there is no such tool{nearest(glob, known)}",
                )


def _any_program(policies: PolicySet) -> Iterator[Lint]:
    for rule in policies.rules:
        commands = [tool.name for tool in matched_tools(rule, policies.signatures) if tool.takes_command]
        if rule.permissive and commands and not rule.programs:
            meant = "if that is meant, say `program: {in: ['*']}`"
            says = f"{rule.name!r} allows {commands[0]} every program that can be told; {meant}"
            yield Lint(rule.file, rule.line, "any-program", says)


def _not_given(policies: PolicySet) -> Iterator[Lint]:
    """Conditions on an argument that may be left out, with no word on what is meant then."""
    for rule in policies.rules:
        for tool in matched_tools(rule, policies.signatures) if rule.when is not None else ():
            schema = tool.args_schema
            for name in sorted(set(_ARGUMENT.findall(rule.when or ""))):
                properties = schema.get("properties") or {}
                if name not in properties or name in schema.get("required", ()) or "default" in properties[name]:
                    continue
                if not re.search(rf"\bgiven\.{name}\b", rule.when or ""):
                    says = f"{rule.name!r} asks a person about every {tool.name} without {name}, which is optional"
                    yield Lint(rule.file, rule.line, "not-given", f"{says}; begin with `given.{name} &&`")


def _covered(policies: PolicySet) -> Iterator[Lint]:
    """Rules that another rule makes pointless, and pairs that decide differently about the same actions."""
    rules = [rule for rule in policies.rules if rule.decide is not None]
    for one, other in combinations(rules, 2):
        shipped = _is_shipped(one), _is_shipped(other)
        if one.shadow != other.shadow or all(shipped):
            continue  # the library's exceptions to its own rules are meant
        for narrow, wide in ((one, other), (other, one)):
            if narrow.require is not None or not covers(wide, narrow, policies.workspace):
                continue
            place = f"{wide.name!r} ({wide.file}:{wide.line})"
            if narrow.decide == wide.decide:
                code, says = "shadowed", f"{narrow.name!r} says nothing that {place} does not say already"
                if narrow.decide == "deny":
                    code = "shadowed-deny"
            elif _rank(wide) > _rank(narrow):
                always = "denies" if wide.decide == "deny" else "asks"
                code, says = "unreachable", f"{narrow.name!r} can never decide: {place} always {always} first"
            else:
                continue
            yield Lint(narrow.file, narrow.line, code, says)
            break
        else:
            if (
                not any(shipped)  # what the library excepts from one's own rules is what it is used for
                and one.decide != other.decide
                and "auto" in {one.decide, other.decide}
                and _overlap(one, other, policies.workspace)
            ):
                later = max(one, other, key=lambda rule: (rule.file, rule.line))
                earlier = one if later is other else other
                winner = max(one, other, key=_rank)
                place = f"{earlier.name!r} ({earlier.file}:{earlier.line})"
                says = f"{later.name!r} and {place} can both match; then {winner.name!r} counts ({winner.decide})"
                yield Lint(later.file, later.line, "overlap", says)


def _is_shipped(rule: Rule) -> bool:
    return rule.file.startswith("library/")


def _rank(rule: Rule) -> int:
    return {"auto": 0, "escalate": 1, "deny": 2}[rule.decide or "auto"]


def covers(wide: Rule, narrow: Rule, workspace: str) -> bool:
    """Whether every action that `narrow` matches is certainly matched by `wide` too."""
    if not all(any(_glob_covers(one, glob) for one in wide.tools) for glob in narrow.tools):
        return False
    if wide.under and not (
        narrow.under
        and all(
            any(is_under(lexical(path, workspace), lexical(root, workspace)) for root in wide.under)
            for path in narrow.under
        )
    ):
        return False
    for wanted, given in ((wide.hosts, narrow.hosts), (wide.methods, narrow.methods), (wide.programs, narrow.programs)):
        if wanted and not (given and set(given) <= set(wanted)):
            return False
    for pairs, others in ((wide.args, narrow.args), (wide.provenance, narrow.provenance)):
        if any(name not in others or others[name] != value for name, value in pairs.items()):
            return False
    return wide.when is None or wide.when == narrow.when


def _glob_covers(wide: str, narrow: str) -> bool:
    return wide in {"*", narrow} or (
        "*" not in narrow and "?" not in narrow and "[" not in narrow and name_glob(wide)(narrow)
    )


def _overlap(one: Rule, other: Rule, workspace: str) -> bool:
    """Whether both name the same tool outright and nothing they name tells them apart."""
    if not set(one.tools) & set(other.tools) or "*" in {*one.tools, *other.tools}:
        return False
    if one.under and other.under:
        pairs = [(lexical(a, workspace), lexical(b, workspace)) for a in one.under for b in other.under]
        if not any(is_under(a, b) or is_under(b, a) or is_glob(a) or is_glob(b) for a, b in pairs):
            return False
    for left, right in ((one.hosts, other.hosts), (one.methods, other.methods), (one.programs, other.programs)):
        if left and right and not set(left) & set(right) and not any("*" in name for name in (*left, *right)):
            return False
    shared = set(one.args) & set(other.args)
    return not any(one.args[name] != other.args[name] for name in shared)


def _untested(policies: PolicySet) -> Iterator[Lint]:
    """Rules that none of their file's tests makes count."""
    for document in policies.documents:
        if not document.rules:
            continue
        if not document.tests:
            yield Lint(
                document.file,
                1,
                "no-tests",
                "the file has no tests; add `tests:` so that an edit cannot change what it means unnoticed",
            )
            continue
        proven = set(_proven(policies, document.file))
        for rule in document.rules:
            if rule.line not in proven and matched_tools(rule, policies.signatures):
                yield Lint(rule.file, rule.line, "missing-test", f"no test of the file makes {rule.name!r} count")


def _proven(policies: PolicySet, file: str) -> Iterable[int]:
    for document in policies.documents:
        for test in document.tests if document.file == file else ():
            signature = policies.signatures.get(test.tool)
            if signature is None:
                continue
            values = {FACTS[name].field: value for name, value in test.given.items() if name in FACTS}
            action = action_of(signature, test.args, policies.workspace, provenance=test.provenance)
            question = policies.question(action, Facts(**({"task": "test", "planner": "model"} | values)), written=True)
            yield from (
                bound.rule.line
                for bound in policies.bound(test.tool)
                if bound.rule.file == file and bound.verdict(question) is True
            )
