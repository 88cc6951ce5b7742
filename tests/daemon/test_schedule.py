"""Schedules are due exactly when Debian's cron would be, however the clock is changed, and their text reads back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perdure.daemon.schedule import SECOND, Cron, Every, Watch, schedule_from_text

BERLIN = "Europe/Berlin"
ZONES = [
    BERLIN,
    "UTC",
    "America/New_York",
    "America/Havana",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Asia/Kathmandu",
]
EXPRESSIONS = [
    "*/15 * * * *",
    "30 1 * * *",
    "30 2 * * *",
    "0,30 2,3 * * *",
    "0 0 * * *",
    "*/20 3 * * *",
    "5 */2 * * *",
    "0 12 * * 1-5",
    "0 9 13 * 5",
    "0 9 */2 * 5",
    "@hourly",
    "@weekly",
    "15 2 25 10 *",
    "*/15 2 25 10 *",
    "0 0 29 2 *",
]
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(lambda wall: us(wall.replace(tzinfo=UTC)))  # noqa: DTZ001


def us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def at(text: str) -> int:
    return us(datetime.fromisoformat(text))


def shown(due: int | None, zone: str) -> str:
    assert due is not None
    return datetime.fromtimestamp(due / 1e6, ZoneInfo(zone)).isoformat()


def day(expression: str, zone: str, date: str) -> list[str]:
    start = datetime.fromisoformat(date).replace(tzinfo=ZoneInfo(zone))
    end = (start + timedelta(days=1)).replace(fold=0)  # wall-clock addition: the next midnight
    return [shown(due, zone) for due in Cron(expression, zone).between(us(start) - 1, us(end) - 1)]


def test_daily_job_in_repeated_hour_runs_once() -> None:
    assert day("30 2 * * *", BERLIN, "2026-10-25") == ["2026-10-25T02:30:00+02:00"]
    assert day("30 1 * * *", "America/New_York", "2026-11-01") == ["2026-11-01T01:30:00-04:00"]


def test_daily_job_in_skipped_hour_runs_right_after_it() -> None:
    assert day("30 2 * * *", BERLIN, "2026-03-29") == ["2026-03-29T03:00:00+02:00"]
    assert day("0,30 2,3 * * *", BERLIN, "2026-03-29") == ["2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"]


def test_job_at_midnight_where_midnight_is_skipped_runs_once() -> None:
    assert day("0 0 * * *", "America/Havana", "2026-03-08") == ["2026-03-08T01:00:00-04:00"]


def test_wildcard_job_follows_the_clock_on_the_wall() -> None:
    repeated = day("*/30 * * * *", BERLIN, "2026-10-25")
    assert len(repeated) == 50
    assert [text for text in repeated if "T02:" in text] == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T02:30:00+01:00",
    ]
    skipped = day("*/30 * * * *", BERLIN, "2026-03-29")
    assert len(skipped) == 46
    assert not [text for text in skipped if "T02:" in text]


def test_half_hour_change_loses_no_firing() -> None:
    """Lord Howe's clock goes from 2:00 to 2:30; a search that steps by whole hours would miss 3:00 and 3:15."""
    assert day("*/15 3 * * *", "Australia/Lord_Howe", "2026-10-04") == [
        f"2026-10-04T03:{minute}:00+11:00" for minute in ("00", "15", "30", "45")
    ]


def test_restart_within_the_repeated_hour_never_goes_back() -> None:
    second_pass = us(datetime(2026, 10, 25, 2, 15, fold=1, tzinfo=ZoneInfo(BERLIN)))
    assert shown(Cron("30 2 * * *", BERLIN).next_after(second_pass), BERLIN) == "2026-10-26T02:30:00+01:00"


def test_day_of_month_and_day_of_week_as_debian_reads_them() -> None:
    either = list(
        islice(Cron("0 9 13 * 5", "UTC").between(at("2026-11-01T00:00+00:00"), at("2026-12-31T00:00+00:00")), 20)
    )
    days = [datetime.fromtimestamp(due / 1e6, UTC) for due in either]
    assert all(each.day == 13 or each.weekday() == 4 for each in days)
    assert datetime(2026, 12, 13, 9, tzinfo=UTC) in days
    assert shown(Cron("0 9 * * 0", "UTC").next_after(at("2026-11-20T00:00+00:00")), "UTC").startswith("2026-11-22")
    assert Cron("0 9 * * 7", "UTC").next_after(0) == Cron("0 9 * * SUN", "UTC").next_after(0)


NEVER_DUE = [
    *("", "* * * *", "* * * * * *", "60 * * * *", "0 24 * * *", "0 0 0 * *", "0 0 30 2 *", "*/0 * * * *", "L * * * *"),
    *("0 0 L * *", "0 0 * * 1#2", "0 0 * * 5L", "5-1 * * * *", "a b c d e", "@reboot", "* * * * *\n0", "² * * * *"),
]


