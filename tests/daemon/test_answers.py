"""Answers that come at awkward moments: nothing is done twice, nobody waits for an answer that has been given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.daemon.stage import POLICY, Stage, events

from perdure.daemon import operations
from perdure.daemon.recovery import recover
from perdure.daemon.runtime import Runtime
from perdure.daemon.scheduler import ended
from perdure.state import projections
from perdure.state.events import Event

COUNT = "\n  - {do: append_file, args: {path: reports/done.log, text: 'x'}}\n"
ONE = "\n  - {do: delete_file, args: {path: inbox/one.log}}" + COUNT


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "workspace")
    for name in ("one", "two"):
        stage.write(f"inbox/{name}.log", "a line\n")
    return stage


def answer(runtime: Runtime, escalation: str, said: str) -> None:
    operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 0, escalation=escalation, answer=said)


def done(stage: Stage) -> str:
    path = stage.directory / "reports/done.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(("said", "status"), [("approve", "unverified"), ("deny", "failed")])
async def test_an_answer_before_the_session_has_parked_is_not_lost(stage: Stage, said: str, status: str) -> None:
    stage.playbook("clean", ONE, tools="delete_file, append_file")
    async with stage.runtime() as runtime:

        def quick(seen: tuple[Event, ...]) -> None:
            for event in seen:
                if event.type == "notification.sent" and event.body["channel"] == "inbox":
                    answer(runtime, str(event.body["about"]), said)

        heard = runtime.ledger.subscribe(quick)
        assert (await stage.run_until_parked(runtime, "clean")).status == "parked"
        heard()
        (again,) = await stage.run_open_slots(runtime)
        assert again.status == status
        assert done(stage) == ("x" if said == "approve" else "")
        assert (stage.directory / "inbox/one.log").exists() == (said == "deny")


TWO = """
  - {do: delete_file, args: {path: inbox/one.log}, on_escalate: continue}
  - {do: delete_file, args: {path: inbox/two.log}}
""" + COUNT.removeprefix("\n")


@pytest.mark.parametrize("at_once", [True, False])
async def test_two_answers_for_one_session_continue_it_once(stage: Stage, at_once: bool) -> None:
    stage.playbook("clean", TWO, tools="delete_file, append_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "clean")).status == "parked"
        for question in projections.escalations(runtime.ledger.reader):
            answer(runtime, question.escalation, "approve")
            if not at_once:
                await stage.run_open_slots(runtime)
        await stage.run_open_slots(runtime)
        assert not list((stage.directory / "inbox").iterdir())
        assert done(stage) == "x"
        assert not projections.escalations(runtime.ledger.reader)
        assert len(events(runtime, "escalation.opened")) == 2
        assert not projections.slots(runtime.ledger.reader, open_only=True)


async def test_an_answer_for_a_session_that_was_taken_up_again_does_not_continue_it_twice(stage: Stage) -> None:
    steps = "\n  - {do: delete_file, args: {path: inbox/one.log}, on_escalate: continue}" + COUNT
    stage.playbook("clean", steps, tools="delete_file, append_file")
    async with stage.runtime() as runtime:

        def stop(seen: tuple[Event, ...]) -> None:
            runtime.stopping = runtime.stopping or any(event.type == "escalation.opened" for event in seen)

        heard = runtime.ledger.subscribe(stop)
        assert (await stage.run_until_parked(runtime, "clean")).status == "interrupted"
        heard()
        runtime.stopping = False
        (again,) = await stage.run_open_slots(runtime)
        assert again.status == "unverified"
        assert done(stage) == "x"
        (question,) = projections.escalations(runtime.ledger.reader)
        answer(runtime, question.escalation, "approve")
        await stage.run_open_slots(runtime)
        assert not (stage.directory / "inbox/one.log").exists()
        assert done(stage) == "x"


async def test_an_answer_given_before_a_cut_off_session_is_recovered_continues_it_once(stage: Stage) -> None:
    stage.playbook("clean", ONE, tools="delete_file, append_file")

    class Cut(BaseException):
        """Stands for a kill right after the question was stored."""

    async with stage.runtime() as runtime:

        async def killed(*_: object, **__: object) -> dict[str, str | None]:
            raise Cut

        runtime.notifier.notify = killed  # type: ignore[method-assign]
        with pytest.raises(Cut):
            await stage.run(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        answer(runtime, question.escalation, "approve")  # as `perdure approve` does where no daemon runs
    async with stage.runtime() as runtime:
        await stage.run_open_slots(runtime)
        assert not (stage.directory / "inbox/one.log").exists()
        assert done(stage) == "x"


async def test_questions_that_expire_together_all_take_their_default(stage: Stage) -> None:
    stage.write("policies/policy.yaml", POLICY.replace("expires: 1h", "expires: 1h, on_expiry: approve"))
    steps = """
  - {do: delete_file, for_each: "${['inbox/one.log', 'inbox/two.log']}", args: {path: "${item}"}, on_escalate: continue}
