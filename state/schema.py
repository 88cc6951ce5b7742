"""The ledger's tables. `events` and `payloads` are the truth; every other table is a projection, rebuilt by replaying events
(except `ownership`, which holds the latest owner's fence). Documented in docs: auditors read these with sqlite3."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final, TypeAlias

Executor: TypeAlias = (
    sqlite3.Connection | sqlite3.Cursor
)  # a cursor that is used again saves a tenth of an action's time

APPLICATION_ID: Final = 0x50445552  # "PDUR", in the file's header: tells a ledger from any other SQLite file
SCHEMA_VERSION: Final = 3  # PRAGMA user_version, and `schema` in ledger.opened; higher whenever a table below changes

TRUTH: Final = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    type TEXT NOT NULL,
    body TEXT NOT NULL,
    payload_hash TEXT,
    hash TEXT NOT NULL,
    session TEXT,
    task TEXT,
    action TEXT
) STRICT;

CREATE TABLE payloads (
    seq INTEGER PRIMARY KEY REFERENCES events(seq),
    encoding TEXT NOT NULL,
    salt BLOB NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE TRIGGER events_are_never_updated BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only: an event is never changed'); END;
CREATE TRIGGER events_are_never_deleted BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only: an event is never deleted'); END;
CREATE TRIGGER events_come_in_order BEFORE INSERT ON events
WHEN NEW.seq IS NOT (SELECT COALESCE(MAX(seq), 0) + 1 FROM events)
BEGIN SELECT RAISE(ABORT, 'events are append-only: the next sequence number is the last one plus one'); END;
CREATE TRIGGER payloads_are_never_updated BEFORE UPDATE ON payloads
BEGIN SELECT RAISE(ABORT, 'payloads are never changed, only erased with a tombstone'); END;
CREATE TRIGGER payloads_leave_a_tombstone BEFORE DELETE ON payloads
WHEN NOT EXISTS (SELECT 1 FROM erasures WHERE erased = OLD.seq)
BEGIN SELECT RAISE(ABORT, 'a payload is only erased with a tombstone: perdure ledger erase'); END;

CREATE TABLE ownership (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    fence INTEGER NOT NULL
) STRICT;
INSERT INTO ownership VALUES (1, 0);
"""

PLACES: Final = """
CREATE TABLE places ( -- which blocks of 64 events speak of a `session/ID`, `task/NAME` or `action/ID`
    key TEXT NOT NULL, -- first: `PRAGMA quick_check` of SQLite 3.40 takes the other order for damage
    block INTEGER NOT NULL,
    PRIMARY KEY (key, block)
) STRICT, WITHOUT ROWID;
"""

