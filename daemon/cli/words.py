"""Times, amounts and ids in a person's words."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import tzinfo

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
SHORT_ID = 6
_ULID = re.compile(r"\b[0-7][0-9A-HJKMNP-TV-Z]{25}\b")


def iso(at: int) -> str:
    """Microseconds UTC as ISO 8601 with a Z, for JSON."""
    moment = datetime.fromtimestamp(at // SECOND, UTC).replace(microsecond=at % SECOND, tzinfo=None)
    return moment.isoformat(timespec="microseconds" if at % SECOND else "seconds") + "Z"


def moment(at: int, zone: tzinfo | None, now: int) -> str:
    """A time for people in the zone (None: the machine's): the day is left out for today, the year for this year."""
    then = datetime.fromtimestamp(at / SECOND, UTC).astimezone(zone)
    today = datetime.fromtimestamp(now / SECOND, UTC).astimezone(zone)
    if then.date() == today.date():
        return then.strftime("%H:%M:%S")
    if then.year == today.year:
        return then.strftime("%a %d %b %H:%M:%S")
    return then.strftime("%a %d %b %Y %H:%M:%S")


def full_moment(at: int, zone: tzinfo | None) -> str:
    """A time with day, year and zone, for a page's header."""
    return datetime.fromtimestamp(at / SECOND, UTC).astimezone(zone).strftime("%a %d %b %Y %H:%M:%S %Z")


def clock_time(at: int, zone: tzinfo | None) -> str:
    """Hours, minutes and seconds only."""
    return datetime.fromtimestamp(at / SECOND, UTC).astimezone(zone).strftime("%H:%M:%S")


def duration(microseconds: int) -> str:
    """A duration in its two largest sensible units: `0.4 ms`, `12 ms`, `1.8 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if microseconds < 1_000:
        return f"{microseconds / 1_000:.1f} ms"
    if microseconds < SECOND:
        return f"{microseconds / 1_000:.0f} ms"
    if microseconds < 10 * SECOND:
        return f"{microseconds / SECOND:.1f} s"
    for unit, name, smaller, smaller_name in (
        (DAY, "d", HOUR, "h"),
        (HOUR, "h", MINUTE, "min"),
        (MINUTE, "min", SECOND, "s"),
    ):
        if microseconds >= unit:
            rest = microseconds % unit // smaller
            return f"{microseconds // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{microseconds // SECOND} s"


def from_now(at: int, now: int) -> str:
    """`in 3 h 12 min`, `5 min ago`, `now`."""
    distance = at - now
    if abs(distance) < SECOND:
        return "now"
    # Whole seconds: a person does not read tenths of a second of a distance.
    words = duration(abs(distance) // SECOND * SECOND).replace(".0 s", " s")
    return f"in {words}" if distance > 0 else f"{words} ago"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 step`, `2,310 steps`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def size(octets: int) -> str:
    """`312 B`, `4.2 kB`, `17 MB`."""
    amount = float(octets)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1_000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1_000
    raise AssertionError(octets)


def dollars(amount: float) -> str:
    """`$0`, `$0.0042`, `$1.25`: cents, and more places only where there would be nothing left to see."""
    if amount == 0:
        return "$0"
    return f"${amount:,.2f}" if amount >= 0.01 else f"${amount:.2g}"


def short(identifier: str) -> str:
    """An id as people see it: the last six characters of a ULID (they are its random part), anything else whole."""
    return identifier[-SHORT_ID:] if len(identifier) == 26 and identifier.isalnum() else identifier


def shorten(text: str) -> str:
    """The text with every ULID in it cut short."""
    return _ULID.sub(lambda match: short(match.group()), text)


def short_digest(digest: str) -> str:
    """`sha256:ab12cd34…`: enough to compare by eye."""
    algorithm, separator, value = digest.rpartition(":")
    return f"{algorithm}{separator}{value[:8]}…" if len(value) > 8 else digest
