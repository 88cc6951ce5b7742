"""The read models over the ledger, and how each event changes them. All are rebuilt by replaying the events."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from perdure.errors import PerdureError
from perdure.state import escalations as _escalations
from perdure.state import journal as _journal
from perdure.state import outside_tools as _outside_tools
from perdure.state import places as _places
from perdure.state import sessions as _sessions
from perdure.state import slots as _slots
from perdure.state.escalations import (
    EscalationRow,
    GrantRow,
    approved_escalations,
    escalation,
    escalation_to_join,
    escalations,
    grants,
    last_answer_for,
    open_escalation_for,
)
from perdure.state.events import Event
from perdure.state.journal import (
    ActionRow,
    action,
    actions,
    call_times,
    open_intents,
    proposed,
    successes,
    tools_ended,
    unknown_actions,
)
from perdure.state.outside_tools import OutsideToolRow, outside_tool, outside_tools
from perdure.state.reading import LedgerReader
from perdure.state.refusals import LedgerRefused
from perdure.state.schema import PROJECTION_TABLES, PROJECTIONS, SCHEMA_VERSION, Executor, own_triggers, statements
from perdure.state.sessions import (
    NOTHING_SPENT,
    CallRow,
    SessionRow,
    Spend,
    calls_since,
    last_call_at,
    last_saving_session,
    open_calls,
    open_sessions,
    session,
    session_count,
    sessions,
    spend,
    successors,
    waiting_sessions,
)
from perdure.state.slots import (
    SlotRow,
    TaskRow,
    configuration,
    last_resumed,
    last_slot,
    paused,
    slot,
    slots,
    task_first_loaded,
    tasks,
)

__all__ = [
    "NOTHING_SPENT", "ActionRow", "CallRow", "EscalationRow", "GrantRow", "OutsideToolRow", "SessionRow", "SlotRow",
    "Spend", "TaskRow", "action", "actions", "apply", "apply_all", "approved_escalations", "call_times",
    "calls_since", "configuration", "epoch", "escalation", "escalation_to_join", "escalations", "grants",
    "last_answer_for", "last_call_at", "last_resumed",
    "last_saving_session", "last_slot", "open_calls", "open_escalation_for", "open_intents",
    "open_sessions", "outside_tool", "outside_tools", "paused", "proposed", "rebuild", "resolve", "session",
    "session_count", "sessions", "slot", "slots", "spend", "successes", "successors", "task_first_loaded", "tasks",
    "tools_ended", "unknown_actions", "waiting_sessions",
]  # fmt: skip

_KINDS: Final = {
    "session": ("sessions", "session"),
    "action": ("actions", "action"),
    "escalation": ("escalations", "escalation"),
    "grant": ("grants", '"grant"'),
    "slot": ("slots", "slot"),
    "task": ("tasks", "task"),
}


def apply(db: Executor, event: Event) -> None:
    """Change the projections by one event; the same events always lead to the same tables. Raises LedgerRefused where an
    invariant forbids the event: the caller then rolls back."""
    handler = _HANDLERS.get(event.type)
    if handler is not None:
        handler(db, event)


def apply_all(db: Executor, events: Sequence[Event]) -> None:
    """The same for events that are written together. The beginning of an action, as a rule three of them in a row, changes
    its row once instead of three times."""
    begun = 0  # of an action, taken care of
    for place, event in enumerate(events):
        if begun:
            begun -= 1
        elif event.type == "action.proposed" and _journal.action_begun(db, events[place : place + 3]):
            begun = 2
        else:
            apply(db, event)


def rebuild(db: sqlite3.Connection, events: Iterable[Event]) -> None:
    """Drop all projections, an older Perdure's too, and make them anew from the events, inside the caller's transaction; and
    what keeps the database from changing events, where somebody took it out."""
    for table in PROJECTION_TABLES:
        db.execute(f'DROP TABLE IF EXISTS "{table}"')
    for statement in statements(PROJECTIONS):
        db.execute(statement)
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        quoted = name.replace('"', '""')
        db.execute(f'DROP TRIGGER "{quoted}"')
    for trigger in own_triggers().values():
        db.execute(trigger)
    head = 0
    cursor = db.cursor()
    for event in events:
        apply(cursor, event)
        head = event.seq
    _places.rebuild(db, head)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def epoch(reader: LedgerReader) -> int:
    """The ledger's epoch: 1, and one more after each restore."""
    return int(reader.rows("SELECT MAX(epoch) FROM ledger")[0][0])


