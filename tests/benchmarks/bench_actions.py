"""The whole way of an action, from the proposal through decision, intent and a trivial tool to its outcome, as sessions take it.

    python -m tests.benchmarks.bench_actions [--events 1000 100000 1000000] [--seconds 3] [--directory DIR] [--profile] [--json]

Against the floor of two bare durable commits, in rounds that alternate on the same disk; at several sizes of the ledger, grown as
sessions leave it; 32 sessions at once; how long `perdure run` takes to be ready after a kill; and the same work in DBOS,
LangGraph and durabl where `make crash-peers` has installed them. The journal alone and `verify` are in bench_ledger. Nothing here
passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.daemon.stage import open_steps

from perdure.daemon.clock import MICROSECONDS, SystemClock
from perdure.daemon.opening import open_runtime, own_ledger
from perdure.daemon.planners.moves import Proposal
from perdure.daemon.runtime import Runtime
from perdure.daemon.tools.model import Call, Prepared, Result, ToolSpec
from perdure.daemon.workspace import load_workspace
from perdure.state import events as e
from perdure.state.canonical import digest
from perdure.state.events import JSON

from .floor import Floor

ROUND = 40  # actions in a round
SESSIONS = 32
DAYS = 90  # over which the ledger grew
DAY = 86_400 * MICROSECONDS
REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / ".cache" / "peers" / "bin" / "python"
SYSTEMS = ("durabl", "dbos", "langgraph")

CONFIG = 'timezone = "UTC"\n[files]\nwrite = ["reports"]\n[memory]\nembedding = "none"\n'
POLICY = """version: 1
rules:
  - {name: reading here, tools: [list_files, read_file, search_files], path: {under: [inbox, reports]}, decide: auto}
  - {name: reports, tools: [write_file, append_file], path: {under: reports}, decide: auto}
  - {name: memory, tools: [recall, remember], decide: auto}
  - {name: tell us, tools: [notify], decide: auto}
  - {name: deleting is for a person, tools: [delete_file], decide: escalate, expires: 12h, on_expiry: deny}
"""
TASK = "---\nname: work{}\nplanner: playbook\nbounds: {{steps: 10}}\n---\nsteps:\n  - {{do: list_files, args: {{path: reports}}}}\n"


class PastClock(SystemClock):
    """The system's clock, some time ago."""

    def __init__(self) -> None:
        self.behind = 0

    def now(self) -> int:
        return super().now() - self.behind


@dataclass
class Trivial:
    """In the place of `write_file`, a tool that does nothing."""

    spec: ToolSpec
    path: str

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        return Prepared(spec=self.spec, args=args, digest=digest(dict(args)), paths={"path": (self.path,)})

    async def run(self, prepared: Prepared, call: Call) -> Result:
        return Result(ok=True, value={"bytes": 120})

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return None


