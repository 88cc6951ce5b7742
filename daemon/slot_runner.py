"""Runs open slots: oldest first, one session per task, no more at once than allowed; the slot table is the queue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from perdure.daemon.breaker import trip
from perdure.daemon.clock import iso
from perdure.daemon.endings import Ending
from perdure.daemon.gate import files_changed_since
from perdure.daemon.layout import STOP_FILE
from perdure.daemon.resumption import chain, goes_on
from perdure.daemon.scheduler import ended
from perdure.daemon.session import Session
from perdure.errors import PerdureError
from perdure.memory.passes import stopped
from perdure.state import projections
from perdure.state.events import SlotOutcome
from perdure.state.ledger import LedgerRefused, LedgerUnwritable

if TYPE_CHECKING:
    from collections.abc import Callable

    from perdure.daemon.runtime import Runtime
    from perdure.daemon.tasks import Task
    from perdure.state.projections import SlotRow

BACKOFF_SECONDS = 2.0  # before the first retry; doubled for each further one
BACKOFF_SECONDS_MAX = 300.0
LOOK_BACK = 100  # sessions of a task among which the last good one is looked for
RULE_MAX = 2_000  # characters of a slot's rule
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
            busy = {row.task for row in projections.open_sessions(self.runtime.ledger.reader)}  # a person's undo, too
            for slot in projections.slots(self.runtime.ledger.reader, open_only=True):
                if len(self._running) >= self.runtime.config.limits.sessions:
                    break
                if slot.task in busy or slot.task in self._running:
                    continue
                if slot.session is None and not self._waits(slot):
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
        except LedgerRefused as error:
            if error.rule != "session-open":
                self._failed(slot, error)
            # else a person's own command was quicker: the slot waits until its session has closed
        except LedgerUnwritable as error:
            self._stop(str(error))
        except Exception as error:  # noqa: BLE001 — loud: this is our own defect, and the slot stays open for the next start
            self._failed(slot, error)
        finally:
            self._running.pop(slot.task, None)
            self.wake()

    def _failed(self, slot: SlotRow, error: Exception) -> None:
        log.error("slot failed", slot=slot.slot, exc_info=error)
        self._stop(f"defect while running {slot.slot}: {type(error).__name__}: {error}")

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
            try:
                session = Session(self.runtime, task, slot, last_try=attempt == tries)
            except LedgerUnwritable:
                raise
            except PerdureError as error:  # its planner cannot be made, for example
                await self._close(slot, "refused", str(error)[:RULE_MAX])
                return ending
            ending = await session.run()
            if ending.status != "failed":
                break
            if attempt < tries:
                await self._back_off(min(BACKOFF_SECONDS * 2 ** (attempt - 1), BACKOFF_SECONDS_MAX))
        if ending is not None and ending.status in ("failed", "limited") and not slot.dry_run:
            await trip(self.runtime, task.name)
        return ending

    async def _back_off(self, seconds: float) -> None:
        """Wait before the next try; once the daemon is stopping, that try only hands over to the next start."""
        until = self.runtime.clock.monotonic() + seconds
        while not self.runtime.stopping and (left := until - self.runtime.clock.monotonic()) > 0:
            await self.runtime.clock.sleep(min(left, 0.5))

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
        halted = stopped(reader) if task.stale_memory == "refuse" else None
        if halted is not None:
            return (
                "refused",
                f"memory is no longer compacted since #{halted.seq} ({halted.body['reason']}): perdure memory resume",
            )
        over = self.runtime.caps.used_up(task.name) if task.planner == "model" else None
        if over is not None:
            return "refused", f"budgets: {over}"
        if task.only_if is not None and slot.kind == "scheduled":
            since = _last_looked(self.runtime, task.name)
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

    async def _close(self, slot: SlotRow, outcome: SlotOutcome, rule: str) -> None:
        # At once: it stands for what the gate has just seen.
        self.runtime.ledger.commit(ended(slot, outcome, rule=rule))
        if outcome == "refused":
            await self.runtime.notifier.notify(slot.slot, f"{slot.task}: refused", rule, kind="refused")
        if outcome == "skipped" and slot.kind == "resume":
            await self.runtime.notifier.notify(slot.slot, f"{slot.task}: an answer without effect", rule, kind="failed")


def _last_looked(runtime: Runtime, task: str) -> int:
    """When the files were last looked at by a session that came to an end: a failed one, a dry run and an undo do not count,
    and one that went on from earlier ones looked when the first of them began."""
    reader = runtime.ledger.reader
    looked = 0
    for row in projections.sessions(reader, task=task, limit=LOOK_BACK):
        if row.status in ("succeeded", "unverified", "parked") and row.planner != "person" and not row.dry_run:
            looked = max(looked, chain(reader, row.session)[0].opened_at)
    return looked
