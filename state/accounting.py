"""Whether every firing that a schedule promised has its slot: `verify_slots` names each gap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from perdure.state.reading import LedgerReader
from perdure.state.verification import Finding

ExpectedFirings: TypeAlias = Callable[[str, str, int, int], Iterator[int]]
"""(task, schedule text, after, until) -> the firings with after < moment <= until, ascending, microseconds UTC."""


Moment: TypeAlias = Callable[[int], str]
"""A time (microseconds UTC) as a person reads it, with its zone."""


def in_utc(at: int) -> str:
    """A time in UTC, to the second where it is a whole one."""
    text = datetime.fromtimestamp(at // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    fraction = at % 1_000_000
    return f"{text}{f'.{fraction:06}' if fraction else ''} UTC"


@dataclass(frozen=True, slots=True)
class Reign:
    """From `since` to `until` (microseconds UTC) this schedule was in force for the task."""

    task: str
    schedule: str
    since: int
    until: int


def reigns(reader: LedgerReader, until: int) -> Iterator[Reign]:
    """Which schedule was in force when, for every task, as the events tell it. Loading the same one again changes nothing."""
    current: dict[str, tuple[str, int]] = {}
    for event in reader.events(types=("task.loaded", "task.removed")):
        task, schedule = event.body["task"], event.body.get("schedule") if event.type == "task.loaded" else None
        if task in current:
            text, since = current[task]
            if text == schedule:
                continue
            yield Reign(task, text, since, event.at)
            del current[task]
        if schedule is not None:
            current[task] = (schedule, event.at)
    for task, (text, since) in current.items():
        yield Reign(task, text, since, until)


def verify_slots(
    reader: LedgerReader,
    expected_firings: ExpectedFirings,
    *,
    since: int,
    until: int,
    task: str | None = None,
    moment: Moment = in_utc,
) -> Iterator[Finding]:
    """Compare the scheduled slots that are due in (since, until] with what the schedules then in force promised.

    Yields `slot-gap` for a firing without a slot, `slot-unexpected` for a slot that no schedule promised, and `slot-count`
    for a range that covers another number of firings than it says. `moment` writes the times in them.
    """
    promised: dict[str, list[Reign]] = {}
    for reign in reigns(reader, until):
        if task is None or reign.task == task:
            promised.setdefault(reign.task, []).append(reign)
    named = {
        row[0]
        for row in reader.rows("SELECT DISTINCT task FROM slots WHERE kind = 'scheduled' AND last_due > ?", since)
    }
    for name in sorted(promised.keys() | ({task} & named if task is not None else named)):
        firings = _firings(promised.get(name, []), expected_firings, since, until)
        yield from _compare(reader, name, firings, since, until, moment)


def _firings(reigns: list[Reign], expected_firings: ExpectedFirings, since: int, until: int) -> Iterator[int]:
    for reign in sorted(reigns, key=lambda reign: reign.since):
        after, end = max(since, reign.since), min(until, reign.until)
        if after < end:
            yield from expected_firings(reign.task, reign.schedule, after, end)


def _compare(
    reader: LedgerReader, task: str, firings: Iterator[int], since: int, until: int, moment: Moment
) -> Iterator[Finding]:
    sql = (
        "SELECT slot, due, last_due, count, COALESCE(seq_opened, seq_closed) FROM slots"
        " WHERE task = ? AND kind = 'scheduled' AND last_due > ? AND due <= ? ORDER BY due"
    )
    firing = next(firings, None)
    for slot, due, last_due, count, seq in reader.rows(sql, task, since, until):
        while firing is not None and firing < due:
            yield _gap(task, moment(firing))
            firing = next(firings, None)
        covered = 0
        while firing is not None and firing <= last_due:
            covered += 1
            firing = next(firings, None)
        if covered == 0:
            yield Finding(seq, "slot-unexpected", f"slot {slot}: no schedule then in force fires at that time")
        elif covered != count and due > since and last_due <= until:
            yield Finding(
                seq,
                "slot-count",
                f"slot {slot} accounts for {count} firings from {moment(due)} to {moment(last_due)}, and {covered} were expected",
            )
    while firing is not None:
        yield _gap(task, moment(firing))
        firing = next(firings, None)


def _gap(task: str, when: str) -> Finding:
    return Finding(0, "slot-gap", f"task {task} was expected to fire at {when}, and no slot says what became of it")
