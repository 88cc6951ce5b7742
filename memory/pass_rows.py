"""What memory.db holds about compaction itself: how far it has read, its receipts, zones and tombstones."""

# ruff: noqa: S608 - what is put into SQL text here is column names and question marks, never a value
from __future__ import annotations

import sqlite3

from perdure.memory.rows import Receipt

FREE_PAGES_MIN = 256  # 1 MB
FREE_SHARE = 0.2  # of the file; less is room for what comes next


class PassRows:
    """The part of the store that compaction keeps its books in."""

    _db: sqlite3.Connection

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
        rows = self._db.execute(f"SELECT {columns} FROM receipts ORDER BY until")
        return [Receipt(**dict(zip(Receipt.__slots__, row, strict=True))) for row in rows]

    def receipt_written(self, receipt: Receipt) -> None:
        """The ledger holds it, so memory need not."""
        self._db.execute("DELETE FROM receipts WHERE until = ?", (receipt.until,))

    # -- what the ledger said that concerns compaction itself ---------------------------------------------------------

    def zones(self) -> dict[str, str]:
        """The time zone of each task that has told its own."""
        return {str(task): str(zone) for task, zone in self._db.execute("SELECT task, zone FROM zones")}

    def set_zone(self, task: str, zone: str) -> None:
        """The days of this task are those of `zone` from now on."""
        self._db.execute("INSERT OR REPLACE INTO zones (task, zone) VALUES (?, ?)", (task, zone))

    def forget(self, record: str) -> None:
        """A tombstone: this record is never added again."""
        self._db.execute("INSERT OR IGNORE INTO forgotten (record) VALUES (?)", (record,))

    def forgotten(self, record: str) -> bool:
        """Whether a person wants it gone."""
        return self._db.execute("SELECT 1 FROM forgotten WHERE record = ?", (record,)).fetchone() is not None

    # -- room on disk ---------------------------------------------------------------------------------------------------

    def give_back(self, pages_max: int) -> None:
        """Merge what removals left in the full-text index and give empty pages back to the disk, a bounded part at a time.
        Outside of any transaction."""
        (pages,), (free,) = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count"))
        if free <= FREE_PAGES_MIN or free < FREE_SHARE * pages:
            return
        self._db.execute("INSERT INTO words (words, rank) VALUES ('merge', ?)", (-pages_max,))
        self._db.executescript(f"PRAGMA incremental_vacuum({pages_max})")  # `execute` would step once: one page
