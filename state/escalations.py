"""Questions to people, their answers, and standing answers (grants). One approval authorises one attempt; expiry is final."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from perdure.state.events import RESUME_TASK, Event
from perdure.state.reading import LedgerReader
from perdure.state.refusals import LedgerRefused
from perdure.state.schema import Executor


@dataclass(frozen=True, slots=True)
class EscalationRow:
    """A question; one about a task (`resume_task`) has no action. `state`: `open`, `approved`, `denied`, `expired`, or `used`
    (its one attempt was intended, its task goes on). `seq` is the opening event's, whose payload holds the question. An
    approval counts before `valid_until`."""

    escalation: str
    action: str
    digest: str
    session: str
    task: str
    tool: str
    opened_at: int
    expires: int
    on_expiry: Literal["deny", "approve"]
    parks: bool
    state: str
    valid_until: int | None
    uid: int | None
    via: str | None
    answered_at: int | None
    joined: int
    seq: int


@dataclass(frozen=True, slots=True)
class GrantRow:
    """A standing answer. `pattern` comes from the payload of event `seq`; None where that was erased (it then fits nothing)."""

    grant: str
    task: str
    tool: str
    rule: str
    uid: int
    given_at: int
    revoked_at: int | None
    revoked_uid: int | None
    seq: int
    pattern: dict[str, Any] | None


_PENDING = "state IN ('open', 'approved')"  # repeated in queries so that SQLite may use the partial index of that name


def escalations(reader: LedgerReader, open_only: bool = True, task: str | None = None) -> list[EscalationRow]:
    """Questions, oldest first; `open_only`: those that nobody has answered and that have not been recorded as expired."""
    where = ([f"state = 'open' AND {_PENDING}"] if open_only else []) + (
        [] if task is None else ["+task = ?" if open_only else "task = ?"]
    )
    sql = "SELECT * FROM escalations" + (f" WHERE {' AND '.join(where)}" if where else "") + " ORDER BY seq"  # noqa: S608 - only fixed words are put together
    return [_row(row) for row in reader.rows(sql, *([] if task is None else [task]))]


def escalation(reader: LedgerReader, id: str) -> EscalationRow | None:
    """The question with this id."""
    return next((_row(row) for row in reader.rows("SELECT * FROM escalations WHERE escalation = ?", id)), None)


def open_escalation_for(reader: LedgerReader, task: str, digest: str) -> EscalationRow | None:
    """The open question about this digest, which an identical proposal joins."""
    sql = "SELECT * FROM escalations WHERE task = ? AND digest = ? AND state = 'open'"
    return next((_row(row) for row in reader.rows(sql, task, digest)), None)


def escalation_to_join(reader: LedgerReader, task: str, digest: str, now: int) -> EscalationRow | None:
    """The question that an identical proposal joins: the open one about this digest, or one that is approved and that a slot
    is still to act on. Asked again, a person's two approvals would run the action twice."""
    sql = (
        f"SELECT e.* FROM escalations e WHERE e.task = ? AND e.digest = ? AND {_PENDING} AND (e.state = 'open'"  # noqa: S608 - a constant
        " OR (e.valid_until > ? AND EXISTS (SELECT 1 FROM slots WHERE outcome IS NULL AND cause = e.escalation))) ORDER BY e.seq"
    )
    return next((_row(row) for row in reader.rows(sql, task, digest, now)), None)


def last_answer_for(reader: LedgerReader, task: str, digest: str) -> EscalationRow | None:
    """The latest question about this digest that is no longer open (approved, denied, expired or used)."""
    sql = "SELECT * FROM escalations WHERE task = ? AND digest = ? AND state <> 'open' ORDER BY seq DESC LIMIT 1"
    return next((_row(row) for row in reader.rows(sql, task, digest)), None)


def approved_escalations(reader: LedgerReader) -> list[EscalationRow]:
    """Approvals whose one attempt has not been intended yet, oldest first."""
    sql = f"SELECT * FROM escalations WHERE state = 'approved' AND {_PENDING} ORDER BY seq"  # noqa: S608 - a constant
    return [_row(row) for row in reader.rows(sql)]


def grants(reader: LedgerReader, task: str | None = None, active_only: bool = True) -> list[GrantRow]:
    """Standing answers, oldest first, with their patterns."""
    where = (["revoked_at IS NULL"] if active_only else []) + ([] if task is None else ["task = ?"])
    sql = "SELECT * FROM grants" + (f" WHERE {' AND '.join(where)}" if where else "") + " ORDER BY seq"  # noqa: S608 - only fixed words are put together
    found = []
    for row in reader.rows(sql, *([] if task is None else [task])):
        payload = reader.payload(row[8])
        pattern = payload.get("pattern") if isinstance(payload, dict) else None
        grant, task_, tool, rule, uid, given_at, revoked_at, revoked_uid, seq = row
        found.append(
            GrantRow(
                grant, task_, tool, rule, uid, given_at, revoked_at, revoked_uid, seq,
                pattern if isinstance(pattern, dict) else None,
            )
        )  # fmt: skip
    return found


