"""The journal of actions: proposed, decided, intended, ended. What may follow what is decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from perdure.state.attempts import SUCCEEDED, TRIED, attempts
from perdure.state.escalations import use_approval
from perdure.state.events import ActionStatus, Decided, EffectClass, Event
from perdure.state.reading import LedgerReader
from perdure.state.refusals import LedgerRefused
from perdure.state.schema import Executor
from perdure.state.sessions import require_open_session

REPEATABLE: Final = frozenset({"read", "idempotent", "probeable"})  # classes whose unknown attempt may be run again


@dataclass(frozen=True, slots=True)
class ActionRow:
    """One action as it now stands.

    `state`: `proposed`, `decided` (auto, not yet intended), `escalated` (a question decides), `joined` (another action's
    question decides), `denied`, `intended` (an attempt is open), `ended`. `status` is the last attempt's, `attempt` its
    number (0: none yet), `attempt_session` the session it runs in. `escalation` is the question raised or joined, `approval`
    the one that authorised the last attempt.
    """

    action: str
    session: str
    task: str
    step: int
    tool: str
    key: str | None
    effect: EffectClass
    digest: str
    confidence: float
    decision: Decided | None
    state: str
    attempt: int
    attempt_session: str | None
    escalation: str | None
    approval: str | None
    status: ActionStatus | None
    error: str | None
    undo: bool | None
    verified: bool | None
    proposed_at: int
    intended_at: int | None
    ended_at: int | None
    seq_proposed: int
    seq_intended: int | None
    seq_ended: int | None


def actions(reader: LedgerReader, session: str | None = None, limit: int | None = None) -> list[ActionRow]:
    """A session's actions in order; without a session, all, newest first."""
    bound = -1 if limit is None else limit
    if session is None:
        return [_row(row) for row in reader.rows("SELECT * FROM actions ORDER BY seq_proposed DESC LIMIT ?", bound)]
    sql = "SELECT * FROM actions WHERE session = ? ORDER BY seq_proposed LIMIT ?"
    return [_row(row) for row in reader.rows(sql, session, bound)]


def proposed(reader: LedgerReader, session: str) -> int:
    """How many actions were proposed in a session."""
    return int(reader.rows("SELECT COUNT(*) FROM actions WHERE session = ?", session)[0][0])


def action(reader: LedgerReader, id: str) -> ActionRow | None:
    """The action with this id."""
    return next((_row(row) for row in reader.rows("SELECT * FROM actions WHERE action = ?", id)), None)


_SUCCESSES: Final = (
    "SELECT COALESCE(SUM(tried), 0), COALESCE(SUM(succeeded), 0) FROM ("  # noqa: S608 - fixed words
    "SELECT tried, succeeded FROM reliability WHERE task = ?1 AND tool = ?2"
    f" UNION ALL SELECT COUNT(*), {SUCCEEDED} FROM sessions s CROSS JOIN actions a ON a.session = s.session"
    f" WHERE s.task = ?1 AND s.status IS NULL AND a.tool = ?2 AND {TRIED})"
)
_OPEN_INTENTS: Final = attempts("a.*", "s.status IS NULL", "a.state = 'intended'") + " ORDER BY seq_intended"
_CALLS: Final = "a.tool = ?1 AND a.intended_at >= ?2"
_CALL_TIMES: Final = (
    attempts("a.intended_at AS at", "s.status IS NULL", _CALLS)
    + " UNION ALL "
    + attempts("a.intended_at", "s.last_intended_at >= ?2", _CALLS)
    + " ORDER BY at"
)


def open_intents(reader: LedgerReader) -> list[ActionRow]:
    """Actions with an intent and no outcome, oldest first: running now, or cut off by a crash. Reads the actions of the open
    sessions only: none closes over an open intent."""
    return [_row(row) for row in reader.rows(_OPEN_INTENTS)]


def unknown_actions(reader: LedgerReader) -> list[ActionRow]:
    """Actions whose last attempt may or may not have happened, and which nobody has settled."""
    return [_row(row) for row in reader.rows("SELECT * FROM actions WHERE status = 'unknown' ORDER BY seq_ended")]


def call_times(reader: LedgerReader, tool: str, since: int) -> list[int]:
    """When the actions of this tool that were started at `since` (microseconds UTC) or later were started, ascending."""
    return [row[0] for row in reader.rows(_CALL_TIMES, tool, since)]


