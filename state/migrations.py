"""The ledger's schema, step by step: small named migrations, each in one transaction with its own record."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from perdure.state.schema import APPLICATION_ID, PLACES, PROJECTIONS, SCHEMA_VERSION, TRUTH, statements

_migrations = Migrations("perdure-ledger")


@_migrations(name="0001-events-payloads-projections")
def _first(db: Database) -> None:
    for statement in statements(TRUTH + PLACES + PROJECTIONS):
        db.execute(statement)


def migrate(connection: sqlite3.Connection, at: int) -> None:
    """Bring the schema up to date. `at` (microseconds UTC) is recorded as the time, so that equal runs give equal files."""
    database = Database(connection)
    pending = [migration.name for migration in _migrations.pending(database)]
    _migrations.apply(database)
    stamp = datetime.fromtimestamp(at / 1_000_000, UTC).isoformat()
    for name in pending:
        connection.execute("UPDATE _sqlite_migrations SET applied_at = ? WHERE name = ?", (stamp, name))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