class Workplace:
    """Open sessions on a real runtime."""

    def __init__(self, runtime: Runtime, clock: PastClock, directory: Path) -> None:
        self.runtime, self.clock, self.directory = runtime, clock, directory
        original = runtime.tools["write_file"].spec
        runtime.tools = {**runtime.tools, "write_file": Trivial(original, str(directory / "reports" / "a.md"))}
        self.numbers = iter(range(10**9))
        self.sessions = [open_steps(runtime, f"work{number}", "write_file") for number in range(SESSIONS)]

    async def action(self, session: int = 0) -> None:
        """One action, all the way."""
        args: dict[str, JSON] = {"path": "reports/a.md", "text": "hello " * 20}
        provenance = {"path": ("instruction",), "text": ("instruction",)}
        key = f"steps[{next(self.numbers)}]"
        taken = await self.sessions[session].take(
            1, Proposal(tool="write_file", args=args, provenance=provenance, confidence=1.0, key=key)
        )
        assert taken.status == "succeeded", taken

    def grow(self, events: int, days: float) -> None:
        """Add sessions of ten actions, ten to a commit and spread over so many days, until there are this many events; then let
        two quiet days pass, so that the windows of an hour and a day hold what is measured and nothing else."""
        ledger = self.runtime.ledger
        whole, began = events - ledger.head.seq, self.clock.behind
        while (missing := events - ledger.head.seq) > 0:
            self.clock.behind = began - int(days * DAY) * (whole - missing) // whole
            sessions = min(10, missing // 44 + 1)
            ledger.commit(*(draft for _ in range(sessions) for draft in self._past_session()))
        self.clock.behind = began - int((days + 2) * DAY)

    def _past_session(self) -> list[e.Draft]:
        session, task = self.runtime.identifiers.new(), "past"
        slot, due = f"past/manual/{session}", self.clock.now()
        policies = self.runtime.policies.digest
        drafts: list[e.Draft] = [
            e.SlotOpened(slot=slot, task=task, kind="manual", due=due),
            e.SessionOpened(
                session=session,
                task=task,
                slot=slot,
                planner="playbook",
                bounds={"steps": 10},
                task_digest="d",
                policies=policies,
                fence=self.runtime.ledger.fence,
            ),
        ]
        decided = {"decision": "auto", "reason": "rule reports", "policies": policies}
        rules = [{"name": "reports", "file": "policies/all.yaml", "line": 4, "decide": "auto"}]
        for step in range(1, 11):
            whom = {"action": self.runtime.identifiers.new(), "session": session, "task": task}
            what = {"tool": "write_file", "effect": "idempotent", "digest": "sha256:" + "0" * 64}
            args = {"args": {"path": "reports/a.md", "text": "hello " * 20}, "provenance": {"path": ["instruction"]}}
            outcome = {"result": {"bytes": 120}, "error": None, "truncated": False}
            drafts += [
                e.ActionProposed(**whom, **what, step=step, confidence=1.0, key=f"steps[{step}]", payload=args),
                e.ActionDecided(**whom, **decided, rules=rules),
                e.ActionIntended(**whom, **what, attempt=1),
                e.ActionEnded(**whom, tool="write_file", attempt=1, status="succeeded", duration_us=9, payload=outcome),
            ]
        used = {"steps": 10, "tokens": 0, "cost_usd": 0.0, "duration_us": 9}
        drafts += [
            e.SessionClosed(session=session, task=task, slot=slot, status="unverified", reason="finished", **used),
            e.SlotClosed(slot=slot, task=task, kind="manual", due=due, outcome="ran", session=session),
        ]
        return drafts


async def alternate(floor: Floor, work: Workplace, seconds: float) -> tuple[float, float, float]:
    """(median µs of the floor, of a whole action, µs of processor time of a whole action)."""
    bare: list[float] = []
    whole: list[float] = []
    busy: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(ROUND):
            started = time.perf_counter()
            floor.action()
            bare.append((time.perf_counter() - started) * 1e6)
        worked = time.process_time()
        for _ in range(ROUND):
            started = time.perf_counter()
            await work.action()
            whole.append((time.perf_counter() - started) * 1e6)
        busy.append((time.process_time() - worked) / ROUND * 1e6)
    return statistics.median(bare), statistics.median(whole), statistics.median(busy)


async def company(work: Workplace, sessions: int, actions: int) -> tuple[float, float]:
    """(actions per second, commits per action) of sessions in one loop; the median of five rounds."""
    commits: list[int] = []
    stop = work.runtime.ledger.subscribe(lambda _: commits.append(1))

    async def session(number: int) -> None:
        for _ in range(actions):
            await work.action(number)

    rates = []
    for _ in range(5):
        started = time.perf_counter()
        await asyncio.gather(*(session(number) for number in range(sessions)))
        rates.append(sessions * actions / (time.perf_counter() - started))
    stop()
    return statistics.median(rates), len(commits) / (5 * sessions * actions)


def seconds_to_ready(workspace: Path) -> float:
    """From the start of `perdure run` until it tells its supervisor that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        address = workspace / "notify"
        address.unlink(missing_ok=True)
        supervisor.bind(str(address))
        supervisor.settimeout(120)
        started = time.perf_counter()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "perdure.daemon.cli", "-w", str(workspace), "run", "--quiet"],
            env={**os.environ, "NOTIFY_SOCKET": str(address)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in supervisor.recv(4096):
                pass
            return time.perf_counter() - started
        finally:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()


async def measure(directory: Path, options: argparse.Namespace) -> None:
    """One row of figures after the other."""
    floor = Floor(directory)
    workspace = directory / "workspace"
    tasks = {f"tasks/work{number}.md": TASK.format(number) for number in range(SESSIONS)}
    for name, text in {"perdure.toml": CONFIG, "policies/all.yaml": POLICY, **tasks}.items():
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(text)
    (workspace / "reports").mkdir()
    loaded, clock = load_workspace(workspace), PastClock()
    stages = len(options.events)
    clock.behind = (DAYS + 2 * stages) * DAY
    with own_ledger(loaded.config, clock) as owned:
        async with open_runtime(owned, loaded) as runtime:
            work = Workplace(runtime, clock, workspace)
            for size in options.events:
                work.grow(size, DAYS / stages)
                if options.profile:
                    await profile(work)
                bare, whole, busy = await alternate(floor, work, options.seconds)
                tell(
                    options,
                    size,
                    "proposal to outcome",
                    us=whole,
                    floor_us=bare,
                    ratio=whole / bare,
                    per_second=1e6 / whole,
                    processor_us=busy,
                )
                alone, _ = await company(work, 1, 200)
                together, commits = await company(work, SESSIONS, 20)
                tell(
                    options,
                    size,
                    f"{SESSIONS} sessions at once",
                    us=1e6 / together,
                    per_second=together,
                    times_one_session=together / alone,
                    commits_per_action=commits,
                )
                killed = directory / f"killed-{size}"
                shutil.copytree(workspace, killed, ignore=shutil.ignore_patterns("*.sock", "lock"))
                ready = statistics.median(seconds_to_ready(killed) for _ in range(3))
                tell(options, size, "perdure run after a kill: ready", us=ready * 1e6)
                shutil.rmtree(killed)
    floor.db.close()


async def profile(work: Workplace) -> None:
    """Where the time of the whole way goes."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(1000):
        await work.action()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)


