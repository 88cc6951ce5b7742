"""The days that a question names, so that what was told then comes first: `2026-11-03`, `3 November 2026`, `in November`,
`yesterday`, `last week`, `last Friday`, `three days ago`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t|tember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_NUMBERS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
_UNITS = {"day": 1, "week": 7, "month": 30}
_NAMED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?P<year>\d{4})-(?P<number>\d\d)-(?P<day>\d\d)\b",
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH}\b(?:,? (?P<year>\d{{4}}))?",
        rf"\b{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (?P<year>\d{{4}}))?",
        rf"\b{_MONTH},? (?P<year>\d{{4}})\b",
        rf"\b(?:in|of|during|since|last|this) {_MONTH}\b(?!,? \d)",
    )
)
_RELATIVE = re.compile(
    rf"\b(?:(?P<near>today|yesterday)|(?P<which>last|this) (?P<unit>day|week|month)"
    rf"|last (?P<weekday>{'|'.join(_WEEKDAYS)})\w*|(?P<count>\d{{1,3}}|{'|'.join(_NUMBERS)}) (?P<units>day|week|month)s? ago)\b",
    re.IGNORECASE,
)


def named_days(text: str, earliest: int, now: int) -> list[tuple[int, int]]:
    """The spans of days that `text` names, as [start, end) in microseconds UTC. A month without a year is that of each year
    from `earliest` to `now`; relative ones count from `now`."""
    first, today = _day(earliest), _day(now)
    spans: list[tuple[date, date]] = []
    for pattern in _NAMED:
        for found in pattern.finditer(text):
            spans.extend(_dates(found.groupdict(), first.year, today.year))
        text = pattern.sub(" ", text)  # 3 June 2026 is not June 2026 as well
    spans.extend(_relative(found.groupdict(), today) for found in _RELATIVE.finditer(text))
    return sorted({(_microseconds(start), _microseconds(end)) for start, end in spans})


def _dates(named: dict[str, str | None], first: int, last: int) -> Iterator[tuple[date, date]]:
    month = int(str(named["number"])) if named.get("number") else _MONTHS.index(str(named["month"])[:3].lower()) + 1
    day = named.get("day")
    years = [int(str(named["year"]))] if named.get("year") else range(first, last + 1)
    for year in years:
        try:
            start = date(year, month, int(day or 1))
            end = start + timedelta(days=1) if day else (start + timedelta(days=31)).replace(day=1)
        except (ValueError, OverflowError):  # 31 June, the year 9999
            continue
        yield start, end


def _relative(named: dict[str, str | None], today: date) -> tuple[date, date]:
    if near := named.get("near"):
        start = today - timedelta(days=near.lower() == "yesterday")
        return start, start + timedelta(days=1)
    if weekday := named.get("weekday"):
        back = (today.weekday() - _WEEKDAYS.index(weekday[:3].lower()) - 1) % 7 + 1
        return today - timedelta(days=back), today - timedelta(days=back - 1)
    if count := named.get("count"):
        days = _UNITS[str(named["units"]).lower()]
        start = today - timedelta(days=days * (int(count) if count.isdigit() else _NUMBERS[count.lower()]))
        return start, start + timedelta(days=days)
    unit = str(named["unit"]).lower()
    begin = {"day": today, "week": today - timedelta(days=today.weekday()), "month": today.replace(day=1)}[unit]
    if str(named["which"]).lower() == "this":
        return begin, today + timedelta(days=1)
    before = begin - timedelta(days=1)
    start = {"day": before, "week": begin - timedelta(days=7), "month": before.replace(day=1)}[unit]
    return start, begin


def _day(at: int) -> date:
    return datetime.fromtimestamp(min(max(at, 0), 253_370_764_800_000_000) / 1_000_000, tz=UTC).date()  # to 9999-01-01


def _microseconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000
