"""When a task is due: cron with a time zone (Debian's semantics, also at daylight-saving changes), a fixed period, or files.

cronsim finds the matching wall-clock times; what a wall-clock time means in a zone is decided here, by Debian's rules. (Its
own zone handling was measured: from within the repeated hour it returns times that lie in the past, and in zones that shift
by half an hour it misses firings. Neither may happen to slots that have to be proven complete.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import ClassVar, Final, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from perdure.state.canonical import canonical

SECOND: Final = 1_000_000  # microseconds
PERIOD_US_MIN: Final = SECOND
PERIOD_US_MAX: Final = 366 * 86_400 * SECOND

_SHORTHANDS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_CRON_FIELDS: Final = ("minute", "hour", "day of month", "month", "day of week")
# cronsim also takes L, LW and #, which Debian's cron does not know
_VALUE: Final = r"(?:[0-9]{1,2}|[A-Za-z]{3})"
_TERM: Final = rf"(?:\*|{_VALUE}(?:-{_VALUE})?)(?:/[0-9]{{1,2}})?"
_CRON_FIELD: Final = re.compile(rf"{_TERM}(?:,{_TERM})*", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_MAX: Final = 9000  # far from where datetime overflows
_SAMPLE: Final = timedelta(days=7)  # no zone ever changed its offset there and back within a week
_STEP: Final = timedelta(seconds=1)


class Schedule(Protocol):
    """When firings are expected. Times are microseconds UTC. `timed` is False where the clock makes nothing due."""

    @property
    def timed(self) -> bool: ...

    def next_after(self, at: int) -> int | None:
        """The first firing after `at` (exclusive), or None if there is none."""
        ...

    def matches(self, path: Path) -> bool:
        """Whether a change of the file at `path` (absolute) makes it due."""
        ...

    def between(self, after: int, until: int) -> Iterator[int]:
        """The firings after `after` (exclusive) up to `until` (inclusive), in order."""
        ...

    def anchored(self, first_loaded: int) -> Schedule:
        """The schedule of a task that was first loaded at `first_loaded`."""
        ...

    @property
    def text(self) -> str:
        """The schedule as canonical JSON, which `schedule_from_text` reads back."""
        ...

    @property
    def words(self) -> str:
        """The schedule as a person would say it."""
        ...


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression of five fields in a time zone. Raises ValueError with what was expected.

    As in Debian: if day of month and day of week are both restricted, either is enough. A job at fixed times runs exactly
    once where the clock changes: a time that the change leaves out is run right after the change, one that comes twice
    the first time only. A job with a star for minute or hour follows the clock as it is.
    """

    expression: str
    zone: str

    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ZoneInfo(self.zone)
        fields = self._expanded().split()
        if len(fields) != len(_CRON_FIELDS):
            raise ValueError(f"five fields ({', '.join(_CRON_FIELDS)}) or @hourly … @yearly; there are {len(fields)}")
        for name, field in zip(_CRON_FIELDS, fields, strict=True):
            if _CRON_FIELD.fullmatch(field) is None:
                raise ValueError(f"a {name} such as *, */5, 1-5 or 1,15, not {field}")
        try:
            first = next(CronSim(" ".join(fields), datetime(2000, 1, 1)), None)  # noqa: DTZ001  # a wall-clock time
        except CronSimError as error:
            raise ValueError(f"a cron expression such as */15 * * * * ({str(error).lower()})") from None
        if first is None:
            raise ValueError("a cron expression that is due at some time; this day does not exist in any year")

    def _expanded(self) -> str:
        return _SHORTHANDS.get(self.expression.strip().lower(), self.expression)

    def matches(self, path: Path) -> bool:
        """False: no file makes it due."""
        del path
        return False

    def anchored(self, first_loaded: int) -> Cron:
        """Itself: the calendar does not depend on when the task was loaded."""
        del first_loaded
        return self

    @property
    def text(self) -> str:
        return _text({"cron": " ".join(self.expression.split()), "timezone": self.zone})

    @property
    def words(self) -> str:
        return f"cron {' '.join(self.expression.split())} ({self.zone})"

    def next_after(self, at: int) -> int | None:
        return next(self._after(at), None)

    def between(self, after: int, until: int) -> Iterator[int]:
        for due in self._after(after):
            if due > until:
                return
            yield due

    def _after(self, at: int) -> Iterator[int]:
        expression = " ".join(self._expanded().split())
        minute, hour, *_ = expression.split()
        zone = ZoneInfo(self.zone)
        start = _moment(at)
        firings = _by_the_clock if minute.startswith("*") or hour.startswith("*") else _at_fixed_times
        for moment in firings(expression, zone, start):
            yield _microseconds(moment)