def peers(directory: Path, options: argparse.Namespace) -> None:
    """The same work in other systems, each in a process of its own with its own floor."""
    if not PEERS.exists():
        print("           (DBOS, LangGraph and durabl are not installed: make crash-peers)")
        return
    for system in SYSTEMS:
        place = directory / system
        place.mkdir()
        command = [str(PEERS), "-m", "tests.benchmarks.peer_actions", system, str(place), str(options.seconds)]
        ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if ran.returncode:
            print(f"           {system}: {ran.stderr.strip().splitlines()[-1]}")
            continue
        for line in ran.stdout.splitlines():
            tell(options, 0, **json.loads(line))


def tell(options: argparse.Namespace, events: int, what: str, *, us: float, **more: float) -> None:
    """One row."""
    if options.json:
        print(json.dumps({"events": events, "what": what, "us": us, **more}), flush=True)
        return
    figures = "".join(f"  {name.replace('_', ' ')} {value:,.2f}" for name, value in more.items())
    print(f"{events:>10,}  {what:<42}{us:>12,.0f} µs{figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_actions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--events", type=int, nargs="*", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the temporary directory)")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="perdure-bench-", dir=options.directory))
    try:
        asyncio.run(measure(directory, options))
        if not options.no_peers:
            peers(directory, options)
    finally:
        shutil.rmtree(directory)
        print(f"           load {', '.join(f'{load:.1f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    main()
