"""When to look: APScheduler's in-memory timers call the slot logic, which alone decides what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from perdure.daemon import operations
from perdure.daemon.clock import MICROSECONDS, iso
from perdure.daemon.retention import expire_payloads
from perdure.daemon.scheduler import account, next_firing
from perdure.state import projections
from perdure.state.ledger import LedgerUnwritable

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.schedule import Schedule
    from perdure.daemon.tasks import Task

FIRST_EXPIRY_SECONDS = 60.0  # after the start, then once a day
LOOK_SECONDS = 1.0  # between looks that no firing asks for: clock jumps, expiring questions, slots that waited
FUTURE_SECONDS = 60
log = structlog.get_logger(__name__)


class ScheduleTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """APScheduler's view of one of our schedules."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The next firing after `now` (or after the previous one, where that is later)."""
        after = max(now, previous_fire_time) if previous_fire_time is not None else now
        due = self._schedule.next_after(int(after.timestamp() * MICROSECONDS))
        return None if due is None else datetime.fromtimestamp(due / MICROSECONDS, UTC)


class Timer:
    """`wake` is called when slots may be waiting, `fail` when the schedule cannot be kept: the daemon then may not go on
    as if it could. Sessions run elsewhere: a timer only opens slots."""

    def __init__(self, runtime: Runtime, wake: Callable[[], None], fail: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._wake = wake
        self._fail = fail
        self._looked_at = 0
        self._looking: asyncio.Task[None] | None = None
        self._ahead: set[str] = set()  # tasks of which a person was told that their schedule was used up in advance
        # misfire_grace_time=None: a late call still counts; whether the firing was missed is for the slot table to say
        self._scheduler = AsyncIOScheduler(
            timezone=UTC, job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        )

    def start(self) -> None:
        """Account for what is due now, then keep looking."""
        self._scheduler.start()
        soon = datetime.fromtimestamp(self._runtime.now() / MICROSECONDS + FIRST_EXPIRY_SECONDS, UTC)
        self._scheduler.add_job(self._expire, "interval", days=1, id="expire", next_run_time=soon)
        self.reschedule()
        self._looking = asyncio.create_task(self._keep_looking(), name="looking")

    def stop(self) -> None:
        """No more firings."""
        if self._looking is not None:
            self._looking.cancel()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def reschedule(self) -> None:
        """Set the timers of the tasks now in force."""
        for job in self._scheduler.get_jobs():
            if job.id != "expire":
                job.remove()
        for task in self._runtime.tasks.values():
            if task.schedule is not None and task.schedule.timed:
                self._scheduler.add_job(
                    self._fire, ScheduleTrigger(task.schedule), args=[task.name], id=f"task {task.name}"
                )
        self.look()

    def next_firings(self) -> dict[str, int | None]:
        """When each scheduled task fires next (microseconds UTC)."""
        reader, now = self._runtime.ledger.reader, self._runtime.now()
        return {
            task.name: next_firing(reader, task.name, task.schedule, now)
            for task in self._runtime.tasks.values()
            if task.schedule is not None and task.schedule.timed
        }

    def account(self) -> None:
        """Account for every firing of every task up to now."""
        for name in list(self._runtime.tasks):
            self._account_for(name)

    async def _fire(self, name: str) -> None:  # a coroutine, so that APScheduler calls it in the loop's own thread
        with self._loudly():
            self._account_for(name)

    def _account_for(self, name: str) -> None:
        task = self._runtime.tasks.get(name)
        if task is not None and task.schedule is not None and task.schedule.timed and not self._runtime.stopping:
            self._open_due(task)

    def _open_due(self, task: Task) -> None:
        ledger = self._runtime.ledger
        since = {row.task: row.schedule_since for row in projections.tasks(ledger.reader)}
        drafts = account(ledger.reader, task, since[task.name], self._runtime.now())
        if drafts:
            ledger.commit(*drafts)
            self._wake()

    async def _expire(self) -> None:
        with self._loudly():
            if count := await expire_payloads(self._runtime):
                log.info("old requests and replies of models erased", payloads=count)

    async def _keep_looking(self) -> None:
        """Not one of APScheduler's jobs: it counts by the wall clock, and would look no more until a clock that was set back has
        caught up."""
        while True:
            await self._runtime.clock.sleep(LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        with self._loudly():
            now, before = self._runtime.now(), self._looked_at
            self._looked_at = now
            if now < before:
                self.reschedule()  # which looks, too
            else:
                self.look()
            await self._tell_of_the_future()

    async def _tell_of_the_future(self) -> None:
        """A clock that ran ahead and was set back leaves firings accounted for that are still to come: none of them runs."""
        runtime = self._runtime
        for task in runtime.tasks.values():
            last = projections.last_slot(runtime.ledger.reader, task.name, "scheduled")
            ahead = last is not None and last.last_due > runtime.now() + FUTURE_SECONDS * MICROSECONDS
            if not ahead:
                self._ahead.discard(task.name)
            elif last is not None and task.name not in self._ahead:
                self._ahead.add(task.name)
                text = (
                    f"firings of {task.name} up to {iso(last.last_due)} were accounted for while the clock was ahead, and none "
                    f"runs before then. Until then: perdure session run {task.name}"
                )
                await runtime.alarm("clock-set-back", text, about=task.name)

    def look(self) -> None:
        """Account for what is due, expire what is late, and let slots that waited be looked at again."""
        self.account()
        for question in operations.expire(self._runtime.ledger, self._runtime.now()):
            log.warning(
                "question expired", escalation=question.escalation, task=question.task, default=question.on_expiry
            )
        self._wake()

    @contextmanager
    def _loudly(self) -> Iterator[None]:
        try:
            yield
        except LedgerUnwritable as error:
            self._fail(str(error))
        except Exception as error:  # a schedule that is not kept must not look like one that is
            log.exception("the schedule cannot be kept")
            self._fail(f"defect while keeping the schedule: {type(error).__name__}: {error}")
