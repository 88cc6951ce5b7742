"""Backup and restore with a fault at every call: of a backup while another process writes the ledger (and dies in the middle
of it), and of a restore. A backup is whole or not there; a restore leaves the old ledger, the new one, or a refusal that says
to restore again; and the one who writes meanwhile keeps every promise."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from perdure.errors import PerdureError
from perdure.state.backup import backup, check_backup, restore
from perdure.state.ownership import Owner
from perdure.state.verification import verify

from .agents import Agent, Observer
from .checks import violations
from .children import CRASHED, Child
from .matrix import ROOT, every_fault
from .progress import Progress
from .shim import MODES

ROUNDS = 60  # of the writer: more than it gets done while a backup is made
WRITER_CALLS_MAX = 600


def explore(*, samples: int, seed: int, progress: Progress) -> tuple[int, list[str], Counter[str]]:
    """(crashes, broken promises, how many of each); `samples` 0: every call × every fault."""
    root = Path(tempfile.mkdtemp(prefix="perdure-backup-", dir=ROOT))
    chance = random.Random(seed)
    logging.disable(logging.CRITICAL)
    try:
        template = root / "template"
        template.mkdir()
        Agent(template / "state", Observer(template / "observer"), rounds=1).run()
        backup(template / "state", template / "saved.db")
        Agent(template / "state", Observer(template / "observer"), rounds=2).run()
        points = [("backup", _backing_up, call, mode) for call, mode in _points(root, template, _back_up, "to")]
        points += [("restore", _restoring, call, mode) for call, mode in _points(root, template, _restore, "state")]
        points += [
            ("writer during backup", _writer_dies, chance.randrange(1, WRITER_CALLS_MAX), mode)
            for mode in MODES
            for _ in range(20)
        ]
        if samples:
            points = chance.sample(points, min(samples, len(points)))
        failures: list[str] = []
        places = Counter[str]()
        for name, scenario, call, mode in progress.over(points, len(points)):
            directory = root / "one"
            shutil.copytree(template, directory)
            (directory / "to").mkdir()
            crashed, found = scenario(directory, call, mode)
            if crashed:
                places[name] += 1
            failures += [f"{name}, {mode} at call {call}: {text}" for text in found]
            progress.broken = len(failures)
            shutil.rmtree(directory)
        return places.total(), failures, places
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(root)


def _points(root: Path, template: Path, work: Callable[[Path], None], watched: str) -> Iterator[tuple[int, str]]:
    directory = root / "count"
    shutil.copytree(template, directory)
    (directory / "to").mkdir()
    status, calls, _ = Child(lambda: work(directory), directory / watched).wait()
    assert status == 0
    shutil.rmtree(directory)
    yield from every_fault(calls)


def _back_up(directory: Path) -> None:
    backup(directory / "state", directory / "to" / "new.db")


def _restore(directory: Path) -> None:
    with Owner.acquire(directory / "state") as owner:
        restore(directory / "saved.db", directory / "state", owner=owner, now=_clock, version="0")


def _clock() -> int:
    return 1_800_000_000_000_000


def _backing_up(directory: Path, call: int, mode: str) -> tuple[bool, list[str]]:
    """The backup crashes; the writer goes on, until it is killed."""
    writer = _writer(directory)
    status, _, fired = Child(lambda: _back_up(directory), directory / "to", call, mode).wait()
    writer.kill()
    return fired and status in CRASHED, [*_wrong_backup(directory), *_wrong_ledger(directory)]


def _writer_dies(directory: Path, call: int, mode: str) -> tuple[bool, list[str]]:
    """The writer crashes at one of its calls while backups are made, one after another; each of them is whole."""
    writer = _writer(directory, call, mode)
    found: list[str] = []
    for _ in range(50):
        found += _wrong_backup(directory)
        (directory / "to" / "new.db").unlink()
        if writer.ended():
            break
    else:
        writer.kill()
        return False, [*found, *_wrong_ledger(directory)]
    status, _, fired = writer.wait()
    return fired and status in CRASHED, [*found, *_wrong_ledger(directory)]


def _restoring(directory: Path, call: int, mode: str) -> tuple[bool, list[str]]:
    state = directory / "state"
    status, _, fired = Child(lambda: _restore(directory), state, call, mode).wait()
    found = []
    try:
        Agent(state, Observer(directory / "observer"), rounds=0).run()
        if not (report := verify(state)).ok:
            found.append(f"it opens, and does not verify: {report.findings[0]}")
    except PerdureError as error:
        if "restore" not in error.hint:
            found.append(f"it is refused, and nobody is told to restore again: {error}")
    try:
        _restore(directory)
        if not (report := verify(state)).ok:
            found.append(f"after a second restore: {report.findings[0]}")
        Agent(state, Observer(directory / "observer"), rounds=1).run()
    except PerdureError as error:
        found.append(f"a second restore fails: {error}")
    if left := [path.name for path in state.glob("restore-*")]:
        found.append(f"left behind: {left}")
    return fired and status in CRASHED, found


def _wrong_backup(directory: Path) -> list[str]:
    """What is wrong with the backup, once it has been made again where it is not there."""
    target = directory / "to" / "new.db"
    try:
        if not target.exists():
            _back_up(directory)
        staging, report = check_backup(target, directory)
    except PerdureError as error:
        return [f"backing up again fails: {error}"]
    shutil.rmtree(staging)
    return [f"the backup: {finding}" for finding in report.findings if finding.grave]


def _wrong_ledger(directory: Path) -> list[str]:
    """What the writer's crash broke."""
    observer = Observer(directory / "observer")
    try:
        Agent(directory / "state", observer, rounds=0).run()
        return violations(directory / "state", observer)
    except PerdureError as error:
        return [f"the ledger that was backed up: {error}"]
    finally:
        observer.close()


def _writer(directory: Path, call: int = 0, mode: str = "kill") -> Child:
    """A process that goes on acting; the fault at one of its calls, if any."""
    state = directory / "state"
    agent = Agent(state, Observer(directory / "observer"), rounds=ROUNDS)
    return Child(agent.run, state, call, mode)
