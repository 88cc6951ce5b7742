"""Days, weeks and months are those of the task's own zone, as the ledger says it: also where clocks change, or the zone does."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from perdure.memory.story import story
from perdure.memory.summaries import period
from perdure.state import events as e

HOUR = 3_600_000_000
DAY = 24 * HOUR


def at(*moment, zone="UTC"):
    return int(datetime(*moment, tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


def local(moment, zone):
    return datetime.fromtimestamp(moment / 1_000_000, tz=UTC).astimezone(ZoneInfo(zone))


def load(past, zone, task="triage", digest="sha256:t"):
    past.ledger.commit(e.TaskLoaded(task=task, digest=digest, timezone=zone, payload={"text": "x"}))


@pytest.mark.parametrize(
    ("zone", "moment", "hours"),
    [
        ("UTC", (2026, 3, 29, 12), 24),
        ("Europe/Berlin", (2026, 3, 29, 12), 23),
        ("Europe/Berlin", (2026, 10, 25, 12), 25),
        ("Asia/Beirut", (2026, 3, 29, 12), 23),  # midnight itself does not exist
        ("No/Such", (2026, 3, 29, 12), 24),
    ],
)
def test_a_day_has_as_many_hours_as_the_clock_says_and_days_follow_one_another(zone, moment, hours):
    start, end = period("day", at(*moment), zone)
    assert (end - start) // HOUR == hours
    assert period("day", end, zone)[0] == end
    assert period("day", start - 1, zone)[1] == start
    assert period("week", start, zone)[0] <= period("day", start, zone)[0]


def spans(memory, level="day", task="triage"):
    return {each.id: (each.start, each.end) for each in memory._store.summaries(task, level)}


async def test_each_task_has_its_own_days_and_a_rebuild_finds_the_same(past):
    past.at = at(2026, 10, 23, 21, 30)
    load(past, "Europe/Berlin")
    load(past, "Asia/Tokyo", task="backup")
    memory = past.memory()
    for _ in range(5):
        past.session(past.action("read_file", {"path": "a"}, "before midnight"))
        past.session(past.action("read_file", {"path": "a"}, "elsewhere"), task="backup")
        past.at += DAY
        await memory.compact("triage", scope="triage")
    await memory.compact("triage", scope="triage")  # also reads the receipt, which a day later closes the day before
    days = spans(memory)
    assert days["day/2026-10-25/triage"] == (at(2026, 10, 24, 22), at(2026, 10, 25, 23))  # 25 hours
    assert all(
        local(start, "Europe/Berlin").hour == local(end, "Europe/Berlin").hour == 0 for start, end in days.values()
    )
    assert all(local(start, "Asia/Tokyo").hour == 0 for start, _ in spans(memory, task="backup").values())
    told = [(each.id, each.text) for each in story(memory._store, "triage")]
    await memory.close()
    for path in past.directory.glob("memory.db*"):
        path.unlink()
    memory = past.memory()
    await memory.compact("triage", scope="triage")
    assert spans(memory) == days
    assert [(each.id, each.text) for each in story(memory._store, "triage")] == told
    await memory.close()


@pytest.mark.parametrize(
    ("old", "new"), [("UTC", "Asia/Tokyo"), ("Asia/Tokyo", "UTC"), ("Pacific/Auckland", "Pacific/Honolulu")]
)
async def test_no_record_falls_between_the_days_when_the_zone_changes(past, old, new):
    past.at = at(2026, 10, 5, 1)
    load(past, old)
    for hour in range(72):
        past.session(past.action("read_file", {"path": f"{hour}"}, f"hour {hour}"))
        past.at += HOUR
        if hour == 40:
            load(past, new, digest="sha256:other")
    past.at += 3 * DAY
    past.session(says="later")
    memory = past.memory()
    await memory.compact("triage", scope="triage")
    days = spans(memory)
    records = memory._store.records_between("triage", 0, past.at - 2 * DAY)
    assert len(records) == 144
    for record in records:
        assert any(start <= record.at < end for start, end in days.values()), record
    await memory.close()
