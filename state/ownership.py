"""One owner per workspace: a file lock that dies with its process, and a fence number that only ever grows."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, Self

from perdure.errors import PerdureError
from perdure.state.canonical import canonical
from perdure.state.chain import parse
from perdure.state.reading import read_only_uri

NAME: Final = "lock"


class Owner:
    """The process that may write. The kernel releases the lock when it dies, however it dies: no lease, no clock."""

    def __init__(self, file: int, fence: int) -> None:
        self._file: int | None = file
        self.fence = fence

    @classmethod
    def acquire(cls, state_dir: Path) -> Owner:
        """Take the workspace's lock or raise PerdureError at once, naming the holder's pid. The fence is durable on return."""
        state_dir.mkdir(parents=True, exist_ok=True)
        path = state_dir / NAME
        try:
            # Close-on-exec: a tool that outlived its daemon must not go on holding the lock.
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise PerdureError(
                "lock", str(path), error.strerror or str(error), "Check permissions: `perdure doctor`"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _read(file).get("pid", "unknown")
            os.close(file)
            raise PerdureError(
                "lock", str(state_dir), f"process {pid} owns this workspace",
                "Use its commands (`perdure status`), or stop it first",
            ) from None  # fmt: skip
        try:
            fence = max(_read(file).get("fence", 0), _fence_in_ledger(state_dir / "ledger.db")) + 1
            # One sector, written over in place: a torn write leaves the ledger's own fence to go by.
            line = canonical({"fence": fence, "pid": os.getpid()}).ljust(64) + b"\n"
            os.pwrite(file, line, 0)
            os.ftruncate(file, len(line))
            os.fsync(file)
        except OSError as error:
            os.close(file)
            raise PerdureError(
                "lock", str(path), error.strerror or str(error), "Check disk space and the disk: `perdure doctor`"
            ) from error
        except BaseException:
            os.close(file)
            raise
        return cls(file, fence)

    def release(self) -> None:
        """Give the lock back. The file stays: deleting it would let two processes lock two files of one name."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder(state_dir: Path) -> int | None:
    """The pid of the process that owns the workspace now; None where nobody does."""
    try:
        file = os.open(state_dir / NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(file).get("pid")
    finally:
        os.close(file)
    return None


def _read(file: int) -> dict[str, int]:
    try:
        value = parse(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return {key: item for key, item in value.items() if isinstance(item, int)} if isinstance(value, dict) else {}


def _fence_in_ledger(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
            return int(connection.execute("SELECT fence FROM ownership").fetchone()[0])
    except sqlite3.Error:
        return 0  # opening the ledger will say what is wrong with it
