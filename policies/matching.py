"""One question, and the checks of a rule against it. A check answers True, False, or in words why it cannot tell.

A rule that loosens (`decide: auto`) needs everything it names to be certain: what cannot be told does not match. Every other rule
counts as soon as anything fits, and where that cannot be told it counts as a question to a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from perdure.policies.commands import Analysis, analyse
from perdure.policies.conditions import Condition, Vocabulary
from perdure.policies.model import Facts, ProposedAction, ToolSignature
from perdure.policies.patterns import RootGlob, host_check, is_glob, is_under, lexical, name_glob, plain_host, text_glob
from perdure.policies.programs import is_program
from perdure.policies.rule_index import Lead, found_by
from perdure.policies.rules import ArgumentPattern, Equals, Glob, OneOf, Rule, Sources, Under

Verdict: TypeAlias = "bool | str"
Check: TypeAlias = "Callable[[Question], Verdict]"

HARMLESS_TARGETS = frozenset({"/dev/null", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2"})


class Reach(NamedTuple):
    """The files of an action: `paths`, and `trees`, of which all that lies below counts too; `doubt` says in words why there
    may be others."""

    paths: tuple[str, ...]
    trees: tuple[str, ...] = ()
    doubt: str | None = None


class Question:
    """One action and its facts, with what several checks share. `written`: paths are compared as written, not as resolved
    (for a file's own tests, which must not depend on what lies on the disk)."""

    def __init__(
        self, action: ProposedAction, facts: Facts, vocabulary: Vocabulary | None, *, written: bool = False
    ) -> None:
        self.action = action
        self.facts = facts
        self.vocabulary = vocabulary
        self.written = written
        self.standing: Any = None  # the rules that are about it, once they have been looked for
        self._activation: Any = None
        self._reach: Reach | None = None

    @property
    def activation(self) -> Any:
        """What conditions see, or in words why they cannot be evaluated."""
        if self._activation is None:  # kept by hand: cached_property takes a lock, which costs as much as a rule
            self._activation = self._activated()
        return self._activation

    def _activated(self) -> Any:
        if self.vocabulary is None:
            return "the tool was not known when the policies were loaded"
        try:
            return self.vocabulary.activation(self.action, self.facts)
        except Exception as error:  # noqa: BLE001 (whatever the library says, it must end as a question to a person)
            return str(error)

    @cached_property
    def analysis(self) -> Analysis | None:
        """What the command would run; None where the action runs no command."""
        if self.action.argv is None and self.action.script is None:
            return None
        return analyse(self.action.argv, self.action.script, self.action.cwd)

    @property
    def takes_command(self) -> bool:
        """Whether the caller chose what is run."""
        return self.vocabulary is None or self.vocabulary.signature.takes_command

    @property
    def reach(self) -> Reach:
        """Every path that the action names; of a command that the caller chose, every file of it too."""
        if self._reach is None:
            self._reach = self._reached()
        return self._reach

    def _reached(self) -> Reach:
        action = self.action
        paths = [path for paths in action.paths.values() for path in paths]
        trees: list[str] = []
        doubt: str | None = None
        if self.vocabulary is not None:
            for name in self.vocabulary.signature.paths:
                if name in action.args and not action.paths.get(name):
                    doubt = f"the path in {name!r} was not resolved"
        analysis = self.analysis
        if analysis is not None and self.takes_command:
            targets = action.targets or {}
            for one in analysis.files:
                if one.text in HARMLESS_TARGETS:
                    continue
                if one.text not in targets:
                    doubt = f"where {one.text!r} leads was not resolved"
                else:
                    # as written, a glob stands for whatever it may find
                    (trees if one.below or (one.glob and self.written) else paths).extend(targets[one.text])
            doubt = next(iter((*analysis.unlocated, *analysis.unknown)), doubt)
        return Reach(tuple(paths), tuple(trees), doubt)


class Roots:
    """Directories of a rule, as written (made absolute) and as they lie on the disk; a glob stands for every one that it fits."""

    def __init__(self, directories: Iterable[str], workspace: str, resolve: Callable[[str], str]) -> None:
        written = [lexical(directory, workspace) for directory in directories]
        self.globs = tuple(RootGlob(root) for root in written if is_glob(root))
        self.written = tuple(root for root in written if not is_glob(root))
        self.resolved = tuple(resolve(root) for root in self.written)
        self.either = tuple(dict.fromkeys(self.written + self.resolved))
        self._below_written = tuple(_with_slash(root) for root in self.written)
        self._below_resolved = tuple(_with_slash(root) for root in self.resolved)

    def cover_all(self, question: Question, paths: Iterable[str]) -> bool:
        """Whether every path is a root or below one: components are compared, since every root ends in a slash here."""
        below = self._below_written if question.written else self._below_resolved
        return all(
            path.startswith(below)
            or _with_slash(path).startswith(below)
            or any(glob.covers(path) for glob in self.globs)
            for path in paths
        )

    def touch_any(self, paths: Iterable[str], *, from_above: bool) -> bool:
        """Whether a path lies under a root; `from_above`: or a root under the path (what moves a parent moves it too). What may
        lie anywhere below (`**`) is not looked for from above."""
        return any(
            any(is_under(path, root) or (from_above and is_under(root, path)) for root in self.either)
            or any(glob.covers(path) or (from_above and glob.may_lie_below(path)) for glob in self.globs)
            for path in paths
        )


def _with_slash(path: str) -> str:
    return path if path.endswith("/") else path + "/"


class Binder:
    """Turns rules into checks for one tool. `resolve` follows links in the directories that rules name."""

    def __init__(self, signature: ToolSignature, workspace: str, resolve: Callable[[str], str]) -> None:
        self.signature = signature
        self.workspace = workspace
        self.resolve = resolve

    def checks(self, rule: Rule, condition: Condition | None) -> tuple[tuple[str, Check], ...]:
        """The rule's checks in order of cost, each with the key that it comes from."""
        strict = rule.permissive
        found: list[tuple[str, Check]] = []
        if rule.hosts:
            found.append(("host", _among("host", [host_check(host) for host in rule.hosts], strict, self._has("url"))))
        if rule.methods:
            found.append(
                ("method", _among("method", [method.__eq__ for method in rule.methods], strict, self._has("url")))
            )
        found.extend((f"args.{name}", self._argument(name, pattern, strict)) for name, pattern in rule.args.items())
        found.extend(
            (f"provenance.{name}", _sources(name, sources, strict)) for name, sources in rule.provenance.items()
        )
        if rule.under:
            found.append(("path", self._path(rule)))
        # A rule that names no program means every program there is, and allows none that cannot be told.
        if rule.programs or (strict and self.signature.takes_command):
            found.append(
                ("program", _programs(rule.programs or ("*",), strict=strict, governs_writes=bool(rule.under)))
            )
        if condition is not None:
            found.append(("when", _condition(condition)))
        return tuple(found)

    def found_by(self, rule: Rule) -> Lead | None:
        """What the rule is found by in an index of the rules about this tool; None: it is always asked."""
        directories = Roots(rule.under, self.workspace, self.resolve)
        roots = directories.either if not directories.globs else ()
        from_above = self.signature.takes_command or "write" in self.signature.paths.values()
        return found_by(rule, roots, paths=self.signature.paths, from_above=from_above)

    def _has(self, argument: str) -> bool:
        return argument in (self.signature.args_schema.get("properties") or {})

    def _path(self, rule: Rule) -> Check:
        roots = Roots(rule.under, self.workspace, self.resolve)
        writes = "write" in self.signature.paths.values()
        if not rule.permissive:

            def touches(question: Question) -> Verdict:
                reach = question.reach
                if roots.touch_any(reach.paths, from_above=writes) or roots.touch_any(reach.trees, from_above=True):
                    return True
                return False if reach.doubt is None else reach.doubt

            return touches

        def covers(question: Question) -> Verdict:
            reach = question.reach
            if reach.doubt is not None:
                return False
            if not (reach.paths or reach.trees or question.analysis is not None):
                return False  # nothing that could lie under the directory: the rule is not about this action
            return roots.cover_all(question, reach.paths) and roots.cover_all(question, reach.trees)

        return covers

    def _argument(self, name: str, pattern: ArgumentPattern, strict: bool) -> Check:
        is_path = name in self.signature.paths
        if isinstance(pattern, Under):
            roots = Roots(pattern.directories, self.workspace, self.resolve)
            writes = self.signature.paths.get(name) == "write"

            def under(question: Question) -> Verdict:
                if name not in question.action.args:
                    return False
                paths = question.action.paths.get(name)
                if not paths:
                    return False if strict else f"the path in {name!r} was not resolved"
                return roots.cover_all(question, paths) if strict else roots.touch_any(paths, from_above=writes)

            return under
        fits = self._path_fits(pattern) if is_path else value_fits(pattern)

        def compare(question: Question) -> Verdict:
            if name not in question.action.args:
                return False
            if is_path:
                values: Any = question.action.paths.get(name)
                if not values:
                    return False if strict else f"the path in {name!r} was not resolved"
            else:
                value = question.action.args[name]
                values = value if isinstance(value, list | tuple) else (value,)
            return bool(values) and all(map(fits, values)) if strict else any(map(fits, values))

        return compare

    def _path_fits(self, pattern: ArgumentPattern) -> Callable[[Any], bool]:
        """Path arguments are compared as resolved, so that no spelling gets around a rule."""
        if isinstance(pattern, Glob):
            return text_glob(lexical(pattern.pattern, self.workspace))
        values = (
            pattern.values if isinstance(pattern, OneOf) else (pattern.value,) if isinstance(pattern, Equals) else ()
        )
        roots = Roots([str(value) for value in values], self.workspace, self.resolve)
        return roots.either.__contains__


def value_fits(pattern: ArgumentPattern) -> Callable[[Any], bool]:
    """Whether one value fits; types count: true is not 1 and "1" is not 1."""
    if isinstance(pattern, Glob):
        check = text_glob(pattern.pattern)
        return lambda value: isinstance(value, str) and check(value)
    values = pattern.values if isinstance(pattern, OneOf) else (pattern.value,) if isinstance(pattern, Equals) else ()
    return lambda value: any(same(value, wanted) for wanted in values)


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, but neither is true."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping | list | tuple) or isinstance(right, Mapping | list | tuple):
        try:
            return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
        except (TypeError, ValueError):
            return False
    return (type(left) is type(right) and bool(left == right)) or (
        isinstance(left, int | float) and isinstance(right, int | float) and left == right
    )


def _among(attribute: str, checks: list[Callable[[str], bool]], strict: bool, expected: bool) -> Check:
    def among(question: Question) -> Verdict:
        value = getattr(question.action, attribute)
        if value is None:
            return False if strict or not expected else f"the {attribute} is not known"
        spelled = plain_host(value) if attribute == "host" else value.upper()
        return any(check(spelled) for check in checks)

    return among


def _sources(name: str, wanted: Sources, strict: bool) -> Check:
    globs = [name_glob(glob) for glob in wanted.globs]
    every = wanted.quantifier == "all"

    def argument_fits(sources: Sequence[str]) -> bool:
        for source in sources:
            one = False
            for glob in globs:
                if glob(source):
                    one = True
                    break
            if one != every:
                break
        else:
            one = every
        # Where nobody knows whence a value came, it may have come from what the rule warns of.
        return one or (not strict and "unknown" in sources)

    def compare(question: Question) -> Verdict:
        action = question.action
        for argument in action.args if name == "*" else (name,) if name in action.args else ():
            fits = argument_fits(action.provenance.get(argument) or ("unknown",))
            if fits != every:
                return fits
        return every

    return compare


def _programs(wanted: Sequence[str], *, strict: bool, governs_writes: bool) -> Check:
    def every(question: Question) -> Verdict:
        analysis = question.analysis
        if analysis is None or analysis.unknown or not analysis.programs:
            return False
        if not governs_writes and any(target not in HARMLESS_TARGETS for target in analysis.writes):
            return False
        return all(any(is_program(program, name, exact=True) for name in wanted) for program in analysis.programs)

    def any_of_them(question: Question) -> Verdict:
        analysis = question.analysis
        if analysis is None:
            return False
        if any(is_program(program, name, exact=False) for program in analysis.programs for name in wanted):
            return True
        return f"what would run is not known: {analysis.unknown[0]}" if analysis.unknown else False

    return every if strict else any_of_them


def _condition(condition: Condition) -> Check:
    def evaluate(question: Question) -> Verdict:
        activation = question.activation
        return activation if isinstance(activation, str) else condition.holds(activation)

    return evaluate


def certainly_false(condition: Condition) -> Callable[[Question], bool]:
    """Whether the condition is false for a question, with no error in any part of it that counts."""
    check = _condition(condition)
    return lambda question: check(question) is False