def tools_ended(reader: LedgerReader, session: str) -> set[tuple[str, EffectClass]]:
    """The tools, each with the effect class of its call, of this session's actions of which an attempt has an outcome."""
    sql = "SELECT DISTINCT tool, effect FROM actions WHERE session = ? AND (status IS NOT NULL OR attempt > 1)"
    return set(reader.rows(sql, session))


def successes(reader: LedgerReader, task: str, tool: str) -> tuple[int, int]:
    """(actions of this tool in this task of which an attempt ended, those of them that succeeded and that no verification
    contradicted)."""
    tried, succeeded = reader.rows(_SUCCESSES, task, tool)[0]
    return tried, succeeded


_BOOLEANS: Final = tuple(index for index, field in enumerate(fields(ActionRow)) if field.name in ("undo", "verified"))


def _row(row: tuple[Any, ...]) -> ActionRow:
    values = list(row)
    for index in _BOOLEANS:
        if values[index] is not None:
            values[index] = bool(values[index])
    return ActionRow(*values)


# -- how events change the tables -------------------------------------------------------------------------------------


# The common case of each is one statement, which does nothing where anything is amiss; what was amiss is then found out.
_DECIDE: Final = (
    "UPDATE actions SET decision = ?, state = ? WHERE action = ? AND task = ?"
    " AND (state = 'proposed' OR state = 'decided' OR state = 'escalated')"
)
_INTEND: Final = (
    "UPDATE actions SET state = 'intended', attempt = ?7, attempt_session = ?2, approval = NULL, status = NULL, error = NULL,"
    " intended_at = ?8, seq_intended = ?9, ended_at = NULL, seq_ended = NULL WHERE action = ?1 AND state = 'decided'"
    " AND decision = 'auto' AND task = ?3 AND tool = ?4 AND effect = ?5 AND digest = ?6 AND attempt = ?7 - 1"
    " AND EXISTS (SELECT 1 FROM sessions WHERE session = ?2 AND task = ?3 AND status IS NULL)"
)
_BEGINNING: Final = ["action.proposed", "action.decided", "action.intended"]
_SETTLED: Final = ("action", "session", "task", "tool", "effect", "digest")  # what an intent may not change
_END: Final = (
    "UPDATE actions SET state = 'ended', status = ?, error = ?, undo = ?, ended_at = ?, seq_ended = ?"
    " WHERE action = ? AND task = ? AND tool = ? AND attempt = ? AND state = 'intended' AND attempt_session = session"
)


def action_proposed(db: Executor, event: Event) -> None:
    """A step of an open session names an action, once."""
    body = event.body
    about = f"the proposal of action {body['action']}"
    inserted = db.execute(
        "INSERT INTO actions (action, session, task, step, tool, key, effect, digest, confidence, state, attempt, proposed_at,"
        " seq_proposed) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'proposed', 0, ?10, ?11 FROM sessions"
        " WHERE session = ?2 AND task = ?3 AND status IS NULL ON CONFLICT DO NOTHING",
        (
            body["action"], body["session"], body["task"], body["step"], body["tool"], body.get("key"), body["effect"],
            body["digest"], body["confidence"], event.at, event.seq,
        ),
    )  # fmt: skip
    if inserted.rowcount == 0:
        require_open_session(db, body["session"], body["task"], about)
        raise LedgerRefused("action-known", about, "an action is proposed once")


def action_begun(db: Executor, events: Sequence[Event]) -> bool:
    """Proposal, decision `auto` and first intent of one action, in one statement that says what the three would. False, with
    nothing done, where they are anything else: one by one they then do it, or say what is amiss."""
    if [event.type for event in events] != _BEGINNING:
        return False
    proposed, decided, intended = (event.body for event in events)
    if (
        decided["decision"] != "auto"
        or intended["attempt"] != 1
        or "approval" in intended
        or any(proposed[name] != decided[name] for name in ("action", "task"))
        or any(proposed[name] != intended[name] for name in _SETTLED)
    ):
        return False
    first, _, last = events
    inserted = db.execute(
        "INSERT INTO actions (action, session, task, step, tool, key, effect, digest, confidence, decision, state, attempt,"
        " attempt_session, proposed_at, intended_at, seq_proposed, seq_intended)"
        " SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'auto', 'intended', 1, ?2, ?10, ?11, ?12, ?13 FROM sessions"
        " WHERE session = ?2 AND task = ?3 AND status IS NULL ON CONFLICT DO NOTHING",
        (
            proposed["action"], proposed["session"], proposed["task"], proposed["step"], proposed["tool"],
            proposed.get("key"), proposed["effect"], proposed["digest"], proposed["confidence"], first.at, last.at,
            first.seq, last.seq,
        ),
    )  # fmt: skip
    return inserted.rowcount == 1


