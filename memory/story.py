"""The story of what happened: the coarsest summaries for what is long ago, finer ones for what is near, without a gap."""

from __future__ import annotations

from functools import cache

from perdure.memory.rows import Level
from perdure.memory.store import Store, Summary
from perdure.memory.summaries import period

MONTHS_MAX = 24
SESSIONS_MAX = 12


def story(store: Store, scope: str) -> list[Summary]:
    """The summaries that tell it, oldest first: months before this one, weeks and days before today, today's sessions; each
    task by the calendar of its own zone."""
    clock = int(store.setting("clock") or 0)
    if not clock:
        return []
    zones = store.zones()

    @cache
    def began(level: Level, task: str) -> int:
        """When the task's current period of this level began."""
        return period(level, clock, zones.get(task, "UTC"))[0]

    months = store.summaries(scope, "month", before=clock, limit=MONTHS_MAX)
    weeks = [
        each
        for each in store.summaries(scope, "week", before=clock, limit=MONTHS_MAX)
        if each.start >= began("month", each.task)
    ]
    # A week that began in the last month is in no chosen week: its days in this month are told as days.
    days = [
        each
        for each in store.summaries(scope, "day", before=clock, limit=31 * max(1, len({week.task for week in weeks})))
        if each.start >= began("month", each.task)
        and not any(week.start <= each.start < week.end and week.task == each.task for week in weeks)
    ]
    sessions = [
        each for each in store.summaries(scope, "session", limit=SESSIONS_MAX) if each.end >= began("day", each.task)
    ]
    return sorted([*months, *weeks, *days, *sessions], key=lambda each: (each.start, each.end, each.id))
