"""Backups beside the daemon itself: a real one runs, acts and writes its ledger, while a backup (whole, or of sealed segments)
is hit by a fault at each of its calls, or the command that makes it is killed. The daemon must not notice, and the next backup
must be whole, however the last one ended."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from perdure.errors import PerdureError
from perdure.state.backup import backup, verify_copy
from perdure.state.reading import LedgerReader
from perdure.state.sealing import seal
from perdure.state.unsealing import verify_segments

from .children import CRASHED, Child
from .daemons import broken_promises, tools_workspace
from .matrix import ROOT, every_fault
from .progress import Progress

COMMANDS = 12  # of each kind that are killed as the program they are
COMMAND_SECONDS_MAX = 0.8  # a backup of so small a ledger takes less, its start included
SECONDS_MAX = 60.0  # for the daemon to start, to go on, and to stop
Point: TypeAlias = tuple[str, int, str]  # which backup, at which call (0: the command, at some moment), which fault


@dataclass(frozen=True)
class Place:
    """A workspace whose daemon runs, and where its backups go."""

    workspace: Path
    targets: Path

    @property
    def state(self) -> Path:
        return self.workspace / "state"

    @property
    def file(self) -> Path:
        return self.targets / "whole.db"

    @property
    def segments(self) -> Path:
        return self.targets / "segments"

    def head(self) -> int:
        """The last event; 0 where there is no ledger yet."""
        try:
            with LedgerReader.open(self.state / "ledger.db") as reader:
                return reader.head().seq
        except PerdureError:
            return 0


def explore(*, samples: int, seed: int, progress: Progress) -> tuple[int, list[str], Counter[str]]:
    """(crashes, broken promises, how many of each); `samples` 0: every call × every fault."""
    root = Path(tempfile.mkdtemp(prefix="perdure-beside-", dir=ROOT))
    chance = random.Random(seed)
    logging.disable(logging.CRITICAL)
    failures: list[str] = []
    places = Counter[str]()
    try:
        place = Place(root / "w", root / "to")
        place.targets.mkdir()
        tools_workspace(place.workspace, extra="schedule: {every: 1s}\n")
        with _daemon(place) as process:
            _wait_for(lambda: place.head() > 40, process)
            points: list[Point] = [(kind, *fault) for kind in KINDS for fault in _faults(place, kind)]
            points += [(kind, 0, "kill") for kind in KINDS for _ in range(COMMANDS)]
            if samples:
                points = chance.sample(points, min(samples, len(points)))
            for kind, call, mode in progress.over(points, len(points)):
                crashed = _fault(place, kind, call, mode) if call else _command(place, kind, chance)
                places[f"{kind}, {'call' if call else 'command'}"] += crashed
                found = _wrong(place, kind)
                if process.poll() is not None:
                    found.append("the daemon ended")
                failures += [f"{kind} beside the daemon, {mode} at call {call}: {text}" for text in found]
                progress.broken = len(failures)
                if process.poll() is not None:
                    break
            head = place.head()
            _wait_for(lambda: place.head() > head, process)  # it still works
        if process.returncode != 0:
            failures.append(f"the daemon ended with {process.returncode}")
        failures += broken_promises(place.workspace)
        return places.total(), failures, places
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(root)


@contextlib.contextmanager
def _daemon(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-m", "perdure.daemon.cli", "-w", str(place.workspace), "run", "--quiet"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS_MAX)
        finally:
            process.kill()


def _wait_for(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the daemon does not act (exit status {process.poll()})")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)


def _whole(place: Place) -> None:
    backup(place.state, place.file)


def _sealed(place: Place) -> None:
    seal(place.state, place.segments)


KINDS: dict[str, Callable[[Place], None]] = {"whole": _whole, "segments": _sealed}


def _faults(place: Place, kind: str) -> list[tuple[int, str]]:
    """Every fault at every call of this backup; the daemon's events between two of them change its calls by few."""
    status, calls, _ = Child(lambda: KINDS[kind](place), place.targets).wait()
    assert status == 0
    _wrong(place, kind)
    return list(every_fault(calls))


def _fault(place: Place, kind: str, call: int, mode: str) -> bool:
    status, _, fired = Child(lambda: KINDS[kind](place), place.targets, call, mode).wait()
    return fired and status in CRASHED


def _command(place: Place, kind: str, chance: random.Random) -> bool:
    """Kill `perdure backup` at some moment; whether it was still at work."""
    target = [str(place.file)] if kind == "whole" else ["--to", str(place.segments)]
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure.daemon.cli", "-w", str(place.workspace), "backup", *target],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0, COMMAND_SECONDS_MAX))
    at_work = process.poll() is None
    process.kill()
    process.wait()
    return at_work


def _wrong(place: Place, kind: str) -> list[str]:
    """What is wrong with the backup, once it has been made again where it is not there."""
    try:
        if kind == "segments":
            _sealed(place)
            report = verify_segments(place.segments)
        else:
            if not place.file.exists():
                _whole(place)
            report = verify_copy(place.file)
            place.file.unlink()
    except PerdureError as error:
        return [f"the next backup fails: {error}"]
    return [f"the next backup: {finding}" for finding in report.findings if finding.grave]