"""
    stage.playbook("clean", steps, tools="delete_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        stage.clock.forward(3_601)
        assert len(operations.expire(runtime.ledger, runtime.now())) == 2
        await stage.run_open_slots(runtime)
        assert not list((stage.directory / "inbox").iterdir())


async def test_a_question_that_expired_while_nothing_ran_is_not_joined(stage: Stage) -> None:
    stage.playbook("clean", ONE, tools="delete_file, append_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
    stage.clock.forward(3_601)
    async with stage.runtime() as runtime:
        assert not projections.escalations(runtime.ledger.reader)
        assert (await stage.run_open_slots(runtime))[0].status == "failed"  # the default was to deny
        assert (await stage.run(runtime, "clean")).status == "parked"
        (question,) = projections.escalations(runtime.ledger.reader)
        assert question.expires > runtime.now()


async def test_parked_sessions_that_share_a_question_each_go_on_and_the_action_is_done_once(stage: Stage) -> None:
    stage.playbook("clean", ONE, tools="delete_file, append_file", extra="while_parked: run\n")
    async with stage.runtime() as runtime:
        for _ in range(2):
            assert (await stage.run(runtime, "clean")).status == "parked"
        (question,) = projections.escalations(runtime.ledger.reader)
        answer(runtime, question.escalation, "approve")
        assert len(await stage.run_open_slots(runtime)) == 2
        assert done(stage) == "xx"
        assert [event.body["tool"] for event in events(runtime, "action.intended")].count("delete_file") == 1


@pytest.mark.parametrize("asks", ["park", "continue"])
async def test_what_is_approved_and_waits_to_be_done_is_not_asked_again(stage: Stage, asks: str) -> None:
    step = "\n  - {do: delete_file, args: {path: inbox/one.log}, on_escalate: " + asks + "}"
    stage.playbook("clean", step + COUNT, tools="delete_file, append_file", extra="while_parked: run\n")
    async with stage.runtime() as runtime:
        await stage.run_until_parked(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        answer(runtime, question.escalation, "approve")
        await stage.run_until_parked(runtime, "clean")  # before the answer's own slot
        assert len(events(runtime, "escalation.opened")) == 1
        assert len(events(runtime, "escalation.joined")) == 1
        await stage.run_open_slots(runtime)
        assert done(stage) == "xx"
        assert [event.body["tool"] for event in events(runtime, "action.intended")].count("delete_file") == 1


async def test_an_approval_that_no_slot_waits_to_use_is_asked_for_anew(stage: Stage) -> None:
    stage.playbook("clean", ONE, tools="delete_file, append_file", extra="while_parked: run\n")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        answer(runtime, question.escalation, "approve")
        (slot,) = projections.slots(runtime.ledger.reader, open_only=True)
        runtime.ledger.commit(ended(slot, "skipped", rule="the task was taken out meanwhile"))
        assert (await stage.run(runtime, "clean")).status == "parked"
        assert len(events(runtime, "escalation.opened")) == 2


FLOODS = """
import os
with open("work/effects.log", "a") as file:
    file.write("acted\\n")
while os.path.exists("work/flood"):
    print("x" * 100_000)  # until it is cut off: nobody learns how it would have ended
"""


@pytest.mark.parametrize("effect", ["once", "idempotent"])
async def test_an_approved_action_whose_outcome_nobody_saw_asks_again_at_once(stage: Stage, effect: str) -> None:

    config = (stage.directory / "perdure.toml").read_text()
    tool = f'[tools.act]\ncommand = [{json.dumps(sys.executable)}, "act.py"]\neffect = "{effect}"\nwrite = ["work"]\ntimeout = "60s"\n'
    stage.write("perdure.toml", config + tool)
    stage.write("policies/act.yaml", "version: 1\nrules:\n  - {name: acting, tools: [act], decide: escalate}\n")
    stage.write("act.py", FLOODS)
    stage.write("work/flood", "")
    stage.playbook("work", "\n  - {do: act}" + COUNT, tools="act, append_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "work")).status == "parked"
        (first,) = projections.escalations(runtime.ledger.reader)
        answer(runtime, first.escalation, "approve")
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "parked"
        (second,) = projections.escalations(runtime.ledger.reader)
        assert second.action == first.action
        (stage.directory / "work/flood").unlink()
        answer(runtime, second.escalation, "approve")
        await recover(runtime)  # a restart before the slot has run asks nothing more
        assert not projections.escalations(runtime.ledger.reader)
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "unverified"
    assert done(stage) == "x"
    assert (stage.directory / "work/effects.log").read_text().count("acted") == 2
