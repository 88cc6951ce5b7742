"""What people are asked and answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from perdure.state.events.drafts import Draft


@dataclass(slots=True, kw_only=True, eq=False)
class EscalationOpened(Draft):
    """A question to a person about one action digest. The payload is `{"question": …}`: exactly what will run, where each
    argument came from and which rules counted. `action` is empty where the question is whether a task goes on that the circuit
    breaker has stopped (tool `resume_task`): then the payload says what was tried."""

    type: ClassVar[str] = "escalation.opened"
    escalation: str
    action: str
    digest: str
    session: str
    task: str
    tool: str
    expires: int
    on_expiry: Literal["deny", "approve"]
    parks: bool


@dataclass(slots=True, kw_only=True, eq=False)
class EscalationJoined(Draft):
    """A later proposal of what an open question, or an approval not yet used, is about: no second question."""

    type: ClassVar[str] = "escalation.joined"
    escalation: str
    action: str
    session: str
    task: str


@dataclass(slots=True, kw_only=True, eq=False)
class EscalationAnswered(Draft):
    """The payload is `{"note": …}`. `uid` is the peer's, as the kernel says it."""

    type: ClassVar[str] = "escalation.answered"
    escalation: str
    task: str
    answer: Literal["approve", "deny"]
    uid: int
    via: str


@dataclass(slots=True, kw_only=True, eq=False)
class EscalationExpired(Draft):
    type: ClassVar[str] = "escalation.expired"
    escalation: str
    task: str
    default: Literal["deny", "approve"]


@dataclass(slots=True, kw_only=True, eq=False)
class GrantGiven(Draft):
    """A standing answer. The payload is `{"pattern": {argument: pattern}, "note": …}`."""

    type: ClassVar[str] = "grant.given"
    grant: str
    task: str
    tool: str
    rule: str
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class GrantRevoked(Draft):
    type: ClassVar[str] = "grant.revoked"
    grant: str
    uid: int
