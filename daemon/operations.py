"""What a person asks of Perdure, as changes to the ledger: answering, pausing, asking for a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from perdure.daemon.clock import Identifiers
from perdure.daemon.scheduler import free, opened
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.events import (
    JSON,
    ActionEnded,
    Draft,
    EscalationAnswered,
    EscalationExpired,
    GrantGiven,
    GrantRevoked,
    Paused,
    Resumed,
    SlotOpened,
)

if TYPE_CHECKING:
    from perdure.state.ledger import Ledger, LedgerReader
    from perdure.state.projections import ActionRow, EscalationRow

Answer = dict[str, JSON]


def answer(
    ledger: Ledger,
    identifiers: Identifiers,
    now: int,
    uid: int,
    *,
    escalation: str,
    answer: str,
    note: str = "",
    always: bool = False,
) -> Answer:
    """Record a person's answer and, in the same commit, the slots that act on it. Raises PerdureError where it is too late."""
    question = _open_question(ledger, escalation, now)
    said: Literal["approve", "deny"] = "approve" if answer == "approve" else "deny"
    drafts: list[Draft] = [
        EscalationAnswered(
            escalation=question.escalation,
            task=question.task,
            answer=said,
            uid=uid,
            via="cli",
            payload={"note": note} if note else None,
        )
    ]
    if not question.action:
        return _answered_about_task(ledger, question, uid, drafts, approved=said == "approve", always=always)
    slots = act_on(ledger, question, now, approved=said == "approve")
    given = _grants(ledger, identifiers, question, uid, note) if always and said == "approve" else []
    drafts += given
    ledger.commit(*drafts, *slots)
    opened_slots: list[JSON] = [slot.slot for slot in slots if isinstance(slot, SlotOpened)]
    grants: list[JSON] = [draft.grant for draft in given]
    return {"escalation": question.escalation, "answer": said, "slots": opened_slots, "grants": grants}


def _answered_about_task(
    ledger: Ledger, question: EscalationRow, uid: int, drafts: list[Draft], *, approved: bool, always: bool
) -> Answer:
    """Whether a task that the circuit breaker stopped goes on; denied, it stays as it is."""
    if always:
        hint = "Approve it without --always: the next three failures of the same kind are asked about again"
        raise PerdureError("grant", question.escalation, "it is about a task, not about an action", hint)
    if approved:
        drafts.append(Resumed(task=question.task, by=f"uid {uid}"))
    ledger.commit(*drafts)
    said: Answer = {
        "escalation": question.escalation,
        "answer": "approve" if approved else "deny",
        "slots": [],
        "grants": [],
    }
    return said | {"task": question.task, "paused": not approved}


def expire(ledger: Ledger, now: int) -> list[EscalationRow]:
    """Expire every open question whose time is up, with its default, and every approval that was not used in time, which then
    authorises nothing any more; returns them."""
    late = [row for row in projections.escalations(ledger.reader, open_only=True) if row.expires <= now]
    moment = now
    for row in late:
        slots = act_on(ledger, row, moment, approved=row.on_expiry == "approve")
        moment += len(slots)  # a slot is one moment's: two questions of a task may end together
        expired = EscalationExpired(escalation=row.escalation, task=row.task, default=row.on_expiry)
        ledger.commit(expired, *slots)
    unused = [row for row in projections.approved_escalations(ledger.reader) if (row.valid_until or 0) <= now]
    for row in unused:  # the slot that the answer opened, if it still waits, finds that there is nothing to carry out
        ledger.commit(EscalationExpired(escalation=row.escalation, task=row.task, default="deny"))
    return late + unused


def act_on(ledger: Ledger, question: EscalationRow, now: int, *, approved: bool) -> list[Draft]:
    """The slots that an answer opens: one for each session that waits for it, or one to do what was approved; and the end
    of an unknown action that a person lets rest."""
    if not question.action:  # a task that nobody let go on stays stopped
        return []
    drafts: list[Draft] = []
    action = projections.action(ledger.reader, question.action)
    if not approved and action is not None and action.status == "unknown":
        drafts.append(_let_rest(action))
    waiting = projections.waiting_sessions(ledger.reader, question.escalation)
    due = now - 1
    for session in waiting or ([question.session] if approved else []):
        due = free(ledger.reader, question.task, "resume", due + 1)
        drafts.append(opened(question.task, "resume", due, cause=question.escalation, resumes=session))
    return drafts


