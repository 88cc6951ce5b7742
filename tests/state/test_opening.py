"""What is no sound ledger is refused with the reason and the command that mends it, and stays as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat

import pytest

from perdure.errors import PerdureError
from perdure.state.ledger import LedgerReader
from perdure.state.schema import APPLICATION_ID
from perdure.state.verification import verify


def spoil(path, how):
    data = path.read_bytes()
    match how:
        case "empty":
            path.write_bytes(b"")
        case "header":
            path.write_bytes(data[:60])
        case "half":
            path.write_bytes(data[: len(data) // 2 // 4096 * 4096])
        case "text":
            path.write_text("dear diary")
        case "other program":
            path.unlink()
            with sqlite3.connect(path) as db:
                db.execute("CREATE TABLE events (seq)")
            db.close()
        case "newer":
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version = 99")
            db.close()
        case "no tables":
            path.unlink()
            with sqlite3.connect(path) as db:
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute("CREATE TABLE x (y)")
            db.close()
        case "noise":
            path.write_bytes(data[:100] + os.urandom(len(data) - 100))
        case "gone":
            path.unlink()


@pytest.mark.parametrize(
    ("how", "cause", "hint"),
    [
        ("empty", "empty", "perdure restore FILE"),
        ("header", "truncated to 60 bytes", "perdure restore FILE"),
        ("half", "truncated: ", "perdure restore FILE"),
        ("text", "not a SQLite file", "perdure restore FILE"),
        ("other program", "another program", "perdure restore FILE"),
        ("newer", "schema 99", "pip install -U perdure"),
        ("no tables", "tables of events are gone", "perdure restore FILE"),
        ("noise", "corrupt", "perdure restore FILE"),
        ("gone", "its anchor is there", "perdure restore FILE"),
    ],
)
def test_an_unsound_file_is_refused_and_left_alone(story, how, cause, hint):
    story.live().close()
    spoil(story.path, how)
    before = story.path.read_bytes() if story.path.exists() else None
    for opening in (story.open, lambda: LedgerReader.open(story.path)):
        if how == "noise" and opening is not story.open:
            continue  # reading finds it at the first damaged page
        with pytest.raises(PerdureError) as info:
            opening()
        assert cause in info.value.cause
        assert hint in info.value.hint
    assert (story.path.read_bytes() if story.path.exists() else None) == before
    report = verify(story.directory)
    assert not report.ok
    assert {finding.kind for finding in report.findings} <= {"unreadable", "corrupt"}


def test_no_ledger_at_all_points_to_init(story):
    with pytest.raises(PerdureError, match="perdure init"):
        story.open()


def test_a_changed_tail_is_not_built_upon(story):
    story.live().close()
    with sqlite3.connect(story.path) as db:
        db.execute("DROP TRIGGER events_are_never_updated")
        db.execute("UPDATE events SET at = at + 1 WHERE seq = (SELECT MAX(seq) FROM events) - 3")
    db.close()
    with pytest.raises(PerdureError, match="perdure verify"):
        story.open()


def test_an_older_file_is_not_built_upon(story):
    ledger = story.live()
    head = ledger.head.seq
    ledger.close()
    shutil.copy(story.path, story.directory / "older.db")
    story.open().commit()
    story.session("later")
    story.close()
    shutil.copy(story.directory / "older.db", story.path)
    with pytest.raises(PerdureError, match=rf"ends at event {head}, but the anchor knows event {head + 2}"):
        story.open()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_points_to_doctor(story):
    story.live().close()
    story.path.chmod(0)
    with pytest.raises(PerdureError, match="perdure doctor"):
        story.open()


def test_a_ledger_in_a_read_only_directory_can_be_read(story):
    story.live().close()
    head = None
    mode = story.directory.stat().st_mode
    story.directory.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with LedgerReader.open(story.path) as reader:
            head = reader.head()
    finally:
        story.directory.chmod(mode)
    assert head.seq > 10


def test_the_ledger_is_private_to_owner_and_group(story):
    story.live().close()
    for name in ("ledger.db", "anchor"):
        assert stat.S_IMODE((story.directory / name).stat().st_mode) & 0o007 == 0
