"""Whole sessions on real files, ledger, tools and memory: what is decided is done, once, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.stage import Stage, events, types

from perdure.daemon import operations
from perdure.state import projections

REPORT = """
  - {do: list_files, args: {path: inbox}, save: found}
  - {do: write_file, args: {path: reports/today.md, text: "all well"}}
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "workspace")
    stage.write("inbox/one.log", "a line\n")
    return stage


async def test_a_playbook_session_is_proven_by_its_postconditions(stage: Stage) -> None:
    stage.playbook(
        "report", REPORT, tools="list_files, write_file", extra="postconditions:\n  - file_exists: reports/today.md\n"
    )
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert (ending.status, ending.reason) == ("succeeded", "finished; its postcondition holds")
        kinds = types(runtime, ending.session)
        assert kinds[0] == "session.opened"
        assert kinds.index("compaction.finished") < kinds.index("context.assembled") < kinds.index("action.proposed")
        assert kinds.index("action.intended") < kinds.index("action.ended")
        assert kinds[-2:] == ["session.closed", "slot.closed"]
    assert (stage.directory / "reports/today.md").read_text() == "all well"


async def test_without_postconditions_a_session_is_unverified(stage: Stage) -> None:
    stage.playbook("report", REPORT, tools="list_files, write_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "report")).status == "unverified"


async def test_a_postcondition_that_does_not_hold_fails_the_session(stage: Stage) -> None:
    stage.playbook(
        "report", REPORT, tools="list_files, write_file", extra="postconditions:\n  - file_exists: reports/other.md\n"
    )
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert "reports/other.md" in ending.reason


async def test_a_denied_step_stops_the_playbook_and_nothing_happens(stage: Stage) -> None:
    stage.playbook("report", "\n  - {do: write_file, args: {path: forbidden/x, text: no}}\n", tools="write_file")
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert "never this one" in str(events(runtime, "action.decided")[0].body["rules"])
        assert not events(runtime, "action.intended")
    assert not (stage.directory / "forbidden").exists()


REFUSED = """
  - {do: read_file, for_each: ["${last.nothing}", 7, inbox/one.log], args: {path: "${item}"}, on_error: continue, save: read}
  - {do: write_file, args: {path: reports/last.md, text: last}}
"""


async def test_a_playbook_goes_on_past_arguments_that_its_tool_refuses_where_it_says_so(stage: Stage) -> None:
    stage.playbook("past", REFUSED, tools="read_file, write_file")
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "past")
        assert (ending.status, ending.reason) == ("unverified", "finished; the task declares no postconditions")
        [rejected] = events(runtime, "step.rejected")
        assert rejected.body["reason"] == "bad-arguments"
        [closed] = events(runtime, "session.closed")
        assert closed.body["steps"] == 3
        payload = runtime.ledger.reader.payload(closed.seq)
        assert isinstance(payload, dict)
        assert payload["says"] == "2 steps done, 1 failed"
    assert (stage.directory / "reports/last.md").read_text() == "last"


async def test_a_playbook_ends_at_arguments_that_its_tool_refuses_where_it_does_not_say_so(stage: Stage) -> None:
    stage.playbook("past", REFUSED.replace(", on_error: continue", ""), tools="read_file, write_file")
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "past")
        assert ending.status == "failed"
        assert ending.reason.startswith("bad-arguments")
    assert not (stage.directory / "reports/last.md").exists()


PARKS = """
  - {do: write_file, args: {path: reports/first.md, text: first}}
  - {do: delete_file, args: {path: inbox/one.log}}
  - {do: write_file, args: {path: reports/last.md, text: last}}
"""


async def test_an_approved_question_is_carried_out_once_and_the_session_goes_on(stage: Stage) -> None:
    stage.playbook("clean", PARKS, tools="write_file, delete_file")
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "clean")
        assert ending.status == "parked"
        assert (stage.directory / "inbox/one.log").exists()
        assert not (stage.directory / "reports/last.md").exists()
        (question,) = projections.escalations(runtime.ledger.reader)
    async with stage.runtime() as runtime:  # the question survives a restart
        operations.answer(
            runtime.ledger,
            runtime.identifiers,
            runtime.now(),
            1000,
            escalation=question.escalation,
            answer="approve",
            note="go",
        )
        (again,) = await stage.run_open_slots(runtime)
        assert again.status == "unverified"
        assert not (stage.directory / "inbox/one.log").exists()
        assert (stage.directory / "reports/last.md").read_text() == "last"
        tools = [event.body["tool"] for event in events(runtime, "action.intended")]
        assert tools == ["write_file", "delete_file", "write_file"]
        assert projections.escalation(runtime.ledger.reader, question.escalation).state == "used"
        with pytest.raises(Exception, match="already used"):
            operations.answer(
                runtime.ledger,
                runtime.identifiers,
                runtime.now(),
                1000,
                escalation=question.escalation,
                answer="approve",
            )