def _row(row: tuple[Any, ...]) -> EscalationRow:
    values = list(row)
    values[9] = bool(values[9])  # parks
    return EscalationRow(*values)


# -- how events change the tables -------------------------------------------------------------------------------------


def escalation_opened(db: Executor, event: Event) -> None:
    """A person is asked about one action; the same open question is not asked twice."""
    body = event.body
    about = f"question {body['escalation']}"
    if not body["action"]:
        _require_stopped(db, body, about)
    else:
        _require_escalated(db, body, about)
    if db.execute("SELECT 1 FROM escalations WHERE escalation = ?", (body["escalation"],)).fetchone():
        raise LedgerRefused("escalation-known", about, "a question is asked once")
    if body["expires"] <= event.at:
        raise LedgerRefused("expired", about, "it would have expired before it was asked")
    same = db.execute(
        "SELECT escalation FROM escalations WHERE task = ? AND digest = ? AND state = 'open'",
        (body["task"], body["digest"]),
    ).fetchone()
    if same:
        raise LedgerRefused("must-join", about, f"question {same[0]} about the same action is open", "Join it")
    db.execute(
        "INSERT INTO escalations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', NULL, NULL, NULL, NULL, 0, ?)",
        (
            body["escalation"], body["action"], body["digest"], body["session"], body["task"], body["tool"], event.at,
            body["expires"], body["on_expiry"], int(body["parks"]), event.seq,
        ),
    )  # fmt: skip
    db.execute("UPDATE actions SET escalation = ? WHERE action = ?", (body["escalation"], body["action"]))


def _require_escalated(db: Executor, body: Mapping[str, Any], about: str) -> None:
    row = db.execute("SELECT digest, task, tool, state FROM actions WHERE action = ?", (body["action"],)).fetchone()
    if row is None:
        raise LedgerRefused("no-such-action", about, f"action {body['action']} was never proposed")
    if row[:3] != (body["digest"], body["task"], body["tool"]):
        raise LedgerRefused("action-mismatch", about, "digest, task or tool are not the action's")
    if row[3] not in ("escalated", "ended"):
        raise LedgerRefused("not-escalated", about, f"action {body['action']} is {row[3]}: there is nothing to ask")


def _require_stopped(db: Executor, body: Mapping[str, Any], about: str) -> None:
    """A question without an action is about a task that is stopped; it holds up no session, and silence lets nothing go on."""
    if body["tool"] != RESUME_TASK or body["parks"] or body["on_expiry"] != "deny":
        raise LedgerRefused("no-such-action", about, "it names no action, and is not whether a stopped task goes on")
    if not db.execute("SELECT 1 FROM pauses WHERE task = ?", (body["task"],)).fetchone():
        raise LedgerRefused("not-stopped", about, f"the task {body['task']} is not stopped: there is nothing to ask")


def task_goes_on(db: Executor, task: str, at: int) -> None:
    """A task that goes on needs no answer to whether it may any more."""
    db.execute(
        "UPDATE escalations SET state = 'used', answered_at = COALESCE(answered_at, ?) WHERE task = ? AND action = ''"
        " AND state IN ('open', 'approved')",
        (at, task),
    )


def escalation_joined(db: Executor, event: Event) -> None:
    """A later proposal of the same action waits for the same answer."""
    body = event.body
    about = f"the joining of question {body['escalation']}"
    digest, task, state, valid_until = _question(db, body["escalation"], about, "digest, task, state, valid_until")
    if state != "open" and not (state == "approved" and event.at < valid_until):
        raise LedgerRefused("escalation-answered", about, f"it is {state}", "Ask anew")
    row = db.execute("SELECT digest, task, state FROM actions WHERE action = ?", (body["action"],)).fetchone()
    if row is None or row != (digest, task, "escalated"):
        raise LedgerRefused(
            "action-mismatch", about, f"action {body['action']} is not an escalated action with the same digest"
        )
    own = db.execute(
        "SELECT 1 FROM escalations WHERE escalation = ? AND action = ?", (body["escalation"], body["action"])
    ).fetchone()
    if own:
        raise LedgerRefused("action-mismatch", about, "it is the action's own question")
    db.execute(
        "UPDATE actions SET state = 'joined', escalation = ? WHERE action = ?", (body["escalation"], body["action"])
    )
    db.execute("UPDATE escalations SET joined = joined + 1 WHERE escalation = ?", (body["escalation"],))


