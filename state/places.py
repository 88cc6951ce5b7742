"""Where in the ledger a session, a task or an action is spoken of, so that searches need not read all of it.

An index of SQLite's own over `events` would be written at every commit, in three places of the file: a third of what an
action costs. This one names blocks of events, is written for several blocks at a time, and a search reads the events after
the last noted block itself.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from perdure.state.schema import PLACES, Executor, statements

BLOCK_EVENTS: Final = 64  # as exact as a place is
STRETCH_EVENTS: Final = 256  # so many events are noted at a time
COLUMNS: Final = ("action", "session", "task")  # the most selective first

_KEYS: Final = " UNION ".join(
    f"SELECT '{column}/' || {column} AS key, (seq - 1) / {BLOCK_EVENTS} AS block FROM events"  # noqa: S608 - our own names
    f" WHERE {column} IS NOT NULL AND seq > ?1 AND seq <= ?2"
    for column in COLUMNS
)
_NOTED: Final = "EXISTS (SELECT 1 FROM places p WHERE p.key = k.key AND p.block = k.block)"
_COMPARED: Final = f"SELECT COUNT(*), SUM(NOT {_NOTED}) FROM ({_KEYS}) k"  # noqa: S608 - as above
_UNNOTED: Final = f"SELECT key, block FROM ({_KEYS}) k WHERE NOT {_NOTED} ORDER BY key, block"  # noqa: S608 - as above
_STRAY: Final = (
    f"SELECT key, block FROM places p WHERE p.block < 0 OR p.block >= ?1 / {BLOCK_EVENTS} OR NOT EXISTS ("  # noqa: S608 - as above
    f"SELECT 1 FROM events e WHERE e.seq > p.block * {BLOCK_EVENTS} AND e.seq <= (p.block + 1) * {BLOCK_EVENTS} AND "
    "(p.key = 'action/' || e.action OR p.key = 'session/' || e.session OR p.key = 'task/' || e.task)) LIMIT ?2"
)


def covered(head: int) -> int:
    """The last event that the places of a ledger with this head know."""
    return head - head % STRETCH_EVENTS


def extend(db: Executor, before: int, head: int) -> None:
    """Note the stretches that were completed since the head was `before`, in the transaction that completed them."""
    if (until := covered(head)) > (after := covered(before)):
        db.execute(f"INSERT INTO places (key, block) SELECT key, block FROM ({_KEYS})", (after, until))  # noqa: S608 - as above


def rebuild(db: sqlite3.Connection, head: int) -> None:
    """Make them anew from the events, inside the caller's transaction."""
    db.execute("DROP TABLE IF EXISTS places")
    for statement in statements(PLACES):
        db.execute(statement)
    for before in range(0, covered(head), STRETCH_EVENTS):
        extend(db, before, before + STRETCH_EVENTS)


def discrepancies(db: sqlite3.Connection, head: int, limit: int = 5) -> list[tuple[int, str]]:
    """What is not noted as the events say: (an event near it, in words). Compared a stretch at a time: constant memory."""
    found: list[tuple[int, str]] = []
    expected, missing = 0, 0
    for before in range(0, covered(head), STRETCH_EVENTS):
        count, unnoted = db.execute(_COMPARED, (before, before + STRETCH_EVENTS)).fetchone()
        expected, missing = expected + count, missing + (unnoted or 0)
        if unnoted and len(found) < limit:
            for key, block in db.execute(_UNNOTED, (before, before + STRETCH_EVENTS)):
                found.append((block * BLOCK_EVENTS + 1, f"a search for {key} would not find it"))
    if expected - missing != db.execute("SELECT COUNT(*) FROM places").fetchone()[0]:
        for key, block in db.execute(_STRAY, (covered(head), limit)):
            near = min(max(1, block * BLOCK_EVENTS + 1), head)
            found.append((near, f"a search for {key} would look for it in vain"))
    return sorted(found)[:limit]