def _moment(at: int) -> datetime:
    """The last whole second at or before `at`: firings are whole seconds, so that none after `at` is missed."""
    return _EPOCH + timedelta(seconds=at // SECOND)


def _microseconds(moment: datetime) -> int:
    return round((moment - _EPOCH).total_seconds()) * SECOND


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _matches(expression: str, wall: datetime) -> Iterator[datetime]:
    """The wall-clock times that match, after `wall` (exclusive), none of them beyond the end of time."""
    for match in CronSim(expression, wall):
        if match.year > _YEAR_MAX:
            return
        yield match


def _at_fixed_times(expression: str, zone: ZoneInfo, start: datetime) -> Iterator[datetime]:
    """Each matching wall-clock time once: the first of two, and right after the gap where it does not exist."""
    last = start
    for wall in _matches(expression, start.astimezone(zone).replace(tzinfo=None)):
        moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
        if moment.astimezone(zone).replace(tzinfo=None) != wall:  # in a gap, where fold=1 reads it as before the change
            before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
            moment = _change_between(zone, before, moment) or moment
        if moment > last:
            last = moment
            yield moment


def _by_the_clock(expression: str, zone: ZoneInfo, start: datetime) -> Iterator[datetime]:
    """Every moment at which the clock on the wall shows a matching time, both times where it shows it twice."""
    moment, inclusive = start, False
    while True:
        offset = _offset(zone, moment)
        wall = (moment + offset).replace(tzinfo=None)
        match = next(_matches(expression, wall - _STEP if inclusive else wall), None)
        if match is None:
            return
        candidate = match.replace(tzinfo=UTC) - offset
        change = _first_change(zone, moment, candidate)
        if change is None:
            moment, inclusive = candidate, False
            yield candidate
        else:  # the clock changes before the candidate comes: look again from there
            moment, inclusive = change, True


def _first_change(zone: ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    """The first moment in (after, until] from which another offset holds than at `after`."""
    while after < until:
        sample = min(after + _SAMPLE, until)
        change = _change_between(zone, after, sample)
        if change is not None:
            return change
        after = sample
    return None


def _change_between(zone: ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    """The second from which the offset at `until` holds, if it is another than at `after`."""
    offset = _offset(zone, after)
    if _offset(zone, until) == offset:
        return None
    low, high = 0, round((until - after).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, after + timedelta(seconds=middle)) == offset:
            low = middle
        else:
            high = middle
    return after + timedelta(seconds=high)


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed period in microseconds, counted from `anchor`: when the task was first loaded."""

    period: int
    anchor: int = 0

    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not PERIOD_US_MIN <= self.period <= PERIOD_US_MAX:
            raise ValueError("a period of at least one second and at most a year")

    def matches(self, path: Path) -> bool:
        """False: no file makes it due."""
        del path
        return False

    def anchored(self, first_loaded: int) -> Every:
        return replace(self, anchor=first_loaded)

    @property
    def text(self) -> str:
        return _text({"every": self.period})

    @property
    def words(self) -> str:
        seconds = self.period / SECOND
        for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
            if seconds >= 2 * length and seconds % length == 0:
                return f"every {seconds / length:g} {unit}"
        return f"every {seconds:g} seconds"

    def next_after(self, at: int) -> int:
        return self.anchor + max((at - self.anchor) // self.period + 1, 1) * self.period

    def between(self, after: int, until: int) -> Iterator[int]:
        yield from range(self.next_after(after), until + 1, self.period)


@dataclass(frozen=True, slots=True)
class Watch:
    """Due when a file that matches the pattern (relative to `root`, the workspace) appears or changes; never by the clock.

    In the pattern `*` and `?` do not match a slash, and `**` stands for any directories, none included.
    """

    pattern: str
    root: Path = Path()

    timed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        parts = self.pattern.split("/")
        if not self.pattern or self.pattern.startswith("/") or ".." in parts:
            raise ValueError("a pattern inside the workspace, such as inbox/*.log")
        if any("**" in part and part != "**" for part in parts):
            raise ValueError("`**` as a whole part of the pattern, such as inbox/**/*.log")

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` (absolute) is one that is watched."""
        return (
            path.is_relative_to(self.root)
            and _glob(self.pattern).fullmatch(str(path.relative_to(self.root))) is not None
        )

    def anchored(self, first_loaded: int) -> Watch:
        """Itself."""
        del first_loaded
        return self

    @property
    def text(self) -> str:
        return _text({"watch": self.pattern})

    @property
    def words(self) -> str:
        return f"when {self.pattern} changes"

    def next_after(self, at: int) -> int | None:
        """None: the clock does not make it due."""
        del at
        return None

    def between(self, after: int, until: int) -> Iterator[int]:
        """Nothing."""
        del after, until
        return iter(())


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    parts = pattern.split("/")
    regex = "".join(
        ("(?:.*/)?" if index < len(parts) - 1 else ".*")
        if part == "**"
        else _part_regex(part) + ("/" if index < len(parts) - 1 else "")
        for index, part in enumerate(parts)
    )
    return re.compile(regex, re.DOTALL)


def _part_regex(part: str) -> str:
    """One part of a path by `fnmatch`'s rules, where nothing matches a slash."""
    regex = ""
    for piece in re.split(r"(\*|\?|\[!?[^]/]+\])", part):
        if piece in {"*", "?"}:
            regex += "[^/]*" if piece == "*" else "[^/]"
        elif piece.startswith("[") and piece.endswith("]"):
            inside = piece[1:-1].replace("\\", r"\\")
            regex += f"(?!/)[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
        else:
            regex += re.escape(piece)
    return regex


def _text(value: dict[str, str | int]) -> str:
    return canonical(dict(value)).decode()


def schedule_from_text(text: str, first_loaded: int = 0) -> Schedule:
    """The schedule whose `text` this is, for a task first loaded at `first_loaded`. Raises ValueError if it is none."""
    match json.loads(text):
        case {"cron": str(expression), "timezone": str(zone)}:
            return Cron(expression, zone)
        case {"every": int(period)}:
            return Every(period, first_loaded)
        case {"watch": str(pattern)}:
            return Watch(pattern)
    raise ValueError(f"not a schedule: {text}")
