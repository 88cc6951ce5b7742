"""memory.db: records, facts, summaries and vectors in SQLite with full-text search. All of it is derived from the ledger,
and one transaction moves it, with its watermark, from one ledger position to the next."""

# ruff: noqa: S608 - what is put into SQL text here is column names and question marks, never a value
from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from perdure.errors import PerdureError
from perdure.memory.embedding import Vectors
from perdure.memory.keys import whole
from perdure.memory.pass_rows import PassRows
from perdure.memory.rows import WORKSPACE, Claim, Pin, Receipt, Record, Speaker, Summary, fact_key
from perdure.memory.schema import CONTENT_VERSION, migrate, scope_word
from perdure.memory.summary_rows import SummaryRows

__all__ = ["WORKSPACE", "Claim", "MemoryDamaged", "Pin", "Receipt", "Record", "Speaker", "Store", "Summary", "fact_key"]

ROWS_AT_ONCE = 500  # below SQLite's limit of variables in one statement

T = TypeVar("T")


class MemoryDamaged(PerdureError):
    """memory.db cannot be read; it is derived, so it is put aside and made again from the ledger."""


class Store(SummaryRows, PassRows):
    """One connection to memory.db, used by one thread. Every write happens inside `transaction()`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self.path = path
        self._removed_rows: list[int] | None = []  # None: nobody knows
        self._removed_claims: list[int] | None = []
        self._file = _file(path)

    @classmethod
    def open(cls, path: Path, *, identity: str) -> Store:
        """Open or create. `identity` is the ledger's (its first event's hash): memory of another ledger is not ours.

        Raises MemoryDamaged (also for another ledger's memory), and PerdureError for one of a newer Perdure.
        """
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(
                "PRAGMA auto_vacuum=INCREMENTAL"
            )  # of a new file; VACUUM would renumber rows under the words
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
        """Read a memory.db beside a running daemon, as it is now, until it is closed: what a compaction changes meanwhile is not
        mixed in. Nothing is migrated or checked. Raises sqlite3.Error."""
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM settings LIMIT 1").fetchone()
        except BaseException:
            connection.close()
            raise
        return cls(connection, path)

    @property
    def is_at_its_place(self) -> bool:
        """Whether the file that is open is still the one of this name."""
        return _file(self.path) == self._file

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._removed_rows:
                self._removed_rows = None
            if self._removed_claims:
                self._removed_claims = None
            if self._db.in_transaction:  # on a full disk SQLite has rolled back already
                self._db.execute("ROLLBACK")
            raise

    # -- records ------------------------------------------------------------------------------------------------------

    def add_record(self, record: Record) -> None:
        """Add one record and its words to the index; adding it again changes nothing."""
        self._db.execute(
            "INSERT OR IGNORE INTO records"
            " (id, seq, at, task, session, kind, speaker, untrusted, text, tokens, sources, scope)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.id, record.seq, record.at, record.task, record.session, record.kind, record.speaker,
                int(record.untrusted), record.text, record.tokens, " ".join(map(str, record.sources)), scope_word(record.task),
            ),
        )  # fmt: skip
        self._db.executemany(
            "INSERT OR IGNORE INTO sources (seq, record) VALUES (?, ?)", [(seq, record.id) for seq in record.sources]
        )

    def remove_records(self, ids: Iterable[str]) -> None:
        """Take records out, with their words and vectors; the vector index is told through `removed`."""
        for id in ids:
            rows = self._db.execute("SELECT rowid, task FROM records WHERE id = ?", (id,)).fetchall()
            for row, task in rows:
                if self._removed_rows is not None:
                    self._removed_rows.append(int(row))
                self._db.execute("INSERT OR REPLACE INTO removed (record, scope) VALUES (?, ?)", (id, task or ""))
            self._db.execute("DELETE FROM records WHERE id = ?", (id,))
            self._db.execute("DELETE FROM vectors WHERE record = ?", (id,))
            self._db.execute("DELETE FROM sources WHERE record = ?", (id,))

    def take_removed_rows(self) -> list[int] | None:
        """The row numbers of the records removed since the last call, or None where a rollback made them unknown."""
        removed, self._removed_rows = self._removed_rows, []
        return removed

    def query(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """What recall asks (catalogue.py, words.py)."""
        return self._db.execute(sql, values)

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

    def cool(self, before: int, limit: int) -> int:
        """Let the text, words and vector of up to `limit` records from before this moment go, oldest first; what people said
        and what facts stand on stays. Returns how many."""
        where = "NOT cold AND at < ? AND speaker <> 'person' AND kind <> 'fact'"
        sql = f"SELECT rowid, id, coalesce(task, '') FROM records WHERE {where} ORDER BY at, seq LIMIT ?"
        cooled = self._db.execute(sql, (before, limit)).fetchall()
        for row, id, task in cooled:
            if self._removed_rows is not None:
                self._removed_rows.append(int(row))
            self._db.execute("INSERT OR REPLACE INTO removed (record, scope) VALUES (?, ?)", (id, task))
            self._db.execute("UPDATE records SET cold = 1, text = '' WHERE id = ?", (id,))
            self._db.execute("DELETE FROM vectors WHERE record = ?", (id,))
        return len(cooled)

    def records_from(self, seq: int) -> list[str]:
        """The ids of the records made from ledger event `seq`."""
        return [row[0] for row in self._db.execute("SELECT record FROM sources WHERE seq = ?", (seq,))]

    def records_at(self, rows: Mapping[int, int]) -> dict[int, Record]:
        """The records with these row numbers, under the name that `rows` gives to each."""
        found: dict[int, Record] = {}
        for chunk in _chunks(list(rows)):
            marks = ", ".join("?" * len(chunk))
            for row in self._db.execute(f"SELECT rowid, {_COLUMNS} FROM records WHERE rowid IN ({marks})", chunk):
                found[rows[row[0]]] = _record(row[1:])
        return found

    def sizes(self) -> dict[str, Any]:
        """How much of everything there is, and the last ledger event that was read."""
        levels = self._db.execute("SELECT level, count(*) FROM summaries GROUP BY level ORDER BY level").fetchall()
        ((cold,),) = self._db.execute("SELECT count(*) FROM records WHERE cold").fetchall()
        ((by_model,),) = self._db.execute("SELECT count(*) FROM summaries WHERE seq IS NOT NULL").fetchall()
        return {
            "records": self.count(), "cold_records": int(cold), "claims": self.count("claims"), "pins": self.count("pins"),
            "vectors": self.count("vectors"), "summaries": {str(level): int(number) for level, number in levels},
            "model_summaries": int(by_model), "read_up_to": self.watermark,
        }  # fmt: skip

    def count(self, table: Literal["records", "claims", "summaries", "vectors", "pins"] = "records") -> int:
        """How many rows a table holds."""
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    # -- vectors --------------------------------------------------------------------------------------------------------

    def add_vectors(self, ids: Sequence[str], vectors: Sequence[bytes]) -> None:
        """Keep the vectors (keys.py) of records that are still there, and whose text is."""
        self._db.executemany(
            "INSERT OR REPLACE INTO vectors (record, vector) SELECT id, ? FROM records WHERE id = ? AND NOT cold",
            list(zip(vectors, ids, strict=True)),
        )

    def without_vector(self, limit: int) -> list[tuple[str, str]]:
        """Ids and texts of records that have no vector yet, newest first."""
        rows = self._db.execute(
            "SELECT id, text FROM unembedded JOIN records ON id = record ORDER BY unembedded.seq DESC LIMIT ?",
            (limit,),
        )
        return [(str(id), str(text)) for id, text in rows]

    def vectors(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """The vectors of these records' whole texts, as far as there are any."""
        found: dict[str, Vectors] = {}
        for chunk in _chunks(ids):
            marks = ", ".join("?" * len(chunk))
            rows = self._db.execute(f"SELECT record, vector FROM vectors WHERE record IN ({marks})", chunk)
            found.update((str(id), whole(blob)) for id, blob in rows)
        return found

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
        if self._db.execute("DELETE FROM claims WHERE seq = ?", (seq,)).rowcount and self._removed_claims is not None:
            self._removed_claims.append(seq)

    def take_removed_claims(self) -> list[int] | None:
        """The claims removed since the last call, or None where a rollback made them unknown."""
        removed, self._removed_claims = self._removed_claims, []
        return removed

    def last_claim(self) -> int:
        """The ledger event of the newest claim."""
        return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM claims").fetchone()[0])

    def claims_after(self, seq: int) -> list[Claim]:
        """The claims of later ledger events, oldest first."""
        return [_claim(row) for row in self._db.execute(f"{_CLAIMS} WHERE seq > ? ORDER BY seq", (seq,))]

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
        rows = self._db.execute(f"{_CLAIMS} WHERE {' AND '.join(where)} ORDER BY seq", values)
        return [_claim(row) for row in rows]

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


_COLUMNS = "id, seq, at, task, session, kind, speaker, untrusted, text, tokens, sources, cold"
_RECORDS = f"SELECT {_COLUMNS} FROM records"
_CLAIMS = "SELECT seq, at, task, subject, attribute, value, speaker FROM claims"


def _claim(row: Sequence[Any]) -> Claim:
    seq, at, task, subject, attribute, value, speaker = row
    return Claim(seq=seq, at=at, task=task, subject=subject, attribute=attribute, value=value, speaker=speaker)


def _record(row: Sequence[Any]) -> Record:
    return Record(
        id=row[0], seq=row[1], at=row[2], task=row[3], session=row[4], kind=row[5], speaker=row[6],
        untrusted=bool(row[7]), text=row[8], tokens=row[9], sources=tuple(int(seq) for seq in row[10].split()), cold=bool(row[11]),
    )  # fmt: skip


def _chunks(ids: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(ids), ROWS_AT_ONCE):
        yield list(ids[start : start + ROWS_AT_ONCE])


def _file(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
