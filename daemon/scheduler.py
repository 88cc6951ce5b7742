"""Which slots are due: every expected firing is accounted for, whatever the machine, the clock or the schedule did."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from perdure.daemon.clock import MICROSECONDS, iso
from perdure.daemon.schedule import schedule_from_text
from perdure.state import projections
from perdure.state.events import Draft, SlotClosed, SlotKind, SlotOpened, SlotOutcome

if TYPE_CHECKING:
    from perdure.daemon.front_matter import IfMissed
    from perdure.daemon.schedule import Schedule
    from perdure.daemon.tasks import Task
    from perdure.state.ledger import LedgerReader
    from perdure.state.projections import SlotRow, TaskRow

ON_TIME_SECONDS = 60  # a firing noticed within this time is on time; later ones fall under `if_missed`


def slot_name(task: str, kind: SlotKind, due: int) -> str:
    """The slot's identity: one task, one kind, one instant."""
    return f"{task}/{kind}/{iso(due)}"


def opened(
    task: str,
    kind: SlotKind,
    due: int,
    *,
    cause: str | None = None,
    resumes: str | None = None,
    dry_run: bool | None = None,
) -> SlotOpened:
    """The event that opens a slot."""
    name = slot_name(task, kind, due)
    return SlotOpened(slot=name, task=task, kind=kind, due=due, cause=cause, resumes=resumes, dry_run=dry_run or None)


def free(reader: LedgerReader, task: str, kind: SlotKind, due: int) -> int:
    """The first microsecond from `due` on for which the task has no slot of this kind yet."""
    while projections.slot(reader, slot_name(task, kind, due)) is not None:
        due += 1
    return due


def ended(slot: SlotRow, outcome: SlotOutcome, *, session: str | None = None, rule: str | None = None) -> SlotClosed:
    """The event that ends an open slot."""
    return SlotClosed(
        slot=slot.slot, task=slot.task, kind=slot.kind, due=slot.due, outcome=outcome, session=session, rule=rule
    )


def closed(task: str, outcome: SlotOutcome, firings: list[int], count: int, rule: str) -> SlotClosed:
    """One event for the scheduled firings `firings[0]` … `firings[-1]`, of which there were `count`, none of which ran."""
    first, last = firings[0], firings[-1]
    return SlotClosed(
        slot=slot_name(task, "scheduled", first),
        task=task,
        kind="scheduled",
        due=first,
        outcome=outcome,
        rule=rule,
        last_due=last if count > 1 else None,
        count=count,
    )


def account(reader: LedgerReader, task: Task, in_force_since: int, now: int) -> list[Draft]:
    """Events for every firing of the task's schedule since the last one accounted for, up to `now`.

    `in_force_since` (microseconds UTC) is when this schedule came into force: earlier firings were never expected of it.
    """
    if task.schedule is None:
        return []
    old, recent = _split(task.schedule, _accounted(reader, task.name, in_force_since), now)
    waiting = any(slot.kind == "scheduled" for slot in projections.slots(reader, task=task.name, open_only=True))
    drafts = _missed(task, old, now, superseded=bool(recent) or waiting) if old.count else []
    taken = waiting or any(isinstance(draft, SlotOpened) for draft in drafts)
    passed = recent if taken else recent[:-1]
    if passed:
        drafts.append(
            closed(task.name, "coalesced", passed, len(passed), "another slot of this task still waits to run")
        )
    if recent and not taken:
        drafts.append(opened(task.name, "scheduled", recent[-1]))
    return drafts


def account_before_change(reader: LedgerReader, row: TaskRow, successor: Task | None, now: int) -> list[Draft]:
    """Events for the firings, up to `now`, of a schedule that is in force no longer: it was edited while no daemon ran.

    `successor` is the task as it is from now on (None: it is gone): what it does with what was missed holds for these too.
    """
    if row.schedule is None or row.removed_at is not None:
        return []
    outgoing = schedule_from_text(row.schedule, row.first_loaded)
    if successor is not None and successor.schedule is not None:
        if successor.schedule.text == row.schedule:
            return []
        if successor.schedule.timed:
            return account(reader, replace(successor, schedule=outgoing), row.schedule_since, now)
    firings = _Range(1)
    for due in outgoing.between(_accounted(reader, row.task, row.schedule_since), now):
        firings.add(due)
    if firings.first is None:
        return []
    why = "its task was removed" if successor is None else "its schedule was taken away"
    return [closed(row.task, "missed", [firings.first, firings.tail[-1]], firings.count, f"{why} while no daemon ran")]


def next_firing(reader: LedgerReader, task: str, schedule: Schedule, now: int) -> int | None:
    """The first firing after `now` that is still to be accounted for: after a clock was set back, some to come are already."""
    return schedule.next_after(_accounted(reader, task, now))


def _accounted(reader: LedgerReader, task: str, in_force_since: int) -> int:
    last = projections.last_slot(reader, task, "scheduled")
    return in_force_since if last is None else max(in_force_since, last.last_due or last.due)


class _Range:
    """Firings in order, of which only the first and the last `keep` are held."""

    def __init__(self, keep: int) -> None:
        self.count = 0
        self.first: int | None = None
        self.tail: deque[int] = deque(maxlen=keep)

    def add(self, due: int) -> None:
        self.count += 1
        if self.first is None:
            self.first = due
        self.tail.append(due)


RUN_ALL_MAX = 1_000  # `run-all` never opens more slots than this at once


def _split(schedule: Schedule, after: int, now: int) -> tuple[_Range, list[int]]:
    """Firings in (after, now]: those that were missed, and those that are on time."""
    old, recent = _Range(RUN_ALL_MAX + 1), []
    for due in schedule.between(after, now):
        if now - due > ON_TIME_SECONDS * MICROSECONDS:
            old.add(due)
        else:
            recent.append(due)
    return old, recent


def _missed(task: Task, old: _Range, now: int, *, superseded: bool) -> list[Draft]:
    """What `if_missed` makes of firings that nobody noticed in time. `superseded`: one that is on time runs anyway."""
    wanted = _wanted(task.if_missed, list(old.tail), now, superseded=superseded)
    lost = old.count - len(wanted)
    drafts: list[Draft] = []
    if lost:
        last_lost = old.tail[-len(wanted) - 1]
        first = old.first if old.first is not None else last_lost
        drafts.append(closed(task.name, "missed", [first, last_lost], lost, f"if_missed: {task.if_missed.text}"))
    drafts += [opened(task.name, "scheduled", due) for due in wanted]
    return drafts


def _wanted(if_missed: IfMissed, firings: list[int], now: int, *, superseded: bool) -> list[int]:
    match if_missed.mode:
        case "run-once":
            return [] if superseded else firings[-1:]
        case "run-all":
            return firings[-min(if_missed.max or RUN_ALL_MAX, RUN_ALL_MAX) :]
        case "run-if-within":
            within = int((if_missed.within or 0) * MICROSECONDS)
            return [due for due in firings[-1:] if now - due <= within and not superseded]
        case _:
            return []
