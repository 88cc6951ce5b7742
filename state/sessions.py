"""Sessions and the model calls they paid for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from perdure.state.attempts import SUCCEEDED, TRIED, attempts
from perdure.state.canonical import canonical
from perdure.state.events import Event, SessionStatus
from perdure.state.reading import LedgerReader
from perdure.state.refusals import LedgerRefused
from perdure.state.schema import Executor


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One bounded run. `status` None: still open. `bounds` is JSON text; times are microseconds UTC."""

    session: str
    task: str
    slot: str
    planner: str
    model: str | None
    status: SessionStatus | None
    reason: str | None
    bounds: str
    task_digest: str
    policies: str
    fence: int
    resumes: str | None
    escalation: str | None
    dry_run: int | None
    saved: int | None
    steps: int | None
    tokens: int | None
    cost_usd: float | None
    duration_us: int | None
    opened_at: int
    closed_at: int | None
    seq_opened: int
    seq_closed: int | None
    last_intended_at: int | None


@dataclass(frozen=True, slots=True)
class CallRow:
    """One model call. While `status` is None, `tokens` and `usd` are its reservation; afterwards what was charged."""

    call: str
    session: str
    task: str
    model: str
    purpose: str
    status: str | None
    tokens: int
    usd: float
    at: int
    seq: int


@dataclass(frozen=True, slots=True)
class Spend:
    """What model calls cost, open reservations included."""

    tokens: int
    usd: float


def sessions(reader: LedgerReader, task: str | None = None, limit: int | None = None) -> list[SessionRow]:
    """Sessions, newest first."""
    bound = -1 if limit is None else limit
    if task is None:
        return [
            SessionRow(*row) for row in reader.rows("SELECT * FROM sessions ORDER BY seq_opened DESC LIMIT ?", bound)
        ]
    sql = "SELECT * FROM sessions WHERE task = ? ORDER BY seq_opened DESC LIMIT ?"
    return [SessionRow(*row) for row in reader.rows(sql, task, bound)]


def session(reader: LedgerReader, id: str) -> SessionRow | None:
    """The session with this id."""
    return next((SessionRow(*row) for row in reader.rows("SELECT * FROM sessions WHERE session = ?", id)), None)


def session_count(reader: LedgerReader) -> int:
    """How many sessions there have been."""
    return int(next(iter(reader.rows("SELECT COUNT(*) FROM sessions")))[0])


def last_saving_session(reader: LedgerReader, task: str) -> SessionRow | None:
    """The latest session of this task that finished and saved something for the next one, which nobody has erased. A dry run
    is none: what it read is still to be dealt with."""
    sql = "SELECT * FROM sessions WHERE task = ? AND saved = 1 AND dry_run IS NULL"
    sql += " AND NOT EXISTS (SELECT 1 FROM erasures WHERE erased = seq_closed)"
    sql += " ORDER BY seq_closed DESC LIMIT 1"
    return next((SessionRow(*row) for row in reader.rows(sql, task)), None)


def open_sessions(reader: LedgerReader) -> list[SessionRow]:
    """Sessions that have not closed: running now, or cut off by a crash."""
    return [SessionRow(*row) for row in reader.rows("SELECT * FROM sessions WHERE status IS NULL ORDER BY +seq_opened")]


def spend(reader: LedgerReader, since: int, task: str | None = None, session: str | None = None) -> Spend:
    """What was spent on model calls made at `since` (microseconds UTC) or later: of one task, of one session, or of all."""
    sql = "SELECT COALESCE(SUM(tokens), 0), COALESCE(SUM(usd), 0.0) FROM calls WHERE at >= ?"
    parameters: list[object] = [since]
    for column, value in (("task", task), ("session", session)):
        if value is not None:
            sql += f" AND {column} = ?"
            parameters.append(value)
    return Spend(*reader.rows(sql, *parameters)[0])


NOTHING_SPENT: Final = Spend(0, 0.0)


