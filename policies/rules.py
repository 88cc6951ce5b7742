"""A policy file as data: rules, what they match and ask for, and the file's own tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from perdure.policies.model import Decided

OnExpiry = Literal["deny", "approve"]


@dataclass(frozen=True, slots=True)
class Equals:
    """The argument is exactly this value (of this type)."""

    value: Any


@dataclass(frozen=True, slots=True)
class OneOf:
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Glob:
    """The argument's text matches; path arguments are matched as resolved."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Under:
    """The path argument lies under one of these directories."""

    directories: tuple[str, ...]


ArgumentPattern: TypeAlias = Equals | OneOf | Glob | Under


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a value came from: `any` of its sources, or `all` of them, match one of the globs."""

    quantifier: Literal["any", "all"]
    globs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Require:
    """Obligations: what must hold before an action may be automatic."""

    votes_ahead_by: int = 0
    votes_max: int = 0
    votes_texts: bool = False  # free text counts, too: who writes something else votes for something else
    confidence: float = 0.0
    session_confidence: float = 0.0
    max_per_hour: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule as written. Empty matchers match everything; `tools` is never empty. Places count from 1."""

    name: str
    file: str
    line: int
    tools: tuple[str, ...]
    under: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    args: Mapping[str, ArgumentPattern] = field(default_factory=dict)
    provenance: Mapping[str, Sources] = field(default_factory=dict)
    when: str | None = None
    decide: Decided | None = None
    require: Require | None = None
    expires_seconds: int | None = None
    on_expiry: OnExpiry | None = None
    shadow: bool = False
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)

    @property
    def permissive(self) -> bool:
        """Whether the rule loosens: then everything it names must be certain. All others count as soon as anything fits."""
        return self.decide == "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineTest:
    """One test of a file: with these arguments and facts, the file's own rules decide `expect`; `by` names a rule that must
    have counted (`nothing decides` where none may have)."""

    name: str
    line: int
    column: int
    tool: str
    args: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    expect: Decided
    by: str | None = None
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """One file: its rules, its tests, and the library files it uses."""

    file: str
    rules: tuple[Rule, ...]
    tests: tuple[InlineTest, ...] = ()
    uses: tuple[str, ...] = ()
    shadow: bool = False
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)
