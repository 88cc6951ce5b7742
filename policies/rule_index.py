"""Which rules about a tool can be about an action at all: found by what they name outright, before any of them is asked.

A rule that is left out here would have answered that it is not about the action. By which of its matchers a rule is found is
settled when it is bound; one without a matcher of these kinds is always asked, and so is every rule of a kind whose value the
action does not tell."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from perdure.policies.patterns import is_glob, plain_host
from perdure.policies.rules import ArgumentPattern, Equals, OneOf, Rule

if TYPE_CHECKING:
    from perdure.policies.matching import Question

GROUP_MAX = 32  # conditions that are asked together first: most of the time none of them holds

Found = TypeVar("Found")
Keys: TypeAlias = "Iterable[str] | None"  # None: the action does not tell, any rule of this kind may fit
Lead: TypeAlias = (
    "tuple[str, Callable[[Question], Keys], Iterable[str]]"  # a kind, the keys of an action, those of a rule
)


@dataclass(slots=True)
class _Kind:
    """The rules that are found by one matcher, by the keys of what it names; `of` says the keys of an action."""

    of: Callable[[Question], Keys]
    rules: dict[str, list[int]] = field(default_factory=dict)
    every: list[int] = field(default_factory=list)


class RuleIndex(Generic[Found]):
    """The rules about one tool, in their order."""

    def __init__(self, rules: Sequence[Found]) -> None:
        self.rules = rules
        self._always: list[int] = []
        self._kinds: dict[str, _Kind] = {}
        self._groups: list[tuple[Callable[[Question], bool], list[int]]] = []

    def add(self, position: int, keys: Lead | None) -> None:
        """Rule number `position` is found by the (kind, keys of an action, keys of the rule), or always asked."""
        if keys is None:
            self._always.append(position)
            return
        name, of, own = keys
        kind = self._kinds.setdefault(name, _Kind(of))
        kind.every.append(position)
        for key in dict.fromkeys(own):
            kind.rules.setdefault(key, []).append(position)

    def group(self, positions: Sequence[int], none_holds: Callable[[Question], bool]) -> None:
        """These rules are asked only where it is not certain that none of their conditions holds."""
        self._groups.append((none_holds, list(positions)))

    def candidates(self, question: Question) -> Sequence[Found]:
        """Every rule that may be about the action, in order."""
        found = self._always.copy()
        for kind in self._kinds.values():
            keys = kind.of(question)
            if keys is None:
                found += kind.every
            else:
                rules = kind.rules
                for key in keys:
                    if key in rules:
                        found += rules[key]
        for none_holds, positions in self._groups:
            if not none_holds(question):
                found += positions
        rules_in_order = self.rules
        return [rules_in_order[position] for position in sorted(set(found))]


def found_by(rule: Rule, roots: Iterable[str], *, paths: Iterable[str], from_above: bool) -> Lead | None:
    """What the rule is found by, the most telling first; None where it has to be asked about every action of its tool. `roots`
    are the directories of its `path`, as written and as they lie (none where one is a glob); `paths` the path arguments."""
    if rule.hosts:
        return "host", hosts, map(plain_host, rule.hosts)
    for name, pattern in rule.args.items():
        values = _texts(pattern)
        if values is not None and name not in paths:
            return f"args.{name}", _argument(name), values
    own = list(roots)
    if own:
        above = (
            [f"^{parent}" for root in own for parent in ancestors(root)] if from_above and not rule.permissive else []
        )
        return "path", directories, own + above
    if rule.programs and not any(is_glob(program.rpartition("/")[2]) for program in rule.programs):
        return "program", programs, (program.partition(" ")[0].rpartition("/")[2] for program in rule.programs)
    for name, wanted in rule.provenance.items():
        if wanted.quantifier == "any" and name != "*" and not any(map(is_glob, wanted.globs)):
            return f"provenance.{name}", _sources(name), (*wanted.globs, *(() if rule.permissive else ("unknown",)))
    return None


def _texts(pattern: ArgumentPattern) -> Sequence[str] | None:
    values = (
        pattern.values if isinstance(pattern, OneOf) else (pattern.value,) if isinstance(pattern, Equals) else (None,)
    )
    return values if all(isinstance(value, str) for value in values) else None


def hosts(question: Question) -> Keys:
    """The action's host, and the patterns that cover it."""
    host = question.action.host
    if host is None:
        return None
    host = plain_host(host)
    dots = [position for position, character in enumerate(host) if character == "."]
    return (host, *(f"*{host[position:]}" for position in dots))


def directories(question: Question) -> Keys:
    """Every directory above a path of the action, the path itself, and the path as something that a rule's directory may lie
    below."""
    reach = question.reach
    if reach.doubt is not None or not (reach.paths or reach.trees):
        return None
    found: dict[str, None] = {}
    for path in (*reach.paths, *reach.trees):
        found.update(dict.fromkeys(ancestors(path)))
        found[path] = None
        found[f"^{path}"] = None
    return found


def programs(question: Question) -> Keys:
    """The names of the programs that the action runs."""
    analysis = question.analysis
    if analysis is None:
        return ()
    if analysis.unknown:
        return None
    names = {run.program.rpartition("/")[2] for run in analysis.programs}
    return names | {posixpath.basename(posixpath.normpath(run.program)) for run in analysis.programs}


def _argument(name: str) -> Callable[[Question], Keys]:
    def keys(question: Question) -> Keys:
        args: Mapping[str, object] = question.action.args
        if name not in args:
            return ()
        value = args[name]
        if isinstance(value, str):
            return (value,)
        return None if isinstance(value, list | tuple) else ()

    return keys


def _sources(name: str) -> Callable[[Question], Keys]:
    def keys(question: Question) -> Keys:
        action = question.action
        return (action.provenance.get(name) or ("unknown",)) if name in action.args else ()

    return keys


def ancestors(path: str) -> list[str]:
    """The directories above an absolute path, `/` included, the path itself not."""
    parts = path.split("/")
    return ["/".join(parts[:length]) or "/" for length in range(1, len(parts))] if path != "/" else []
