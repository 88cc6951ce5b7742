"""Slots and the sessions that they start, up to the postconditions that end them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from perdure.state.events.drafts import JSON, Draft, SessionStatus, SlotKind, SlotOutcome


@dataclass(slots=True, kw_only=True, eq=False)
class SlotOpened(Draft):
    """A firing became due. `slot` is `TASK/KIND/DUE` with DUE in ISO 8601 UTC; `cause` names the escalation, action or
    person behind a slot that no schedule made."""

    type: ClassVar[str] = "slot.opened"
    slot: str
    task: str
    kind: SlotKind
    due: int
    cause: str | None = None
    resumes: str | None = None  # the parked or interrupted session that a resume slot goes on from
    dry_run: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class SlotClosed(Draft):
    """How a slot ended. Where one event covers a range of `count` firings, `due` is the first and `last_due` the last."""

    type: ClassVar[str] = "slot.closed"
    slot: str
    task: str
    kind: SlotKind
    due: int
    outcome: SlotOutcome
    session: str | None = None
    rule: str | None = None
    last_due: int | None = None
    count: int = 1


@dataclass(slots=True, kw_only=True, eq=False)
class SessionOpened(Draft):
    """A bounded run begins. `bounds` are what this session may still use; `resumes` is the parked session it goes on from
    and `escalation` the answered question. The payload is `{"instruction": …}`, and under `"unchanged"` the digests of the
    files that the task's postconditions forbid to change."""

    type: ClassVar[str] = "session.opened"
    session: str
    task: str
    slot: str
    planner: str
    model: str | None = None
    bounds: Mapping[str, JSON]
    task_digest: str
    policies: str
    fence: int
    resumes: str | None = None
    escalation: str | None = None
    dry_run: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class SessionClosed(Draft):
    """How a session ended and what it used. The payload is `{"saved": …, "says": …, "provenance": …}`: what `last.*` will show,
    the planner's closing words, and for a model's words which telling parts of both came from where, by source. `saved`: it
    finished, and what it saved is what the next one sees."""

    type: ClassVar[str] = "session.closed"
    session: str
    task: str
    slot: str
    status: SessionStatus
    reason: str
    steps: int
    tokens: int
    cost_usd: float
    duration_us: int
    saved: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class PostconditionChecked(Draft):
    """The payload is `{"condition": …, "detail": …}`. One with `keep_until` (microseconds UTC) stands: later sessions of the
    task check it again until then, and `standing` is the number of the event that proved it first. `digest` is that of the
    file at `path` when it was proven."""

    type: ClassVar[str] = "postcondition.checked"
    session: str
    task: str
    index: int
    kind: str
    passed: bool
    keep_until: int | None = None
    path: str | None = None
    digest: str | None = None
    standing: int | None = None
    condition: str | None = None
