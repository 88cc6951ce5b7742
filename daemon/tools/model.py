"""What a tool is: its specification, one prepared call of it, and the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from perdure.errors import PerdureError
from perdure.state.events import JSON, EffectClass

PathUse = Literal["read", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What planners, policies and people know of a tool. `args_schema` is a JSON Schema object with
    `additionalProperties: false`; `paths` names the arguments that are file paths and what is done there; `free_text`
    names arguments that carry prose (not compared when votes are counted)."""

    name: str
    description: str
    args_schema: Mapping[str, Any]
    effect: EffectClass
    source: str = "built-in"  # or "operator", "mcp:NAME"
    trusted: bool = False  # whether what it returns may choose later arguments without being called untrusted
    trusted_fields: tuple[str, ...] = ()  # of what it returns, the fields of which that is so (`report.path`)
    probeable: bool = False
    paths: Mapping[str, PathUse] = field(default_factory=dict)
    free_text: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One action, checked against the schema and resolved, not yet decided. `digest` is the action digest: SHA-256 over
    tool, schema hash, canonical arguments, working directory, environment names, resolved paths, digests of executed files."""

    spec: ToolSpec
    args: Mapping[str, JSON]
    digest: str
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # argument -> resolved absolute paths
    cwd: str | None = None
    argv: tuple[str, ...] | None = None  # what will be executed, for tools that start a program
    script: str | None = None  # shell text, where a shell was asked for
    named: Mapping[str, tuple[str, ...]] | None = None  # each file that the command names -> where that leads
    url: str | None = None
    method: str | None = None
    executed: Mapping[str, str] = field(default_factory=dict)  # executed file -> SHA-256
    effect: EffectClass | None = None  # this call's own effect class, where it differs from the tool's (a GET)
    sandboxed: bool = True  # False: a program would run without Landlock, which is for a person to allow
    unmet: tuple[str, ...] = ()  # in words, why this call is for a person to allow whatever the policies say


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one attempt is given. `action` is the idempotency key; `attempt` counts from 1; `seconds_max` bounds it; `scope`
    is whose memory the task sees: its own name, or `workspace`."""

    action: str
    session: str
    attempt: int
    seconds_max: float
    scope: str = "workspace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How an attempt ended. `ok` False: the tool says that it failed, and `error` why. `value` is what planners see,
    bounded; `truncated` says that something was cut. `undo` is True where `perdure undo` can bring the old state back.
    `whole` is what `value` is a summary of: it goes into the ledger only."""

    ok: bool
    value: JSON
    error: str | None = None
    truncated: bool = False
    undo: bool = False
    whole: JSON = None


class ToolRefused(PerdureError):
    """The arguments cannot become an action (outside the schema, outside the roots, no such program …). Nothing happened."""


class ToolInterrupted(PerdureError):
    """The attempt's outcome is not known: it was cut off (time-out, kill, lost connection) after it may have had effects."""


class Tool(Protocol):
    """A capability. `prepare` and `probe` have no effects; only `run` does, and only after its intent is durable."""

    @property
    def spec(self) -> ToolSpec: ...

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        """Check and resolve. Raises ToolRefused. Reads only what it must (file digests, links)."""
        ...

    async def run(self, prepared: Prepared, call: Call) -> Result:
        """Do it, once. Resolves again and refuses if the digest would differ. Raises ToolInterrupted when the outcome is
        unknown; every other ending is a Result."""
        ...

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        """Whether the effect of this action is there; None where it cannot be told."""
        ...
