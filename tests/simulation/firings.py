"""When the simulated schedules fire, reckoned without code of Perdure or cronsim, and which slots are missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from .promises import Promises

MICROSECONDS = 1_000_000
HOUR = 3_600 * MICROSECONDS


def expected(schedule: str, first_loaded: int, after: int, until: int) -> Iterator[int]:
    """The firings in (after, until]: fixed periods, every hour, and minute-and-hours of each local day."""
    text = json.loads(schedule)
    if "every" in text:
        period = text["every"]
        due = first_loaded + period * max(1, (after - first_loaded) // period + 1)
        while due <= until:
            yield due
            due += period
        return
    if "cron" not in text:
        return
    minute, hours, *rest = text["cron"].split()
    assert rest == ["*", "*", "*"]
    if hours == "*":  # the zone's offset is whole hours
        due = (after // HOUR) * HOUR + int(minute) * 60 * MICROSECONDS
        while due <= until:
            if due > after:
                yield due
            due += HOUR
        return
    wanted = range(0, 24, int(hours[2:])) if hours.startswith("*/") else [int(hour) for hour in hours.split(",")]
    zone = ZoneInfo(text["timezone"])
    day = datetime.fromtimestamp(after / MICROSECONDS, zone).date() - timedelta(days=1)
    last = datetime.fromtimestamp(until / MICROSECONDS, zone).date()
    while day <= last:
        for hour in wanted:
            due = _moment(datetime(day.year, day.month, day.day, hour, int(minute), tzinfo=zone))
            if after < due <= until:
                yield due
        day += timedelta(days=1)


def _moment(wall: datetime) -> int:
    """A wall-clock time in UTC; one that the spring's change leaves out counts as the moment of the change."""
    utc = wall.astimezone(UTC)
    if utc.astimezone(wall.tzinfo).replace(tzinfo=None) != wall.replace(tzinfo=None):
        utc = utc.replace(minute=0)
    return int(utc.timestamp()) * MICROSECONDS


def gaps(promises: Promises, loaded: Mapping[str, int], until: int) -> Iterator[str]:
    """Firings that no slot accounts for, and slots that cover another number of firings than they say."""
    for task in sorted({name for name, *_ in promises.reigns}):
        promised = sorted(
            due
            for name, schedule, since, end in promises.reigns
            if name == task
            for due in expected(schedule, loaded[task], since, min(until, end if end is not None else until))
        )
        index = 0
        for first, last, count in promises.covered(task):
            while index < len(promised) and promised[index] < first:
                yield f"{task} at {promised[index]}"
                index += 1
            covered = 0
            while index < len(promised) and promised[index] <= last:
                covered += 1
                index += 1
            if covered != count and last <= until:
                yield f"{task}: a slot for {count} firings from {first} to {last}, where {covered} were due"
        for due in promised[index:]:
            yield f"{task} at {due}"
