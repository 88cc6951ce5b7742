"""Going round in circles is noticed within a session and across sessions, and stopped before it burns the bounds."""

from __future__ import annotations

import asyncio

import pytest
from click.testing import CliRunner
from tests.daemon.drawing import CONFIG, TASK, Answers, plan, write
from tests.daemon.stage import Stage, events

from perdure.daemon import operations, slot_runner
from perdure.daemon.breaker import shape
from perdure.daemon.cli.account import question_of
from perdure.daemon.cli.app import perdure
from perdure.daemon.endings import Ending
from perdure.daemon.loops import GROWING_MAX, REFUSALS_MAX, STALE_MAX, LoopGuard
from perdure.daemon.planners.moves import Finish, Move, Proposal, Taken, View
from perdure.daemon.runtime import Runtime
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.events import EscalationOpened, Paused
from perdure.state.ledger import LedgerRefused


@pytest.fixture
def stage(stage: Stage) -> Stage:
    stage.write("tasks/report.md", TASK.replace("steps: 4", "steps: 40"))
    return stage


def step(
    tool: str = "read_file",
    *,
    result: object = None,
    says: str = "",
    decision: str = "auto",
    files: dict[str, str] | None = None,
    **args: object,
) -> Taken:
    proposal = Proposal(tool=tool, args=args, provenance={}, confidence=1.0, says=says)
    status = "succeeded" if decision == "auto" else None
    effect = "read" if tool == "read_file" else "once"
    return Taken(
        step=1, proposal=proposal, action="A", decision=decision, reason="", status=status, result=result, effect=effect,
        files=files or {},
    )  # fmt: skip


def guarded(*steps: Taken, planned: bool = False) -> str | None:
    guard = LoopGuard(planned=planned)
    found = None
    for taken in steps:
        guard.saw(taken)
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
    def wrote(text: str, path: str = "a.md") -> Taken:
        return step("write_file", path=path, text=text, result={"path": "a.md"}, files={"a.md": text})

    assert "earlier content" in (guarded(*map(wrote, "abcabc")) or "")
    names = ["a.md", "./a.md", "b/../a.md"] * 2
    assert "a.md was given back" in (guarded(*map(wrote, "abcabc", names)) or "")
    onwards = [wrote("x" * n) for n in range(20)]
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


async def test_a_file_that_a_program_changes_to_and_fro_is_noticed_too(stage: Stage) -> None:
    """Not only what write_file wrote: whatever file a call names is looked at once it is done."""
    put = """
[tools.put]
command = ["/bin/cp", "${args.source}", "${args.target}"]
args = {source = {type = "string"}, target = {type = "string"}}
paths = {source = "read", target = "write"}
write = ["out"]
"""
    stage.write("perdure.toml", CONFIG + put)
    stage.write("tasks/report.md", TASK.replace("steps: 4", "steps: 40").replace("tools: [", "tools: [put, "))
    stage.write("policies/policy.yaml", "version: 1\nrules:\n  - {name: all, tools: [put], decide: auto}\n")
    for name in "xyz":
        stage.write(name, f"text {name}\n")

    stage.write("out/a.md", "")

    def copies(view: View) -> Move:
        args = {"source": "xyz"[len(view.taken) % 3], "target": "out/a.md"}
        return Proposal(tool="put", args=args, provenance={}, confidence=0.9)

    async with stage.runtime() as runtime:
        plan(runtime, copies)
        ending = await stage.run(runtime, "report")
    assert (ending.status, ending.reason) == ("failed", "loop: out/a.md was given back an earlier content 2 times")


# -- over the parks of one run ------------------------------------------------------------------------------------------

ASKS = """
version: 1
rules:
  - {name: reading here, tools: [list_files, read_file], decide: auto}
  - {name: reports, tools: [write_file], decide: auto}
  - {name: by a person, tools: [write_file], path: {under: asked}, decide: escalate, expires: 1h}
  - {name: never, tools: [write_file], path: {under: forbidden}, decide: deny}
"""


async def answered_until_it_ends(stage: Stage, answers: Answers, said: str = "approve") -> Ending:
    """A session, and all that go on from it, each in a daemon of its own; whatever it asks is answered with `said`."""
    stage.write("policies/policy.yaml", ASKS)
    async with stage.runtime() as runtime:
        plan(runtime, answers)
        ending = await stage.run(runtime, "report")
    for _ in range(20):
        if ending.status != "parked":
            return ending
        async with stage.runtime() as runtime:
            plan(runtime, answers)
            (question,) = projections.escalations(runtime.ledger.reader)
            answered(runtime, question.escalation, said)
            (ending,) = await stage.run_open_slots(runtime)
    raise AssertionError("it never ends")


