"""The tables of memory.db and how older ones become today's."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

from sqlite_utils import Database, Migrations

from perdure.errors import PerdureError

CONTENT_VERSION = "4"  # raised when the same events give other records: memory is then made again from the ledger

TOKENIZER = "porter unicode61 remove_diacritics 2"

migrations = Migrations("perdure.memory")


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the tables up to date. Raises PerdureError when a newer Perdure made them."""
    database = Database(connection, use_counts_table=False)
    known = {migration.name for migration in migrations.pending(Database(memory=True))}
    if newer := [each.name for each in migrations.applied(database) if each.name not in known]:
        cause = f"a newer Perdure made it (it has {', '.join(newer)})"
        raise PerdureError(
            "open", str(path), cause, "Upgrade Perdure, or remove the file: it is made again from the ledger"
        )
    migrations.apply(database)


def scope_word(task: str | None) -> str:
    """One word of the full-text index that stands for a task, so that a search stays inside its scope."""
    return "s" + hashlib.sha256((task or "").encode("utf-8", "surrogatepass")).hexdigest()[:20] if task else "sall"


@migrations()
def m001_tables(database: Database) -> None:
    """Records, their words and vectors, claims, pins, summaries, receipts."""
    for statement in (
        "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE records (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, at INTEGER NOT NULL, task TEXT, session TEXT,"
        " kind TEXT NOT NULL, speaker TEXT NOT NULL, untrusted INTEGER NOT NULL, text TEXT NOT NULL, tokens INTEGER NOT NULL,"
        " sources TEXT NOT NULL, scope TEXT NOT NULL)",
        "CREATE INDEX records_session ON records (session, seq)",
        "CREATE INDEX records_task ON records (task, at)",
        "CREATE INDEX records_at ON records (at)",
        "CREATE INDEX records_seq ON records (seq)",
        "CREATE TABLE sources (seq INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (seq, record)) WITHOUT ROWID",
        "CREATE INDEX sources_record ON sources (record)",
        "CREATE VIRTUAL TABLE words USING fts5(scope, text, content='records', content_rowid='rowid',"
        f" tokenize='{TOKENIZER}')",
        "CREATE VIRTUAL TABLE vocabulary USING fts5vocab('words', 'row')",
        "CREATE TRIGGER records_added AFTER INSERT ON records BEGIN"
        " INSERT INTO words (rowid, scope, text) VALUES (new.rowid, new.scope, new.text); END",
        "CREATE TRIGGER records_removed AFTER DELETE ON records BEGIN"
        " INSERT INTO words (words, rowid, scope, text) VALUES ('delete', old.rowid, old.scope, old.text); END",
        "CREATE TABLE vectors (place INTEGER PRIMARY KEY AUTOINCREMENT, record TEXT NOT NULL UNIQUE, vector BLOB NOT NULL)",
        "CREATE TABLE removed (record TEXT PRIMARY KEY, scope TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE claims (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, task TEXT, subject TEXT NOT NULL,"
        " attribute TEXT NOT NULL, value TEXT NOT NULL, speaker TEXT NOT NULL, key TEXT NOT NULL)",
        "CREATE INDEX claims_key ON claims (key)",
        "CREATE TABLE pins (pin TEXT PRIMARY KEY, seq INTEGER NOT NULL, at INTEGER NOT NULL, task TEXT, text TEXT NOT NULL)",
        "CREATE TABLE summaries (id TEXT PRIMARY KEY, task TEXT NOT NULL, level TEXT NOT NULL, start INTEGER NOT NULL,"
        " end INTEGER NOT NULL, text TEXT NOT NULL, tokens INTEGER NOT NULL, untrusted INTEGER NOT NULL, made_by TEXT NOT NULL)",
        "CREATE INDEX summaries_period ON summaries (level, task, start)",
        "CREATE TABLE covers (summary TEXT NOT NULL, place INTEGER NOT NULL, record TEXT NOT NULL,"
        " PRIMARY KEY (summary, place)) WITHOUT ROWID",
        "CREATE INDEX covers_record ON covers (record)",
        "CREATE TABLE receipts (until INTEGER PRIMARY KEY, after INTEGER NOT NULL, task TEXT NOT NULL, session TEXT,"
        " events INTEGER NOT NULL, records INTEGER NOT NULL, facts INTEGER NOT NULL, summaries INTEGER NOT NULL,"
        " tokens_before INTEGER NOT NULL, tokens_after INTEGER NOT NULL, duration_us INTEGER NOT NULL,"
        " written INTEGER NOT NULL DEFAULT 0)",
    ):
        database.execute(statement)


@migrations()
def m002_places(database: Database) -> None:
    """Where in its session a record stands, so that its neighbours are found by number."""
    database.execute("ALTER TABLE records ADD COLUMN place INTEGER NOT NULL DEFAULT 0")
    database.execute("CREATE INDEX records_place ON records (session, place)")


@migrations()
def m003_cold(database: Database) -> None:
    """Records whose text has left memory, the zones of tasks, tombstones, model's summaries, and fuller receipts."""
    for statement in (
        "ALTER TABLE records ADD COLUMN cold INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX records_warm ON records (at) WHERE NOT cold",
        "CREATE TRIGGER records_cooled AFTER UPDATE OF text ON records BEGIN"
        " INSERT INTO words (words, rowid, scope, text) VALUES ('delete', old.rowid, old.scope, old.text);"
        " INSERT INTO words (rowid, scope, text) VALUES (new.rowid, new.scope, new.text); END",
        "ALTER TABLE summaries ADD COLUMN seq INTEGER",
        "CREATE TABLE attempts (summary TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE forgotten (record TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE zones (task TEXT PRIMARY KEY, zone TEXT NOT NULL) WITHOUT ROWID",
        "ALTER TABLE receipts ADD COLUMN left_out INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE receipts ADD COLUMN ineffective INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE receipts ADD COLUMN model_stopped INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE receipts ADD COLUMN detail TEXT NOT NULL DEFAULT '[]'",
    ):
        database.execute(statement)


@migrations()
def m004_no_places(database: Database) -> None:
    """Neighbours and word counts come from the catalogue's columns in memory."""
    for statement in (
        "DROP INDEX records_place",
        "ALTER TABLE records DROP COLUMN place",
        "DROP TABLE vocabulary",
    ):
        database.execute(statement)


@migrations()
def m005_unembedded(database: Database) -> None:
    """Which records lack a vector, kept up by the database itself: looking for them costs what there is to do, not the history."""
    for statement in (
        "CREATE TABLE unembedded (seq INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (seq, record)) WITHOUT ROWID",
        "INSERT INTO unembedded (seq, record) SELECT seq, id FROM records"
        " WHERE NOT cold AND id NOT IN (SELECT record FROM vectors)",
        "CREATE TRIGGER unembedded_added AFTER INSERT ON records WHEN NOT new.cold BEGIN"
        " INSERT INTO unembedded (seq, record) VALUES (new.seq, new.id); END",
        "CREATE TRIGGER unembedded_removed AFTER DELETE ON records BEGIN"
        " DELETE FROM unembedded WHERE seq = old.seq AND record = old.id; END",
        "CREATE TRIGGER unembedded_cooled AFTER UPDATE OF cold ON records WHEN new.cold BEGIN"
        " DELETE FROM unembedded WHERE seq = old.seq AND record = old.id; END",
        "CREATE TRIGGER unembedded_done AFTER INSERT ON vectors BEGIN"
        " DELETE FROM unembedded WHERE record = new.record AND seq = (SELECT seq FROM records WHERE id = new.record); END",
    ):
        database.execute(statement)
