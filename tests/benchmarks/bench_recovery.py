"""From a killed daemon to a ready one: a ledger of many events, an open session and an open intent in it, `perdure run`.

    python -m tests.benchmarks.bench_recovery [--events 1000 1000000] [--starts 5] [--directory DIR]

Ready is what systemd is told (READY=1): everything is loaded, what the crash left is settled. "Recovery" is the part that
depends on the ledger: opening and checking it, bringing it to rest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.daemon.stage import Stage

from perdure.daemon.opening import open_runtime, own_ledger
from perdure.daemon.recovery import recover
from perdure.daemon.workspace import load_workspace
from perdure.state import events as e
from perdure.state.ledger import Ledger
from perdure.state.projections import open_intents

STEPS = 25  # of a session
DIGEST = "sha256:" + "0" * 64


def one_session(ledger: Ledger, number: int, *, killed: bool) -> list[e.Draft]:
    """The events of a session of 25 steps; a `killed` one ends with an intent."""
    session = f"01J{number:010d}{0:013d}"
    slot = f"look/manual/{session}"
    drafts: list[e.Draft] = [
        e.SlotOpened(slot=slot, task="look", kind="manual", due=number),
        e.SessionOpened(
            session=session, task="look", slot=slot, planner="playbook", bounds={"steps": STEPS}, task_digest="d",
            policies="p", fence=ledger.fence,
        ),
    ]  # fmt: skip
    for step in range(1, STEPS + 1):
        whose = {"action": f"01J{number:010d}{step:013d}", "session": session, "task": "look"}
        what = {"tool": "list_files", "effect": "read", "digest": DIGEST}
        drafts += [
            e.ActionProposed(**whose, **what, step=step, confidence=1.0, payload={"args": {"path": "inbox"}}),
            e.ActionDecided(**whose, decision="auto", rules=[], reason="r", policies="p"),
            e.ActionIntended(**whose, **what, attempt=1),
        ]
        if killed and step == STEPS:
            return drafts
        drafts.append(
            e.ActionEnded(
                **whose, tool="list_files", attempt=1, status="succeeded", duration_us=1, payload={"result": {"n": 1}}
            )
        )
    return [
        *drafts,
        e.SessionClosed(
            session=session, task="look", slot=slot, status="unverified", reason="r", steps=STEPS, tokens=0,
            cost_usd=0.0, duration_us=1,
        ),
        e.SlotClosed(slot=slot, task="look", kind="manual", due=number, outcome="ran", session=session),
    ]  # fmt: skip


async def grow(stage: Stage, events: int) -> None:
    """Whole sessions until the ledger has this many events, and one that is cut off."""
    async with stage.runtime() as runtime:
        number = runtime.ledger.head.seq
        while runtime.ledger.head.seq < events:
            number += 1
            runtime.ledger.commit(*one_session(runtime.ledger, number, killed=False))
        runtime.ledger.commit(*one_session(runtime.ledger, number + 1, killed=True))


async def recovery(stage: Stage) -> tuple[int, float]:
    """(open intents found, seconds to open the ledger and bring it to rest)."""
    loaded = load_workspace(stage.directory)
    started = time.perf_counter()
    with own_ledger(loaded.config, stage.clock) as owned:
        found = len(open_intents(owned.ledger.reader))
        async with open_runtime(owned, loaded) as runtime:
            await recover(runtime)
            return found, time.perf_counter() - started


def start(directory: Path) -> tuple[float, float]:
    """(seconds, seconds of processor) from the start of `perdure run` until it says that it is ready."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears:
        ears.bind(f"{place}/notify")
        environment = {**os.environ, "NOTIFY_SOCKET": f"{place}/notify"}
        started = time.perf_counter()
        program = [sys.executable, "-m", "perdure.daemon.cli", "--workspace", str(directory), "run", "--quiet"]
        process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while b"READY=1" not in ears.recv(4096):
            pass
        ready = time.perf_counter() - started
        used = processor_of(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait()
    return ready, used


def processor_of(pid: int) -> float:
    """Seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_recovery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--events", type=int, nargs="*", default=[1_000, 1_000_000])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the temporary directory)")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="perdure-bench-", dir=options.directory))
    try:
        stage = Stage(directory / "workspace")
        stage.write("inbox/one.log", "a line\n")
        stage.playbook("look", "\n  - {do: list_files, args: {path: inbox}}\n", tools="list_files")
        for events in options.events:
            asyncio.run(grow(stage, events))
            intents, seconds = asyncio.run(recovery(stage))
            starts = [start(stage.directory) for _ in range(options.starts)]
            ready, used = (statistics.median(column) for column in zip(*starts, strict=True))
            print(
                f"{events:>10,} events  recovery {seconds * 1000:,.0f} ms ({intents} open intent)  `perdure run` ready after"
                f" {ready:.2f} s, {used:.2f} s of processor",
                flush=True,
            )
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