async def test_taking_turns_with_a_persons_approvals_is_a_loop_all_the_same(stage: Stage) -> None:
    stage.write("inbox/a.log", "a line\n")
    read = Proposal(tool="read_file", args={"path": "inbox/a.log"}, provenance={}, confidence=0.9)

    def turns(view: View) -> Move:
        last = view.taken[-1].proposal.tool if view.taken else None
        return write("asked/a.md") if last == "read_file" else read

    ending = await answered_until_it_ends(stage, turns)
    assert (ending.status, ending.reason) == (
        "failed",
        "loop: read_file and write_file took turns 3 times with the same results",
    )


async def test_a_file_written_to_and_fro_over_parks_is_noticed(stage: Stage) -> None:
    ending = await answered_until_it_ends(stage, lambda view: write("asked/a.md", "xyz"[len(view.taken) % 3]))
    assert (ending.status, ending.reason) == ("failed", "loop: asked/a.md was given back an earlier content 2 times")


@pytest.mark.parametrize("by_a_person", [True, False])
async def test_refusals_are_counted_over_parks(stage: Stage, by_a_person: bool) -> None:
    def insists(view: View) -> Move:
        number = len(view.taken)
        return write(f"{'asked' if by_a_person or number == 1 else 'forbidden'}/{number}.md")

    ending = await answered_until_it_ends(stage, insists, "deny")
    assert (ending.status, ending.reason) == (
        "failed",
        "loop: 3 steps in a row were refused, and nothing else was tried",
    )


async def test_a_session_that_goes_on_sees_why_its_steps_were_refused(stage: Stage) -> None:
    views = []

    def tries(view: View) -> Move:
        views.append(view)
        return [write("forbidden/x.md"), write("asked/x.md"), Finish(says="")][min(2, len(view.taken))]

    await answered_until_it_ends(stage, tries)
    before = next(view.taken for view in views if len(view.taken) == 1)
    after = views[-1].taken
    assert [taken.reason for taken in after][:1] == [taken.reason for taken in before]
    assert "never" in after[0].reason
    assert after[0].error == before[0].error


# -- across sessions --------------------------------------------------------------------------------------------------

FAILING = "\n  - {do: write_file, args: {path: forbidden/x.md, text: x}}\n"


async def failed_until_asked(stage: Stage) -> str:
    """Three sessions, each in a daemon of its own; returns the question that the third one led to."""
    stage.playbook("clean", FAILING, tools="write_file")
    for number in range(3):
        async with stage.runtime() as runtime:
            assert (await stage.run(runtime, "clean")).status == "failed"
            assert (projections.paused(runtime.ledger.reader, "clean") is not None) == (number == 2)
    async with stage.runtime() as runtime:
        (question,) = projections.escalations(runtime.ledger.reader)
        return question.escalation


def answered(runtime: Runtime, question: str, answer: str, **more: bool) -> dict[str, object]:
    now = runtime.now()
    return operations.answer(runtime.ledger, runtime.identifiers, now, 1000, escalation=question, answer=answer, **more)


async def test_the_same_failure_three_sessions_running_stops_the_task_and_asks_a_person(stage: Stage) -> None:
    question = await failed_until_asked(stage)
    async with stage.runtime() as runtime:
        (paused,) = events(runtime, "paused")
        assert (paused.body["task"], paused.body["by"]) == ("clean", "breaker")
        (alarm,) = (event for event in events(runtime, "alarm.raised") if event.body["code"] == "breaker")
        assert question in runtime.ledger.reader.payload(alarm.seq)["text"]
        assert any(event.body["about"] == question for event in events(runtime, "notification.sent"))
        row = projections.escalation(runtime.ledger.reader, question)
        asked = runtime.ledger.reader.payload(row.seq)["question"]
        failed = [event.body["session"] for event in events(runtime, "session.closed")]
        assert [tried["session"] for tried in asked["tried"]] == failed[::-1]
        assert [tried["steps"] for tried in asked["tried"]] == [
            [{"step": 1, "tool": "write_file", "ended": "denied"}]
        ] * 3
        assert (row.on_expiry, row.parks) == ("deny", False)
        operations.ask_for_session(runtime.ledger, runtime.now(), 0, task="clean")
        assert await stage.run_open_slots(runtime) == []
        assert "failed 3 sessions running" in projections.slots(runtime.ledger.reader, task="clean", limit=1)[0].rule
        with pytest.raises(PerdureError, match="about a task"):
            answered(runtime, question, "approve", always=True)
        assert answered(runtime, question, "approve")["paused"] is False
        assert projections.escalation(runtime.ledger.reader, question).state == "used"
        for number in range(3):  # a person let it go on: it gets three tries again
            assert (await stage.run(runtime, "clean")).status == "failed"
            assert (projections.paused(runtime.ledger.reader, "clean") is not None) == (number == 2)
        assert len(projections.escalations(runtime.ledger.reader)) == 1


