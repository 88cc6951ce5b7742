"""Reading the ledger: events by what they concern, and their payloads."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from perdure.errors import PerdureError
from perdure.state import chain, places
from perdure.state.events import JSON, Event

_PAGE_ROWS: Final = 500
_SCAN: Final = (
    "SELECT e.seq, e.at, e.type, e.body, e.payload_hash, e.hash FROM events e"
    " WHERE e.seq > ? AND e.seq <= ? AND {where} ORDER BY e.seq {order} LIMIT ?"
)
_BLOCK: Final = places.BLOCK_EVENTS
_LISTED: Final = (  # CROSS JOIN, and +: first the places, then their blocks
    "SELECT e.seq, e.at, e.type, e.body, e.payload_hash, e.hash FROM places p CROSS JOIN events e"  # noqa: S608 - fixed words
    f" ON e.seq > p.block * {_BLOCK} AND e.seq <= (p.block + 1) * {_BLOCK} WHERE +e.seq > ?1 AND +e.seq <= ?2 AND p.key = ?3"
    f" AND p.block BETWEEN ?1 / {_BLOCK} AND (?2 - 1) / {_BLOCK} AND {{where}} ORDER BY p.block {{order}}, e.seq {{order}} LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Head:
    """The last event: its sequence number (0: none yet), hash (empty: none yet) and time."""

    seq: int
    hash: str
    at: int


class LedgerReader:
    """Reads one ledger over an open connection. What it returns is the state at the moment of each call."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None = None) -> None:
        self.connection = connection
        self._path = path  # of one that was opened on its own: what is damaged in it is told with the way to mend it

    @classmethod
    def open(cls, path: Path, *, older: bool = False) -> LedgerReader:
        """Read a ledger that another process may be writing. Raises PerdureError for what is not a readable ledger, and for
        one with projections of an `older` Perdure, unless the caller reads nothing in them that ever changed."""
        from perdure.state.opening import connect_to_read, refuse_older

        connection = connect_to_read(path)
        try:
            if not older:
                refuse_older(connection, path)
        except BaseException:
            connection.close()
            raise
        return cls(connection, path)

    def close(self) -> None:
        """Close the connection. Only for a reader that was opened on its own."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        try:
            return self.connection.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            if self._path is None or isinstance(error, sqlite3.OperationalError):
                raise
            from perdure.state.opening import damaged

            raise damaged(self._path, error) from error

    def head(self) -> Head:
        """The last event's sequence number, hash and time."""
        rows = self.rows("SELECT seq, hash, at FROM events ORDER BY seq DESC LIMIT 1")
        return Head(*rows[0]) if rows else Head(0, "", 0)

    def events(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        types: Collection[str] | None = None,
        session: str | None = None,
        task: str | None = None,
        action: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> Iterator[Event]:
        """Events with `after` < seq <= `until` that match all that is given, in order, read a page at a time."""
        asked = [
            (column, value)
            for column, value in zip(places.COLUMNS, (action, session, task), strict=True)
            if value is not None
        ]
        where = [f"e.{column} = ?" for column, _ in asked]
        words: list[object] = [value for _, value in asked]
        if types is not None:
            where.append(f"e.type IN ({', '.join('?' * len(types))})")
            words.extend(types)
        order = "DESC" if newest_first else "ASC"
        scan = _SCAN.format(where=" AND ".join(["TRUE", *where]), order=order)
        head = self.head().seq if until is None or asked else 0
        high = head if until is None else until
        parts = [(scan, words, after, high)]
        if asked:  # through the most selective list of places; what follows the last whole block is read event by event
            column, value = asked[0]
            known = places.covered(head)
            listed = _LISTED.format(where=" AND ".join(where), order=order)
            parts = [
                (listed, [f"{column}/{value}", *words], after, min(high, known)),
                (scan, words, max(after, known), high),
            ]
        yield from self._pages(reversed(parts) if newest_first else parts, newest_first, limit)

    def _pages(
        self, parts: Iterable[tuple[str, list[object], int, int]], newest_first: bool, limit: int | None
    ) -> Iterator[Event]:
        left = -1 if limit is None else limit
        for sql, words, low, high in parts:
            while left and low < high:
                page = self.rows(sql, low, high, *words, _PAGE_ROWS if left < 0 else min(left, _PAGE_ROWS))
                for row in page:
                    yield event_from_row(row)
                left -= len(page) if left > 0 else 0
                if len(page) < _PAGE_ROWS:
                    break
                if newest_first:
                    high = page[-1][0] - 1
                else:
                    low = page[-1][0]

    def event(self, seq: int) -> Event | None:
        """The event with this sequence number."""
        return next(self.events(after=seq - 1, until=seq), None)

    def payload(self, seq: int) -> JSON:
        """The payload of an event; None where it has none or it was erased. Raises ValueError on damaged bytes."""
        rows = self.rows("SELECT encoding, data FROM payloads WHERE seq = ?", seq)
        return chain.parse(chain.unpack(*rows[0])) if rows else None

    def erased(self, seq: int) -> bool:
        """Whether this event's payload was erased, with a tombstone."""
        return bool(self.rows("SELECT 1 FROM erasures WHERE erased = ?", seq))


def event_from_row(row: tuple[Any, ...]) -> Event:
    """An event from the columns seq, at, type, body, payload_hash, hash."""
    seq, at, type_, body, payload_hash, hash_ = row
    fields = chain.parse_object(body)
    if fields is None:
        cause = "its body is not a JSON object: it was changed or is damaged"
        raise PerdureError("read", f"event {seq}", cause, "`perdure verify` says what else is not as it was written")
    return Event(seq, at, type_, fields, payload_hash, hash_)


def read_only_uri(path: Path, *, immutable: bool = False) -> str:
    """The SQLite URI that opens `path` for reading and never creates it."""
    return f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if immutable else ''}"
