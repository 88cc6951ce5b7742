"""A ledger whose tables an older Perdure made: brought up to date from its events, or refused with the command that does it."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from perdure.errors import PerdureError
from perdure.state import chain, projections
from perdure.state.backup import backup, rebuild_projections, restore, verify_copy
from perdure.state.ledger import LedgerReader
from perdure.state.ownership import Owner
from perdure.state.sealing import seal
from perdure.state.unsealing import verify_segments
from perdure.state.verification import verify


def made_by_an_older_perdure(path, schema=1):
    """The same events, below tables as this schema had them."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP INDEX sessions_intended")
        db.execute("ALTER TABLE sessions DROP COLUMN last_intended_at")
        db.execute("DROP INDEX actions_elsewhere")
        db.execute("CREATE INDEX actions_open ON actions(seq_intended) WHERE state = 'intended'")
        db.execute("CREATE INDEX actions_calls ON actions(tool, intended_at) WHERE intended_at IS NOT NULL")
        if schema == 1:
            db.execute("DROP TABLE resumptions")
            db.execute("DROP INDEX sessions_saved")
            db.execute("ALTER TABLE sessions DROP COLUMN saved")
            db.execute("ALTER TABLE tasks DROP COLUMN timezone")
        db.execute(f"PRAGMA user_version = {schema}")


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("how", ["a start", "ledger rebuild"])
def test_the_tables_of_an_older_perdure_are_made_anew_from_the_events(story, how, schema):
    story.live().close()
    before = story.verify().head
    made_by_an_older_perdure(story.path, schema)
    assert story.kinds() == {"older-schema"}
    with pytest.raises(PerdureError, match="older Perdure") as info:
        LedgerReader.open(story.path)
    assert "perdure ledger rebuild" in info.value.hint
    seen: list[tuple[int, int]] = []
    if how == "a start":
        story.open(progress=lambda done, total: seen.append((done, total))).close()
    else:
        rebuild_projections(story.directory, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(before.seq, before.seq)]  # told of each thousand events, and of the last
    report = story.verify()
    assert report.ok, report.findings
    assert report.head == before
    with LedgerReader.open(story.path) as reader:
        assert projections.sessions(reader)
        assert projections.open_intents(reader) == []
        assert len(projections.call_times(reader, "write_file", 0)) == len(projections.actions(reader)) - 1


def test_a_backup_of_an_older_perdure_is_checked_and_restored(story, tmp_path):
    story.live().close()
    made_by_an_older_perdure(story.path)
    file, sealed = tmp_path / "backup.db", tmp_path / "sealed"
    backup(story.directory, file)  # before the upgrade, or instead of it
    seal(story.directory, sealed)
    assert verify_copy(file).ok
    assert verify_segments(sealed).ok
    for source in (file, sealed):
        elsewhere = tmp_path / f"from-{source.name}"
        elsewhere.mkdir()
        with Owner.acquire(elsewhere) as owner:
            restore(source, elsewhere, owner=owner, now=story.now, version="0")
        report = verify(elsewhere)
        assert report.ok, report.findings


def test_an_older_ledger_whose_events_cannot_be_replayed_is_refused_and_left_alone(story):
    story.live().close()
    made_by_an_older_perdure(story.path)
    with contextlib.closing(sqlite3.connect(story.path)) as db, db:
        head, previous = db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        body = '{"task":"nobody"}'
        hash_ = chain.link(head + 1, story.at, "task.removed", body, None, previous)
        event = (head + 1, story.at, "task.removed", body, None, hash_, None, "nobody", None)
        db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", event)
        dump = list(db.iterdump())
    with pytest.raises(PerdureError, match="no such task is loaded") as info:
        story.open()
    assert "perdure verify" in info.value.hint
    with contextlib.closing(sqlite3.connect(story.path)) as db:
        assert list(db.iterdump()) == dump
