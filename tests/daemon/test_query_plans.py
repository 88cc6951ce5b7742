"""What a start, a schedule, a session, a question and its answer ask of the ledger never reads a growing table whole: checked on
the statements that they really send, with the plans that SQLite makes of them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.stage import Stage, events

from perdure.daemon import operations
from perdure.daemon.scheduler import account
from perdure.state import projections

GROWING = {"events", "payloads", "places", "actions", "sessions", "slots", "calls", "escalations", "erasures"}
STOPS_SOON = {  # statement -> why its scan ends after a few rows
    "SELECT seq, hash, at FROM events ORDER BY seq DESC LIMIT 1": "the head is the last row",
    "SELECT seq, at, type, body, payload_hash, hash FROM events ORDER BY seq DESC LIMIT ?": "the tail, checked at each start",
}
NAMED = re.compile(r'\b(?:FROM|JOIN|INTO|UPDATE)\s+"?(\w+)"?(?:\s+(?:AS\s+)?(?!ON\b|WHERE\b|CROSS\b|ORDER\b)(\w+))?')


class Recorder(sqlite3.Connection):
    """A real connection that remembers each statement with the values that it was first given."""

    sent: dict[str, Any]

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        self.sent.setdefault(sql, parameters)
        return super().execute(sql, parameters)

    def cursor(self, factory: Any = None) -> sqlite3.Cursor:
        recorder = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
                recorder.sent.setdefault(sql, parameters)
                return super().execute(sql, parameters)

            def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
                recorder.sent.update({sql: rows[0]} if rows else {})
                return super().executemany(sql, rows)

        return super().cursor(Cursor)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every statement that goes to a ledger in this test."""
    statements: dict[str, Any] = {}
    connect = sqlite3.connect

    class Remembering(Recorder):
        sent = statements

    def connect_and_remember(path: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        return connect(path, *args, **({"factory": Remembering} if "ledger.db" in str(path) else {}), **options)

    monkeypatch.setattr(sqlite3, "connect", connect_and_remember)
    return statements


def scans(db: sqlite3.Connection, sql: str, parameters: Any) -> Iterator[str]:
    """The growing tables that a statement reads whole; a partial index holds only what is open, so it may be."""
    if sql in STOPS_SOON:
        return
    tables = {alias or name: name for name, alias in NAMED.findall(sql)} | {
        name: name for name, _ in NAMED.findall(sql)
    }
    partial = {
        name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'")
    }
    for *_, detail in db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters):
        if (found := re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", detail)) is not None:
            table = tables.get(found[1], found[1])
            if table in GROWING and found[2] not in partial:
                yield f"{table}: {detail}\n    {sql}"


STEPS = """
  - {do: list_files, args: {path: inbox}}
  - {do: write_file, args: {path: reports/a.md, text: 'x'}}
  - {do: delete_file, args: {path: inbox/one.log}}
"""
EXTRA = 'schedule: {every: 15m, if_missed: run-once}\nonly_if: {files_changed: "inbox/*.log"}\n'


async def test_no_step_reads_a_growing_table_whole(tmp_path: Path, sent: dict[str, Any]) -> None:
    stage = Stage(tmp_path / "workspace")
    stage.write("inbox/one.log", "a line\n")
    stage.playbook("clean", STEPS, tools="list_files, write_file, delete_file", extra=EXTRA)
    async with stage.runtime() as runtime:
        loaded = projections.tasks(runtime.ledger.reader)[0].first_loaded
        stage.clock.forward(3_600)
        for draft in account(runtime.ledger.reader, runtime.tasks["clean"], loaded, runtime.now()):
            runtime.ledger.commit(draft)
        (parked,) = await stage.run_open_slots(runtime)
        assert parked.status == "parked"
        operations.expire(runtime.ledger, runtime.now())
    async with stage.runtime() as runtime:  # recovered, with a question open
        (question,) = projections.escalations(runtime.ledger.reader)
        operations.answer(
            runtime.ledger, runtime.identifiers, runtime.now(), 0, escalation=question.escalation, answer="approve"
        )
        (resumed,) = await stage.run_open_slots(runtime)
        assert resumed.status == "unverified"
        assert len(events(runtime, "action.ended")) == 3
    db = sqlite3.connect(":memory:")
    with sqlite3.connect(f"file:{stage.directory}/state/ledger.db?mode=ro", uri=True) as ledger:
        ledger.backup(db)
    asked = [(sql, values) for sql, values in sent.items() if sql.split()[0] in {"SELECT", "WITH", "INSERT", "UPDATE"}]
    assert len(asked) > 60, "the statements were not seen"
    assert [found for sql, values in asked for found in scans(db, sql, values)] == []


def test_the_check_would_see_a_scan(tmp_path: Path, sent: dict[str, Any]) -> None:
    db = sqlite3.connect(tmp_path / "ledger.db")
    db.execute("CREATE TABLE actions (action TEXT PRIMARY KEY, state TEXT)")
    db.execute("CREATE INDEX actions_open ON actions(action) WHERE state = 'open'")
    assert list(scans(db, "SELECT * FROM actions a WHERE state = ?", ["ended"]))
    assert list(scans(db, "SELECT * FROM actions ORDER BY action", []))
    assert not list(scans(db, "SELECT * FROM actions WHERE state = 'open'", []))
    assert not list(scans(db, "SELECT * FROM actions WHERE action = ?", ["A"]))
    assert any(sql.startswith("CREATE INDEX") for sql in sent)
