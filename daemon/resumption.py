"""Going on from an earlier session: what it had done and saved, and what a person answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.daemon.planners.moves import Proposal, Taken
from perdure.state import projections

if TYPE_CHECKING:
    from perdure.state.events import JSON
    from perdure.state.ledger import LedgerReader
    from perdure.state.projections import ActionRow, EscalationRow, SessionRow

LOOK_BACK_SESSIONS = 20  # a finished session of a playbook saves again what it did not change


def chain(reader: LedgerReader, session: str | None) -> list[SessionRow]:
    """The session and those it resumes, oldest first."""
    rows: list[SessionRow] = []
    while session is not None:
        row = projections.session(reader, session)
        if row is None:
            break
        rows.append(row)
        session = row.resumes
    return rows[::-1]


def goes_on(reader: LedgerReader, earlier: list[SessionRow], slot: str) -> bool:
    """Whether the session of `slot` carries on with the work of those that it resumes: not where that work was finished, was a
    person's own command, or was taken up by the session of another slot."""
    if not earlier or earlier[-1].status not in ("parked", "interrupted") or earlier[-1].planner == "person":
        return False
    return all(other.slot == slot for other in projections.successors(reader, earlier[-1].session))


def carried_on(reader: LedgerReader, earlier: list[SessionRow], slot: str) -> list[SessionRow]:
    """Those of `earlier` whose unfinished work the session of `slot` carries on with."""
    if not goes_on(reader, earlier, slot):
        return []
    finished = [n for n, row in enumerate(earlier) if row.status not in ("parked", "interrupted")]
    return earlier[finished[-1] + 1 :] if finished else earlier


def approved_in(reader: LedgerReader, sessions: list[SessionRow]) -> list[EscalationRow]:
    """Approvals that wait to be acted on, of questions that these sessions asked or whose attempts they made."""
    names = {row.session for row in sessions}
    found = []
    for question in projections.approved_escalations(reader):
        action = projections.action(reader, question.action)
        if action is not None and not names.isdisjoint({action.session, action.attempt_session}):
            found.append(question)
    return found


def recorded_steps(reader: LedgerReader, sessions: list[SessionRow]) -> list[Taken]:
    """Every step of these sessions as it ended, in order; a step done again under the same key counts once, as last ended."""
    steps: dict[str, Taken] = {}
    for row in sessions:
        for action in projections.actions(reader, session=row.session):
            taken = recorded_step(reader, action)
            key = taken.proposal.key or action.action
            steps.pop(key, None)
            steps[key] = taken
    return list(steps.values())


def recorded_step(reader: LedgerReader, action: ActionRow) -> Taken:
    """One step as the ledger holds it. An action that joined another's question ended as that one did."""
    proposal = recorded_proposal(reader, action)
    row = _joined_to(reader, action) or action
    ended: dict[str, Any] = {}
    decision, reason = row.decision or "escalate", ""
    for event in reader.events(action=row.action, types=("action.decided", "action.ended")):
        if event.type == "action.decided":
            reason = event.body["reason"]
            continue
        payload = reader.payload(event.seq)
        ended = payload if isinstance(payload, dict) else {}
    if row.status is not None:
        decision = "auto"
    elif row.escalation is not None:
        question = projections.escalation(reader, row.escalation)
        if question is not None and question.state in ("denied", "expired"):
            decision, reason = "deny", _refusal(reader, question)
    return Taken(
        step=action.step,
        proposal=proposal,
        action=action.action,
        decision=decision,
        reason=reason,
        status=row.status,
        result=ended.get("result"),
        files=ended.get("files", {}),
        error=f"refused: {reason}" if decision == "deny" else ended.get("error"),
        digest=action.digest,
        effect=action.effect,
    )


def _refusal(reader: LedgerReader, question: EscalationRow) -> str:
    """Why a question's action may not run, in words."""
    if question.state == "expired":
        return "nobody answered in time" if question.uid is None else "its approval expired before it was used"
    for event in reader.events(types=("escalation.answered",), task=question.task, after=question.seq):
        if event.body["escalation"] == question.escalation:
            payload = reader.payload(event.seq)
            note = payload.get("note") if isinstance(payload, dict) else None
            return f"a person denied it: {note}" if note else "a person denied it"
    return "it was denied"


def recorded_proposal(reader: LedgerReader, action: ActionRow) -> Proposal:
    """The proposal as it was made."""
    payload = reader.payload(action.seq_proposed)
    held: dict[str, Any] = payload if isinstance(payload, dict) else {}
    return Proposal(
        tool=action.tool,
        args=held.get("args", {}),
        provenance=held.get("provenance", {}),
        confidence=action.confidence,
        key=action.key,
        says=held.get("says", ""),
        on_escalate=held.get("on_escalate", "park"),
        on_error=held.get("on_error", "stop"),
    )


def _joined_to(reader: LedgerReader, action: ActionRow) -> ActionRow | None:
    if action.escalation is None:
        return None
    question = projections.escalation(reader, action.escalation)
    if question is None or question.action == action.action:
        return None
    return projections.action(reader, question.action)


def last_saved(reader: LedgerReader, task: str) -> dict[str, JSON]:
    """What the task's last finished session saved, for `last.*`."""
    row = projections.last_saving_session(reader, task)
    # An older Perdure did not note which sessions saved something: where none is known to have, the latest are looked at.
    latest = [row] if row is not None else projections.sessions(reader, task, limit=LOOK_BACK_SESSIONS)
    for row in latest:
        if row.seq_closed is None or row.dry_run or row.status not in ("succeeded", "unverified"):
            continue
        payload = reader.payload(row.seq_closed)
        if isinstance(payload, dict) and isinstance(saved := payload.get("saved"), dict) and saved:
            return saved
    return {}