def action_decided(db: Executor, event: Event) -> None:
    """The first decision, or a later one under the policies then in force (before an approved or repeated attempt)."""
    body = event.body
    decision = body["decision"]
    next_state = {"auto": "decided", "escalate": "escalated", "deny": "denied"}[decision]
    if db.execute(_DECIDE, (decision, next_state, body["action"], body["task"])).rowcount:
        return
    about = f"the decision on action {body['action']}"
    row = db.execute("SELECT state, task, status FROM actions WHERE action = ?", (body["action"],)).fetchone()
    if row is None:
        raise LedgerRefused("no-such-action", about, "it was never proposed")
    state, task, status = row
    if task != body["task"]:
        raise LedgerRefused("action-mismatch", about, f"it belongs to task {task}, not to {body['task']}")
    if state == "ended" and status == "unknown":
        db.execute("UPDATE actions SET decision = ? WHERE action = ?", (decision, body["action"]))
        return
    raise LedgerRefused("action-decided", about, f"it is already {state}")


def action_intended(db: Executor, event: Event) -> None:
    """The door before every effect: only with a decision `auto`, or with an approval that fits, for one attempt at a time."""
    body = event.body
    approval = body.get("approval")
    if approval is None:
        first = (
            body["action"],
            body["session"],
            body["task"],
            body["tool"],
            body["effect"],
            body["digest"],
            body["attempt"],
        )
        if db.execute(_INTEND, (*first, event.at, event.seq)).rowcount:
            return
    about = f"the intent of action {body['action']}"
    row = db.execute(
        "SELECT session, task, tool, effect, digest, decision, state, attempt, status, approval FROM actions WHERE action = ?",
        (body["action"],),
    ).fetchone()
    if row is None:
        raise LedgerRefused("no-such-action", about, "it was never proposed")
    session, task, tool, effect, digest, decision, state, attempt, status, earlier_approval = row
    require_open_session(db, body["session"], body["task"], about)
    if (body["task"], body["tool"], body["effect"], body["digest"]) != (task, tool, effect, digest):
        raise LedgerRefused("action-mismatch", about, "task, tool, effect or digest are not those that were decided on")
    if state == "intended":
        raise LedgerRefused(
            "intent-open", about, f"attempt {attempt} has no outcome yet", "Record how it ended, or that it is unknown"
        )
    if body["attempt"] != attempt + 1:
        raise LedgerRefused("attempt-number", about, f"attempt {body['attempt']} cannot follow attempt {attempt}")
    if approval is not None:
        if decision == "deny":
            raise LedgerRefused(
                "denied", about, "the policies in force deny it", "An approval does not override a denial"
            )
        if state not in ("escalated", "decided", "ended") or (state == "ended" and status != "unknown"):
            raise LedgerRefused(
                "not-awaiting", about, f"it is {state}; an approval authorises only what it was asked for"
            )
        _require_resuming(db, body["session"], session, about)
        use_approval(db, approval, body["action"], digest, event, about)
    elif state == "ended":
        if status != "unknown":
            raise LedgerRefused("action-ended", about, f"it has already {status}", "A new attempt is a new action")
        if decision != "auto" or earlier_approval is not None or effect not in REPEATABLE:
            raise LedgerRefused(
                "no-authority", about, f"a second attempt of a {effect} action (decided {decision}) needs an approval of its own",
                "One approval authorises one attempt: open a new question",
            )  # fmt: skip
    elif state != "decided" or decision != "auto":
        raise LedgerRefused(
            "undecided",
            about,
            f"it is {state} and its decision is {decision or 'missing'}",
            "No decision, no execution",
        )
    db.execute(
        "UPDATE actions SET state = 'intended', attempt = ?, attempt_session = ?, approval = ?, status = NULL, error = NULL,"
        " intended_at = ?, seq_intended = ?, ended_at = NULL, seq_ended = NULL WHERE action = ?",
        (body["attempt"], body["session"], approval, event.at, event.seq, body["action"]),
    )