PROJECTIONS: Final = """
CREATE TABLE ledger (
    epoch INTEGER PRIMARY KEY,
    workspace TEXT NOT NULL,
    version TEXT NOT NULL,
    restored_from TEXT,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL
) STRICT;

CREATE TABLE tasks (
    task TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    schedule TEXT,
    first_loaded INTEGER NOT NULL,
    loaded_at INTEGER NOT NULL,
    schedule_since INTEGER NOT NULL,
    timezone TEXT,
    removed_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE configuration (
    kind TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE pauses (
    task TEXT PRIMARY KEY, -- '' pauses every task
    by TEXT NOT NULL,
    reason TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE resumptions (
    task TEXT PRIMARY KEY, -- '': of all tasks together
    seq INTEGER NOT NULL -- of the last one
) STRICT, WITHOUT ROWID;

CREATE TABLE slots (
    slot TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    kind TEXT NOT NULL,
    due INTEGER NOT NULL,
    last_due INTEGER NOT NULL,
    count INTEGER NOT NULL,
    outcome TEXT,
    session TEXT,
    rule TEXT,
    cause TEXT,
    resumes TEXT,
    dry_run INTEGER,
    opened_at INTEGER,
    closed_at INTEGER,
    seq_opened INTEGER,
    seq_closed INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX slots_due ON slots(task, kind, due);
CREATE INDEX slots_task ON slots(task, due, slot);
CREATE INDEX slots_open ON slots(due, slot) WHERE outcome IS NULL;

CREATE TABLE sessions (
    session TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    slot TEXT NOT NULL,
    planner TEXT NOT NULL,
    model TEXT,
    status TEXT,
    reason TEXT,
    bounds TEXT NOT NULL,
    task_digest TEXT NOT NULL,
    policies TEXT NOT NULL,
    fence INTEGER NOT NULL,
    resumes TEXT,
    escalation TEXT,
    dry_run INTEGER,
    saved INTEGER,
    steps INTEGER,
    tokens INTEGER,
    cost_usd REAL,
    duration_us INTEGER,
    opened_at INTEGER NOT NULL,
    closed_at INTEGER,
    seq_opened INTEGER NOT NULL,
    seq_closed INTEGER,
    last_intended_at INTEGER -- of the attempts that ran in it; NULL while it is open
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX sessions_open ON sessions(task) WHERE status IS NULL;
CREATE INDEX sessions_task ON sessions(task, seq_opened);
CREATE INDEX sessions_seq ON sessions(seq_opened);
CREATE INDEX sessions_resumes ON sessions(resumes) WHERE resumes IS NOT NULL;
CREATE INDEX sessions_saved ON sessions(task, seq_closed) WHERE saved = 1;
CREATE INDEX sessions_intended ON sessions(last_intended_at) WHERE last_intended_at IS NOT NULL;

CREATE TABLE actions (
    action TEXT PRIMARY KEY,
    session TEXT NOT NULL,
    task TEXT NOT NULL,
    step INTEGER NOT NULL,
    tool TEXT NOT NULL,
    key TEXT,
    effect TEXT NOT NULL,
    digest TEXT NOT NULL,
    confidence REAL NOT NULL,
    decision TEXT,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    attempt_session TEXT,
    escalation TEXT,
    approval TEXT,
    status TEXT,
    error TEXT,
    undo INTEGER,
    verified INTEGER,
    proposed_at INTEGER NOT NULL,
    intended_at INTEGER,
    ended_at INTEGER,
    seq_proposed INTEGER NOT NULL,
    seq_intended INTEGER,
    seq_ended INTEGER
) STRICT, WITHOUT ROWID;
-- Each index is a page more to write at every step. So what intent and outcome change is in none of them: an attempt is found
-- through its session, which cannot close over an open one (journal.py).
CREATE INDEX actions_session ON actions(session, seq_proposed);
CREATE INDEX actions_elsewhere ON actions(attempt_session) WHERE attempt_session <> session;
CREATE INDEX actions_unknown ON actions(seq_ended) WHERE status = 'unknown';
CREATE INDEX actions_escalation ON actions(escalation) WHERE escalation IS NOT NULL;

CREATE TABLE reliability ( -- of the actions that closed sessions proposed
    task TEXT NOT NULL,
    tool TEXT NOT NULL,
    tried INTEGER NOT NULL,
    succeeded INTEGER NOT NULL,
    PRIMARY KEY (task, tool)
) STRICT, WITHOUT ROWID;

CREATE TABLE calls (
    call TEXT PRIMARY KEY,
    session TEXT NOT NULL,
    task TEXT NOT NULL,
    model TEXT NOT NULL,
    purpose TEXT NOT NULL,
    status TEXT,
    tokens INTEGER NOT NULL, -- reserved while the call is open, charged afterwards
    usd REAL NOT NULL,
    at INTEGER NOT NULL,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX calls_at ON calls(at);
CREATE INDEX calls_session ON calls(session);
CREATE INDEX calls_open ON calls(seq) WHERE status IS NULL;

CREATE TABLE escalations (
    escalation TEXT PRIMARY KEY,
    action TEXT NOT NULL,
    digest TEXT NOT NULL,
    session TEXT NOT NULL,
    task TEXT NOT NULL,
    tool TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    on_expiry TEXT NOT NULL,
    parks INTEGER NOT NULL,
    state TEXT NOT NULL,
    valid_until INTEGER, -- an approval authorises its one attempt before this moment
    uid INTEGER,
    via TEXT,
    answered_at INTEGER,
    joined INTEGER NOT NULL,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX escalations_open ON escalations(task, digest) WHERE state = 'open';
CREATE INDEX escalations_digest ON escalations(task, digest, seq);
CREATE INDEX escalations_pending ON escalations(seq) WHERE state IN ('open', 'approved');

CREATE TABLE grants (
    "grant" TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    tool TEXT NOT NULL,
    rule TEXT NOT NULL,
    uid INTEGER NOT NULL,
    given_at INTEGER NOT NULL,
    revoked_at INTEGER,
    revoked_uid INTEGER,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX grants_in_force ON grants(task, seq) WHERE revoked_at IS NULL;

CREATE TABLE outside_tools (
    server TEXT NOT NULL,
    tool TEXT NOT NULL,
    name TEXT NOT NULL,
    listed_hash TEXT, -- NULL once the server no longer lists it
    listed_seq INTEGER NOT NULL,
    listed_at INTEGER NOT NULL,
    changes INTEGER NOT NULL,
    accepted_hash TEXT,
    accepted_seq INTEGER,
    accepted_at INTEGER,
    accepted_uid INTEGER,
    PRIMARY KEY (server, tool)
) STRICT, WITHOUT ROWID;

CREATE TABLE erasures (
    erased INTEGER PRIMARY KEY,
    reason TEXT NOT NULL,
    uid INTEGER,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL
) STRICT;
"""

PROJECTION_TABLES: Final = (
    "ledger", "tasks", "configuration", "pauses", "resumptions", "slots", "sessions", "actions", "reliability", "calls",
    "escalations", "grants", "outside_tools", "erasures",
)  # fmt: skip


def statements(script: str) -> Iterator[str]:
    """The statements of a script one by one, so that they run inside a transaction (`executescript` would commit it)."""
    current = ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            yield current
            current = ""


def own_triggers() -> dict[str, str]:
    """What keeps the database from changing events, by name."""
    made = [statement.split() for statement in statements(TRUTH)]
    return {words[2]: " ".join(words) for words in made if words[:2] == ["CREATE", "TRIGGER"]}
