"""The story of what happened: the coarsest summaries for what is long ago, finer ones for what is near, without a gap."""

from __future__ import annotations

from perdure.memory.store import Store, Summary
from perdure.memory.summaries import period

MONTHS_MAX = 24
SESSIONS_MAX = 12


def story(store: Store, scope: str) -> list[Summary]:
    """The summaries that tell it, oldest first: months before this one, weeks and days before today, today's sessions."""
    clock = int(store.setting("clock") or 0)
    if not clock:
        return []
    this_month, this_week, today = (period(level, clock)[0] for level in ("month", "week", "day"))
    months = store.summaries(scope, "month", before=this_month, limit=MONTHS_MAX)
    weeks = [
        each for each in store.summaries(scope, "week", before=this_week, limit=MONTHS_MAX) if each.start >= this_month
    ]
    # A week that began in the last month is in no chosen week: its days in this month are told as days.
    days = [
        each
        for each in store.summaries(scope, "day", before=today, limit=31 * max(1, len({week.task for week in weeks})))
        if each.start >= this_month
        and not any(week.start <= each.start < week.end and week.task == each.task for week in weeks)
    ]
    sessions = [each for each in store.summaries(scope, "session", limit=SESSIONS_MAX) if each.end >= today]
    return sorted([*months, *weeks, *days, *sessions], key=lambda each: (each.start, each.end, each.id))
