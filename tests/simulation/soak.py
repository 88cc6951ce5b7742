"""Months of the daemon's life under a virtual clock, with everything that goes wrong in them, from one seed."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from perdure.daemon import corrections, opening, operations, reloading
from perdure.daemon.clock import Identifiers
from perdure.daemon.config import load_config
from perdure.daemon.layout import LEDGER
from perdure.daemon.opening import OwnedLedger, open_runtime
from perdure.daemon.planners import build_planner
from perdure.daemon.recovery import recover
from perdure.daemon.reloading import Reloader
from perdure.daemon.runtime import Runtime
from perdure.daemon.secrets import redactor
from perdure.daemon.slot_runner import SlotRunner
from perdure.daemon.timer import Timer
from perdure.daemon.tools.registry import build_tools, tool_specs
from perdure.daemon.workspace import load_workspace, signatures
from perdure.errors import PerdureError, Problems
from perdure.policies.loading import load_policies
from perdure.state import projections
from perdure.state.events import DaemonStarted, DaemonStopped, Event
from perdure.state.ledger import Ledger, LedgerReader, LedgerUnwritable
from perdure.state.ownership import Owner

from . import firings
from .outside import BrokenPromise, Fuse, ObservedTool, Outside, SimulatedModel, SimulatedTool
from .promises import Promises
from .virtual_time import MICROSECONDS, Crash, VirtualClock, VirtualLoop
from .workplace import (
    BROKEN_POLICIES,
    BROKEN_TASKS,
    OBSERVED_TOOLS,
    POLICIES,
    SIMULATED_TOOLS,
    TASKS,
    furnish,
    write,
)

DAY = 86_400.0
FIRST_DAY = datetime(2027, 1, 4, tzinfo=UTC)
VERSION = "simulated"
# How often a day each of these happens.
RATES = {
    "fuse": 0.6, "kill": 0.35, "stop": 0.15, "disk full": 0.12, "policy": 0.35, "broken policy": 0.15, "task": 0.2,
    "broken task": 0.1, "jump ahead": 0.08, "jump back": 0.06, "pause": 0.1, "manual": 0.3, "log file": 1.5, "revoke": 0.1,
    "stop file": 0.05,
}  # fmt: skip
SESSIONS_A_DAY_MIN = 6  # of the twelve or so that the schedules make: a daemon that does nothing breaks no promise
FUSES = ("mid commit", "after commit", "before effect", "after effect", "in planner")


class Failed(Exception):
    """The simulation found something; `seed` plays it again."""

    def __init__(self, words: str, soak: Soak) -> None:
        tail = "\n  ".join(soak.promises.tail) if soak.promises else ""
        super().__init__(
            f"{words}\n  on day {soak.day:.2f} of life {soak.lives}; the last events:\n  {tail}\n"
            f"again: python -m tests.simulation --seed {soak.seed} --days {soak.days} --directory {soak.directory}"
        )


@dataclass(order=True)
class Due:
    at: float
    number: int
    what: str = field(compare=False)
    params: dict[str, Any] = field(compare=False, default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    day: int
    days: int
    lives: int
    sessions: int
    events: int


class Soak:
    """One run. `directory` is removed and made anew: its path is part of what is hashed."""

    def __init__(
        self, seed: int, days: int, directory: Path, progress: Callable[[Progress], None] = lambda reached: None
    ) -> None:
        self.seed, self.days, self.directory, self.progress = seed, days, directory, progress
        self.told_day = 0
        self.until = float(days)
        self.clock = VirtualClock(FIRST_DAY)
        self.faults, self.people = Random(f"{seed} faults"), Random(f"{seed} people")
        self.entropy = Random(f"{seed} entropy")
        self.outside = Outside(self.clock, Random(f"{seed} world"), directory / "state" / LEDGER)
        self.counts: Counter[str] = self.outside.counts
        self.agenda: list[Due] = []
        self.numbers = 0
        self.lives = 0
        self.policy = "careful"
        self.broken: set[Path] = set()
        self.good: dict[Path, str] = {}
        self.kill_after: float | None = None
        self.promises: Promises | None = None
        self.failure = ""

    @property
    def day(self) -> float:
        return self.clock.monotonic() / DAY

    # -- the whole life -----------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Live through all days; raises Failed."""
        shutil.rmtree(self.directory, ignore_errors=True)
        furnish(self.directory)
        config = load_config(self.directory)
        specs = signatures(tool_specs(config))
        versions = {}
        for version in POLICIES.values():
            write(self.directory / "policies/policy.yaml", version.text)
            versions[load_policies([self.directory / "policies"], specs, workspace=self.directory).digest] = version
        write(self.directory / "policies/policy.yaml", POLICIES["careful"].text)
        for path in [*sorted(self.directory.glob("tasks/*.md")), self.directory / "policies/policy.yaml"]:
            self.good[path] = path.read_text()
        self.promises = Promises(versions, self._payload, self.outside.has_happened)
        self._plan_all_days()
        try:
            with (
                mock.patch.object(opening, "build_tools", self._build_tools),
                mock.patch.object(reloading, "build_tools", self._build_tools),
            ):
                while self.day < self.days:
                    self._one_life()
                self._settle_down()
            return self._judge()
        except BrokenPromise as broken:
            raise Failed(f"invariant {broken.promise}", self) from broken
        finally:
            self.outside.stop_watching()

    def _plan_all_days(self) -> None:
        for day in range(self.days):
            for what, rate in RATES.items():
                for _ in range(int(rate) + (self.faults.random() < rate % 1)):
                    self._agree((day + self.faults.random()) * DAY, what)

    def _agree(self, at: float, what: str, **params: Any) -> None:
        self.numbers += 1
        heapq.heappush(self.agenda, Due(at, self.numbers, what, params))

    def _payload(self, seq: int) -> Any:
        return self._ledger.reader.payload(seq)

    # -- one life of the daemon ---------------------------------------------------------------------------------------

    def _one_life(self) -> None:
        try:
            loaded = load_workspace(self.directory)
        except Problems:
            assert self.broken, "a workspace that nobody broke does not load"
            self.counts["cold start refused"] += 1
            self._down(self.people.uniform(600, 10 * 3_600))
            self._repair()
            return
        self.lives += 1
        self.outside.life = self.lives
        loop = VirtualLoop(self.clock)
        self._open_ledger(loaded.config)
        self.outside.watch_ledger()
        self.failure = ""
        try:
            loop.run_until_complete(self._serve(loaded))
            loop.close()
            self._close_ledger()
            if not self.failure:
                self.promises.stopped()
        except Crash:
            self._ledger_dies()
            loop.abandon()
        except BrokenPromise:
            self._ledger_dies()
            loop.abandon()
            raise
        finally:
            self.outside.life = -1
        self.promises.crashed()
        if self.failure:
            self._down(self.people.expovariate(1 / (2 * 3_600)))  # until somebody has made room
        elif self.faults.random() < 0.6:
            self._down(self.faults.uniform(1, 60))  # systemd starts it again
        else:
            self._down(self.faults.expovariate(1 / (9 * 3_600)))
        if self.faults.random() < 0.3:  # and it dies again while it recovers
            self.outside.fuse = Fuse(self.faults.choice(FUSES[:2]), self.faults.randint(1, 8))
        self._harm_memory()

    def _open_ledger(self, config: Any) -> None:
        self.owner = Owner.acquire(config.state_dir)
        path, redact = config.state_dir / LEDGER, redactor(config)
        self.identifiers = Identifiers(self.clock.now, self.entropy.randbytes)
        if not path.exists():
            first = Ledger.create(
                path,
                now=self.clock.now,
                workspace=self.identifiers.new(),
                entropy=self.entropy.randbytes,
                redact=redact,
            )
            first.close()
        self._ledger = Ledger.open(path, now=self.clock.now, fence=self.owner.fence, entropy=self._salt, redact=redact)
        promises, head = self.promises, self._ledger.head
        if promises.seq == 0:
            promises.saw(tuple(self._ledger.reader.events()))
        promises.must(
            (head.seq, head.hash) == (promises.seq, promises.hash),
            7,
            f"the ledger stands at {head}, not at {promises.seq}",
        )
        self._ledger.subscribe(self._saw)

    def _salt(self, length: int) -> bytes:
        self.outside.burn("mid commit")
        return self.entropy.randbytes(length)

    def _saw(self, events: tuple[Event, ...]) -> None:
        self.promises.saw(events)
        for event in events:
            if event.type == "escalation.opened":
                self._somebody_reads(event)
            elif (
                event.type == "paused" and event.body["by"] == "breaker"
            ):  # whatever is answered, some day it is mended
                self._agree(
                    self.clock.monotonic() + self.people.uniform(0.5, 3) * DAY, "unpause", task=event.body["task"]
                )
            elif event.type == "compaction.stopped":
                self._agree(self.clock.monotonic() + self.people.uniform(600, DAY), "resume memory")
            elif event.type == "session.opened" and self.kill_after is not None:
                self._agree(self.clock.monotonic() + self.kill_after, "die")
                self.kill_after = None
                self._poke()
        self.outside.burn("after commit")

    def _close_ledger(self) -> None:
        self._ledger.close()
        self.owner.release()

    def _ledger_dies(self) -> None:
        """As the kernel leaves it: what was committed is there, nothing else is written."""
        ledger = self._ledger
        ledger._closed = True
        ledger._waiting.clear()
        with contextlib.suppress(Exception):
            ledger._anchor.close()
        ledger._db.close()
        self.owner.release()

    async def _serve(self, loaded: Any) -> None:
        """The daemon's life as perdure.daemon.service leads it, without sockets, signals and APScheduler."""
        owned = OwnedLedger(ledger=self._ledger, owner=self.owner, identifiers=self.identifiers, clock=self.clock)
        self._poked = asyncio.Event()
        try:
            async with open_runtime(owned, loaded) as runtime:
                self.runtime = runtime
                self._hand_over_the_world(runtime)
                fence = self._ledger.fence
                await self._ledger.write(DaemonStarted(pid=self.lives, fence=fence, version=VERSION, host="simulation"))
                await recover(runtime)
                self.promises.recovered()
                runner = SlotRunner(runtime, stop=self._fail)
                timer = Timer(runtime, runner.wake, self._fail)
                self.reloader, self.timer, self.runner = Reloader(runtime, timer), timer, runner
                wake = self._ledger.subscribe(lambda events: runner.wake())
                running = asyncio.create_task(runner.run())
                await self._days()
                runtime.stopping = True
                runner.wake()
                await running
                wake()
                if not self.failure:
                    await self._ledger.write(DaemonStopped(fence=fence, reason="asked to"))
        except LedgerUnwritable as error:
            self._fail(str(error))

    def _build_tools(self, *given: Any, **more: Any) -> dict[str, Any]:
        """In the place of the daemon's own: the same tools, with the world that is simulated behind them."""
        tools = build_tools(*given, **more)
        tools |= {name: SimulatedTool(tools[name], self.outside, self.lives) for name in SIMULATED_TOOLS}
        tools |= {name: ObservedTool(tools[name], self.outside, self.lives) for name in OBSERVED_TOOLS}
        return tools

    def _hand_over_the_world(self, runtime: Runtime) -> None:
        runtime.plan = lambda task: (
            SimulatedModel(self.outside, task.tools) if task.planner == "model" else build_planner(task, runtime.config)
        )

    def _fail(self, reason: str) -> None:
        if reason.startswith("defect"):
            raise BrokenPromise(f"12: {reason}")
        self.failure = self.failure or reason
        self.counts["stopped: ledger cannot be written"] += 1
        self._poke()

    def _tell_progress(self) -> None:
        if int(self.day) > self.told_day:
            self.told_day = int(self.day)
            promises = self.promises
            self.progress(Progress(self.told_day, self.days, self.lives, len(promises.sessions), promises.seq))

    def _poke(self) -> None:
        self._poked.set()

    async def _days(self) -> None:
        """Look when something is due, as the timer does, until something ends this life."""
        while not self.failure and self.day < self.until:
            self._poked.clear()
            self._tell_progress()
            try:
                self.timer.look()
                while self.agenda and self.agenda[0].at <= self.clock.monotonic():
                    if await self._do(heapq.heappop(self.agenda)):
                        return
            except LedgerUnwritable as error:
                self._fail(str(error))
                return
            except PerdureError as error:
                raise BrokenPromise(f"12: the daemon stumbles over {error}") from error
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poked.wait(), max(0.001, self._seconds_to_wait()))

    def _seconds_to_wait(self) -> float:
        now = self.clock.wall()
        dues = [due for due in self.timer.next_firings().values() if due is not None]
        dues += [row.expires for row in projections.escalations(self._ledger.reader, open_only=True)]
        seconds = [(due - now) / MICROSECONDS for due in dues] + [self.until * DAY - self.clock.monotonic() + 1]
        if self.agenda:
            seconds.append(self.agenda[0].at - self.clock.monotonic())
        return min(seconds) + self.faults.random()  # a timer is never early, and a little late

    # -- what happens to a daemon that runs ---------------------------------------------------------------------------

    async def _do(self, due: Due) -> bool:
        """One thing of the agenda; True where the daemon's life ends with it."""
        what, draw = due.what, self.faults
        if what not in ("kill", "fuse"):
            self.counts[what] += 1
        match what:
            case "fuse":
                kind = draw.choice(FUSES)
                self.outside.fuse = Fuse(
                    kind, draw.randint(1, 40 if "commit" in kind else 6)
                )  # commits are the commonest
            case "kill":
                self.kill_after = draw.uniform(0, 20)
            case "die":
                raise Crash("killed")
            case "stop":
                return True
            case "disk full":
                self._fill_the_disk()
            case "policy" | "broken policy" | "task" | "broken task" | "repair":
                await self._edit(what)
            case "jump ahead":
                self.clock.jump(draw.uniform(10, 30 * 3_600))
            case "jump back":
                self.clock.jump(-draw.uniform(10, 5 * 3_600))
            case "pause":
                task = draw.choice([*TASKS, None])
                operations.pause(self._ledger, 1000, task=task)
                self._agree(self.clock.monotonic() + draw.uniform(60, DAY), "unpause", task=task)
            case "unpause":
                operations.resume(self._ledger, 1000, task=due.params["task"])
            case "stop file":
                (self.directory / "STOP").touch()
                self._agree(self.clock.monotonic() + draw.uniform(60, DAY / 2), "go on")
            case "go on":
                (self.directory / "STOP").unlink(missing_ok=True)
            case "manual":
                dry = draw.random() < 0.2
                operations.ask_for_session(
                    self._ledger, self.runtime.now(), 1000, task=draw.choice(list(TASKS)), dry_run=dry
                )
            case "log file":
                path = self.directory / f"inbox/{int(self.day)}.log"
                write(path, "a line\n" * draw.randint(1, 5), at_us=self.clock.wall())
                self.reloader._fire_watches([path])
            case "revoke":
                for row in projections.grants(self._ledger.reader)[:1]:
                    operations.revoke_grant(self._ledger, 1000, grant=row.grant)
            case "answer":
                self._answer(self._ledger, due.params)
            case "resume memory":
                corrections.resume_compaction(self._ledger, self.identifiers, self.clock.now(), 1000)
        return False

    def _fill_the_disk(self) -> None:
        db = self._ledger.reader.connection
        if self.faults.random() < 0.3:
            db.execute("PRAGMA query_only = ON")
        else:
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {pages + self.faults.randint(0, 3)}")

    async def _edit(self, what: str) -> None:
        draw = self.faults
        if what == "repair":
            self._repair()
        elif "policy" in what:
            path = self.directory / "policies/policy.yaml"
            text = (
                draw.choice(BROKEN_POLICIES)
                if what.startswith("broken")
                else POLICIES[draw.choice(list(POLICIES))].text
            )
            self._write_edit(path, text, broken=what.startswith("broken"))
        elif what == "task":
            name = draw.choice(list(TASKS))
            self._write_edit(self.directory / f"tasks/{name}.md", draw.choice(TASKS[name]), broken=False)
        else:
            self._write_edit(self.directory / "tasks/sweep.md", draw.choice(BROKEN_TASKS), broken=True)
        before = (self.runtime.policies, self.runtime.tasks)
        problems = await self.reloader.reload()
        if self.broken:
            Promises.must(problems is not None, 10, f"a broken edit was taken: {sorted(self.broken)}")
            Promises.must(
                (self.runtime.policies, self.runtime.tasks) == before, 10, "a broken edit changed what is in force"
            )
            self.counts["broken edit refused"] += 1
        else:
            Promises.must(problems is None, 10, f"a good edit was refused: {problems}")

    def _write_edit(self, path: Path, text: str, *, broken: bool) -> None:
        write(path, text)
        if broken:
            self.broken.add(path)
            self._agree(self.clock.monotonic() + self.people.uniform(300, 8 * 3_600), "repair")
        else:
            self.good[path] = text
            self.broken.discard(path)

    def _repair(self) -> None:
        for path in sorted(self.broken):
            write(path, self.good[path])
        self.broken.clear()

    # -- people -------------------------------------------------------------------------------------------------------

    def _somebody_reads(self, event: Event) -> None:
        draw = self.people
        if draw.random() < 0.15:
            return  # nobody ever answers
        hours = draw.expovariate(1 / 2.0) if draw.random() < 0.85 else draw.uniform(12, 200)
        answer = "approve" if draw.random() < 0.7 else "deny"
        params = {"escalation": event.body["escalation"], "answer": answer, "always": draw.random() < 0.1}
        self._agree(self.clock.monotonic() + hours * 3_600, "answer", **params)
        if draw.random() < 0.1:
            self._agree(self.clock.monotonic() + hours * 3_600 + 1, "answer", **params)
        self._poke()

    def _answer(self, ledger: Ledger, params: dict[str, Any]) -> None:
        question = self.promises.questions[params["escalation"]]
        may = question.state == "open" and self.clock.wall() + 10 < question.expires
        try:
            operations.answer(ledger, self.identifiers, self.clock.now(), 1000, **params)
        except LedgerUnwritable:
            raise
        except PerdureError as error:
            if params["always"] and may:  # not every question can be answered for good: this one, then
                self._answer(ledger, {**params, "always": False})
                return
            Promises.must(not may, 3, f"an answer in time is refused: {error}")
            self.counts["answer refused"] += 1
        else:
            Promises.must(may, 3, f"an answer to a question that was {question.state} was taken")

    # -- while no daemon runs -----------------------------------------------------------------------------------------

    def _down(self, seconds: float) -> None:
        """Time passes. Files are edited, and people answer with the ledger of a daemon that is not there."""
        until = min(self.clock.monotonic() + seconds, self.until * DAY + 1)
        self.counts["hours down"] += round((until - self.clock.monotonic()) / 3_600)
        postponed = []
        while self.agenda and self.agenda[0].at <= until:
            due = heapq.heappop(self.agenda)
            self.clock.pass_time(due.at - self.clock.monotonic())
            match due.what:
                case "policy":
                    self._write_edit(
                        self.directory / "policies/policy.yaml",
                        POLICIES[self.faults.choice(list(POLICIES))].text,
                        broken=False,
                    )
                case "repair":
                    self._repair()
                case "jump ahead":
                    self.clock.jump(self.faults.uniform(10, 30 * 3_600))
                case "jump back":
                    self.clock.jump(-self.faults.uniform(10, 5 * 3_600))
                case "answer" if self.people.random() < 0.5:
                    self._answer_alone(due.params)
                case "die":
                    pass
                case _:
                    postponed.append(due)
        self.clock.pass_time(until - self.clock.monotonic())
        for due in postponed:
            heapq.heappush(self.agenda, due)

    def _answer_alone(self, params: dict[str, Any]) -> None:
        fuse, self.outside.fuse = self.outside.fuse, None
        self._poked = asyncio.Event()
        self._open_ledger(load_config(self.directory))
        try:
            self._answer(self._ledger, params)
            self.counts["answered while down"] += 1
        finally:
            self._close_ledger()
            self.outside.fuse = fuse

    def _harm_memory(self) -> None:
        """Memory is derived: it may be lost or damaged at any time."""
        path, fate = self.directory / "state/memory.db", self.faults.random()
        if fate < 0.05:
            for file in self.directory.glob("state/memory.db*"):
                file.unlink()
            self.counts["memory deleted"] += 1
        elif fate < 0.08 and path.exists():
            with path.open("r+b") as file:
                file.seek(self.faults.randrange(100))
                file.write(b"garbage" * 50)
            self.counts["memory damaged"] += 1

    # -- the end ------------------------------------------------------------------------------------------------------

    def _settle_down(self) -> None:
        """One last start without faults, so that what the last crash left is settled."""
        self._repair()
        self.outside.fuse, self.kill_after, self.agenda = None, None, []
        (self.directory / "STOP").unlink(missing_ok=True)
        self.until = self.day + 0.25
        self._one_life()
        assert not self.failure, self.failure

    def _judge(self) -> Report:
        from perdure.daemon.schedule import schedule_from_text
        from perdure.state.accounting import verify_slots
        from perdure.state.verification import verify

        promises = self.promises
        report = verify(self.directory / "state")
        for finding in report.findings:
            Promises.must(not finding.grave, 7, str(finding))
        Promises.must(report.events == promises.seq, 7, f"{report.events} events, {promises.seq} were seen")
        with LedgerReader.open(self.directory / "state" / LEDGER) as reader:
            loaded = {row.task: row.first_loaded for row in projections.tasks(reader)}
            until = promises.at - 120 * MICROSECONDS

            def expected(task: str, text: str, after: int, before: int) -> Any:
                return schedule_from_text(text, loaded[task]).between(after, before)

            gaps = list(verify_slots(reader, expected, since=0, until=until))
        own = list(firings.gaps(promises, loaded, until))
        Promises.must(not own, 6, f"{len(own)} firings without a slot: {own[:5]}")
        Promises.must(
            not gaps, 6, f"{len(gaps)} findings by the ledger's own accounting: {[str(one) for one in gaps[:3]]}"
        )
        self._compare_effects()
        if len(promises.sessions) < SESSIONS_A_DAY_MIN * self.days:
            raise BrokenPromise(
                f"liveness: {len(promises.sessions)} sessions in {self.days} days; see why slots were refused"
            )
        return Report(self)

    def _compare_effects(self) -> None:
        """The world's own record against the ledger's."""
        promises = self.promises
        happened: Counter[str] = Counter(effect.action for effect in self.outside.effects)
        for name, count in happened.items():
            action = promises.actions[name]
            allowed = action.attempts if action.effect in ("read", "idempotent") else 1 + len(action.approvals)
            Promises.must(count <= min(action.attempts, allowed), 2, f"{name} ({action.effect}) happened {count} times")
        for name, action in promises.actions.items():
            if action.tool in SIMULATED_TOOLS and action.status == "succeeded" and action.attempts:
                Promises.must(happened[name] > 0, 2, f"{name} ({action.tool}) is recorded as done and never happened")
            if (
                action.status == "failed"
                and action.tool in ("pay", "block")
                and happened[name]
                and action.attempts == 1
            ):
                settled = any(one.action == name for one in promises.questions.values())
                Promises.must(settled, 2, f"{name} ({action.tool}) is recorded as failed and happened")
            if action.decision == "deny":
                Promises.must(happened[name] == 0, 3, f"{name} was refused and happened")


class Report:
    """What a run saw."""

    def __init__(self, soak: Soak) -> None:
        promises = soak.promises
        self.seed, self.days, self.lives = soak.seed, soak.days, soak.lives
        self.events, self.hash = promises.seq, promises.hash
        self.sessions = len(promises.sessions)
        self.slots = sum(slot.count for slot in promises.slots.values())
        self.effects = len(soak.outside.effects)
        self.questions = len(promises.questions)
        self.outcomes = Counter(str(slot.outcome) for slot in promises.slots.values())
        self.statuses = Counter(str(session.status) for session in promises.sessions.values())
        self.actions = Counter(f"{one.effect} {one.status}" for one in promises.actions.values() if one.status)
        self.answers = Counter(one.state for one in promises.questions.values())
        self.faults = soak.counts
        self.messages_lost = promises.counts["messages lost in a crash"]


def soak(seed: int, days: int, directory: Path, progress: Callable[[Progress], None] = lambda reached: None) -> Report:
    """Run one simulation; raises Failed with the words to play it again. `progress` is told of every simulated day."""
    return Soak(seed, days, directory, progress).run()