@pytest.mark.parametrize("expression", NEVER_DUE)
def test_expression_that_is_never_due_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"five fields|a cron expression|a (minute|hour|day|month)"):
        Cron(expression, "UTC")


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS, st.integers(1, 5 * 86_400))
@example("*/20 3 * * *", "Australia/Lord_Howe", at("2026-10-03T00:00+00:00"), 2 * 86_400)
@example("30 1 * * *", "America/New_York", at("2026-11-01T05:45+00:00"), 86_400)
def test_between_is_repeated_next_after(expression: str, zone: str, after: int, seconds: int) -> None:
    schedule, until = Cron(expression, zone), after + seconds * SECOND
    found = list(schedule.between(after, until))
    assert found == sorted(set(found))
    assert all(after < due <= until for due in found)
    single, due = [], schedule.next_after(after)
    while due is not None and due <= until:
        single.append(due)
        due = schedule.next_after(due)
    assert found == single


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS, st.integers(0, 40 * 86_400), st.integers(0, 86_400)
)
def test_where_one_begins_to_look_changes_nothing(
    expression: str, zone: str, after: int, seconds: int, later: int
) -> None:
    """Two daemons, or one restarted, agree on what was due."""
    schedule, until = Cron(expression, zone), after + seconds * SECOND
    whole = list(schedule.between(after, until))
    assert [due for due in whole if due > after + later * SECOND] == list(
        schedule.between(after + later * SECOND, until)
    )


@settings(deadline=None)
@given(st.sampled_from(ZONES), st.integers(2000, 2036), st.integers(0, 23), st.integers(0, 59))
def test_job_at_a_fixed_time_runs_once_on_every_day(zone: str, year: int, hour: int, minute: int) -> None:
    start = datetime(year, 1, 1, tzinfo=ZoneInfo(zone))
    end = datetime(year + 1, 1, 1, tzinfo=ZoneInfo(zone))
    found = list(Cron(f"{minute} {hour} * * *", zone).between(us(start) - 1, us(end) - 1))
    dates = [datetime.fromtimestamp(due / 1e6, ZoneInfo(zone)).date() for due in found]
    assert len(dates) == len(set(dates)) == (end.date() - start.date()).days


@given(st.integers(1, 400 * 86_400).map(lambda seconds: min(seconds, 366 * 86_400) * SECOND), MOMENTS, MOMENTS)
def test_period_counts_from_first_load(period: int, anchor: int, after: int) -> None:
    schedule = Every(period).anchored(anchor)
    due = schedule.next_after(after)
    assert due > max(after, anchor)
    assert (due - anchor) % period == 0
    assert due - period <= max(after, anchor)
    assert list(schedule.between(after, due + 2 * period)) == [due, due + period, due + 2 * period]


def test_watch_is_never_due_by_the_clock() -> None:
    assert Watch("inbox/*.log").next_after(0) is None
    assert not list(Watch("inbox/*.log").between(0, 10**18))


@pytest.mark.parametrize(
    ("pattern", "path", "matched"),
    [
        ("inbox/*.log", "inbox/a.log", True),
        ("inbox/*.log", "inbox/deep/a.log", False),
        ("inbox/**/*.log", "inbox/a.log", True),
        ("inbox/**/*.log", "inbox/deep/er/a.log", True),
        ("**", "any/thing", True),
        ("inbox/?[0-9].log", "inbox/a7.log", True),
        ("inbox/?[!0-9].log", "inbox/a7.log", False),
        ("inbox/a+b.log", "inbox/a+b.log", True),
        ("inbox/*.log", "other/inbox/a.log", False),
    ],
)
def test_watch_matches_like_a_shell(pattern: str, path: str, matched: bool) -> None:
    watch = Watch(pattern, root=Path("/srv/ws"))
    assert watch.matches(Path("/srv/ws", path)) is matched
    assert not watch.matches(Path("/elsewhere", path))


@pytest.mark.parametrize("pattern", ["", "/var/log/*.log", "../x", "inbox/**.log"])
def test_watch_outside_the_workspace_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|part"):
        Watch(pattern)


@pytest.mark.parametrize("schedule", [Cron("0  9 * * MON", BERLIN), Every(900 * SECOND), Watch("inbox/*.log")])
def test_text_reads_back(schedule: Cron | Every | Watch) -> None:
    again = schedule_from_text(schedule.text, first_loaded=7)
    assert again.text == schedule.text
    assert list(again.between(0, 10**15))[:3] == list(schedule.anchored(7).between(0, 10**15))[:3]


def test_words_for_people() -> None:
    assert Every(900 * SECOND).words == "every 15 minutes"
    assert Every(3600 * SECOND).words == "every 60 minutes"
    assert Every(6 * SECOND).words == "every 6 seconds"
    assert Cron("0 9 * * 1", BERLIN).words == "cron 0 9 * * 1 (Europe/Berlin)"
    with pytest.raises(ValueError, match="not a schedule"):
        schedule_from_text('{"at":"noon"}')
