"""Power loss, modelled: every write, sync, truncation, renaming and deletion of a run is recorded, and for every moment of it
disk images are built with what had not been synced lost, kept, torn or out of order. Each is read back by another SQLite build."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from perdure.state import chain

from .agents import Agent, Observer
from .matrix import ROOT
from .progress import Progress
from .shim import Shim

SECTOR = 512
DIRECTORY = ("", ".")  # the state directory itself
JUDGED = ("ledger.db", "ledger.db-wal", "ledger.db-journal", "anchor")  # the other files do not outlive their process


@dataclass(frozen=True)
class Operation:
    """One recorded call. `op`: W write, S sync, T truncate, U unlink, R rename, N the observer's note."""

    op: str
    name: str
    offset: int
    data: bytes


@dataclass
class File:
    """A file's durable content, and the changes to it that no sync has covered yet. `kept` is the content if all of them last."""

    durable: bytes = b""
    kept: bytes = b""
    pending: list[Operation] = field(default_factory=list)
    linked: bool = True  # whether its name survives a power cut (its directory was synced since it was made)
    removed: bool = False  # deleted, but the deletion itself is not durable yet


def record(
    agent: type[Agent], root: Path, *, rounds: int, checkpoint_pages: int
) -> tuple[dict[str, bytes], list[Operation]]:
    """The files before the run, and what the run did. The agent runs in a child with the shim preloaded."""
    state, log, trace = root / "state", root / "observer", root / "trace"
    state.mkdir()

    class Traced(agent):  # type: ignore[misc, valid-type]
        def prepare(self, ledger):
            super().prepare(ledger)
            ledger.reader.connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")

    first = Traced(state, Observer(log), rounds=0)
    first.run()
    before = {file.name: file.read_bytes() for file in state.iterdir() if file.name in JUDGED}
    child = os.fork()
    if child == 0:
        try:
            shim = Shim()
            shim.trace(os.open(trace, os.O_WRONLY | os.O_CREAT))
            shim.arm(state, 0, "kill")
            Traced(state, Observer(log, shim.note), rounds=rounds).run()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return before, list(operations(trace.read_bytes(), state))


def operations(data: bytes, state: Path) -> Iterator[Operation]:
    """The trace, parsed; names are relative to the state directory."""
    at, prefix = 0, len(str(state)) + 1
    while at < len(data):
        op, path_length, offset, length = struct.unpack_from("<cHqI", data, at)
        at += 15
        path = data[at : at + path_length].decode()
        at += path_length
        body = data[at : at + length]
        at += length
        if op == b"R":
            body = body[prefix:]
        yield Operation(op.decode(), path if op == b"N" else path[prefix:], offset, body)


def images(
    before: dict[str, bytes], trace: list[Operation], seed: int
) -> Iterator[tuple[list[list[str]], dict[str, bytes]]]:
    """After every operation: (what the observer had seen by then, a possible content of the disk), several for each."""
    chance = random.Random(seed)
    files = {name: File(content, content) for name, content in before.items()}
    seen: list[list[str]] = []
    yield seen, _kept(files)
    for operation in trace:
        if operation.op == "N":
            seen = [*seen, operation.name.split()]
        else:
            if operation.name not in (*JUDGED, *DIRECTORY):
                continue
            _perform(files, operation)
        yield seen, _kept(files)
        yield seen, _lost(files)
        if operation.op in "WT":
            yield seen, _image(files, lambda pending: pending[:-1])  # the last one lost
            yield seen, _image(files, lambda pending: pending[-1:])  # the last one alone: out of order
            yield seen, _image(files, _torn)
            yield seen, _image(files, lambda pending: [one for one in pending if chance.random() < 0.5])
            yield seen, _image(files, lambda pending: [_sectors(one, chance) for one in pending])


