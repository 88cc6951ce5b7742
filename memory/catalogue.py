"""What recall must know of every record, as columns in memory, so that ranking 100,000 of them reads no row: some 50 bytes
a record, and its vector in 384 bytes more. Kept in step with memory.db; texts and exact vectors stay there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from perdure.memory.embedding import DIMENSIONS, Vectors
from perdure.memory.keys import reduced, whole
from perdure.memory.store import ROWS_AT_ONCE, WORKSPACE, Record, Store
from perdure.memory.terms import SUBJECT_WITHIN, subject

Rows: TypeAlias = NDArray[np.int64]  # places in the catalogue, not SQLite's

NONE = -1
BLOCK = 1_024  # vectors converted at once; they stay in the processor's cache
READ_AT_ONCE = 5_000
DEAD_MIN = 1_000  # places of what is gone; when they outnumber the others as well, all is read anew
SPARE = 1.25  # room for growth, so that adding is not copying


class Catalogue:
    """The columns of one store. `refresh` first; the arrays hold `count` records in the order in which they were added. For
    a search by words alone the vectors, most of memory.db, need not be read."""

    def __init__(self, store: Store, *, with_vectors: bool = True) -> None:
        self.store = store
        self._with_vectors = with_vectors
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self.vectors = 0  # how many records have one
        self._rowid: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.at: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.length: NDArray[np.int32] = np.zeros(0, dtype=np.int32)  # in tokens
        self.session: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self.subject: NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)  # the sum of the word it begins with
        self.person: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.alive: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.before: NDArray[np.int32] = np.zeros(0, dtype=np.int32)  # the record before it in its session
        self.after: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._task: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._vector_place: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # 0: it has none
        self._matrix: NDArray[np.int8] = np.zeros((0, DIMENSIONS), dtype=np.int8)
        self._tasks: dict[str, int] = {}
        self._sessions: dict[str, int] = {}
        self._last_of_session: dict[int, int] = {}
        self._last_vector = 0
        self.common_terms: set[str] = set()  # known to be in too many records to be worth looking for

    @property
    def sessions(self) -> int:
        """How many sessions there are; `session` numbers them from 0."""
        return len(self._sessions)

    @property
    def living(self) -> int:
        """How many of the records are still there."""
        return int(np.count_nonzero(self.alive[: self.count]))

    @property
    def size_bytes(self) -> int:
        """What the columns take."""
        return sum(each.nbytes for each in vars(self).values() if isinstance(each, np.ndarray))

    # -- in step with memory.db ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take in what was added and removed since the last time."""
        removed = self.store.take_removed_rows()
        if removed is None:  # nobody knows: a transaction that removed was rolled back
            self._clear()
        elif removed:
            self._remove(removed)
            self.common_terms.clear()
            if self.count - self.living > max(DEAD_MIN, self.living):
                self._clear()
        sql = (
            "SELECT rowid, at, tokens, task, session, speaker, substr(text, 1, ?) FROM records"
            " WHERE rowid > ? AND NOT cold ORDER BY rowid"
        )
        cursor = self.store.query(sql, (SUBJECT_WITHIN, int(self._rowid[self.count - 1]) if self.count else 0))
        while rows := cursor.fetchmany(READ_AT_ONCE):
            self._add(rows)
        if not self._with_vectors:
            return
        sql = (
            "SELECT vectors.place, records.rowid, vector FROM vectors JOIN records ON id = record WHERE vectors.place > ?"
            " AND NOT cold ORDER BY vectors.place"
        )
        cursor = self.store.query(sql, (self._last_vector,))
        while rows := cursor.fetchmany(READ_AT_ONCE):
            self._add_vectors(rows)

    def _add(self, rows: Sequence[Any]) -> None:
        start, end = self.count, self.count + len(rows)
        if end > len(self._rowid):
            self._grow(int(end * SPARE) + 64)
        self._rowid[start:end] = [row[0] for row in rows]
        self.at[start:end] = [row[1] for row in rows]
        self.length[start:end] = [row[2] for row in rows]
        self._task[start:end] = [
            NONE if row[3] is None else self._tasks.setdefault(row[3], len(self._tasks)) for row in rows
        ]
        self.subject[start:end] = [_sum(subject(row[6])) for row in rows]
        self.person[start:end] = [row[5] == "person" for row in rows]
        self.alive[start:end] = True
        self._vector_place[start:end] = 0
        self.session[start:end] = self.before[start:end] = self.after[start:end] = NONE
        for place, row in enumerate(rows, start):
            if row[4] is not None:
                session = self._sessions.setdefault(row[4], len(self._sessions))
                self.session[place] = session
                if (last := self._last_of_session.get(session)) is not None:
                    self.before[place], self.after[last] = last, place
                self._last_of_session[session] = place
        self.count = end

    def _add_vectors(self, rows: Sequence[Any]) -> None:
        if not self.count:
            return
        rowids = np.array([row[1] for row in rows], dtype=np.int64)
        places = np.minimum(np.searchsorted(self._rowid[: self.count], rowids), self.count - 1)
        known = self._rowid[places] == rowids  # who reads beside a daemon may meet a vector before its record
        rows, places = [row for row, there in zip(rows, known, strict=True) if there], places[known]
        if not rows:
            return
        if len(self._matrix) < len(self._rowid):
            self._matrix = _grown(self._matrix, len(self._rowid))
        exact = np.stack([whole(row[2]) for row in rows])
        self.vectors += int(np.count_nonzero(self._vector_place[np.unique(places)] == 0))
        self._matrix[places] = reduced(exact)
        self._vector_place[places] = [row[0] for row in rows]
        self._last_vector = int(rows[-1][0])

    def _remove(self, rowids: Sequence[int]) -> None:
        held = self._rowid[: self.count]
        for rowid in rowids:
            place = int(np.searchsorted(held, rowid))
            if place >= self.count or held[place] != rowid or not self.alive[place]:
                continue
            self.alive[place] = False
            self.vectors -= int(self._vector_place[place] > 0)
            before, after, session = int(self.before[place]), int(self.after[place]), int(self.session[place])
            if before != NONE:
                self.after[before] = after
            if after != NONE:
                self.before[after] = before
            elif NONE not in (session, before):
                self._last_of_session[session] = before
            elif session != NONE:
                del self._last_of_session[session]
        # SQLite gives the number of the last row, once removed, to the next one.
        while self.count and not self.alive[self.count - 1]:
            self.count -= 1

    def _grow(self, size: int) -> None:
        for name, column in list(vars(self).items()):
            if isinstance(column, np.ndarray) and column.ndim == 1:
                setattr(self, name, _grown(column, size))
        if len(self._matrix):
            self._matrix = _grown(self._matrix, size)

    # -- questions ------------------------------------------------------------------------------------------------------

    def visible(self, scope: str) -> NDArray[np.bool_]:
        """Of each record, whether a scope may see it."""
        alive = self.alive[: self.count]
        if scope == WORKSPACE:
            return alive
        task = self._task[: self.count]
        seen: NDArray[np.bool_] = alive & ((task == self._tasks.get(scope, NONE)) | (task == NONE))
        return seen

    def tasks(self, scope: str) -> list[str]:
        """The tasks (empty string: none) whose records a scope may see."""
        return ["", *self._tasks] if scope == WORKSPACE else ["", scope]

    def nearest(self, vector: Vectors, visible: NDArray[np.bool_], limit: int) -> Rows:
        """The records nearest to `vector`, best first, by the vectors in memory: exact to about 0.001 of a cosine."""
        rows: Rows = np.flatnonzero(visible & (self._vector_place[: self.count] > 0))
        scores = np.zeros(self.count, dtype=np.float32)
        block = np.empty((BLOCK, DIMENSIONS), dtype=np.float32)
        dense = (
            2 * len(rows) > self.count
        )  # then all of them, in the order in which they lie, cost less than the choice
        for start in range(0, self.count if dense else len(rows), BLOCK):
            some = slice(start, min(start + BLOCK, self.count)) if dense else rows[start : start + BLOCK]
            vectors = self._matrix[some]
            block[: len(vectors)] = vectors
            scores[some] = block[: len(vectors)] @ vector
        return best_first(rows, scores, limit)

    def newer_than(self, vector_place: int) -> NDArray[np.bool_]:
        """Of each record, whether its vector was kept after this one of memory.db."""
        newer: NDArray[np.bool_] = self._vector_place[: self.count] > vector_place
        return newer

    def exact(self, rows: Rows) -> tuple[Rows, list[bytes]]:
        """Those of `rows` that have vectors, and these as memory.db holds them (keys.py)."""
        rows = rows[self._vector_place[rows] > 0]
        places = self._vector_place[rows].tolist()
        by_place = dict(self._looked_up("SELECT place, vector FROM vectors WHERE place IN", sorted(places)))
        there = np.array([place in by_place for place in places], dtype=np.bool_)
        return rows[there], [by_place[place] for place in places if place in by_place]

    def begins_with(self, rows: Rows, words: Sequence[str]) -> NDArray[np.bool_]:
        """Of each row, whether its text begins with any of these words."""
        return np.isin(self.subject[rows], np.array([_sum(word) for word in words], dtype=np.uint32))

    def rows(self, ids: Sequence[str]) -> Rows:
        """Where these records stand here; those that are not there are left out."""
        return self.named(ids)[0]

    def named(self, ids: Sequence[str]) -> tuple[Rows, list[str]]:
        """Where these records stand here, and of each its name; those that are not there are left out."""
        found = self._looked_up("SELECT rowid, id FROM records WHERE id IN", ids)
        rows = self.rows_at(np.array([rowid for rowid, _ in found], dtype=np.int64))
        known = set(self._rowid[rows].tolist())
        return rows, [str(id) for rowid, id in found if rowid in known]

    def rows_at(self, rowids: NDArray[np.int64]) -> Rows:
        """Where the records with these row numbers of SQLite stand here, as far as they do: another process may have added."""
        if not self.count:
            return np.zeros(0, dtype=np.int64)
        places: Rows = np.minimum(np.searchsorted(self._rowid[: self.count], rowids), self.count - 1)
        known: Rows = places[self._rowid[places] == rowids]
        return known

    def ids(self, rows: Rows) -> list[str]:
        """The names of records, in the order of `rows`."""
        found = dict(self._looked_up("SELECT rowid, id FROM records WHERE rowid IN", self._rowid[rows].tolist()))
        return [str(found[rowid]) for rowid in self._rowid[rows].tolist() if rowid in found]

    def records(self, rows: Rows) -> dict[int, Record]:
        """The records that stand at `rows`."""
        return self.store.records_at(dict(zip(self._rowid[rows].tolist(), rows.tolist(), strict=True)))

    def _looked_up(self, select: str, values: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(values), ROWS_AT_ONCE):
            chunk = values[start : start + ROWS_AT_ONCE]
            found += self.store.query(f"{select} ({', '.join('?' * len(chunk))})", chunk).fetchall()
        return found


def best_first(rows: Rows, scores: NDArray[Any], limit: int) -> Rows:
    """Up to `limit` of `rows`, the best first, of equals the newest."""
    if len(rows) > limit:
        rows = rows[scores[rows] >= -np.partition(-scores[rows], limit - 1)[limit - 1]]
    return rows[np.lexsort((-rows, -scores[rows]))][:limit]


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    larger = np.zeros((size, *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def _sum(word: str) -> int:
    return crc32(word.encode("utf-8", "surrogatepass"))
