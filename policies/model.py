"""What the policies are asked and what they answer. Everything here is handed in: this room does no I/O on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Decided = Literal["auto", "escalate", "deny"]

# The name by which a grant answers the question that nobody's rule asked: nothing decided, so a person was asked.
NOTHING_DECIDES = "nothing decides"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSignature:
    """What policies know of a tool at load, for type-checking: its name, effect class, arguments' JSON Schema and which
    arguments are paths (`"read"` or `"write"`)."""

    name: str
    effect: str
    args_schema: Mapping[str, Any]
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_command(self) -> bool:
        """Whether the caller chooses what is run: then a rule that allows wants every program and file of it to be certain."""
        return not {"command", "script"}.isdisjoint(self.args_schema.get("properties") or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedAction:
    """One action as policies see it. `paths` maps arguments to resolved absolute paths; `argv` or `script` is what a
    command tool will execute; `targets` maps each file that the command names, as written, to the absolute paths that it leads to
    (several for a glob); `provenance` maps each argument to its sources, least trusted included."""

    tool: str
    args: Mapping[str, Any]
    effect: str
    provenance: Mapping[str, Sequence[str]]
    paths: Mapping[str, Sequence[str]] = field(default_factory=dict)
    argv: Sequence[str] | None = None
    script: str | None = None
    cwd: str | None = None
    host: str | None = None
    method: str | None = None
    targets: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The documented facts a condition may use. Times are the workspace's zone; windows end now; costs in USD."""

    task: str
    planner: str
    confidence: float = 1.0
    session_confidence: float = 1.0  # the product over what the session has done and nobody verified
    votes_ahead: int = 0
    tainted: bool = False
    hour: int = 0
    minute: int = 0
    weekday: str = "mon"  # mon … sun
    session_steps: int = 0
    session_tokens: int = 0
    session_cost_usd: float = 0.0
    hour_tokens: int = 0
    hour_cost_usd: float = 0.0
    day_tokens: int = 0
    day_cost_usd: float = 0.0
    tool_calls_hour: int = 0
    tool_calls_day: int = 0
    success_rate: float = -1.0  # verified success rate of this tool in this task; -1: no record yet


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleHit:
    """A rule that counted. `decide` is what it asked for: auto, escalate, deny, require, grant, or error (it could not be
    evaluated, which counts as a question to a person)."""

    name: str
    file: str
    line: int
    decide: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A person's standing answer: for `rule`, `task` and `tool`, where every argument equals or matches its pattern."""

    id: str
    rule: str
    task: str
    tool: str
    pattern: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Obligations:
    """What the first pass asks for; the strictest of all matching rules."""

    votes_ahead_by: int = 0
    votes_max: int = 0
    votes_texts: bool = False  # free text counts, too: who writes something else votes for something else
    confidence: float = 0.0
    session_confidence: float = 0.0
    max_per_hour: int | None = None
    rules: tuple[RuleHit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """auto, escalate or deny, with every rule that counted, the reason in words, and the hash of the policies.
    `expires_seconds` and `on_expiry` are for the question, should it become one."""

    decision: Decided
    rules: tuple[RuleHit, ...]
    reason: str
    policies: str
    grant: str | None = None
    expires_seconds: int = 86_400
    on_expiry: Literal["deny", "approve"] = "deny"
    shadow: Decided | None = None  # what it would be with the shadow rules in force, where that differs
    shadow_rules: tuple[RuleHit, ...] = ()  # the shadow rules that matched
    answerable: tuple[
        str, ...
    ] = ()  # rules that a standing grant must answer, each by a grant of its own, to make this auto
