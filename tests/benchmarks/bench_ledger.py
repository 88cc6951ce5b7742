"""The ledger against the floor of two bare SQLite commits, in the same run on the same disk.

    python -m tests.benchmarks.bench_ledger [--events 1000 100000] [--seconds 3] [--directory DIR] [--json]

Every figure is the median of short rounds that alternate with rounds of the floor, so that a disk or a neighbour that
changes its pace meets both. Nothing here passes or fails: the goals are in the issue, the figures are for people.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from perdure.state import events as e
from perdure.state import projections as p
from perdure.state.ledger import Ledger
from perdure.state.verification import verify

from .floor import Floor

ROUND = 40  # actions in a round
WAL_FRAME_HEADER = 24  # bytes, before each page: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
SESSIONS = 32


class Work:
    """Sessions of a few dozen actions each, as sessions are, whose actions run through the ledger."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger.db"
        self.ledger = Ledger.create(self.path, now=lambda: time.time_ns() // 1000, workspace="bench")
        self.numbers = iter(range(10**9))
        self.open: dict[int, str] = {}  # task -> its session
        for task in range(SESSIONS):
            self.ledger.commit(*self.next_session(task))

    def next_session(self, task: int) -> list[e.Draft]:
        """The end of a task's session, if it has one, and the beginning of the next."""
        drafts = []
        if (ended := self.open.get(task)) is not None:
            end = {"status": "unverified", "reason": "r", "steps": 40, "tokens": 0, "cost_usd": 0.0, "duration_us": 9}
            drafts.append(e.SessionClosed(session=ended, task=f"t{task}", slot=f"t{task}/manual/{ended}", **end))
        self.open[task] = session = f"01J{next(self.numbers):023d}"
        slot = f"t{task}/manual/{session}"
        return [
            *drafts,
            e.SlotOpened(slot=slot, task=f"t{task}", kind="manual", due=next(self.numbers)),
            e.SessionOpened(
                session=session, task=f"t{task}", slot=slot, planner="playbook", bounds={"steps": 10}, task_digest="d",
                policies="p", fence=1,
            ),
        ]  # fmt: skip

    def drafts(self, task: int) -> tuple[list[e.Draft], e.ActionIntended, e.ActionEnded]:
        """(proposal and decision, intent, outcome) of a new action of a task's session."""
        common = {"action": f"01J{next(self.numbers):023d}", "session": self.open[task], "task": f"t{task}"}
        digest = "sha256:" + "0" * 64
        return (
            [
                e.ActionProposed(
                    **common,
                    step=1,
                    tool="write_file",
                    effect="idempotent",
                    digest=digest,
                    confidence=1.0,
                    key="steps[0]",
                    payload={
                        "args": {"path": "reports/a.md", "text": "hello " * 20},
                        "provenance": {"path": ["instruction"]},
                    },
                ),
                e.ActionDecided(
                    **common,
                    decision="auto",
                    rules=[{"name": "reports", "file": "policies/main.yaml", "line": 4, "decide": "auto"}],
                    reason="rule reports",
                    policies=digest,
                ),
            ],
            e.ActionIntended(**common, tool="write_file", effect="idempotent", digest=digest, attempt=1),
            e.ActionEnded(
                **common,
                tool="write_file",
                attempt=1,
                status="succeeded",
                duration_us=10,
                payload={"result": {"bytes": 120}},
            ),
        )

    def grow(self, events: int) -> None:
        """Many actions, a hundred to a commit, until the ledger has this many events."""
        while self.ledger.head.seq < events:
            batch = self.next_session(0)
            for _ in range(100):
                before, intent, outcome = self.drafts(0)
                batch += [*before, intent, outcome]
            self.ledger.commit(*batch)


def journal(work: Work) -> Callable[[], None]:
    """Intent and outcome alone; proposals and decisions are there already."""
    ready: list[tuple[e.ActionIntended, e.ActionEnded]] = []

    def prepare() -> None:
        batch = work.next_session(0)
        for _ in range(ROUND):
            before, intent, outcome = work.drafts(0)
            batch += before
            ready.append((intent, outcome))
        work.ledger.commit(*batch)

    def run() -> None:
        intent, outcome = ready.pop()
        work.ledger.commit(intent)
        work.ledger.commit(outcome)

    run.prepare = prepare  # type: ignore[attr-defined]
    return run


def whole(work: Work) -> Callable[[], None]:
    """Proposal, decision and intent in one commit, the outcome in the next."""

    def run() -> None:
        before, intent, outcome = work.drafts(0)
        work.ledger.commit(*before, intent)
        work.ledger.commit(outcome)

    run.prepare = lambda: work.ledger.commit(*work.next_session(0))  # type: ignore[attr-defined]
    return run


def frames(work: Work, subject: Callable[[], None]) -> float:
    """How many pages of the write-ahead log an action writes."""
    log, db = work.path.with_name(work.path.name + "-wal"), work.ledger.reader.connection
    subject.prepare()  # type: ignore[attr-defined]
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for _ in range(ROUND):
        subject()
    return log.stat().st_size / (db.execute("PRAGMA page_size").fetchone()[0] + WAL_FRAME_HEADER) / ROUND


def alternate(floor: Callable[[], None], subject: Callable[[], None], seconds: float) -> tuple[float, float]:
    """(median µs of the floor, of the subject) per action."""
    times: dict[str, list[float]] = {"floor": [], "subject": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in (("floor", floor), ("subject", subject)):
            getattr(run, "prepare", lambda: None)()
            for _ in range(ROUND):
                started = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - started) * 1e6)
    return statistics.median(times["floor"]), statistics.median(times["subject"])


