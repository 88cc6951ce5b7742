"""Faults that are no crash, at every step of the agent's way: a full disk, a read-only or locked database, a clock that jumps.
The agent stops, or goes on where the fault does it no harm; nothing happens that is not on record; and once the fault is gone
it recovers and finishes."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import PerdureError

from .agents import HOUR, Agent, Observer
from .checks import violations
from .children import STOPPED
from .matrix import ROOT
from .progress import Progress

JUMP = 50 * 24 * HOUR  # less than the agent's questions live


class Fault:
    """A place for the agent's state, and what happens to it. `stops`: whether the agent may not get past it."""

    stops = True

    def __init__(self, root: Path) -> None:
        self.state = root / "state"
        self.state.mkdir()

    def strike(self, agent: Agent) -> None:
        """In the agent's process, at one of its steps."""

    def lift(self) -> None:
        """The operator has mended it."""

    def close(self) -> None:
        """Leave nothing behind."""


class FileSizeLimit(Fault):
    """No file may grow: a full disk, as anybody can have it."""

    def strike(self, agent: Agent) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # Only the writing of the ledger is limited: its log begins anew beyond any limit at its present size.
        wal = self.state / "ledger.db-wal"
        size = wal.stat().st_size if wal.exists() else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class FullDisk(Fault):
    """A small tmpfs, filled to the last byte by somebody else."""

    def __init__(self, root: Path) -> None:
        self.state = root / "small"
        self.state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", self.state], check=True, capture_output=True)

    def strike(self, agent: Agent) -> None:
        with (self.state / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def lift(self) -> None:
        (self.state / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.state], check=True, capture_output=True)


class ReadOnlyDatabase(Fault):
    """SQLite refuses every write."""

    def strike(self, agent: Agent) -> None:
        agent.ledger.reader.connection.execute("PRAGMA query_only = ON")


class LockedDatabase(Fault):
    """Somebody else writes, and does not end."""

    def strike(self, agent: Agent) -> None:
        agent.ledger.reader.connection.execute("PRAGMA busy_timeout = 1")
        self._other = sqlite3.connect(self.state / "ledger.db", isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")


class ClockForward(Fault):
    """The clock jumps 50 days ahead."""

    stops = False

    def strike(self, agent: Agent) -> None:
        agent.clock += JUMP


class ClockBack(Fault):
    """The clock jumps 50 days back."""

    stops = False

    def strike(self, agent: Agent) -> None:
        agent.clock -= JUMP


FAULTS = (FileSizeLimit, FullDisk, ReadOnlyDatabase, LockedDatabase, ClockForward, ClockBack)


def explore(*, samples: int, seed: int, progress: Progress) -> tuple[int, list[str], Counter[str]]:
    """(faults that stopped the agent or that it lived through, broken promises, how many of each)."""
    faults = [fault for fault in FAULTS if fault is not FullDisk or os.geteuid() == 0]
    with _scratch() as root:
        steps = _run(Fault(root), root, 0)[1]
    points = [(fault, step) for fault in faults for step in range(1, steps + 1)]
    if samples:
        points = random.Random(seed).sample(points, min(samples, len(points)))
    places, failures = Counter[str](), list[str]()
    logging.disable(logging.CRITICAL)
    for fault, step in progress.over(points, len(points)):
        with _scratch() as root:
            happened, found = _one(fault, root, step)
        places[fault.__name__] += happened
        failures += [f"{fault.__name__} at step {step}: {text}" for text in found]
        progress.broken = len(failures)
    logging.disable(logging.NOTSET)
    return places.total(), failures, places


def _one(kind: type[Fault], root: Path, step: int) -> tuple[bool, list[str]]:
    fault = kind(root)
    try:
        code, _ = _run(fault, root, step)
        if code not in (0, STOPPED):
            return True, [f"ended with status {code}"]
        if code == STOPPED and not fault.stops:
            return True, ["it stopped, and need not have"]
        fault.lift()
        observer = Observer(root / "observer")
        try:
            Agent(fault.state, observer).run()
            return code == STOPPED or not fault.stops, violations(fault.state, observer)
        except PerdureError as error:
            return True, [f"it does not recover: {error}"]
        finally:
            observer.close()
    finally:
        fault.close()


def _run(fault: Fault, root: Path, at: int) -> tuple[int, int]:
    """The agent, on a ledger that is there already, in a process of its own: its exit status and how many steps it took."""
    Agent(fault.state, Observer(root / "observer"), rounds=0).run()
    taken = root / "steps"
    child = os.fork()
    if child == 0:
        code, steps = 1, 0

        def phase(text: str) -> None:
            nonlocal steps
            if text != "start":  # before it, there is no ledger to hurt
                steps += 1
                if steps == at:
                    fault.strike(agent)

        agent = Agent(fault.state, Observer(root / "observer"), phase)
        try:
            agent.run()
            code = 0
            taken.write_text(str(steps))
        except (PerdureError, OSError):
            code = STOPPED
        except BaseException:  # noqa: BLE001 - a child never goes on in its parent's code
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(taken.read_text()) if taken.exists() else 0


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="perdure-fault-", dir=ROOT))
    try:
        yield root
    finally:
        shutil.rmtree(root)