async def test_a_denied_question_stops_the_playbook_and_is_not_asked_again(stage: Stage) -> None:
    stage.playbook("clean", PARKS, tools="write_file, delete_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        operations.answer(
            runtime.ledger, runtime.identifiers, runtime.now(), 0, escalation=question.escalation, answer="deny"
        )
        (again,) = await stage.run_open_slots(runtime)
        assert again.status == "failed"
        assert (await stage.run(runtime, "clean")).status == "failed"
        assert not projections.escalations(runtime.ledger.reader)
        stage.clock.forward(3_601)  # the refusal stands as long as the question would have
        assert (await stage.run(runtime, "clean")).status == "parked"
    assert (stage.directory / "inbox/one.log").exists()


async def test_an_expired_question_takes_its_default_and_cannot_be_approved(stage: Stage) -> None:
    stage.playbook("clean", PARKS, tools="write_file, delete_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        stage.clock.forward(3_601)
        with pytest.raises(Exception, match="expiry is final"):
            operations.answer(
                runtime.ledger, runtime.identifiers, runtime.now(), 0, escalation=question.escalation, answer="approve"
            )
        assert operations.expire(runtime.ledger, runtime.now())
        (again,) = await stage.run_open_slots(runtime)
        assert again.status == "failed"
        assert again.reason.endswith("(delete_file) was refused: nobody answered in time")
    assert (stage.directory / "inbox/one.log").exists()


async def test_what_a_person_said_with_a_no_is_told_to_the_planner(stage: Stage) -> None:
    stage.playbook("clean", PARKS, tools="write_file, delete_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        given = {"escalation": question.escalation, "answer": "deny", "note": "we still need it"}
        operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 0, **given)
        (again,) = await stage.run_open_slots(runtime)
        assert again.reason.endswith("(delete_file) was refused: a person denied it: we still need it")


async def test_later_slots_are_held_while_a_session_is_parked(stage: Stage) -> None:
    stage.playbook("clean", PARKS, tools="write_file, delete_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        operations.ask_for_session(runtime.ledger, runtime.now(), 0, task="clean")
        assert await stage.run_open_slots(runtime) == []
        slot = projections.slots(runtime.ledger.reader, task="clean", limit=1)[0]
        assert slot.outcome == "held"


ASKS = """
  - {do: delete_file, for_each: "${['inbox/one.log', 'inbox/two.log']}", args: {path: "${item}"}, on_escalate: continue}
  - {do: write_file, args: {path: reports/last.md, text: last}}
"""


async def test_one_question_however_often_the_task_runs(stage: Stage) -> None:
    stage.write("inbox/two.log", "b\n")
    stage.playbook(
        "clean", ASKS, tools="write_file, delete_file", extra="postconditions:\n  - file_exists: reports/last.md\n"
    )
    async with stage.runtime() as runtime:
        for _ in range(3):
            assert (await stage.run(runtime, "clean")).status == "succeeded"
        questions = projections.escalations(runtime.ledger.reader)
        assert len(questions) == 2
        assert len(events(runtime, "escalation.joined")) == 4
        first = questions[0]
        operations.answer(
            runtime.ledger, runtime.identifiers, runtime.now(), 0, escalation=first.escalation, answer="approve"
        )
        (done,) = await stage.run_open_slots(runtime)
        assert done.status == "succeeded"
        assert not (stage.directory / "inbox/one.log").exists()
        assert (stage.directory / "inbox/two.log").exists()
        assert len(events(runtime, "notification.sent")) >= 2


async def test_a_dry_run_reads_and_decides_and_changes_nothing(stage: Stage) -> None:
    stage.playbook(
        "report", REPORT, tools="list_files, write_file", extra="postconditions:\n  - file_exists: reports/today.md\n"
    )
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report", dry_run=True)
        assert ending.status == "unverified"
        assert [event.body["tool"] for event in events(runtime, "action.intended")] == ["list_files"]
        assert len(events(runtime, "action.decided")) == 2
    assert not (stage.directory / "reports").exists()


async def test_the_bound_on_steps_ends_the_session_as_limited(stage: Stage) -> None:
    steps = "\n  - {do: write_file, for_each: '${[1, 2, 3, 4, 5]}', args: {path: 'reports/${index}.md', text: x}}\n"
    stage.playbook(
        "many", steps, tools="write_file", extra="bounds: {steps: 3, context: 4000, tokens: 10000, minutes: 1}\n"
    )
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "many")
        assert ending.status == "limited"
        assert len(events(runtime, "action.intended")) == 3


async def test_an_instruction_that_cannot_fit_is_refused_with_both_numbers(stage: Stage) -> None:
    stage.playbook(
        "report", REPORT + "\n" + "\n".join(f"# word{i} and more" for i in range(2_000)),
        tools="list_files, write_file", extra="bounds: {steps: 3, context: 300, tokens: 10000, minutes: 1}\n",
    )  # fmt: skip
    async with stage.runtime() as runtime:
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        assert "300" in ending.reason
        assert not events(runtime, "action.intended")
