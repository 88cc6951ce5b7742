"""The summaries in memory.db, and the records that each was made from."""

# ruff: noqa: S608 - what is put into SQL text here is column names and fixed conditions, never a value
from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from perdure.memory.rows import WORKSPACE, Record, Summary


class SummaryRows:
    """The part of the store that holds summaries."""

    _db: sqlite3.Connection

    def put_summary(self, summary: Summary) -> None:
        """Keep a summary, in place of an earlier one of the same period."""
        self.remove_summaries([summary.id])
        self._db.execute(
            "INSERT INTO summaries (id, task, level, start, end, text, tokens, untrusted, made_by, seq)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                summary.id, summary.task, summary.level, summary.start, summary.end, summary.text, summary.tokens,
                int(summary.untrusted), summary.made_by, summary.seq,
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

    def summaries_made_from(self, record: Record) -> list[Summary]:
        """The summaries that would be others without this record: those of its session and of the periods that it lies in,
        told in them or not, and a model's where it was among what the model read."""
        where = (
            "WHERE (seq IS NULL AND (id = 'session/' || ?1 OR (level <> 'session' AND task = ?2 AND start <= ?3 AND end > ?3)))"
            " OR id IN (SELECT summary FROM covers WHERE record = ?4) ORDER BY start, level"
        )
        return self._summaries(where, [record.session, record.task, record.at, record.id])

    def summary_from(self, seq: int) -> Summary | None:
        """The model's summary whose text is in ledger event `seq`, or None."""
        found = self._summaries("WHERE seq = ?", [seq])
        return found[0] if found else None

    def attempted(self, summary: str) -> bool:
        """Whether a model was asked for this summary before, or would have been but for the budget."""
        return self._db.execute("SELECT 1 FROM attempts WHERE summary = ?", (summary,)).fetchone() is not None

    def add_attempt(self, summary: str) -> None:
        """It was."""
        self._db.execute("INSERT OR IGNORE INTO attempts (summary) VALUES (?)", (summary,))

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
        columns = "id, task, level, start, end, text, tokens, untrusted, made_by, seq"
        rows = self._db.execute(f"SELECT {columns} FROM summaries {where}", values).fetchall()
        return [
            Summary(
                id=row[0], task=row[1], level=row[2], start=row[3], end=row[4], text=row[5], tokens=row[6],
                untrusted=bool(row[7]), made_by=row[8], seq=row[9], covers=self._covers(row[0]),
            )
            for row in rows
        ]  # fmt: skip

    def _covers(self, summary: str) -> tuple[str, ...]:
        rows = self._db.execute("SELECT record FROM covers WHERE summary = ? ORDER BY place", (summary,))
        return tuple(str(row[0]) for row in rows)