def test_the_question_shows_what_was_tried_and_how_to_answer(stage: Stage, monkeypatch) -> None:
    question = asyncio.run(failed_until_asked(stage))
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(perdure, ["-w", str(stage.directory), "inbox", "show", question], prog_name="perdure")
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("write_file denied") == 3
    assert "Let the task go on" in shown.output
    assert "--always" not in shown.output
    approved = CliRunner().invoke(perdure, ["-w", str(stage.directory), "approve", question], prog_name="perdure")
    assert "The task clean goes on with its next slot." in approved.output, approved.output
    assert "question" in CliRunner().invoke(perdure, ["-w", str(stage.directory), "inbox", "--all"]).output


@pytest.mark.parametrize("nobody", [True, False])
async def test_a_task_that_nobody_lets_go_on_stays_stopped(stage: Stage, nobody: bool) -> None:
    question = await failed_until_asked(stage)
    if nobody:
        stage.clock.forward(8 * 86_400)
    async with stage.runtime() as runtime:  # its start lets expire what is late
        if not nobody:
            answered(runtime, question, "deny")
        assert projections.escalation(runtime.ledger.reader, question).state == ("expired" if nobody else "denied")
        assert projections.paused(runtime.ledger.reader, "clean") is not None
        assert projections.escalations(runtime.ledger.reader) == []
        with pytest.raises(PerdureError):
            answered(runtime, question, "approve")
        operations.resume(runtime.ledger, 0, task="clean")
        assert projections.paused(runtime.ledger.reader, "clean") is None


async def test_resuming_the_task_by_hand_settles_its_question(stage: Stage) -> None:
    question = await failed_until_asked(stage)
    async with stage.runtime() as runtime:
        operations.resume(runtime.ledger, 0, task="clean")
        assert projections.escalation(runtime.ledger.reader, question).state == "used"
        assert question_of(runtime.ledger.reader, question)["state"] == "used"
        with pytest.raises(PerdureError):
            answered(runtime, question, "approve")
        assert (await stage.run(runtime, "clean")).status == "failed"


async def test_a_crash_between_the_third_failure_and_its_question_loses_neither(stage: Stage, monkeypatch) -> None:
    stage.playbook("clean", FAILING, tools="write_file")

    async def cut_off(runtime: Runtime, task: str) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(slot_runner, "trip", cut_off)
        async with stage.runtime() as runtime:
            for _ in range(3):
                await stage.run(runtime, "clean")
    async with stage.runtime() as runtime:
        assert projections.paused(runtime.ledger.reader, "clean") is not None
        (question,) = projections.escalations(runtime.ledger.reader)
        assert any(event.body["about"] == question.escalation for event in events(runtime, "notification.sent"))


@pytest.mark.parametrize(
    "change", [{"tool": "write_file"}, {"parks": True}, {"on_expiry": "approve"}, {"task": "other"}]
)
async def test_no_other_question_can_do_without_an_action(stage: Stage, change: dict[str, object]) -> None:
    async with stage.runtime() as runtime:
        runtime.ledger.commit(Paused(task="clean", by="breaker", reason="x"))
        forged = {
            "escalation": "E",
            "action": "",
            "digest": "d",
            "session": "S",
            "task": "clean",
            "tool": "resume_task",
        }
        forged |= {"expires": runtime.now() + 1_000_000, "on_expiry": "deny", "parks": False} | change
        with pytest.raises(LedgerRefused):
            runtime.ledger.commit(EscalationOpened(**forged))


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


async def test_questions_between_them_do_not_hide_that_all_fail_in_the_same_way(stage: Stage) -> None:
    stage.write("policies/policy.yaml", ASKS)
    stage.playbook("clean", "\n  - {do: write_file, args: {path: asked/x.md, text: x}}" + FAILING, tools="write_file")
    for number in range(3):
        async with stage.runtime() as runtime:
            assert (await stage.run(runtime, "clean")).status == "parked"
            (question,) = projections.escalations(runtime.ledger.reader)
            answered(runtime, question.escalation, "approve")
            (ending,) = await stage.run_open_slots(runtime)
            assert ending.status == "failed"
            assert (projections.paused(runtime.ledger.reader, "clean") is not None) == (number == 2)
            if number == 2:
                (asked,) = projections.escalations(runtime.ledger.reader)
                tried = runtime.ledger.reader.payload(asked.seq)["question"]["tried"]
                assert [step["ended"] for step in tried[0]["steps"]] == ["succeeded", "denied"]


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