def last_call_at(reader: LedgerReader) -> int:
    """When the latest model call was made (microseconds UTC); 0: never."""
    return int(reader.rows("SELECT COALESCE(MAX(at), 0) FROM calls")[0][0])


def waiting_sessions(reader: LedgerReader, escalation: str) -> list[str]:
    """The parked sessions that the answer to this question lets go on, in order: of those that asked it, joined it or made
    the attempt that it is about, and of those that went on from them, the ones that nothing has taken up again yet."""
    sql = (
        "WITH RECURSIVE line(session) AS ("
        "SELECT session FROM actions WHERE escalation = ?1"
        " UNION SELECT attempt_session FROM actions WHERE escalation = ?1 AND attempt_session IS NOT NULL"
        " UNION SELECT n.session FROM line JOIN sessions n ON n.resumes = line.session)"
        " SELECT s.session FROM line CROSS JOIN sessions s ON s.session = line.session WHERE s.status = 'parked'"
        " AND +s.task = (SELECT task FROM escalations WHERE escalation = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM sessions n WHERE n.resumes = s.session)"
        " AND NOT EXISTS (SELECT 1 FROM slots WHERE outcome IS NULL AND resumes = s.session)"
        " ORDER BY s.seq_opened"
    )
    return [row[0] for row in reader.rows(sql, escalation)]


def successors(reader: LedgerReader, session: str) -> list[SessionRow]:
    """The sessions that went on from this one, in order: more than one where a try failed, or only an answer was acted on."""
    sql = "SELECT * FROM sessions WHERE resumes = ? ORDER BY seq_opened"
    return [SessionRow(*row) for row in reader.rows(sql, session)]


def calls_since(reader: LedgerReader, since: int) -> list[CallRow]:
    """Model calls made at `since` (microseconds UTC) or later, oldest first."""
    return [CallRow(*row) for row in reader.rows("SELECT * FROM calls WHERE at >= ? ORDER BY seq", since)]


def open_calls(reader: LedgerReader, session: str | None = None) -> list[CallRow]:
    """Model calls without a reply: in flight, or cut off by a crash (then charged in full)."""
    sql = "SELECT * FROM calls WHERE status IS NULL" + ("" if session is None else " AND session = ?") + " ORDER BY seq"  # noqa: S608 - only fixed words are put together
    return [CallRow(*row) for row in reader.rows(sql, *([] if session is None else [session]))]


# -- how events change the tables -------------------------------------------------------------------------------------

_LAST_ATTEMPTS: Final = (
    "SELECT MIN(CASE WHEN state = 'intended' THEN action END), MAX(intended_at) FROM ("  # noqa: S608 - fixed words
    f"{attempts('a.action, a.state, a.intended_at', 's.session = ?1', 'TRUE')})"
)
_COUNT_SUCCESSES: Final = (
    f"INSERT INTO reliability SELECT a.task, a.tool, COUNT(*) AS n, {SUCCEEDED} AS good FROM actions a"  # noqa: S608 - fixed words
    f" WHERE a.session = ?1 AND {TRIED} GROUP BY a.task, a.tool ON CONFLICT (task, tool)"
    " DO UPDATE SET tried = tried + excluded.tried, succeeded = succeeded + excluded.succeeded"
)