def resume_if_answered(reader: LedgerReader, escalation: str, session: str, now: int) -> list[Draft]:
    """The slot for a session that parks on a question which has been answered meanwhile, unless it has one already."""
    question = projections.escalation(reader, escalation)
    if question is None or question.state == "open":
        return []
    if any(slot.resumes == session for slot in projections.slots(reader, task=question.task, open_only=True)):
        return []
    due = free(reader, question.task, "resume", now)
    return [opened(question.task, "resume", due, cause=question.escalation, resumes=session)]


def pause(ledger: Ledger, uid: int, *, task: str | None, reason: str = "") -> Answer:
    """No session of `task` (None: of any task) starts until it is resumed."""
    ledger.commit(Paused(task=task, by=f"uid {uid}", reason=reason or "asked for by a person"))
    return {"task": task, "paused": True}


def resume(ledger: Ledger, uid: int, *, task: str | None) -> Answer:
    """Let sessions of `task` (None: of all tasks) start again."""
    ledger.commit(Resumed(task=task, by=f"uid {uid}"))
    return {"task": task, "paused": False}


def ask_for_session(ledger: Ledger, now: int, uid: int, *, task: str, dry_run: bool = False) -> str:
    """Open a manual slot for `task`; returns its name."""
    slot = opened(task, "manual", free(ledger.reader, task, "manual", now), cause=f"uid {uid}", dry_run=dry_run)
    ledger.commit(slot)
    return slot.slot


def retry(ledger: Ledger, now: int, uid: int, *, slot: str) -> str:
    """Open a manual slot for the task of a slot that ended; returns the new slot's name."""
    row = projections.slot(ledger.reader, projections.resolve(ledger.reader, "slot", slot))
    if row is None or row.outcome is None:
        state = "there is no such slot" if row is None else "it has not ended yet"
        raise PerdureError("retry", f"the slot {slot}", state, "See `perdure schedule show` for the slots of each task")
    return ask_for_session(ledger, now, uid, task=row.task)


def revoke_grant(ledger: Ledger, uid: int, *, grant: str) -> Answer:
    """End a standing grant."""
    name = projections.resolve(ledger.reader, "grant", grant)
    ledger.commit(GrantRevoked(grant=name, uid=uid))
    return {"grant": name, "revoked": True}


def _open_question(ledger: Ledger, escalation: str, now: int) -> EscalationRow:
    name = projections.resolve(ledger.reader, "escalation", escalation)
    row = projections.escalation(ledger.reader, name)
    if row is None:
        raise PerdureError("answer", escalation, "there is no such question", "See `perdure inbox` for the open ones")
    if row.state != "open":
        raise PerdureError("answer", name, f"it is already {row.state}", "See `perdure inbox` for the open ones")
    if row.expires <= now:
        raise PerdureError(
            "answer", name, "it has expired, and expiry is final", "The task asks again when it needs to"
        )
    return row


def _let_rest(action: ActionRow) -> ActionEnded:
    said = "a person let the unknown outcome rest"
    return ActionEnded(
        action=action.action,
        session=action.session,
        task=action.task,
        tool=action.tool,
        attempt=action.attempt,
        status="failed",
        duration_us=0,
        settles=True,
        payload={"result": {"settled": said}, "error": said},
    )


def _grants(ledger: Ledger, identifiers: Identifiers, question: EscalationRow, uid: int, note: str) -> list[GrantGiven]:
    """One grant for each rule that made the action a question, for exactly these arguments."""
    payload = ledger.reader.payload(question.seq)
    asked = payload.get("question") if isinstance(payload, dict) else None
    if not isinstance(asked, dict):
        hint = "Approve it without --always, and write a rule instead"
        raise PerdureError("grant", question.escalation, "the question's text was erased", hint)
    answerable = asked.get("answerable")
    if not isinstance(answerable, list) or not answerable:
        cause = "it was asked because an obligation was not met, or its outcome is unknown: no rule could be answered for good"
        raise PerdureError("grant", question.escalation, cause, "Approve it without --always")
    return [
        GrantGiven(
            grant=identifiers.new(),
            task=question.task,
            tool=question.tool,
            rule=str(rule),
            uid=uid,
            payload={"pattern": asked["args"], "note": note},
        )
        for rule in answerable
    ]
