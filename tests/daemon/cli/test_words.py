"""Times and amounts in words."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.daemon.cli.words import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    count,
    dollars,
    duration,
    from_now,
    iso,
    moment,
    short,
    shorten,
    size,
)


@pytest.mark.parametrize(
    ("microseconds", "words"),
    [
        (0, "0.0 ms"),
        (400, "0.4 ms"),
        (12_000, "12 ms"),
        (1_840_000, "1.8 s"),
        (59 * SECOND, "59 s"),
        (200 * SECOND, "3 min 20 s"),
        (2 * HOUR + 5 * MINUTE, "2 h 5 min"),
        (3 * DAY + 4 * HOUR, "3 d 4 h"),
        (DAY, "1 d"),
    ],
)
def test_durations(microseconds, words):
    assert duration(microseconds) == words


def test_distances():
    assert from_now(10 * HOUR, 0) == "in 10 h"
    assert from_now(0, 5 * MINUTE) == "5 min ago"
    assert from_now(3, 0) == "now"


def test_moments_leave_out_what_goes_without_saying():
    zone = ZoneInfo("Europe/Berlin")
    now = 1_795_338_000 * SECOND
    assert moment(now, zone, now) == "10:00:00"
    assert moment(now - DAY, zone, now) == "Sat 21 Nov 10:00:00"
    assert moment(now - 400 * DAY, zone, now) == "Sat 18 Oct 2025 11:00:00"


def test_amounts():
    assert (dollars(0), dollars(0.0042), dollars(1.25)) == ("$0", "$0.0042", "$1.25")
    assert (size(312), size(4_200), size(17_000_000), size(3 * 10**12)) == ("312 B", "4.2 kB", "17 MB", "3000 GB")
    assert (count(1, "step"), count(2310, "step"), count(2, "summary", "summaries")) == (
        "1 step",
        "2,310 steps",
        "2 summaries",
    )


def test_ulids_are_cut_to_their_random_end_and_other_ids_are_not():
    assert short("01KANCTRC0AAAAAAAAAA1F1RST") == "1F1RST"
    assert short("log-triage/manual/2026-11-22T09:00:00Z") == "log-triage/manual/2026-11-22T09:00:00Z"
    assert shorten("waits for 01KANCTRC0AAAAAAAAAA1F1RST (x)") == "waits for 1F1RST (x)"


@given(st.integers(0, 4_000_000_000 * SECOND))
def test_json_times_are_exact(at):
    from datetime import datetime

    parsed = datetime.fromisoformat(iso(at))
    assert int(parsed.timestamp()) * SECOND + parsed.microsecond == at
