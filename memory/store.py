"""memory.db: records, facts, summaries and vectors in SQLite with full-text search. All of it is derived from the ledger,
and one transaction moves it, with its watermark, from one ledger position to the next."""

# ruff: noqa: S608 - what is put into SQL text here is column names and question marks, never a value
from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from perdure.errors import PerdureError
from perdure.memory.embedding import DIMENSIONS, Vectors
from perdure.memory.rows import WORKSPACE, Claim, Pin, Receipt, Record, Speaker, Summary, fact_key
from perdure.memory.schema import CONTENT_VERSION, TOKENIZER, migrate, scope_word

__all__ = ["WORKSPACE", "Claim", "MemoryDamaged", "Pin", "Receipt", "Record", "Speaker", "Store", "Summary", "fact_key"]

ROWS_AT_ONCE = 500  # below SQLite's limit of variables in one statement


class MemoryDamaged(PerdureError):
    """memory.db cannot be read; it is derived, so it is put aside and made again from the ledger."""


class Store:
    """One connection to memory.db, used by one thread. Every write happens inside `transaction()`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self.path = path
        connection.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.query USING fts5(text, tokenize='{TOKENIZER}')")
        connection.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS temp.query_words USING fts5vocab('temp', 'query', 'instance')"
        )
        self.vectors_version = 0  # changes whenever vectors were removed: caches of them are then stale

    @classmethod
    def open(cls, path: Path, *, identity: str) -> Store:
        """Open or create. `identity` is the ledger's (its first event's hash): memory of another ledger is not ours.

        Raises MemoryDamaged (also for another ledger's memory), and PerdureError for one of a newer Perdure.
        """
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA busy_timeout=5000")
            connection.execute("PRAGMA temp_store=MEMORY")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the integrity check failed")
            migrate(connection, path)
            store = cls(connection, path)
            with store.transaction():
                if store.setting("identity") not in {None, identity}:
                    raise sqlite3.DatabaseError("it was made from another ledger")
                if store.setting("content") not in {None, CONTENT_VERSION}:
                    raise sqlite3.DatabaseError("it was made by an older Perdure, which remembered differently")
                store.set_setting("identity", identity)
                store.set_setting("content", CONTENT_VERSION)
        except sqlite3.DatabaseError as error:
            connection.close()
            hint = "It is put aside and made again from the ledger"
            raise MemoryDamaged("open", str(path), str(error), hint) from error
        except BaseException:
            connection.close()
            raise
        return store

    @classmethod
    def open_to_read(cls, path: Path) -> Store:
        """Read a memory.db beside a running daemon; nothing is migrated or checked. Raises PerdureError."""
        try:
            connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None)
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("SELECT 1 FROM settings").fetchone()
            return cls(connection, path)
        except sqlite3.Error as error:
            hint = "It is made again from the ledger before the next session"
            raise PerdureError("read", str(path), str(error), hint) from error

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # -- settings and receipts ----------------------------------------------------------------------------------------

    def setting(self, key: str) -> str | None:
        """A small value kept beside the records, or None."""
        row = self._db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_setting(self, key: str, value: str) -> None:
        """Keep a small value."""
        self._db.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", (key, value))

    @property
    def watermark(self) -> int:
        """The last ledger event that memory has read."""
        return int(self.setting("watermark") or 0)

    def add_receipt(self, receipt: Receipt) -> None:
        """Keep a receipt until the ledger holds it."""
        values = [getattr(receipt, name) for name in Receipt.__slots__]
        marks = ", ".join("?" * len(values))
        self._db.execute(f"INSERT INTO receipts ({', '.join(Receipt.__slots__)}) VALUES ({marks})", values)

    def unwritten_receipts(self) -> list[Receipt]:
        """The receipts that the ledger may not hold yet, oldest first."""
        columns = ", ".join(Receipt.__slots__)
        rows = self._db.execute(f"SELECT {columns} FROM receipts WHERE NOT written ORDER BY until")
        return [Receipt(**dict(zip(Receipt.__slots__, row, strict=True))) for row in rows]

    def receipt_written(self, receipt: Receipt) -> None:
        """The ledger holds it."""
        self._db.execute("UPDATE receipts SET written = 1 WHERE until = ?", (receipt.until,))

    # -- records ------------------------------------------------------------------------------------------------------

    def add_record(self, record: Record) -> None:
        """Add one record and its words to the index; adding it again changes nothing."""
        self._db.execute(
            "INSERT OR IGNORE INTO records"
            " (id, seq, at, task, session, kind, speaker, untrusted, text, tokens, sources, scope, place)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
            " (SELECT coalesce(max(place), 0) + 1 FROM records WHERE session = ?))",
            (
                record.id, record.seq, record.at, record.task, record.session, record.kind, record.speaker,
                int(record.untrusted), record.text, record.tokens, " ".join(map(str, record.sources)), scope_word(record.task),
                record.session,
            ),
        )  # fmt: skip
        self._db.executemany(
            "INSERT OR IGNORE INTO sources (seq, record) VALUES (?, ?)", [(seq, record.id) for seq in record.sources]
        )

    def remove_records(self, ids: Iterable[str]) -> None:
        """Take records out, with their words and vectors; the vector index is told through `removed`."""
        self.vectors_version += 1
        for id in ids:
            scopes = self._db.execute("SELECT task FROM records WHERE id = ?", (id,)).fetchall()
            for (task,) in scopes:
                self._db.execute("INSERT OR REPLACE INTO removed (record, scope) VALUES (?, ?)", (id, task or ""))
            self._db.execute("DELETE FROM records WHERE id = ?", (id,))
            self._db.execute("DELETE FROM vectors WHERE record = ?", (id,))
            self._db.execute("DELETE FROM sources WHERE record = ?", (id,))

    def records(self, ids: Sequence[str]) -> dict[str, Record]:
        """The records with these ids; those that are not there are left out."""
        found: dict[str, Record] = {}
        for chunk in _chunks(ids):
            marks = ", ".join("?" * len(chunk))
            for row in self._db.execute(f"{_RECORDS} WHERE id IN ({marks})", chunk):
                record = _record(row)
                found[record.id] = record
        return found

    def session_records(self, session: str) -> list[Record]:
        """A session's records in the order of the ledger."""
        return [_record(row) for row in self._db.execute(f"{_RECORDS} WHERE session = ? ORDER BY seq", (session,))]

    def records_between(self, task: str, start: int, end: int) -> list[Record]:
        """A task's own records from `start` (inclusive) to `end` (exclusive), in the order of the ledger."""
        where = "WHERE task = ? AND at >= ? AND at < ? ORDER BY seq"
        return [_record(row) for row in self._db.execute(f"{_RECORDS} {where}", (task, start, end))]

    def tasks_between(self, start: int, end: int) -> list[str]:
        """The tasks that have records from `start` (inclusive) to `end` (exclusive)."""
        where = "task IS NOT NULL AND at >= ? AND at < ?"
        rows = self._db.execute(f"SELECT DISTINCT task FROM records WHERE {where} ORDER BY task", (start, end))
        return [str(row[0]) for row in rows]

    def records_from(self, seq: int) -> list[str]:
        """The ids of the records made from ledger event `seq`."""
        return [row[0] for row in self._db.execute("SELECT record FROM sources WHERE seq = ?", (seq,))]

    def places(self, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Where records stand: their session and the place in it. Records of no session stand nowhere."""
        found: dict[str, tuple[str, int]] = {}
        for chunk in _chunks(ids):
            marks = ", ".join("?" * len(chunk))
            sql = f"SELECT id, session, place FROM records WHERE session IS NOT NULL AND id IN ({marks})"
            found.update((str(id), (str(session), int(place))) for id, session, place in self._db.execute(sql, chunk))
        return found

    def standing_at(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Record]:
        """The records at these places (session, place in it), as far as there are any."""
        found: dict[tuple[str, int], Record] = {}
        for start in range(0, len(places), ROWS_AT_ONCE // 2):
            chunk = places[start : start + ROWS_AT_ONCE // 2]
            marks = ", ".join(["(?, ?)"] * len(chunk))
            sql = f"SELECT place, {_COLUMNS} FROM records WHERE (session, place) IN (VALUES {marks})"
            for row in self._db.execute(sql, [value for place in chunk for value in place]):
                record = _record(row[1:])
                found[str(record.session), int(row[0])] = record
        return found

    def count(self, table: Literal["records", "claims", "summaries", "vectors", "pins"] = "records") -> int:
        """How many rows a table holds."""
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    # -- full-text search -----------------------------------------------------------------------------------------------

    def stems(self, text: str) -> list[str]:
        """The words of `text` as the full-text index holds them."""
        self._db.execute("DELETE FROM temp.query")
        self._db.execute("INSERT INTO temp.query (text) VALUES (?)", (text,))
        rows = self._db.execute("SELECT term FROM temp.query_words ORDER BY offset")
        return [str(row[0]) for row in rows]

    def frequencies(self, words: Sequence[str]) -> dict[str, int]:
        """In how many records each word (as indexed: stemmed, one token) occurs, over all scopes."""
        marks = ", ".join("?" * len(words))
        rows = self._db.execute(f"SELECT term, doc FROM vocabulary WHERE term IN ({marks})", list(words))
        return {str(term): int(documents) for term, documents in rows}

    def matching(self, expression: str, limit: int) -> list[tuple[str, float]]:
        """Ids and BM25 (higher is better) of the records that match an FTS5 expression, best first, newest of equals first."""
        rows = self._db.execute(
            "SELECT id, -hits.rank FROM (SELECT rowid AS hit, rank FROM words WHERE words MATCH ? AND rank MATCH 'bm25(0.0, 1.0)'"
            " ORDER BY rank LIMIT ?) AS hits JOIN records ON records.rowid = hit ORDER BY hits.rank, seq DESC",
            (expression, limit),
        )
        return [(str(id), float(score)) for id, score in rows]

    # -- vectors --------------------------------------------------------------------------------------------------------

    def add_vectors(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Keep the vectors of records that are still there."""
        self._db.executemany(
            "INSERT OR REPLACE INTO vectors (record, vector) SELECT id, ? FROM records WHERE id = ?",
            [(vector.astype("<f4").tobytes(), id) for id, vector in zip(ids, vectors, strict=True)],
        )

    def without_vector(self, limit: int) -> list[tuple[str, str]]:
        """Ids and texts of records that have no vector yet, newest first."""
        rows = self._db.execute(
            "SELECT id, text FROM records WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE record = id) ORDER BY seq DESC LIMIT ?",
            (limit,),
        )
        return [(str(id), str(text)) for id, text in rows]

    def vectors(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """The vectors of these records, as far as there are any."""
        found: dict[str, Vectors] = {}
        for chunk in _chunks(ids):
            marks = ", ".join("?" * len(chunk))
            rows = self._db.execute(f"SELECT record, vector FROM vectors WHERE record IN ({marks})", chunk)
            found.update((str(id), np.frombuffer(blob, dtype="<f4")) for id, blob in rows)
        return found

    def scope_vectors(self, scope: str, after: int = 0) -> tuple[list[str], Vectors, int]:
        """Every vector that a scope may see and that was kept after row `after`: ids, a matrix, and the last row read."""
        where, values = ("", []) if scope == WORKSPACE else ("AND (task = ? OR task IS NULL)", [scope])
        rows = self._db.execute(
            "SELECT record, vector, vectors.place FROM vectors JOIN records ON id = record"
            f" WHERE vectors.place > ? {where} ORDER BY vectors.place",
            [after, *values],
        ).fetchall()
        if not rows:
            return [], np.zeros((0, DIMENSIONS), dtype=np.float32), after
        matrix = np.frombuffer(b"".join(row[1] for row in rows), dtype="<f4").reshape(len(rows), DIMENSIONS)
        return [str(row[0]) for row in rows], matrix, int(rows[-1][2])

    def tasks_with_vectors(self) -> list[str]:
        """The tasks (empty string: none) that have vectors."""
        rows = self._db.execute(
            "SELECT DISTINCT coalesce(task, '') FROM records WHERE id IN (SELECT record FROM vectors)"
        )
        return sorted(str(row[0]) for row in rows)

    def vector_ids(self, task: str) -> list[str]:
        """The ids of one task's records (empty string: of no task) that have a vector, sorted."""
        rows = self._db.execute(
            "SELECT record FROM vectors JOIN records ON id = record WHERE coalesce(task, '') = ? ORDER BY record",
            (task,),
        )
        return [str(row[0]) for row in rows]

    def last_vector_row(self) -> int:
        """The row of the newest vector."""
        return int(self._db.execute("SELECT coalesce(max(place), 0) FROM vectors").fetchone()[0])

    def vectors_after(self, row: int) -> tuple[list[tuple[str, str]], int]:
        """Ids and tasks of the vectors kept after a row, and the last row."""
        rows = self._db.execute(
            "SELECT record, coalesce(task, ''), vectors.place FROM vectors JOIN records ON id = record"
            " WHERE vectors.place > ? ORDER BY vectors.place",
            (row,),
        ).fetchall()
        return [(str(each[0]), str(each[1])) for each in rows], int(rows[-1][2]) if rows else row

    def take_removed(self) -> list[tuple[str, str]]:
        """Records that were removed since the last call, with their task: for the vector index to drop."""
        rows = [(str(id), str(scope)) for id, scope in self._db.execute("SELECT record, scope FROM removed")]
        self._db.execute("DELETE FROM removed")
        return rows

    # -- facts ------------------------------------------------------------------------------------------------------------

    def add_claim(self, claim: Claim) -> None:
        """Keep a claim; facts are settled from claims."""
        self._db.execute(
            "INSERT OR IGNORE INTO claims (seq, at, task, subject, attribute, value, speaker, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                claim.seq, claim.at, claim.task, claim.subject, claim.attribute, claim.value, claim.speaker,
                fact_key(claim.subject, claim.attribute),
            ),
        )  # fmt: skip

    def remove_claim(self, seq: int) -> None:
        """Forget what ledger event `seq` claimed."""
        self._db.execute("DELETE FROM claims WHERE seq = ?", (seq,))

    def claims(self, scope: str, subject: str | None = None, attribute: str | None = None) -> list[Claim]:
        """The claims that a scope may see, oldest first."""
        where = ["1"] if scope == WORKSPACE else ["(task = :scope OR task IS NULL)"]
        where += ["key LIKE :subject ESCAPE '\\'"] if subject is not None else []
        where += ["key LIKE :attribute ESCAPE '\\'"] if attribute is not None else []
        values: Mapping[str, str] = {
            "scope": scope,
            "subject": _like(fact_key(subject or "", "").removesuffix("\x1f")) + "\x1f%",
            "attribute": "%\x1f" + _like(fact_key("", attribute or "").removeprefix("\x1f")),
        }
        columns = ", ".join(Claim.__slots__)
        rows = self._db.execute(f"SELECT {columns} FROM claims WHERE {' AND '.join(where)} ORDER BY seq", values)
        return [Claim(**dict(zip(Claim.__slots__, row, strict=True))) for row in rows]

    # -- pins -------------------------------------------------------------------------------------------------------------

    def add_pin(self, pin: Pin) -> None:
        """A person's standing instruction, from now on."""
        self._db.execute(
            "INSERT OR IGNORE INTO pins (pin, seq, at, task, text) VALUES (?, ?, ?, ?, ?)",
            (pin.pin, pin.seq, pin.at, pin.task, pin.text),
        )

    def remove_pin(self, pin: str) -> None:
        """It holds no longer."""
        self._db.execute("DELETE FROM pins WHERE pin = ?", (pin,))

    def remove_pin_from(self, seq: int) -> None:
        """The text of the event that pinned it was erased."""
        self._db.execute("DELETE FROM pins WHERE seq = ?", (seq,))

    def pins(self, scope: str) -> list[Pin]:
        """The standing instructions for a scope, oldest first."""
        where = "" if scope == WORKSPACE else "WHERE task = ? OR task IS NULL"
        rows = self._db.execute(
            f"SELECT pin, seq, at, task, text FROM pins {where} ORDER BY seq",
            [] if scope == WORKSPACE else [scope],
        )
        return [Pin(pin=row[0], seq=row[1], at=row[2], task=row[3], text=row[4]) for row in rows]

    # -- summaries --------------------------------------------------------------------------------------------------------

    def put_summary(self, summary: Summary) -> None:
        """Keep a summary, in place of an earlier one of the same period."""
        self.remove_summaries([summary.id])
        self._db.execute(
            "INSERT INTO summaries (id, task, level, start, end, text, tokens, untrusted, made_by)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                summary.id, summary.task, summary.level, summary.start, summary.end, summary.text, summary.tokens,
                int(summary.untrusted), summary.made_by,
            ),
        )  # fmt: skip
        self._db.executemany(
            "INSERT OR IGNORE INTO covers (summary, place, record) VALUES (?, ?, ?)",
            [(summary.id, place, record) for place, record in enumerate(summary.covers)],
        )

    def remove_summaries(self, ids: Iterable[str]) -> None:
        """Take summaries out, with their links."""
        for id in ids:
            self._db.execute("DELETE FROM summaries WHERE id = ?", (id,))
            self._db.execute("DELETE FROM covers WHERE summary = ?", (id,))

    def summaries_of(self, record: str) -> list[Summary]:
        """The summaries that cover a record."""
        where = "WHERE id IN (SELECT summary FROM covers WHERE record = ?) ORDER BY start, level"
        return self._summaries(where, [record])

    def summary(self, id: str) -> Summary | None:
        """One summary, or None."""
        found = self._summaries("WHERE id = ?", [id])
        return found[0] if found else None

    def summaries(self, scope: str, level: str, *, before: int | None = None, limit: int = -1) -> list[Summary]:
        """The summaries of one level that a scope may see, newest first."""
        where = ["level = ?"]
        values: list[Any] = [level]
        if scope != WORKSPACE:
            where.append("task = ?")
            values.append(scope)
        if before is not None:
            where.append("end <= ?")
            values.append(before)
        return self._summaries(f"WHERE {' AND '.join(where)} ORDER BY start DESC, id DESC LIMIT ?", [*values, limit])

    def _summaries(self, where: str, values: list[Any]) -> list[Summary]:
        columns = "id, task, level, start, end, text, tokens, untrusted, made_by"
        rows = self._db.execute(f"SELECT {columns} FROM summaries {where}", values).fetchall()
        return [
            Summary(
                id=row[0], task=row[1], level=row[2], start=row[3], end=row[4], text=row[5], tokens=row[6],
                untrusted=bool(row[7]), made_by=row[8], covers=self._covers(row[0]),
            )
            for row in rows
        ]  # fmt: skip

    def _covers(self, summary: str) -> tuple[str, ...]:
        rows = self._db.execute("SELECT record FROM covers WHERE summary = ? ORDER BY place", (summary,))
        return tuple(str(row[0]) for row in rows)


_COLUMNS = "id, seq, at, task, session, kind, speaker, untrusted, text, tokens, sources"
_RECORDS = f"SELECT {_COLUMNS} FROM records"


def _record(row: Sequence[Any]) -> Record:
    return Record(
        id=row[0], seq=row[1], at=row[2], task=row[3], session=row[4], kind=row[5], speaker=row[6],
        untrusted=bool(row[7]), text=row[8], tokens=row[9], sources=tuple(int(seq) for seq in row[10].split()),
    )  # fmt: skip


def _chunks(ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), ROWS_AT_ONCE):
        yield list(ids[start : start + ROWS_AT_ONCE])


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
