"""What no durable action can be faster than, for every benchmark here; imports nothing but the standard library, so that
programs in other environments can measure it too."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class Floor:
    """Two bare durable commits of about an event's size."""

    def __init__(self, directory: Path) -> None:
        self.db = sqlite3.connect(directory / "floor.db", isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body TEXT)")

    def action(self) -> None:
        for _ in range(2):
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("INSERT INTO rows (body) VALUES (?)", ("x" * 400,))
            self.db.execute("COMMIT")