def action_ended(db: Executor, event: Event) -> None:
    """The one outcome of the open attempt; with `settles`, the one settlement of an unknown outcome."""
    body = event.body
    outcome = (body["status"], body.get("error"), _integer(body.get("undo")), event.at, event.seq)
    settles, attempt = bool(body.get("settles")), body["attempt"]
    if not settles and db.execute(_END, (*outcome, body["action"], body["task"], body["tool"], attempt)).rowcount:
        return  # its session is open, and counts it when it closes
    about = f"the outcome of action {body['action']}"
    row = db.execute(
        "SELECT task, tool, state, attempt, status, verified FROM actions WHERE action = ?", (body["action"],)
    ).fetchone()
    if row is None:
        raise LedgerRefused("no-such-action", about, "it was never proposed")
    task, tool, state, attempt, status, verified = row
    if (task, tool) != (body["task"], body["tool"]):
        raise LedgerRefused("action-mismatch", about, "task or tool are not the action's")
    if settles:
        if state != "ended" or status != "unknown":
            raise LedgerRefused(
                "not-unknown", about, f"only an unknown outcome can be settled, and it is {status or state}"
            )
        if body["status"] == "unknown":
            raise LedgerRefused("still-unknown", about, "an unknown outcome is settled as succeeded or failed")
    elif state != "intended":
        raise LedgerRefused("no-intent", about, f"no attempt is open: it is {state}", "Every intent ends once")
    if body["attempt"] != attempt:
        raise LedgerRefused("attempt-number", about, f"attempt {body['attempt']} is not the last one, {attempt}")
    db.execute(
        "UPDATE actions SET state = 'ended', status = ?, error = ?, undo = ?, ended_at = ?, seq_ended = ? WHERE action = ?",
        (*outcome, body["action"]),
    )
    # A repeated attempt, or one that is settled, was counted when it became unknown: it may only gain the success.
    first = attempt == 1 and not settles
    _count_late(db, body["action"], 1 if first else 0, 1 if body["status"] == "succeeded" and verified != 0 else 0)


def action_verified(db: Executor, event: Event) -> None:
    """Something other than the planner looked; one contradiction takes the success away."""
    body = event.body
    about = f"the verification of action {body['action']}"
    row = db.execute("SELECT state, status, verified FROM actions WHERE action = ?", (body["action"],)).fetchone()
    if row is None:
        raise LedgerRefused("no-such-action", about, "it was never proposed")
    state, status, verified = row
    if state not in ("ended", "intended"):
        raise LedgerRefused("not-ended", about, f"it is {state}: there is nothing to verify")
    if body["passed"] is False and status == "succeeded" and verified != 0:
        _count_late(db, body["action"], 0, -1)
    passed = 0 if verified == 0 or body["passed"] is False else 1  # one contradiction is enough
    db.execute("UPDATE actions SET verified = ? WHERE action = ?", (passed, body["action"]))


def _require_resuming(db: Executor, session: str, proposed_in: str, about: str) -> None:
    if session == proposed_in:
        return
    row = db.execute("SELECT resumes FROM sessions WHERE session = ?", (session,)).fetchone()
    if row[0] is None:
        raise LedgerRefused(
            "not-resuming", about, f"session {session} neither proposed it nor resumes a parked session",
            "Run an approved action in the session that its answer opened",
        )  # fmt: skip


def _count_late(db: Executor, action: str, tried: int, succeeded: int) -> None:
    """Count what became of an action after the session that proposed it had closed, and had counted its own."""
    db.execute(
        "INSERT INTO reliability SELECT a.task, a.tool, ?2, ?3 FROM actions a CROSS JOIN sessions s ON s.session = a.session"
        " WHERE a.action = ?1 AND s.status IS NOT NULL ON CONFLICT (task, tool)"
        " DO UPDATE SET tried = tried + ?2, succeeded = succeeded + ?3",
        (action, tried, succeeded),
    )


def _integer(value: bool | None) -> int | None:
    return None if value is None else int(value)
