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
    for before in range(0, covered(head), STRETCH_EVENTS):
        until = before + STRETCH_EVENTS
        expected = set(db.execute(_KEYS, (before, until)))
        blocks = (before // BLOCK_EVENTS, until // BLOCK_EVENTS)
        noted = set(db.execute("SELECT key, block FROM places WHERE block >= ? AND block < ?", blocks))
        for key, block in sorted(expected ^ noted):
            would = "would not find it" if (key, block) in expected else "would look for it in vain"
            found.append((block * BLOCK_EVENTS + 1, f"a search for {key} {would}"))
        if len(found) >= limit:
            break
    beyond = "SELECT COUNT(*) FROM places WHERE block < 0 OR block >= ?"
    if count := db.execute(beyond, (covered(head) // BLOCK_EVENTS,)).fetchone()[0]:
        found.append((head, f"{count} places are beyond the last event"))
    return found[:limit]
