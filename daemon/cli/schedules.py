"""`perdure schedule show`: what will run when, and how the last slots ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.event_lines import SLOT_STYLE
from perdure.daemon.cli.invocation import Invocation, everywhere, with_invocation, with_json
from perdure.daemon.cli.terminal import line
from perdure.daemon.cli.words import from_now, iso, moment, short

if TYPE_CHECKING:
    from perdure.state.projections import SlotRow, TaskRow
    from perdure.state.reading import LedgerReader


@click.group()
@everywhere
def schedule() -> None:
    """When tasks run."""


@schedule.command()
@click.argument("task", required=False)
@click.option(
    "-n", "--next", "ahead", type=click.IntRange(0, 100), default=3, show_default=True, help="How many firings ahead."
)
@click.option("-p", "--past", type=click.IntRange(0, 1000), default=5, show_default=True, help="How many slots back.")
@with_json
@with_invocation
def show(invocation: Invocation, task: str | None, ahead: int, past: int) -> None:
    """Show each task's next firings and last slots, with how each ended."""
    from perdure.errors import PerdureError
    from perdure.state import projections

    reader = invocation.ledger
    tasks = [row for row in projections.tasks(reader) if row.removed_at is None]
    if task is not None:
        known = ", ".join(row.task for row in tasks) or "none"
        tasks = [row for row in tasks if row.task == task]
        if not tasks:
            raise PerdureError("show", f"the schedule of {task}", "there is no such task", f"Tasks here: {known}")
    shown = []
    for row in tasks:
        firings, words = _firings(reader, row, invocation.now(), ahead)
        shown.append(
            (
                row,
                words,
                firings,
                projections.slots(reader, task=row.task, limit=past),
                projections.paused(reader, row.task),
            )
        )
    if invocation.as_json:
        values = [
            {
                "task": row.task,
                "schedule": words,
                "paused": paused,
                "next": [iso(at) for at in firings],
                "slots": [slot_json(s) for s in slots],
            }
            for row, words, firings, slots, paused in shown
        ]
        invocation.emit("schedule", {"tasks": values})
        return
    if not shown:
        invocation.say(("No task has been loaded yet.", "faint"))
    for index, (row, words, firings, slots, paused) in enumerate(shown):
        if index:
            invocation.say()
        invocation.say((row.task, "name"), "  ", words, ("  paused: " + paused if paused else "", "warn"))
        _print(invocation, firings, slots)


def _firings(reader: LedgerReader, row: TaskRow, now: int, ahead: int) -> tuple[list[int], str]:
    from perdure.daemon.schedule import schedule_from_text
    from perdure.daemon.scheduler import next_firing

    if row.schedule is None:
        return [], "only when asked for"
    schedule = schedule_from_text(row.schedule, row.first_loaded)
    firings: list[int] = []
    while len(firings) < ahead:
        at = next_firing(reader, row.task, schedule, firings[-1] if firings else now)
        if at is None:
            break
        firings.append(at)
    return firings, schedule.words


def _print(invocation: Invocation, firings: list[int], slots: list[SlotRow]) -> None:
    now, zone = invocation.now(), invocation.zone
    table = Table.grid(padding=(0, 2))
    for _ in range(5):
        table.add_column(overflow="fold")
    for at in reversed(firings):
        table.add_row(
            " ", Text(moment(at, zone, now), "faint"), Text(from_now(at, now), "faint"), Text("expected", "faint"), ""
        )
    for slot in slots:
        outcome = slot.outcome or "open"
        words = line((outcome, SLOT_STYLE.get(outcome, "")))
        if slot.count > 1:
            words.append_text(line((f" × {slot.count:,} until {moment(slot.last_due, zone, now)}", "faint")))
        detail = line((slot.kind, "faint"))
        if slot.session:
            detail.append_text(line("  session ", (short(slot.session), "id")))
        if slot.rule:
            detail.append_text(line(f"  {slot.rule}"))
        if slot.cause:
            detail.append_text(line(("  because of ", "faint"), short(slot.cause)))
        table.add_row(" ", moment(slot.due, zone, now), Text(from_now(slot.due, now), "faint"), words, detail)
    invocation.out.print(table)
    if not slots and not firings:
        invocation.say(("  nothing yet", "faint"))


def slot_json(row: SlotRow) -> dict[str, Any]:
    """A slot as JSON."""
    return {
        "slot": row.slot,
        "kind": row.kind,
        "due_at": iso(row.due),
        "last_due_at": iso(row.last_due),
        "count": row.count,
        "outcome": row.outcome,
        "session": row.session,
        "rule": row.rule,
        "cause": row.cause,
    }
