"""Every firing that a schedule promised has a slot, and every gap is named."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.state import events as e
from perdure.state.accounting import in_utc, reigns, verify_slots

from .conftest import MINUTE, START


def every(task, text, after, until):
    """Firings of a schedule {"every": minutes}, counted from the epoch."""
    step = json.loads(text)["every"] * MINUTE
    return iter(range((after // step + 1) * step, until + 1, step))


def load(story, minutes, task="triage"):
    story.ledger.commit(
        e.TaskLoaded(task=task, digest="sha256:t", schedule=None if minutes is None else json.dumps({"every": minutes}))
    )


def close(story, due, last=None, task="triage", outcome="ran"):
    count = 1 if last is None else (last - due) // (15 * MINUTE) + 1
    story.ledger.commit(
        e.SlotClosed(
            slot=f"{task}/scheduled/{due}",
            task=task,
            kind="scheduled",
            due=due,
            outcome=outcome,
            last_due=last,
            count=count,
        )
    )


def gaps(story, since=0, until=None, task=None):
    return [
        (finding.kind, finding.detail)
        for finding in verify_slots(story.ledger.reader, every, since=since, until=until or story.at, task=task)
    ]


def firings(story, since, until, minutes=15):
    return list(every("triage", json.dumps({"every": minutes}), since, until))


def test_a_full_account_has_no_gap_and_every_hole_is_named(story):
    story.create()
    load(story, 15)
    start = story.at
    story.at += 600 * MINUTE
    due = firings(story, start, story.at)
    assert len(due) == 40
    for moment in due[:10]:
        close(story, moment)
    close(story, due[10], due[29], outcome="missed")
    for moment in due[30:]:
        if moment != due[35]:
            close(story, moment)
    assert gaps(story) == [
        ("slot-gap", f"task triage was expected to fire at {in_utc(due[35])}, and no slot says what became of it")
    ]
    assert gaps(story, until=due[35] - 1) == []
    assert gaps(story, since=due[35]) == []
    assert len(gaps(story, since=due[20] - 1, until=due[25])) == 0


def test_a_slot_that_no_schedule_promised_and_a_wrong_count_are_named(story):
    story.create()
    load(story, 15)
    start = story.at
    story.at += 100 * MINUTE
    due = firings(story, start, story.at)
    for moment in due[:3]:
        close(story, moment)
    close(story, due[2] + MINUTE)
    story.ledger.commit(
        e.SlotClosed(
            slot="r", task="triage", kind="scheduled", due=due[3], last_due=due[-1], count=len(due), outcome="missed"
        )
    )
    assert [kind for kind, _ in gaps(story)] == ["slot-unexpected", "slot-count"]


def test_each_schedule_rules_from_its_loading_to_the_next(story):
    story.create()
    load(story, 15)
    first = story.at
    story.at += 60 * MINUTE
    load(story, 15)  # a restart: nothing changes
    story.at += 60 * MINUTE
    load(story, 60)
    second = story.at
    story.at += 240 * MINUTE
    story.ledger.commit(e.TaskRemoved(task="triage"))
    removed = story.at
    story.at += 500 * MINUTE
    assert [(reign.since, reign.until) for reign in reigns(story.ledger.reader, story.at)] == [
        (first, second),
        (second, removed),
    ]
    expected = firings(story, first, second) + firings(story, second, removed, 60)
    for moment in expected:
        close(story, moment)
    assert gaps(story) == []
    assert gaps(story, task="triage") == []


def test_times_are_written_for_people(story):
    story.create()
    load(story, 15)
    story.at += 10 * MINUTE
    ((_, detail),) = gaps(story)
    assert "at 2026-09-21 14:15:00 UTC, and" in detail
    assert in_utc(START + 5) == "2026-09-21 14:13:20.000005 UTC"


def test_tasks_without_a_schedule_promise_nothing(story):
    story.create()
    load(story, None)
    story.at += 500 * MINUTE
    assert gaps(story) == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(st.integers(0, 39)), st.integers(0, 39), st.integers(0, 39))
def test_exactly_the_missing_firings_are_named(new_story, missing, one, other):
    low, high = sorted((one, other))
    story = new_story()
    story.create()
    load(story, 15)
    story.at = START + 600 * MINUTE + 1
    due = firings(story, START + 3, story.at)
    covered = set(range(len(due))) - missing
    if high > low:
        close(story, due[low], due[high], outcome="missed")
        covered -= set(range(low, high + 1))
        missing -= set(range(low, high + 1))
    for index in sorted(covered):
        close(story, due[index])
    named = {detail.split(" at ")[1].split(",")[0] for kind, detail in gaps(story) if kind == "slot-gap"}
    story.close()
    assert named == {in_utc(due[index]) for index in missing if index < len(due)}
