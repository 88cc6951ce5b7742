"""Going round in circles is noticed within a session and across sessions, and stopped before it burns the bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.drawing import plan, write
from tests.daemon.stage import Stage, events
from tests.daemon.test_voting import CONFIG

from perdure.daemon import operations, slot_runner
from perdure.daemon.breaker import shape
from perdure.daemon.loops import GROWING_MAX, REFUSALS_MAX, STALE_MAX, LoopGuard
from perdure.daemon.planners.moves import Proposal, Taken
from perdure.state import projections

TASK = """---
name: report
planner: model
tools: [list_files, read_file, write_file]
bounds: {steps: 40, context: 4000, tokens: 20000, minutes: 5, cost_usd: 0.5}
---
Write the report.
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "workspace")
    stage.write("perdure.toml", CONFIG)
    stage.write("tasks/report.md", TASK)
    return stage


def step(
    tool: str = "read_file", *, result: object = None, says: str = "", decision: str = "auto", **args: object
) -> Taken:
    proposal = Proposal(tool=tool, args=args, provenance={}, confidence=1.0, says=says)
    status = "succeeded" if decision == "auto" else None
    return Taken(step=1, proposal=proposal, action="A", decision=decision, reason="", status=status, result=result)


def guarded(*steps: Taken, planned: bool = False) -> str | None:
    guard = LoopGuard(planned=planned)
    found = None
    for taken in steps:
        guard.saw(taken, reads=taken.proposal.tool == "read_file")
        found = found or guard.loop()
    return found


def test_the_same_again_and_taking_turns() -> None:
    same = [step(path="a", result="x")] * 3
    assert "3 times in a row" in (guarded(*same) or "")
    turns = [step(path=name, result=name) for name in "ababab"]
    assert "took turns" in (guarded(*turns) or "")
    assert guarded(*turns[:5]) is None


def test_looking_without_learning_anything() -> None:
    looking = [step(path=f"{number}", result="empty") for number in range(STALE_MAX + 1)]
    assert "no new information" in (guarded(*looking) or "")
    learning = [step(path=f"{number}", result=f"text {number}") for number in range(3 * STALE_MAX)]
    assert guarded(*learning) is None
    doing = [step("block", ip=f"192.0.2.{number}", result={"exit": 0}) for number in range(3 * STALE_MAX)]
    assert guarded(*doing) is None  # each is an effect of its own, whatever it prints


def test_a_file_that_is_written_to_and_fro() -> None:
    to_and_fro = [step("write_file", path="a.md", text=text, result={"n": n}) for n, text in enumerate("abcabc")]
    assert "earlier content" in (guarded(*to_and_fro) or "")
    onwards = [step("write_file", path="a.md", text="x" * n, result={"n": n}) for n in range(20)]
    assert guarded(*onwards) is None


def test_refusals_in_a_row() -> None:
    refused = [step("write_file", path=f"{n}", decision="deny", says=str(n)) for n in range(REFUSALS_MAX)]
    assert "refused" in (guarded(*refused) or "")
    assert guarded(refused[0], step(path="a", result="1"), refused[1], step(path="b", result="2"), refused[2]) is None


def test_a_plan_that_grows_and_does_nothing() -> None:
    growing = [step(path=f"{n}", result=f"r{n}", says="and then " * n) for n in range(1, GROWING_MAX + 1)]
    assert "the plan grew" in (guarded(*growing) or "")
    assert guarded(*growing[:3], step("write_file", path="a", text="b"), *growing[3:]) is None


def test_of_a_playbook_only_exact_repetition_counts() -> None:
    looking = [step(path=f"{number}", result="empty") for number in range(STALE_MAX + 1)]
    assert guarded(*looking, planned=True) is None
    assert guarded(*[step(path="a", result="x")] * 3, planned=True) is not None


async def test_a_session_in_a_circle_fails_and_says_why(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        planner = plan(runtime, lambda view: write("a.md", "xyz"[len(view.taken) % 3]))
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert ending.reason == "loop: a.md was given back an earlier content 2 times"
        assert len(planner.views) == 5


# -- across sessions --------------------------------------------------------------------------------------------------

FAILING = "\n  - {do: write_file, args: {path: forbidden/x.md, text: x}}\n"


async def test_the_same_failure_three_sessions_running_stops_the_task_loudly_and_for_good(stage: Stage) -> None:
    stage.playbook("clean", FAILING, tools="write_file")
    for number in range(3):
        async with stage.runtime() as runtime:  # each in a daemon of its own
            assert (await stage.run(runtime, "clean")).status == "failed"
            assert (projections.paused(runtime.ledger.reader, "clean") is not None) == (number == 2)
    async with stage.runtime() as runtime:
        (paused,) = events(runtime, "paused")
        assert (paused.body["task"], paused.body["by"]) == ("clean", "breaker")
        (alarm,) = (event for event in events(runtime, "alarm.raised") if event.body["code"] == "breaker")
        text = runtime.ledger.reader.payload(alarm.seq)["text"]
        assert text.count("write_file denied") == 3
        assert "perdure resume clean" in text
        assert any(event.body["about"] == "clean" for event in events(runtime, "notification.sent"))
        operations.ask_for_session(runtime.ledger, runtime.now(), 0, task="clean")
        assert await stage.run_open_slots(runtime) == []
        assert "failed 3 sessions running" in projections.slots(runtime.ledger.reader, task="clean", limit=1)[0].rule
        operations.resume(runtime.ledger, 0, task="clean")
        for number in range(3):  # a person let it go on: it gets three tries again
            assert (await stage.run(runtime, "clean")).status == "failed"
            assert (projections.paused(runtime.ledger.reader, "clean") is not None) == (number == 2)


async def test_a_success_or_another_failure_between_them_starts_the_count_anew(stage: Stage) -> None:
    stage.playbook("clean", FAILING, tools="write_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        await stage.run(runtime, "clean")
    stage.playbook("clean", "\n  - {do: write_file, args: {path: a.md, text: x}}\n", tools="write_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "clean")).status == "unverified"
    stage.playbook("clean", FAILING, tools="write_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        await stage.run(runtime, "clean")
        assert projections.paused(runtime.ledger.reader, "clean") is None


async def test_tries_of_one_slot_are_one_failure(stage: Stage, monkeypatch) -> None:
    monkeypatch.setattr(slot_runner, "BACKOFF_SECONDS", 0.0)
    stage.playbook("clean", FAILING, tools="write_file", extra="retries: 3\n")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        assert len(events(runtime, "session.closed")) == 4
        assert projections.paused(runtime.ledger.reader, "clean") is None


def test_reasons_are_compared_without_what_differs_each_time() -> None:
    one = "asked 01M81X3R0MSEGEFP4AVDZED3S9: 3 of 17 at reports/2026-11-22.md"
    other = "asked 01M81X3T59J7BGY12VZZWVTFYE: 4 of 18 at reports/2026-11-23.md"
    assert shape(one) == shape(other)
    assert shape(one) != shape("something else")