def company(work: Work, actions: int) -> tuple[float, float]:
    """(actions per second, commits per action) of 32 sessions in one loop."""
    commits = []
    stop = work.ledger.subscribe(lambda _: commits.append(1))

    for task in range(SESSIONS):
        work.ledger.commit(*work.next_session(task))
    commits.clear()

    async def session(number: int) -> None:
        for _ in range(actions):
            before, intent, outcome = work.drafts(number)
            await work.ledger.write(*before, intent)
            await work.ledger.write(outcome)

    async def together() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(session(number) for number in range(SESSIONS)))
        return time.perf_counter() - started

    seconds = asyncio.run(together())
    stop()
    return SESSIONS * actions / seconds, len(commits) / (SESSIONS * actions)


def measure(directory: Path, sizes: list[int], seconds: float) -> Iterator[dict[str, object]]:
    """One row of figures for each size of ledger."""
    floor, work = Floor(directory), Work(directory)
    for size in sizes:
        work.grow(size)
        bare, alone = alternate(floor.action, journal(work), seconds)
        yield {
            "events": size,
            "what": "journal alone: intent, outcome",
            "floor_us": bare,
            "us": alone,
            "ratio": alone / bare,
            "wal_frames": frames(work, journal(work)),
        }
        bare, all_the_way = alternate(floor.action, whole(work), seconds)
        yield {
            "events": size,
            "what": "proposal + decision + intent, outcome",
            "floor_us": bare,
            "us": all_the_way,
            "ratio": all_the_way / bare,
            "wal_frames": frames(work, whole(work)),
        }
        per_second, commits = company(work, 60)
        yield {
            "events": size,
            "what": f"the same in {SESSIONS} sessions at once",
            "us": 1e6 / per_second,
            "ratio": all_the_way / (1e6 / per_second),
            "actions_per_second": per_second,
            "commits_per_action": commits,
        }
        before, intent, _ = work.drafts(1)
        work.ledger.commit(*before, intent)
        copy = directory / f"killed-{size}"  # as a kill leaves it: not closed, its log beside it
        copy.mkdir()
        for file in directory.glob("ledger.db*"):
            shutil.copy(file, copy / file.name)
        shutil.copy(directory / "anchor", copy / "anchor")
        started = time.perf_counter()
        with Ledger.open(copy / "ledger.db", now=lambda: 1, fence=2) as ledger:
            intents = p.open_intents(ledger.reader)
            ready = time.perf_counter() - started
        yield {"events": size, "what": f"recovery: open, find {len(intents)} open intents", "us": ready * 1e6}
        for parity in (False, True):
            started = time.perf_counter()
            report = verify(copy, parity=parity)
            took = time.perf_counter() - started
            yield {
                "events": size,
                "what": f"verify {'with parity' if parity else 'chain, anchor, payloads'}",
                "us": took * 1e6,
                "events_per_second": report.events / took,
                "ok": report.ok,
            }
        _, _, outcome = before, intent, _
        work.ledger.commit(outcome)
        shutil.rmtree(copy)
    work.ledger.close()
    floor.db.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_ledger",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--events", type=int, nargs="*", default=[1_000, 100_000])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the temporary directory)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="perdure-bench-", dir=options.directory))
    try:
        for row in measure(directory, options.events, options.seconds):
            if options.json:
                print(json.dumps(row), flush=True)
                continue
            extra = "".join(
                f"  {name.replace('_', ' ')} {value:,.2f}" if isinstance(value, float) else f"  {name} {value}"
                for name, value in row.items()
                if name not in {"events", "what", "us"}
            )
            print(f"{row['events']:>10,}  {row['what']:<42}{row['us']:>12,.0f} µs{extra}", flush=True)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
