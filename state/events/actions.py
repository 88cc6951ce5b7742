"""Steps: proposed, voted on, decided, intended, ended, verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from perdure.state.events.drafts import JSON, ActionStatus, Decided, Draft, EffectClass


@dataclass(slots=True, kw_only=True, eq=False)
class StepRejected(Draft):
    """A proposal that never became an action: malformed, unknown tool, arguments outside the schema, secret, over-long. The
    payload is `{"detail", "provenance"}`: what the planner was told, and which telling parts of it came from where, by source."""

    type: ClassVar[str] = "step.rejected"
    session: str
    task: str
    step: int
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class ActionProposed(Draft):
    """One step. `key` is the planner's name for it (the playbook's step path), by which a resumed session finds it again.
    The payload is `{"args", "provenance", "paths", "cwd", "says"}`."""

    type: ClassVar[str] = "action.proposed"
    action: str
    session: str
    task: str
    step: int
    tool: str
    effect: EffectClass
    digest: str
    confidence: float
    key: str | None = None
    stated: float | None = None  # what the planner said of itself, where `confidence` is the calibrated number
    score: float | None = None  # what the calibration made `confidence` of
    voted: bool | None = None  # whether a vote was held


@dataclass(slots=True, kw_only=True, eq=False)
class VoteHeld(Draft):
    """Independent draws for one step, until one canonical action led by `ahead_by`, or could not within `draws_max`. `margin`
    is the leader's lead over the next; `flagged` draws were no valid proposal and counted for nothing. `action` is the one
    that was taken or asked about; it is absent where the vote was about ending the session. The payload is
    `{"candidates": [{"tool", "args", "votes"}]}`, most votes first."""

    type: ClassVar[str] = "vote.held"
    session: str
    task: str
    step: int
    ahead_by: int
    draws_max: int
    draws: int
    flagged: int
    margin: int
    won: bool
    action: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ActionDecided(Draft):
    """What the policies said: `rules` lists every rule that counted as `{"name", "file", "line", "decide"}`."""

    type: ClassVar[str] = "action.decided"
    action: str
    session: str
    task: str
    decision: Decided
    rules: Sequence[Mapping[str, JSON]]
    reason: str
    policies: str
    grant: str | None = None
    shadow: Decided | None = None  # what it would be with the shadow rules in force, where that differs
    facts: Mapping[str, JSON] | None = None  # those that conditions could see and that are not at their defaults


@dataclass(slots=True, kw_only=True, eq=False)
class ActionIntended(Draft):
    """Written before the effect. `approval` names the escalation that authorises this one attempt."""

    type: ClassVar[str] = "action.intended"
    action: str
    session: str
    task: str
    tool: str
    effect: EffectClass
    digest: str
    attempt: int
    approval: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ActionEnded(Draft):
    """How an intent ended. `unknown` may be settled later by another ActionEnded with `settles=True` (probe, person).
    The payload is `{"result": …, "error": …}`."""

    type: ClassVar[str] = "action.ended"
    action: str
    session: str
    task: str
    tool: str
    attempt: int
    status: ActionStatus
    duration_us: int
    error: str | None = None
    settles: bool | None = None
    undo: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ActionVerified(Draft):
    """Something other than the planner looked at what an action did. `reliability` is how often this verifier is right, as
    declared."""

    type: ClassVar[str] = "action.verified"
    action: str
    session: str
    task: str
    verifier: str
    passed: bool
    reliability: float | None = None
