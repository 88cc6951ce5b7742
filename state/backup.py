"""Backups that verify, restores that show, and projections made anew."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from perdure.errors import PerdureError
from perdure.state.anchor import NAME as ANCHOR_NAME
from perdure.state.anchor import AnchorWriter, anchors
from perdure.state.events import LedgerOpened
from perdure.state.ledger import Ledger
from perdure.state.opening import (
    DAMAGE,
    Progress,
    connect_to_read,
    connect_to_write,
    damaged,
    is_older,
    rebuild_from_events,
)
from perdure.state.ownership import Owner
from perdure.state.reading import Head, LedgerReader
from perdure.state.schema import SCHEMA_VERSION
from perdure.state.segments import sync
from perdure.state.unsealing import unseal
from perdure.state.verification import Report, verify

if TYPE_CHECKING:
    from perdure.state.signing import Signer

ANCHOR_SUFFIX: Final = ".anchor"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: up to which event of the backup, the new epoch, and where the file that it replaced now lies."""

    head: Head
    epoch: int
    replaced: Path | None


def backup(state_dir: Path, target: Path) -> Head:
    """Copy the ledger, also while a daemon writes it, to `target` and its anchor to `target`.anchor; returns its head.

    The copy is whole or not there: it is made beside the target, synced and renamed. Raises PerdureError.
    """
    if target.exists():
        raise PerdureError(
            "back up to", str(target), "the file exists", "Name a new file; old backups are never overwritten"
        )
    anchor_target = target.with_name(target.name + ANCHOR_SUFFIX)
    unborn = target.with_name(target.name + ".new")
    try:
        unborn.unlink(missing_ok=True)
        with contextlib.closing(connect_to_read(state_dir / "ledger.db")) as source:
            os.close(os.open(unborn, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
            with contextlib.closing(sqlite3.connect(unborn, isolation_level=None)) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, no log beside it
                copy.execute("PRAGMA synchronous = EXTRA")
                _refuse_damaged(copy, state_dir / "ledger.db")
                head = LedgerReader(copy).head()
        with anchor_target.open("wb") as file:
            for anchored in anchors(state_dir):
                if anchored.seq <= head.seq:
                    file.write(anchored.line())
            file.flush()
            os.fsync(file.fileno())
        sync(unborn)
        unborn.rename(target)
        sync(target.parent)
    except PerdureError:
        unborn.unlink(missing_ok=True)
        raise
    except (sqlite3.Error, OSError) as error:
        unborn.unlink(missing_ok=True)
        raise PerdureError("back up to", str(target), str(error), "Check disk space and permissions there") from error
    return head


def _refuse_damaged(copy: sqlite3.Connection, path: Path) -> None:
    """A copy of a damaged file would be found out when it is needed. (Whether it says what was written is for `verify`.)"""
    (said,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise damaged(path, sqlite3.DatabaseError(said))


def check_backup(file: Path, work_in: Path, *, progress: Progress | None = None) -> tuple[Path, Report]:
    """Copy a backup, or make the ledger of a directory of sealed segments, in a new directory below `work_in`, and verify it
    there; returns that directory, which the caller owns. Raises PerdureError."""
    staging = Path(tempfile.mkdtemp(prefix="restore-", dir=work_in))
    try:
        _stage(file, staging, progress=progress)
        return staging, verify(staging, progress=progress)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _stage(file: Path, staging: Path, *, progress: Progress | None = None) -> None:
    """`ledger.db` and `anchor` of a backup, in `staging`."""
    try:
        if file.is_dir():
            unseal(file, staging, progress=progress)
            sync(staging / "ledger.db")
            return
        shutil.copyfile(file, staging / "ledger.db")
        for suffix, name in (("-wal", "ledger.db-wal"), (ANCHOR_SUFFIX, ANCHOR_NAME)):
            beside = file.with_name(file.name + suffix)
            if beside.exists():
                shutil.copyfile(beside, staging / name)
        _bring_up_to_date(staging / "ledger.db", progress)
    except (OSError, sqlite3.Error) as error:
        hint = "Name a file or directory that `perdure backup` wrote, and check disk space"
        raise PerdureError("read", str(file), str(error), hint) from error


def _bring_up_to_date(copy: Path, progress: Progress | None) -> None:
    """A copy that an older Perdure made is checked, and restored, with the tables of this one."""
    with contextlib.suppress(PerdureError, *DAMAGE):  # what is wrong with it is what `verify` says
        with contextlib.closing(connect_to_read(copy)) as connection:
            older = is_older(connection)
        if older:
            connect_to_write(copy, progress=progress).close()


def verify_copy(file: Path, *, progress: Progress | None = None, public_key: str | None = None) -> Report:
    """Check a whole copy with its anchor, in a temporary directory. Raises PerdureError where it cannot be read."""
    with tempfile.TemporaryDirectory(prefix="perdure-verify-") as directory:
        staging = Path(directory)
        _stage(file, staging, progress=progress)
        return verify(staging, progress=progress, public_key=public_key)


def restore(
    file: Path,
    state_dir: Path,
    *,
    owner: Owner,
    now: Callable[[], int],
    version: str,
    accept_unanchored: bool = False,
    sign: Signer | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Put a backup in the ledger's place, as a new epoch that the ledger and the anchor both show.

    The backup is verified first; a ledger that it replaces is kept beside it. `owner` holds the workspace's lock, `sign`
    signs the new epoch's anchored head. A file without an anchor of its own is refused unless `accept_unanchored`. A crash
    at any point leaves the old ledger, or the new one, or neither with the hint to restore again. Raises PerdureError.
    """
    for leftover in state_dir.glob("restore-*"):  # of a restore that was cut off: the lock says that none is going on
        shutil.rmtree(leftover, ignore_errors=True)
    staging, report = check_backup(file, state_dir, progress=progress)
    try:
        excused = {"no-anchor"} if accept_unanchored else set()
        wrong = [finding for finding in report.findings if finding.grave and finding.kind not in excused]
        if wrong:
            raise PerdureError(
                "restore", str(file), "; ".join(str(finding) for finding in wrong[:3]),
                "Take another backup; `--accept-unanchored` takes a file whose .anchor file is lost",
            )  # fmt: skip
        path, head = state_dir / "ledger.db", report.head
        epoch = max([report.epoch, *(anchored.epoch for anchored in anchors(state_dir))]) + 1
        fence = max(owner.fence, _fence_of(staging / "ledger.db"))  # on a new machine owners count from 1 again
        with Ledger.open(staging / "ledger.db", now=now, fence=fence, sign=sign) as ledger:
            workspace = ledger.reader.rows("SELECT workspace FROM ledger ORDER BY epoch DESC LIMIT 1")[0][0]
            ledger.commit(
                LedgerOpened(
                    workspace=workspace, epoch=epoch, schema=SCHEMA_VERSION, version=version,
                    restored_from=f"{head.seq} {head.hash}",
                )
            )  # fmt: skip
        if (staging / "ledger.db-wal").exists():  # closing removes it unless its checkpoint failed
            raise OSError(28, "the new ledger could not be written whole")
        sync(staging / "ledger.db")
        replaced = _set_aside(path, epoch)
        (staging / "ledger.db").rename(path)
        if not any(
            True for _ in anchors(state_dir)
        ):  # restored onto a new machine: what the backup knew is all there is
            with contextlib.closing(AnchorWriter(state_dir)) as writer:
                for anchored in anchors(staging):
                    if anchored.seq <= head.seq:
                        writer.append(anchored)
        sync(state_dir)
        # Opening it appends the new epoch's head to the anchor.
        Ledger.open(path, now=now, fence=fence, sign=sign).close()
    except (sqlite3.Error, OSError) as error:
        raise PerdureError(
            "restore", str(file), str(error), "Check disk space and permissions, then restore again"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Restored(head, epoch, replaced)


def rebuild_projections(state_dir: Path, *, progress: Progress | None = None) -> int:
    """Make all projections anew from the events, in one transaction; returns how many events were replayed.

    The caller holds the workspace's lock. Raises PerdureError where the events themselves are not sound.
    """
    path = state_dir / "ledger.db"
    with contextlib.closing(connect_to_write(path, check_projections=False)) as connection:
        try:
            return rebuild_from_events(connection, path, progress)
        except DAMAGE as error:
            raise damaged(path, error) from error


def _fence_of(path: Path) -> int:
    with contextlib.closing(connect_to_read(path)) as connection:
        return int(connection.execute("SELECT fence FROM ownership").fetchone()[0])


def _set_aside(path: Path, epoch: int) -> Path | None:
    """Keep the ledger that is about to be replaced, with its log, under another name."""
    if not path.exists():
        return None
    with contextlib.suppress(PerdureError, sqlite3.Error):
        connect_to_write(path, check_projections=False).close()  # closing carries the log into the file
    kept = path.with_name(f"{path.name}.replaced-{epoch}")
    wal = path.with_name(path.name + "-wal")
    if wal.exists():  # a log that could not be carried over must never be applied to the file that comes next
        wal.rename(kept.with_name(kept.name + "-wal"))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    kept.unlink(missing_ok=True)
    os.link(path, kept)
    return kept
