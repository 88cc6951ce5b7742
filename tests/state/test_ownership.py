"""One owner at a time, named when asked; a dead one blocks nobody; a stale one writes nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.state.events import AlarmRaised, DaemonStarted
from perdure.state.ledger import Ledger, LedgerRefused, LedgerUnwritable
from perdure.state.ownership import Owner, holder

DRIVER = Path(__file__).parent / "drivers" / "owner.py"


@contextlib.contextmanager
def owning_process(directory, *options):
    process = subprocess.Popen(
        [sys.executable, DRIVER, directory, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        fence, child = map(int, process.stdout.readline().split())
        yield process, fence, child
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_second_owner_is_refused_at_once_with_the_first_ones_pid(tmp_path):
    with owning_process(tmp_path) as (process, _, _):
        assert holder(tmp_path) == process.pid
        with pytest.raises(PerdureError, match=f"process {process.pid} owns this workspace") as info:
            Owner.acquire(tmp_path)
        assert "perdure status" in info.value.hint


def test_a_killed_owner_never_blocks_the_next(tmp_path):
    with owning_process(tmp_path) as (process, fence, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert holder(tmp_path) is None
        with Owner.acquire(tmp_path) as owner:
            assert owner.fence == fence + 1


def test_a_child_that_outlives_the_owner_does_not_hold_its_lock(tmp_path):
    with owning_process(tmp_path, "--with-child") as (process, fence, child):
        try:
            process.send_signal(signal.SIGKILL)
            process.wait()
            os.kill(child, 0)  # it lives
            with Owner.acquire(tmp_path) as owner:
                assert owner.fence == fence + 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_fence_grows_with_every_owner(tmp_path):
    fences = []
    for _ in range(5):
        with Owner.acquire(tmp_path) as owner:
            fences.append(owner.fence)
    assert fences == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", [b"", b"garbage", b'{"fence":-5,"pid":1}', b"[1]", b'{"fence":"x"}', None])
def test_the_fence_survives_a_damaged_or_deleted_lock_file(story, damage):
    story.create(fence=1).close()
    story.open(fence=7).close()
    lock = story.directory / "lock"
    if damage is not None:
        lock.write_bytes(damage)
    with Owner.acquire(story.directory) as owner:
        assert owner.fence == 8


def test_a_stale_owner_cannot_open_or_write(story):
    old = story.create(fence=1)
    new = Ledger.open(story.path, now=story.now, fence=2)
    with pytest.raises(LedgerRefused) as info:
        old.commit(AlarmRaised(code="late"))
    assert info.value.rule == "stale-fence"
    with pytest.raises(LedgerUnwritable, match="newer owner"):
        old.commit(AlarmRaised(code="later"))
    with pytest.raises(LedgerRefused):
        Ledger.open(story.path, now=story.now, fence=1)
    with pytest.raises(LedgerRefused):
        new.commit(DaemonStarted(pid=1, fence=1, version="0", host="h"))
    new.commit(AlarmRaised(code="fine"))
    assert [event.body["code"] for event in new.reader.events(types=["alarm.raised"])] == ["fine"]
    new.close()


def test_a_lock_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(PerdureError, match="perdure doctor"):
        Owner.acquire(tmp_path)


def test_a_full_disk_is_told_as_one(tmp_path):
    (tmp_path / "lock").symlink_to("/dev/full")
    with pytest.raises(PerdureError, match="No space left on device") as told:
        Owner.acquire(tmp_path)
    assert "perdure doctor" in told.value.hint