def resolve(reader: LedgerReader, kind: str, text: str) -> str:
    """The one id of this kind (session, action, escalation, grant, slot, task) that is, begins or ends with `text`, in any
    case. Raises PerdureError for none or several."""
    table, column = _KINDS[kind]
    if reader.rows(f"SELECT 1 FROM {table} WHERE {column} = ?", text):  # noqa: S608 - both names are constants
        return text
    pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    sql = f"SELECT {column} FROM {table} WHERE {column} LIKE ? ESCAPE '\\' OR {column} LIKE ? ESCAPE '\\' LIMIT 6"  # noqa: S608 - both names are constants
    found = [row[0] for row in reader.rows(sql, pattern + "%", "%" + pattern)] if text else []
    if len(found) == 1:
        return str(found[0])
    if found:
        shown = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
        raise PerdureError("find", f"the {kind} {text}", f"several fit: {shown}", "Give more of the id")
    raise PerdureError(
        "find",
        f"the {kind} {text}",
        "no id begins or ends like that",
        "`perdure status` and `perdure ledger tail` show ids",
    )


def _ledger_opened(db: Executor, event: Event) -> None:
    body = event.body
    last = db.execute("SELECT MAX(epoch) FROM ledger").fetchone()[0]
    if body["epoch"] <= (last or 0):  # a restore skips the epochs of branches that it gives up
        raise LedgerRefused("epoch", f"epoch {body['epoch']}", f"the ledger is already in epoch {last}")
    db.execute(
        "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)",
        (body["epoch"], body["workspace"], body["version"], body.get("restored_from"), event.seq, event.at),
    )


def _payload_erased(db: Executor, event: Event) -> None:
    body = event.body
    about = f"the erasure of the payload of event {body['erased']}"
    if db.execute("SELECT 1 FROM erasures WHERE erased = ?", (body["erased"],)).fetchone():
        raise LedgerRefused("erased", about, "it is already erased")
    if body["erased"] >= event.seq:
        raise LedgerRefused("no-such-event", about, "there is no such event yet")
    db.execute(
        "INSERT INTO erasures VALUES (?, ?, ?, ?, ?)",
        (body["erased"], body["reason"], body.get("uid"), event.seq, event.at),
    )


_HANDLERS: Final[Mapping[str, Callable[[Executor, Event], None]]] = {
    "ledger.opened": _ledger_opened,
    "configuration.loaded": _slots.configuration_loaded,
    "task.loaded": _slots.task_loaded,
    "task.removed": _slots.task_removed,
    "paused": _slots.was_paused,
    "resumed": _slots.was_resumed,
    "slot.opened": _slots.slot_opened,
    "slot.closed": _slots.slot_closed,
    "session.opened": _sessions.session_opened,
    "session.closed": _sessions.session_closed,
    "model.requested": _sessions.model_requested,
    "model.replied": _sessions.model_replied,
    "action.proposed": _journal.action_proposed,
    "action.decided": _journal.action_decided,
    "action.intended": _journal.action_intended,
    "action.ended": _journal.action_ended,
    "action.verified": _journal.action_verified,
    "escalation.opened": _escalations.escalation_opened,
    "escalation.joined": _escalations.escalation_joined,
    "escalation.answered": _escalations.escalation_answered,
    "escalation.expired": _escalations.escalation_expired,
    "grant.given": _escalations.grant_given,
    "grant.revoked": _escalations.grant_revoked,
    "mcp.tool-listed": _outside_tools.tool_listed,
    "mcp.tool-gone": _outside_tools.tool_gone,
    "mcp.tool-accepted": _outside_tools.tool_accepted,
    "payload.erased": _payload_erased,
}