def explore(
    agent: type[Agent], *, jobs: int, progress: Progress, states_max: int = 0, seed: int = 1, failures_max: int = 0
) -> tuple[int, list[str]]:
    """How many different states were tried, and every broken promise among them, or the first `failures_max` of each run.
    `states_max` 0: the whole suite."""
    runs = (
        [(2, 1000), (3, 8)]
        if states_max
        else [(rounds, pages) for rounds in (10, 6, 3, 1) for pages in (1000, 30, 8, 2)]
    )
    share = states_max // len(runs)
    states, failures = 0, []
    with multiprocessing.get_context("fork").Pool(jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        tasks = [(agent, rounds, pages, share, seed, failures_max) for rounds, pages in runs]
        for tried, found in progress.over(pool.imap_unordered(_one_run, tasks), len(tasks)):
            states += tried
            failures += found
            progress.broken = len(failures)
    return states, failures


def _one_run(task: tuple[type[Agent], int, int, int, int, int]) -> tuple[int, list[str]]:
    """Record one run and judge every different state that a power cut in it could leave, or an even sample of `share`."""
    agent, rounds, pages, share, seed, failures_max = task
    failures: list[str] = []
    tried: set[int] = set()
    root = Path(tempfile.mkdtemp(prefix="perdure-power-", dir=ROOT))
    try:
        before, trace = record(agent, root, rounds=rounds, checkpoint_pages=pages)
        step = max(1, sum(7 if operation.op in "WT" else 2 for operation in trace) // share) if share else 1
        for number, (seen, content) in enumerate(images(before, trace, seed)):
            if number % step != seed % step:
                continue
            mark = hash((len(seen), *sorted((name, hash(data)) for name, data in content.items())))
            if mark in tried:
                continue
            tried.add(mark)
            failures += [
                f"rounds {rounds}, checkpoint at {pages}, state {len(tried)}: {text}"
                for text in judge(root / "image", content, seen)
            ]
            if failures_max and len(failures) >= failures_max:
                break
    finally:
        shutil.rmtree(root)
    return len(tried), failures


def judge(directory: Path, content: dict[str, bytes], seen: list[list[str]]) -> list[str]:
    """What is wrong with this disk, read by apsw's SQLite: damage, a broken chain, or something forgotten
    that the observer knows."""
    directory.mkdir()
    try:
        for name, data in content.items():
            (directory / name).write_bytes(data)
        try:
            db = apsw.Connection(str(directory / "ledger.db"))
            try:
                return _damage(db) or [*_forgotten(db, seen), *_unknown_to_the_ledger(db, content.get("anchor", b""))]
            finally:
                db.close()
        except apsw.Error as error:
            return [f"unreadable: {error}"]
    finally:
        shutil.rmtree(directory)


def _damage(db: apsw.Connection) -> list[str]:
    (answer,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if answer != "ok":
        return [f"corrupt: {answer}"]
    previous, expected = None, 1
    for seq, at, type_, body, payload_hash, hash_ in db.execute(
        "SELECT seq, at, type, body, payload_hash, hash FROM events ORDER BY seq"
    ):
        if seq != expected or chain.link(seq, at, type_, body, payload_hash, previous) != hash_:
            return [f"the chain breaks at event {seq}"]
        previous, expected = hash_, seq + 1
    return []


def _forgotten(db: apsw.Connection, seen: list[list[str]]) -> list[str]:
    found = []
    intents = {
        tuple(row)
        for row in db.execute("SELECT body ->> 'action', body ->> 'attempt' FROM events WHERE type = 'action.intended'")
    }
    outcomes = {action for (action,) in db.execute("SELECT action FROM events WHERE type = 'action.ended'")}
    approvals = {
        name for (name,) in db.execute("SELECT body ->> 'escalation' FROM events WHERE type = 'escalation.answered'")
    }
    for line in seen:
        if line[0] == "effect" and (line[1], int(line[2])) not in intents:
            found.append(f"effect {line[1]} has no durable intent")
        elif line[:2] == ["acknowledged", "outcome"] and line[2] not in outcomes:
            found.append(f"the acknowledged outcome of {line[2]} is lost")
        elif line[:2] == ["acknowledged", "approval"] and f"E{line[2]}" not in approvals:
            found.append(f"the acknowledged approval of {line[2]} is lost")
    return found


def _unknown_to_the_ledger(db: apsw.Connection, anchor: bytes) -> list[str]:
    """Heads that are anchored and not there: verification would speak of a deleted tail, and opening would refuse."""
    found = []
    for line in anchor.split(b"\n")[:-1]:
        try:
            head = json.loads(line)
        except ValueError:
            continue  # a torn line is passed over
        if (head["hash"],) not in db.execute("SELECT hash FROM events WHERE seq = ?", (head["seq"],)).fetchall():
            found.append(f"event {head['seq']} is anchored and is not there")
    return found


def _perform(files: dict[str, File], operation: Operation) -> None:
    name = operation.name
    if operation.op == "S":
        if name in files:
            file = files[name]
            file.durable, file.pending, file.linked = file.kept, [], True
        elif name in DIRECTORY:  # names made and deleted are now durable
            for key in [key for key, file in files.items() if file.removed]:
                del files[key]
            for file in files.values():
                file.linked = True
    elif operation.op == "U":
        if name in files:
            files[name].removed = True
    elif operation.op == "R":
        target = operation.data.decode()
        files[target] = files.pop(name)
    else:
        file = files.get(name)
        if file is None or file.removed:
            file = files[name] = File(linked=False)
        file.pending.append(operation)
        file.kept = _applied(file.kept, [operation])


def _kept(files: dict[str, File]) -> dict[str, bytes]:
    return {name: file.kept for name, file in files.items() if not file.removed}


def _lost(files: dict[str, File]) -> dict[str, bytes]:
    return {name: file.durable for name, file in files.items() if file.linked}


def _image(files: dict[str, File], choose) -> dict[str, bytes]:
    return {
        name: _applied(file.durable, choose(file.pending)) if file.pending else file.kept
        for name, file in files.items()
        if not file.removed
    }


def _torn(pending: list[Operation]) -> list[Operation]:
    last = pending[-1]
    half = len(last.data) // 2 // SECTOR * SECTOR
    return [*pending[:-1], Operation(last.op, last.name, last.offset, last.data[:half])] if last.op == "W" else pending


def _sectors(operation: Operation, chance: random.Random) -> Operation:
    """A write of which only its first sectors reached the disk."""
    if operation.op != "W":
        return operation
    keep = chance.randint(0, len(operation.data) // SECTOR + 1) * SECTOR
    return Operation("W", operation.name, operation.offset, operation.data[:keep])


def _applied(content: bytes, pending: list[Operation]) -> bytes:
    if not pending:
        return content
    data = bytearray(content)
    for operation in pending:
        if operation.op == "T":
            del data[operation.offset :]
            data.extend(bytes(operation.offset - len(data)))
        else:
            offset = len(data) if operation.offset < 0 else operation.offset
            if len(data) < offset:
                data.extend(bytes(offset - len(data)))
            data[offset : offset + len(operation.data)] = operation.data
    return bytes(data)
