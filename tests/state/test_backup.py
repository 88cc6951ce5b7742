"""Backups verify, restores show, and no crash between leaves a ledger in doubt."""

from __future__ import annotations

import shutil

import pytest

from perdure.errors import PerdureError
from perdure.state import backup as b
from perdure.state import events as e
from perdure.state.ledger import Ledger
from perdure.state.ownership import Owner


@pytest.fixture
def saved(story):
    """A story backed up while it was open, that went on afterwards."""
    story.live()
    head = b.backup(story.directory, story.directory.parent / "saved.db")
    assert head == story.ledger.head
    story.session("later")
    story.close()
    return story


def restore(story, file, **options):
    with Owner.acquire(story.directory) as owner:
        return b.restore(file, story.directory, owner=owner, now=story.now, version="0", **options)


def test_a_backup_verifies_on_its_own(saved, tmp_path):
    directory, report = b.check_backup(tmp_path / "saved.db", tmp_path)
    assert report.ok
    assert report.findings == []
    assert [file.name for file in tmp_path.glob("saved*")] == ["saved.db", "saved.db.anchor"] or len(
        list(tmp_path.glob("saved*"))
    ) == 2
    shutil.rmtree(directory)


def test_a_restore_is_a_new_epoch_that_verify_shows(saved, tmp_path):
    before = saved.verify().head.seq
    restored = restore(saved, tmp_path / "saved.db")
    assert restored.epoch == 2
    report = saved.verify()
    assert report.ok
    assert [(finding.kind, finding.seq) for finding in report.findings] == [("restored", restored.head.seq + 1)]
    assert str(before) in report.findings[0].detail
    assert restored.replaced.exists()
    with Owner.acquire(saved.directory) as owner:
        saved.open(owner.fence).commit(e.AlarmRaised(code="x"))
        opened = list(saved.ledger.reader.events(types=["ledger.opened"]))
        assert [event.body["epoch"] for event in opened] == [1, 2]
        assert opened[1].body["restored_from"] == f"{restored.head.seq} {restored.head.hash}"


def test_restores_of_restores_still_tell_a_deleted_tail(saved, tmp_path):
    restore(saved, tmp_path / "saved.db")
    with Owner.acquire(saved.directory) as owner:
        saved.open(owner.fence).commit(*(e.AlarmRaised(code="x") for _ in range(20)))
        b.backup(saved.directory, tmp_path / "second.db")
        saved.close()
    restore(saved, tmp_path / "saved.db")
    assert saved.verify().ok
    assert saved.verify().epoch == 3
    restore(saved, tmp_path / "second.db")
    assert saved.verify().ok
    assert saved.verify().epoch == 4
    shutil.copy(tmp_path / "saved.db", saved.path)
    assert not saved.verify().ok


def test_a_tampered_backup_is_refused_and_nothing_is_touched(saved, tmp_path):
    file = tmp_path / "saved.db"
    data = bytearray(file.read_bytes())
    place = data.find(b"write_file")
    data[place : place + 10] = b"write_fill"
    file.write_bytes(data)
    before = saved.path.read_bytes()
    with pytest.raises(PerdureError, match="write_fill"):
        restore(saved, file)
    assert saved.path.read_bytes() == before
    assert not list(saved.directory.glob("restore-*"))


def test_a_backup_without_its_anchor_needs_consent(saved, tmp_path):
    (tmp_path / "saved.db.anchor").unlink()
    with pytest.raises(PerdureError, match="accept-unanchored"):
        restore(saved, tmp_path / "saved.db")
    assert restore(saved, tmp_path / "saved.db", accept_unanchored=True).epoch == 2


@pytest.mark.parametrize("loss", ["ledger", "everything", "corrupt"])
def test_a_lost_ledger_comes_back(saved, tmp_path, loss):
    if loss == "corrupt":
        saved.path.write_bytes(saved.path.read_bytes()[:5000])
    else:
        saved.path.unlink()
        if loss == "everything":
            shutil.rmtree(saved.directory)
            saved.directory.mkdir()
    restored = restore(saved, tmp_path / "saved.db")
    assert saved.verify().ok
    assert (restored.replaced is None) == (loss != "corrupt")


def test_a_crash_before_the_new_epoch_is_anchored_is_made_good(saved, tmp_path):
    anchor = (saved.directory / "anchor").read_bytes()
    restore(saved, tmp_path / "saved.db")
    (saved.directory / "anchor").write_bytes(anchor)
    assert saved.verify().ok
    saved.open(fence=9).close()
    assert saved.verify().ok
    assert saved.verify().anchored == saved.verify().head.seq


def test_an_existing_backup_is_never_overwritten(saved, tmp_path):
    with pytest.raises(PerdureError, match="exists"):
        b.backup(saved.directory, tmp_path / "saved.db")
    with pytest.raises(PerdureError, match="permissions"):
        b.backup(saved.directory, tmp_path / "no such directory" / "saved.db")


def test_what_is_no_backup_is_refused(saved, tmp_path):
    (tmp_path / "text").write_text("hello")
    for name in ("text", "missing"):
        with pytest.raises(PerdureError, match="cannot re"):
            restore(saved, tmp_path / name, accept_unanchored=True)
    assert saved.verify().ok


def test_the_log_of_a_replaced_ledger_is_never_applied_to_the_new_one(saved, tmp_path):
    """The old ledger was killed with its last commits still in the write-ahead log, and cannot be opened any more."""
    ledger = saved.open(fence=5)
    ledger.commit(*(e.AlarmRaised(code="old", payload="x" * 1000) for _ in range(50)))
    copy = {name: (saved.directory / name).read_bytes() for name in ("ledger.db", "ledger.db-wal")}
    saved.close()
    saved.path.write_bytes(b"x" * 200 + copy["ledger.db"][200:])
    (saved.directory / "ledger.db-wal").write_bytes(copy["ledger.db-wal"])
    restored = restore(saved, tmp_path / "saved.db")
    assert saved.verify().ok
    assert (saved.directory / f"{restored.replaced.name}-wal").exists()
    with Ledger.open(saved.path, now=saved.now, fence=99) as ledger:
        assert not list(ledger.reader.events(types=["alarm.raised"]))


def test_what_a_restore_left_that_was_cut_off_is_cleared_away_by_the_next(saved, tmp_path):
    staging, _ = b.check_backup(tmp_path / "saved.db", saved.directory)  # as far as the first one got
    restore(saved, tmp_path / "saved.db")
    assert not staging.exists()
    assert saved.verify().ok