def escalation_answered(db: Executor, event: Event) -> None:
    """The one answer, before expiry."""
    body = event.body
    about = f"the answer to question {body['escalation']}"
    state, expires, action, task = _question(db, body["escalation"], about, "state, expires, action, task")
    if state != "open":
        raise LedgerRefused("escalation-answered", about, f"it is already {state}", "A question is answered once")
    if event.at >= expires:
        raise LedgerRefused("expired", about, "it has expired", "Expiry is final: the action has to be proposed again")
    if task != body["task"]:
        raise LedgerRefused("action-mismatch", about, f"it belongs to task {task}")
    approved = body["answer"] == "approve"
    db.execute(
        "UPDATE escalations SET state = ?, valid_until = ?, uid = ?, via = ?, answered_at = ? WHERE escalation = ?",
        (
            "approved" if approved else "denied", expires if approved else None, body["uid"], body["via"], event.at,
            body["escalation"],
        ),
    )  # fmt: skip
    if not approved:
        _deny(db, action)


def escalation_expired(db: Executor, event: Event) -> None:
    """Nobody answered in time, or an approval was not used in time."""
    body = event.body
    about = f"the expiry of question {body['escalation']}"
    state, opened_at, expires, on_expiry, valid_until, action = _question(
        db, body["escalation"], about, "state, opened_at, expires, on_expiry, valid_until, action"
    )
    if state not in ("open", "approved"):
        raise LedgerRefused("escalation-answered", about, f"it is already {state}", "A question ends once")
    if event.at < (expires if state == "open" else valid_until):
        raise LedgerRefused("not-expired", about, "its time has not passed")
    default = on_expiry if state == "open" else "deny"  # an approval that went stale authorises nothing any more
    if body["default"] != default:
        raise LedgerRefused("wrong-default", about, f"its default is {default}, not {body['default']}")
    approved = default == "approve"
    db.execute(
        "UPDATE escalations SET state = ?, valid_until = ?, answered_at = ? WHERE escalation = ?",
        (
            # Silence that approves does so for as long again as there was time to answer.
            ("approved", event.at + (expires - opened_at)) if approved else ("expired", None)
        )
        + (event.at, body["escalation"]),
    )
    if not approved:
        _deny(db, action)


def use_approval(db: Executor, escalation: str, action: str, digest: str, event: Event, about: str) -> None:
    """Spend the one attempt that this approval authorises, or refuse."""
    asked, for_digest, state, valid_until = _question(db, escalation, about, "action, digest, state, valid_until")
    if state != "approved":
        raise LedgerRefused(
            "not-approved", about, f"question {escalation} is {state}", "One approval authorises one attempt"
        )
    if asked != action or for_digest != digest:
        raise LedgerRefused("action-mismatch", about, f"question {escalation} was asked about another action")
    if event.at >= valid_until:
        raise LedgerRefused(
            "expired", about, f"the approval {escalation} has expired", "Expiry is final: propose the action again"
        )
    db.execute("UPDATE escalations SET state = 'used' WHERE escalation = ?", (escalation,))


def grant_given(db: Executor, event: Event) -> None:
    """A person answers one rule for good."""
    body = event.body
    if db.execute('SELECT 1 FROM grants WHERE "grant" = ?', (body["grant"],)).fetchone():
        raise LedgerRefused("grant-known", f"grant {body['grant']}", "a grant is given once")
    db.execute(
        "INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, ?)",
        (body["grant"], body["task"], body["tool"], body["rule"], body["uid"], event.at, event.seq),
    )


def grant_revoked(db: Executor, event: Event) -> None:
    """And takes it back."""
    body = event.body
    changed = db.execute(
        'UPDATE grants SET revoked_at = ?, revoked_uid = ? WHERE "grant" = ? AND revoked_at IS NULL',
        (event.at, body["uid"], body["grant"]),
    )
    if changed.rowcount == 0:
        raise LedgerRefused("no-such-grant", f"the revocation of grant {body['grant']}", "no such grant is in force")


def _question(db: Executor, escalation: str, about: str, columns: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = db.execute(
        f"SELECT {columns} FROM escalations WHERE escalation = ?",  # noqa: S608 - columns are constants of this module
        (escalation,),
    ).fetchone()
    if row is None:
        raise LedgerRefused("no-such-escalation", about, "it was never asked")
    return row


def _deny(db: Executor, action: str) -> None:
    # The question may have been about an action whose attempt is unknown: that stays as it is.
    db.execute("UPDATE actions SET state = 'denied' WHERE action = ? AND state = 'escalated'", (action,))
