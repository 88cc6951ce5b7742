"""Kills and disks that fail, with real processes and files: what was acknowledged stays, and nothing is written after a failure."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.state.events import AlarmRaised
from perdure.state.ledger import LedgerReader, LedgerUnwritable

SECTOR = 512
DRIVER = Path(__file__).parent / "drivers" / "writer.py"


def test_what_was_acknowledged_survives_a_kill(story):
    story.create().close()
    for round_ in range(6):
        with subprocess.Popen([sys.executable, DRIVER, story.directory], stdout=subprocess.PIPE, text=True) as process:
            for _ in range(50 + 37 * round_):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            acknowledged = [int(line) for line in process.stdout.read().split("\n")[:-1]]
        with LedgerReader.open(story.path) as reader:
            assert reader.head().seq >= (acknowledged or [0])[-1]
        report = story.verify()
        assert report.ok, report.findings
        assert {finding.kind for finding in report.findings} <= {"not-anchored"}


def test_a_read_only_database_stops_all_writing(story):
    ledger = story.create()
    with contextlib.closing(sqlite3.connect(story.path, isolation_level=None)) as other:
        ledger.reader.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(LedgerUnwritable, match="perdure doctor"):
            ledger.commit(AlarmRaised(code="x"))
        ledger.reader.connection.execute("PRAGMA query_only = OFF")
        with pytest.raises(LedgerUnwritable):  # and stays stopped, though the cause is gone
            ledger.commit(AlarmRaised(code="y"))
        assert other.execute("SELECT COUNT(*) FROM events").fetchone() == (1,)
    story.close()
    story.open().commit(AlarmRaised(code="z"))


def test_a_locked_database_stops_all_writing(story):
    ledger = story.create()
    ledger.reader.connection.execute("PRAGMA busy_timeout = 10")
    with contextlib.closing(sqlite3.connect(story.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnwritable, match="locked"):
            ledger.commit(AlarmRaised(code="x"))


def test_a_full_file_system_stops_all_writing_and_loses_nothing(story):
    """RLIMIT_FSIZE refuses every write beyond a size, as a full disk does, without root."""
    story.create().close()
    script = """
import resource, signal, sys, pathlib
from perdure.state.ledger import Ledger, LedgerUnwritable
from perdure.state.events import AlarmRaised
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger.open(pathlib.Path(sys.argv[1]), now=lambda: 5, fence=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
done = 0
try:
    while True:
        done = ledger.commit(AlarmRaised(code="x", payload=str(done) * 500))[-1].seq
except LedgerUnwritable as error:
    print(done, error, flush=True)
try:
    ledger.commit(AlarmRaised(code="y"))
except LedgerUnwritable:
    print("stays closed", flush=True)
"""
    output = subprocess.run(
        [sys.executable, "-c", script, story.path], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    acknowledged = int(output[0].split()[0])
    assert "No action runs until it can be written" in output[0]
    assert output[1] == "stays closed"
    assert story.verify().ok
    with LedgerReader.open(story.path) as reader:
        assert reader.head().seq >= acknowledged
    story.open().commit(AlarmRaised(code="space again"))


def test_an_anchor_that_cannot_be_written_stops_what_comes_after(story):
    ledger = story.create()
    os.close(ledger._anchor._file)
    ledger._anchor._file = os.open(
        story.path, os.O_RDONLY
    )  # a descriptor that refuses writes, as a file system remounted read-only does
    (event,) = ledger.commit(AlarmRaised(code="durable"))
    assert event.seq == 2
    with pytest.raises(LedgerUnwritable, match="anchor"):
        ledger.commit(AlarmRaised(code="unanchored"))
    story.close()
    assert story.kinds() == {"not-anchored"}


def everything(path: Path) -> list[str]:
    """What the ledger says, row by row."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return list(db.iterdump())


def test_a_torn_page_is_noticed_or_held_nothing(story):
    """Every page in turn, its second half as it was before anything was written there."""
    story.live().close()
    data = story.path.read_bytes()
    page = int.from_bytes(data[16:18], "big")
    said = everything(story.path)
    noticed = 0
    for start in range(0, len(data), page):
        half = start + page // 2
        torn = data[:half] + bytes(page // 2) + data[start + page :]
        if torn == data:
            continue
        story.path.write_bytes(torn)
        if story.verify().ok:
            assert everything(story.path) == said, f"page {start // page + 1} says something else, and nobody noticed"
        else:
            noticed += 1
    assert noticed > 5


def test_no_damaged_sector_keeps_verify_from_its_report_nor_opening_from_its_refusal(story):
    story.live().close()
    data = story.path.read_bytes()
    chance = random.Random(20261122)
    sectors = len(data) // SECTOR
    said, noticed = everything(story.path), 0
    for _ in range(50):
        damaged = bytearray(data)
        start = chance.randrange(sectors) * SECTOR
        other = chance.randrange(sectors) * SECTOR
        damaged[start : start + SECTOR] = chance.choice(
            (bytes(SECTOR), chance.randbytes(SECTOR), data[other : other + SECTOR])
        )
        story.path.write_bytes(damaged)
        if story.verify().ok:
            assert everything(story.path) == said
        else:
            noticed += 1
        with contextlib.suppress(PerdureError):
            story.open().commit(AlarmRaised(code="x"))
        story.close()
    assert noticed > 20


def test_a_schema_that_is_no_text_is_a_damaged_ledger(story):
    story.live().close()
    story.path.write_bytes(story.path.read_bytes().replace(b"tableactions", b"tableact\xc4ons"))
    assert story.kinds() == {"unreadable"}
    with pytest.raises(PerdureError, match=r"corrupt.*perdure restore"):
        story.open()


def test_a_torn_last_frame_of_the_log_was_never_a_commit(story):
    """A kill in the middle of a commit: what was acknowledged before it is there, the torn one is not, and it goes on."""
    ledger = story.create()
    for number in range(5):
        ledger.commit(AlarmRaised(code=f"c{number}"))
    acknowledged = ledger.head.seq
    wal = story.path.with_name("ledger.db-wal")
    before = len(wal.read_bytes())
    ledger.commit(AlarmRaised(code="torn", payload="x" * 3000))
    files = {path.name: path.read_bytes() for path in story.directory.iterdir()}
    anchor = files["anchor"].splitlines(keepends=True)
    story.close()
    for length in range(before + 1, len(files["ledger.db-wal"]), 700):
        for name, content in files.items():
            (story.directory / name).write_bytes(content)
        (story.directory / "ledger.db-shm").unlink(missing_ok=True)
        wal.write_bytes(files["ledger.db-wal"][:length])
        (story.directory / "anchor").write_bytes(b"".join(anchor[:-1]))  # written after the commit, so not yet
        assert story.open().head.seq == acknowledged
        story.ledger.commit(AlarmRaised(code="goes on"))
        story.close()
        assert story.verify().ok
