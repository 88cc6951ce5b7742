"""Runs open slots: oldest first, one session per task, no more at once than allowed; the slot table is the queue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from perdure.daemon.clock import MICROSECONDS, iso
from perdure.daemon.endings import Ending
from perdure.daemon.gate import files_changed_since
from perdure.daemon.resumption import chain, goes_on
from perdure.daemon.session import Session
from perdure.daemon.workspace import STOP_FILE
from perdure.state import projections
from perdure.state.events import Draft, SlotClosed, SlotOutcome
from perdure.state.ledger import LedgerUnwritable

if TYPE_CHECKING:
    from collections.abc import Callable

    from perdure.daemon.runtime import Runtime
    from perdure.daemon.tasks import Task
    from perdure.state.projections import SlotRow

BACKOFF_SECONDS = 2.0  # before the first retry; doubled for each further one
log = structlog.get_logger(__name__)


class SlotRunner:
    """`stop` is called when the ledger cannot be written: nothing may run then."""

    def __init__(self, runtime: Runtime, stop: Callable[[str], None]) -> None:
        self.runtime = runtime
        self._stop = stop
        self._running: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Look at the slots again."""
        self._changed.set()

    @property
    def running(self) -> list[str]:
        """Tasks with a session now."""
        return sorted(self._running)

    async def run(self) -> None:
        """Start what is due until the daemon stops; then wait for the sessions to end."""
        while not self.runtime.stopping:
            self._changed.clear()
            for slot in projections.slots(self.runtime.ledger.reader, open_only=True):
                if len(self._running) >= self.runtime.config.limits.sessions:
                    break
                if slot.session is None and slot.task not in self._running and not self._waits(slot):
                    self._running[slot.task] = asyncio.create_task(self._guarded(slot), name=f"slot {slot.slot}")
            await self._changed.wait()
        await self.settle()

    async def settle(self) -> None:
        """Wait until no session runs."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def _guarded(self, slot: SlotRow) -> None:
        try:
            await self.run_slot(slot)
        except LedgerUnwritable as error:
            self._stop(str(error))
        except Exception as error:  # loud: this is our own defect, and the slot stays open for the next start
            log.exception("slot failed", slot=slot.slot)
            self._stop(f"defect while running {slot.slot}: {type(error).__name__}: {error}")
        finally:
            self._running.pop(slot.task, None)
            self.wake()

    async def run_slot(self, slot: SlotRow) -> Ending | None:
        """Run one open slot to its end; None where a gate closed it without a session."""
        task = self.runtime.tasks.get(slot.task)
        gate = self._gate(slot, task)
        if gate is not None or task is None:
            outcome, rule = gate or ("skipped", "the task is gone")
            await self._close(slot, outcome, rule)
            return None
        ending: Ending | None = None
        tries = 1 + (0 if slot.dry_run else task.retries)
        for attempt in range(1, tries + 1):
            ending = await Session(self.runtime, task, slot, last_try=attempt == tries).run()
            if ending.status != "failed":
                break
            if attempt < tries:
                await self.runtime.clock.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        return ending

    def _waits(self, slot: SlotRow) -> bool:
        """Whether the slot stays open for later: an answered question is not lost because everything is paused."""
        if slot.kind == "follow-up" and slot.due > self.runtime.now():
            return True
        return slot.kind in ("resume", "follow-up") and self._paused(slot.task) is not None

    def _paused(self, task: str) -> str | None:
        if (self.runtime.config.workspace / STOP_FILE).exists():
            return f"the file {STOP_FILE} lies in the workspace"
        reason = projections.paused(self.runtime.ledger.reader, task)
        return f"paused: {reason}" if reason is not None else None

    def _gate(self, slot: SlotRow, task: Task | None) -> tuple[SlotOutcome, str] | None:
        """Why this slot runs no session: outcome and rule; None where it may run. Costs no tokens."""
        reader = self.runtime.ledger.reader
        if task is None:
            return "skipped", "the task is gone"
        paused = self._paused(task.name)
        if paused is not None:
            return "skipped", paused
        if slot.kind == "resume":
            return self._settled_already(slot)
        waiting = [row for row in projections.escalations(reader, open_only=True, task=task.name) if row.parks]
        if waiting and task.while_parked == "hold":
            return "held", f"waits for the answer to {waiting[0].escalation}"
        over = self._over_budget()
        if over is not None:
            return "refused", over
        if task.only_if is not None and slot.kind == "scheduled":
            since = _last_opened(self.runtime, task.name)
            if not files_changed_since(self.runtime.config.workspace, task.only_if.files_changed, since):
                return "skipped", f"only_if: no file of {task.only_if.files_changed} changed since {iso(since)}"
        return None

    def _settled_already(self, slot: SlotRow) -> tuple[SlotOutcome, str] | None:
        """An answer that the session of another slot has acted on, for work that goes on elsewhere or is finished."""
        reader = self.runtime.ledger.reader
        question = projections.escalation(reader, slot.cause) if slot.cause is not None else None
        if question is None or question.state == "approved" or goes_on(reader, chain(reader, slot.resumes), slot.slot):
            return None
        return "coalesced", f"{question.escalation} is {question.state}, and no session waits for it any more"

    def _over_budget(self) -> str | None:
        budgets, now = self.runtime.config.budgets, self.runtime.now()
        day = projections.spend(self.runtime.ledger.reader, now - 86_400 * MICROSECONDS)
        if budgets.tokens_per_day is not None and day.tokens >= budgets.tokens_per_day:
            return f"budgets.tokens_per_day: {day.tokens} of {budgets.tokens_per_day} tokens in the last 24 hours"
        if budgets.usd_per_day is not None and day.usd >= budgets.usd_per_day:
            return f"budgets.usd_per_day: {day.usd:.2f} of {budgets.usd_per_day:.2f} USD in the last 24 hours"
        return None

    async def _close(self, slot: SlotRow, outcome: SlotOutcome, rule: str) -> None:
        drafts: list[Draft] = [
            SlotClosed(slot=slot.slot, task=slot.task, kind=slot.kind, due=slot.due, outcome=outcome, rule=rule)
        ]
        await self.runtime.ledger.write(*drafts)
        if outcome == "refused":
            await self.runtime.notifier.notify(slot.slot, f"{slot.task}: refused for budget", rule, kind="refused")


def _last_opened(runtime: Runtime, task: str) -> int:
    rows = projections.sessions(runtime.ledger.reader, task=task, limit=1)
    return rows[0].opened_at if rows else 0
