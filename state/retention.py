"""Erasing payloads: one by a person's wish, or all model traffic once it is older than `payloads.keep`."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from typing import Final

from perdure.state.events import Event, PayloadErased
from perdure.state.ledger import Ledger
from perdure.state.reading import LedgerReader

EXPIRING_TYPES: Final = ("model.requested", "model.replied")
BATCH: Final = 500  # one commit each, so that a daemon's other writes wait milliseconds


def erase(ledger: Ledger, seqs: Iterable[int], *, reason: str, uid: int | None = None) -> tuple[Event, ...]:
    """Take payload and salt of these events away, leaving tombstones; all or none. The chain stays whole.

    Raises LedgerRefused where an event has no payload, was erased before, or belongs to an action that is still open.
    Whoever keeps copies (memory, index) learns of it by the `payload.erased` events.
    """
    events = ledger.commit(*(PayloadErased(erased=seq, reason=reason, uid=uid) for seq in seqs))
    scrub(ledger)
    return events


def expire_payloads(
    ledger: Ledger, before: int, *, types: Collection[str] = EXPIRING_TYPES, reason: str = "payloads.keep"
) -> int:
    """Erase the payloads of these types that were written before this moment (microseconds UTC); returns how many."""
    found = expired(ledger.reader, before, types=types)
    for start in range(0, len(found), BATCH):
        ledger.commit(*(PayloadErased(erased=seq, reason=reason) for seq in found[start : start + BATCH]))
    if found:
        scrub(ledger)
    return len(found)


def expired(reader: LedgerReader, before: int, *, types: Collection[str] = EXPIRING_TYPES) -> list[int]:
    """The events of these types from before this moment that still have their payload, and whose call is not open. Reads the
    index of all payloads: in a long ledger a matter of seconds, so not for the loop."""
    marks = ", ".join("?" * len(types))
    sql = (
        "SELECT e.seq FROM payloads p JOIN events e ON e.seq = p.seq"  # noqa: S608 - only question marks are put in
        f" WHERE e.at < ? AND e.type IN ({marks}) AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.status IS NULL AND c.seq = e.seq)"
        " ORDER BY e.seq"
    )
    return [seq for (seq,) in reader.rows(sql, before, *types)]


def scrub(ledger: Ledger) -> None:
    """Carry the erasure from the write-ahead log into the file and empty the log, where old pages would still hold the text.

    A reader in the middle of a long query can keep the log from being emptied; the next checkpoint then does it.
    """
    try:
        ledger.reader.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
