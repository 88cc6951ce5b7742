"""What a planner sees: the request for a context, and the context with its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """Text that goes in verbatim or not at all: `kind` is instruction, constraints, policies, open, last, slot …"""

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRequest:
    """What to assemble. `budget` and `overhead` (tool schemas, framing) are tokens of the model, `factor` converts our
    count to the model's; `query` is what recall looks for; `scope` is the task's name or `workspace`."""

    task: str
    session: str
    scope: str
    query: str
    budget: int
    overhead: int
    factor: float
    pinned: Sequence[Pinned]
    now: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line of the manifest. `source` leads back to the ledger (sequence numbers) or names what was handed in; `why`
    says how it came in (pinned, story, recalled: rank and scores) or why it stayed out."""

    kind: str
    id: str
    tokens: int
    why: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the context. Stable sections come first and stay the same bytes from session to session where they can."""

    name: str
    text: str
    tokens: int
    stable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The assembled context: `tokens` (already times the factor, overhead included) never exceeds the budget. `candidates` are
    the records that the vector search named (`candidates_by` says which search): given them, the same memory and request
    give the same bytes."""

    sections: tuple[Section, ...]
    text: str
    tokens: int
    budget: int
    factor: float
    digest: str
    manifest: tuple[Item, ...]
    left_out: tuple[Item, ...]
    candidates: tuple[str, ...] = ()
    candidates_by: Literal["index", "exact", "nobody"] = "nobody"
