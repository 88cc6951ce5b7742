"""Whether verification tells on somebody who may write the file and knows its format: every event in turn is edited, moved,
renumbered, deleted or has everything after it cut off, with the database's own defences put back and its projections made
anew, so that only chain and anchor are left to tell."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.reading import LedgerReader
from perdure.state.verification import verify

from .agents import Agent, Observer
from .matrix import ROOT
from .progress import Progress

ROUNDS = 2
HOUR = 3_600_000_000
Deed = Callable[[sqlite3.Connection, int], None]


def explore(agent: type[Agent], *, samples: int, seed: int, progress: Progress) -> tuple[int, list[str]]:
    """(forgeries tried, those that nobody noticed); `samples` 0: every event × every deed."""
    root = Path(tempfile.mkdtemp(prefix="perdure-tamper-", dir=ROOT))
    try:
        right = root / "right"
        right.mkdir()
        agent(right, Observer(root / "observer"), rounds=1).run()
        older = (right / "ledger.db").read_bytes()
        agent(right, Observer(root / "observer"), rounds=ROUNDS).run()
        if not (report := verify(right)).ok:
            return 1, [f"nothing was done to it, and it says: {report.findings[0]}"]
        points = [(name, deed, seq) for seq in range(1, report.head.seq + 1) for name, deed in DEEDS.items()]
        points.append(("put in place of", lambda db, seq: None, 0))
        if samples:
            points = random.Random(seed).sample(points, min(samples, len(points)))
        tried, unnoticed = 0, []
        for name, deed, seq in progress.over(points, len(points)):
            forged = root / "forged"
            shutil.copytree(right, forged)
            if seq == 0:
                (forged / "ledger.db").write_bytes(older)
            if seq == 0 or _forge(forged / "ledger.db", deed, seq):
                tried += 1
                if verify(forged).ok:
                    unnoticed.append(f"event {seq} {name}: nobody noticed" if seq else "an older file: nobody noticed")
                    progress.broken = len(unnoticed)
            shutil.rmtree(forged)
        return tried, unnoticed
    finally:
        shutil.rmtree(root)


def _forge(path: Path, deed: Deed, seq: int) -> bool:
    """Do it, and leave no other trace. False: it changed nothing."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        defences = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in defences:
            db.execute(f'DROP TRIGGER "{name}"')
        before = db.total_changes
        deed(db, seq)
        changed = db.total_changes > before
        db.execute("BEGIN")
        try:
            projections.rebuild(db, LedgerReader(db).events())
            db.execute("COMMIT")
        except (PerdureError, sqlite3.Error, KeyError, TypeError):
            db.execute("ROLLBACK")  # such events have no projections: verification may say that as well
        for _, sql in defences:
            with contextlib.suppress(sqlite3.OperationalError):  # a projection's own, made anew with it
                db.execute(sql)
    return changed


def _moved_in_time(db: sqlite3.Connection, seq: int) -> None:
    db.execute("UPDATE events SET at = at - ? WHERE seq = ?", (HOUR, seq))


def _edited(db: sqlite3.Connection, seq: int) -> None:
    db.execute("UPDATE events SET body = json_set(body, '$.reason', 'forged') WHERE seq = ?", (seq,))


def _given_another_payload(db: sqlite3.Connection, seq: int) -> None:
    db.execute("UPDATE payloads SET encoding = 'plain', data = ? WHERE seq = ?", (b'"forged"', seq))


def _swapped_with_the_next(db: sqlite3.Connection, seq: int) -> None:
    if db.execute("SELECT MAX(seq) FROM events").fetchone()[0] == seq:
        return
    for old, new in ((seq, -1), (seq + 1, seq), (-1, seq + 1)):
        _renumber(db, old, new)


def _deleted(db: sqlite3.Connection, seq: int) -> None:
    _remove(db, "seq = ?", seq)


def _deleted_and_the_gap_closed(db: sqlite3.Connection, seq: int) -> None:
    _remove(db, "seq = ?", seq)
    for (later,) in db.execute("SELECT seq FROM events WHERE seq > ? ORDER BY seq", (seq,)).fetchall():
        _renumber(db, later, later - 1)


def _renumbered_with_all_after_it(db: sqlite3.Connection, seq: int) -> None:
    for (later,) in db.execute("SELECT seq FROM events WHERE seq >= ? ORDER BY seq DESC", (seq,)).fetchall():
        _renumber(db, later, later + 1)


def _cut_off_with_all_after_it(db: sqlite3.Connection, seq: int) -> None:
    _remove(db, "seq >= ?", seq)


def _renumber(db: sqlite3.Connection, old: int, new: int) -> None:
    db.execute("UPDATE events SET seq = ? WHERE seq = ?", (new, old))
    db.execute("UPDATE payloads SET seq = ? WHERE seq = ?", (new, old))


def _remove(db: sqlite3.Connection, which: str, seq: int) -> None:
    db.execute(f"DELETE FROM events WHERE {which}", (seq,))
    db.execute(f"DELETE FROM payloads WHERE {which}", (seq,))


DEEDS: dict[str, Deed] = {
    "moved in time": _moved_in_time,
    "edited": _edited,
    "given another payload": _given_another_payload,
    "swapped with the next": _swapped_with_the_next,
    "deleted": _deleted,
    "deleted and the gap closed": _deleted_and_the_gap_closed,
    "renumbered with all after it": _renumbered_with_all_after_it,
    "cut off with all after it": _cut_off_with_all_after_it,
}