def session_opened(db: Executor, event: Event) -> None:
    """A bounded run begins: one per task at a time."""
    body = event.body
    about = f"the opening of session {body['session']}"
    if db.execute("SELECT 1 FROM sessions WHERE session = ?", (body["session"],)).fetchone():
        raise LedgerRefused("session-known", about, "a session opens once")
    other = db.execute("SELECT session FROM sessions WHERE task = ? AND status IS NULL", (body["task"],)).fetchone()
    if other:
        raise LedgerRefused(
            "session-open", about, f"session {other[0]} of task {body['task']} is still open", "Close that one first"
        )
    ended = db.execute("SELECT outcome FROM slots WHERE slot = ? AND outcome IS NOT NULL", (body["slot"],)).fetchone()
    if ended:
        raise LedgerRefused("slot-closed", about, f"its slot {body['slot']} has already ended as {ended[0]}")
    db.execute(
        "INSERT INTO sessions (session, task, slot, planner, model, bounds, task_digest, policies, fence, resumes, escalation,"
        " dry_run, opened_at, seq_opened) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            body["session"], body["task"], body["slot"], body["planner"], body.get("model"),
            canonical(body["bounds"]).decode(), body["task_digest"], body["policies"], body["fence"],
            body.get("resumes"), body.get("escalation"), 1 if body.get("dry_run") else None, event.at, event.seq,
        ),
    )  # fmt: skip
    db.execute("UPDATE slots SET session = ? WHERE slot = ?", (body["session"], body["slot"]))


def session_closed(db: Executor, event: Event) -> None:
    """A run ends once, and never over an attempt without an outcome."""
    body = event.body
    about = f"the end of session {body['session']}"
    row = db.execute("SELECT status, task, slot FROM sessions WHERE session = ?", (body["session"],)).fetchone()
    if row is None:
        raise LedgerRefused("no-such-session", about, "it was never opened")
    if row[0] is not None:
        raise LedgerRefused("session-closed", about, f"it has already ended as {row[0]}")
    if row[1:] != (body["task"], body["slot"]):
        raise LedgerRefused("session-mismatch", about, "task or slot are not the session's")
    intent, last_intended_at = db.execute(_LAST_ATTEMPTS, (body["session"],)).fetchone()
    if intent:
        raise LedgerRefused(
            "intent-open",
            about,
            f"action {intent} has an intent and no outcome",
            "Record its outcome, or that it is unknown",
        )
    db.execute(
        "UPDATE sessions SET status = ?, reason = ?, saved = ?, steps = ?, tokens = ?, cost_usd = ?, duration_us = ?,"
        " closed_at = ?, seq_closed = ?, last_intended_at = ? WHERE session = ?",
        (
            body["status"], body["reason"], 1 if body.get("saved") else None, body["steps"], body["tokens"],
            body["cost_usd"], body["duration_us"], event.at, event.seq, last_intended_at, body["session"],
        ),
    )  # fmt: skip
    db.execute(_COUNT_SUCCESSES, (body["session"],))


def require_open_session(db: Executor, session: str, task: str, about: str) -> None:
    """Refuse what only an open session of this task may record."""
    row = db.execute("SELECT status, task FROM sessions WHERE session = ?", (session,)).fetchone()
    if row is None:
        raise LedgerRefused("no-such-session", about, f"session {session} was never opened")
    if row[0] is not None:
        raise LedgerRefused("session-closed", about, f"session {session} has already ended as {row[0]}")
    if row[1] != task:
        raise LedgerRefused("session-mismatch", about, f"session {session} belongs to task {row[1]}, not to {task}")


def model_requested(db: Executor, event: Event) -> None:
    """A model call is reserved before it is made."""
    body = event.body
    if db.execute("SELECT 1 FROM calls WHERE call = ?", (body["call"],)).fetchone():
        raise LedgerRefused("call-known", f"model call {body['call']}", "a call is reserved once")
    db.execute(
        "INSERT INTO calls VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?, ?)",
        (
            body["call"], body["session"], body["task"], body["model"], body["purpose"], body["reserved_tokens"],
            body["reserved_usd"], event.at, event.seq,
        ),
    )  # fmt: skip


def model_replied(db: Executor, event: Event) -> None:
    """A reservation becomes a charge, once."""
    body = event.body
    changed = db.execute(
        "UPDATE calls SET status = ?, tokens = ?, usd = ? WHERE call = ? AND status IS NULL",
        (body["status"], body["charged_tokens"], body["charged_usd"], body["call"]),
    )
    if changed.rowcount == 0:
        raise LedgerRefused("call-settled", f"the reply to model call {body['call']}", "no such call is open")
