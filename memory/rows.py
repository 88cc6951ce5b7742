"""What memory.db holds, as values: records, claims, pins, summaries and receipts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

Speaker: TypeAlias = Literal["person", "agent", "tool", "perdure"]
Level: TypeAlias = Literal["session", "day", "week", "month"]

_NAME = re.compile(r"[rf]([1-9][0-9]{0,17})")

WORKSPACE = "workspace"  # the scope that reads what every task remembers


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing that happened, as memory tells it. `sources` are the ledger events it was made from, `untrusted` says that
    a tool's words are in it. `task` None: it concerns every task. `cold`: its text has left memory; the ledger has it."""

    id: str
    seq: int
    at: int
    task: str | None
    session: str | None
    kind: str
    speaker: Speaker
    untrusted: bool
    text: str
    tokens: int
    sources: tuple[int, ...]
    cold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Somebody said that `attribute` of `subject` is `value`, in ledger event `seq`."""

    seq: int
    at: int
    task: str | None
    subject: str
    attribute: str
    value: str
    speaker: Speaker


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A person's standing instruction, from ledger event `seq`."""

    pin: str
    seq: int
    at: int
    task: str | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What happened in one closed period (`start` to `end`, microseconds UTC), made from the raw records `covers`. `seq` is
    the ledger event that holds a model's text; None: no model made it."""

    id: str
    task: str
    level: Level
    start: int
    end: int
    text: str
    tokens: int
    covers: tuple[str, ...]
    untrusted: bool
    made_by: str
    seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One compaction: ledger events after `after` up to `until`. `detail` is a line of JSON for each summary it made."""

    task: str
    session: str | None
    after: int
    until: int
    events: int
    records: int
    facts: int
    summaries: int
    tokens_before: int
    tokens_after: int
    duration_us: int
    left_out: int
    ineffective: int
    model_stopped: int
    detail: str


def event_number(name: str) -> int:
    """The ledger event that a record (`r12`) or fact (`f12`) was made from; 0 where this names neither."""
    named = _NAME.fullmatch(name)
    return int(named[1]) if named else 0


def fact_key(subject: str, attribute: str) -> str:
    """What makes two claims speak of the same thing: subject and attribute without regard to case and spacing."""
    return "\x1f".join(" ".join(part.replace("\x1f", " ").split()).casefold() for part in (subject, attribute))
