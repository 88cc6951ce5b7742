"""Every expected firing is accounted for exactly once, whatever the times at which anybody looked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.daemon.front_matter import IfMissed
from perdure.daemon.runtime import Runtime
from perdure.daemon.schedule import Every, schedule_from_text
from perdure.daemon.scheduler import ON_TIME_SECONDS, account
from perdure.daemon.timer import Timer
from perdure.state import projections
from perdure.state.accounting import verify_slots
from perdure.state.events import SlotClosed, SlotOpened, TaskLoaded
from perdure.state.ledger import Ledger

from .stage import Stage

SECOND = 1_000_000
START = 1_800_000_000 * SECOND
ON_TIME = ON_TIME_SECONDS * SECOND

policies = st.sampled_from(
    [
        IfMissed("run-once"),
        IfMissed("skip"),
        IfMissed("run-all"),
        IfMissed("run-all", max=3),
        IfMissed("run-if-within", within=600.0),
    ]
)


def _task(period_seconds: int, if_missed: IfMissed):
    schedule = Every(period_seconds * SECOND, anchor=START)
    return SimpleNamespace(name="t", schedule=schedule, if_missed=if_missed)


def _ledger(path: Path) -> Ledger:
    ledger = Ledger.create(path / "ledger.db", now=lambda: START, workspace="w")
    ledger.commit(TaskLoaded(task="t", digest="d", schedule="{}"))
    return ledger


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 4_000), min_size=1, max_size=8),
    period=st.integers(7, 900),
    if_missed=policies,
    run_between=st.booleans(),
)
def test_every_firing_is_accounted_for_once(tmp_path_factory, gaps, period, if_missed, run_between) -> None:
    ledger = _ledger(tmp_path_factory.mktemp("ledger"))
    task = _task(period, if_missed)
    now = START
    for gap in gaps:
        now += gap * SECOND
        ledger.commit(*account(ledger.reader, task, START, now))
        if run_between:
            for slot in projections.slots(ledger.reader, open_only=True):
                ended = SlotClosed(slot=slot.slot, task="t", kind=slot.kind, due=slot.due, outcome="ran")
                ledger.commit(ended)
    expected = list(task.schedule.between(START, now))
    covered = []
    for slot in projections.slots(ledger.reader, task="t"):
        covered += [due for due in expected if slot.due <= due <= slot.last_due]
        assert slot.count == sum(slot.due <= due <= slot.last_due for due in expected)
    assert sorted(covered) == expected
    ledger.close()


@pytest.mark.parametrize(
    ("if_missed", "opened"),
    [
        (IfMissed("run-once"), 1),
        (IfMissed("skip"), 0),
        (IfMissed("run-all"), 10),
        (IfMissed("run-all", max=3), 3),
        (IfMissed("run-if-within", within=7_200.0), 1),
        (IfMissed("run-if-within", within=60.0), 0),
    ],
)
def test_what_was_missed_follows_the_task(tmp_path: Path, if_missed: IfMissed, opened: int) -> None:
    ledger = _ledger(tmp_path)
    task = _task(3_600, if_missed)
    now = START + 10 * 3_600 * SECOND + ON_TIME + SECOND
    drafts = account(ledger.reader, task, START, now)
    assert sum(isinstance(draft, SlotOpened) for draft in drafts) == opened
    missed = sum(draft.count for draft in drafts if isinstance(draft, SlotClosed))
    assert missed == 10 - opened
    assert all(draft.outcome == "missed" and draft.rule for draft in drafts if isinstance(draft, SlotClosed))
    ledger.close()


def test_firings_that_find_the_last_one_still_waiting_are_coalesced(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    task = _task(10, IfMissed())
    for moment in itertools.accumulate([10, 10, 10], initial=0):
        ledger.commit(*account(ledger.reader, task, START, START + moment * SECOND))
    outcomes = sorted(str(slot.outcome) for slot in projections.slots(ledger.reader, task="t"))
    assert outcomes == ["None", "coalesced", "coalesced"]
    ledger.close()


def test_a_clock_set_back_repeats_nothing(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    task = _task(10, IfMissed())
    ledger.commit(*account(ledger.reader, task, START, START + 100 * SECOND))
    before = ledger.head
    for moment in (90, 50, 0, 100):
        assert account(ledger.reader, task, START, START + moment * SECOND) == []
    assert ledger.head == before
    ledger.close()


def test_firings_before_the_schedule_came_into_force_were_never_expected(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    task = _task(10, IfMissed())
    since = START + 95 * SECOND
    drafts = account(ledger.reader, task, since, START + 100 * SECOND)
    assert [draft.due for draft in drafts] == [START + 100 * SECOND]
    ledger.close()


WRITE = "\n  - {do: write_file, args: {path: reports/one.md, text: done}}\n"
OUTCOMES = [("run-once", "every: 2h", 1), ("skip", "every: 2h", 0), ("run-once", None, 0), ("skip", "gone", 0)]


@pytest.mark.parametrize(("if_missed", "after", "opened"), OUTCOMES)
async def test_what_a_schedule_made_due_before_it_was_edited_has_its_slot(
    stage: Stage, if_missed: str, after: str | None, opened: int
) -> None:
    """The daemon is down over firings, and their schedule is another, or gone, when it starts again."""

    def write(schedule: str | None) -> None:
        extra = f"schedule: {{{schedule}}}\nif_missed: {if_missed}\n" if schedule is not None else ""
        stage.playbook("report", WRITE, tools="write_file", extra=extra)

    def gaps(runtime: Runtime) -> list[str]:
        first = {row.task: row.first_loaded for row in projections.tasks(runtime.ledger.reader)}

        def expected(task: str, text: str, since: int, until: int) -> Iterator[int]:
            return schedule_from_text(text, first[task]).between(since, until)

        return [str(gap) for gap in verify_slots(runtime.ledger.reader, expected, since=0, until=runtime.now())]

    write("every: 1h")
    async with stage.runtime() as runtime:
        Timer(runtime, lambda: None, pytest.fail).look()
    stage.clock.forward(5.5 * 3_600)
    if after == "gone":
        (stage.directory / "tasks/report.md").unlink()
    else:
        write(after)
    async with stage.runtime() as runtime:
        assert len(projections.slots(runtime.ledger.reader, open_only=True)) == opened
        Timer(runtime, lambda: None, pytest.fail).look()
        assert gaps(runtime) == []
        assert sum(slot.count for slot in projections.slots(runtime.ledger.reader, task="report")) == 5
