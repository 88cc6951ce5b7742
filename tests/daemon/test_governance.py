"""What the policies are told, what is recorded of it, and standing answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.stage import POLICY, Stage, events, open_steps

from perdure.daemon import operations
from perdure.daemon.planners.moves import Proposal, Taken
from perdure.daemon.steps import Steps
from perdure.errors import PerdureError
from perdure.state import projections

CLEAN = "\n  - {do: delete_file, args: {path: inbox/one.log}, on_escalate: continue, on_error: continue}\n"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "workspace")
    stage.write("inbox/one.log", "a line\n")
    stage.playbook("clean", CLEAN, tools="delete_file")
    return stage


async def _ask(stage: Stage, runtime):
    await stage.run(runtime, "clean")
    (question,) = projections.escalations(runtime.ledger.reader)
    return question


async def test_a_standing_answer_answers_the_same_from_now_on_and_only_the_same(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        question = await _ask(stage, runtime)
        said = {"escalation": question.escalation, "answer": "approve", "always": True}
        result = operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 7, **said)
        assert len(result["grants"]) == 1
        await stage.run_open_slots(runtime)
        stage.write("inbox/one.log", "a line\n")
        await stage.run(runtime, "clean")
        assert not projections.escalations(runtime.ledger.reader)
        assert not (stage.directory / "inbox/one.log").exists()
        assert events(runtime, "action.decided")[-1].body["grant"] == result["grants"][0]
    stage.write("inbox/two.log", "another\n")
    stage.playbook("clean", CLEAN.replace("one.log", "two.log"), tools="delete_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        assert len(projections.escalations(runtime.ledger.reader)) == 1


async def test_a_grant_that_was_revoked_or_that_a_deny_rule_beats_is_worth_nothing(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        question = await _ask(stage, runtime)
        said = {"escalation": question.escalation, "answer": "approve", "always": True}
        (grant,) = operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 7, **said)["grants"]
        await stage.run_open_slots(runtime)
    stage.write("inbox/one.log", "a line\n")
    stage.write(
        "policies/no.yaml", "version: 1\nrules:\n  - {name: no deletions, tools: [delete_file], decide: deny}\n"
    )
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        assert events(runtime, "action.decided")[-1].body["decision"] == "deny"
    (stage.directory / "policies/no.yaml").unlink()
    async with stage.runtime() as runtime:
        operations.revoke_grant(runtime.ledger, 7, grant=grant)
        await stage.run(runtime, "clean")
        assert len(projections.escalations(runtime.ledger.reader)) == 1
    assert (stage.directory / "inbox/one.log").exists()


async def test_a_question_that_no_rule_raised_cannot_be_answered_for_good(stage: Stage) -> None:
    stage.write(
        "policies/policy.yaml",
        POLICY.replace(
            "tools: [delete_file, move_file, toll], decide: escalate, expires: 1h", "tools: [delete_file], decide: auto"
        ),
    )
    stage.write(
        "policies/care.yaml",
        "version: 1\nrules:\n  - {name: with care, tools: [delete_file], require: {max_per_hour: 1}}\n",
    )
    stage.write("inbox/two.log", "b\n")
    steps = CLEAN + CLEAN.replace("one.log", "two.log").lstrip("\n")
    stage.playbook("clean", steps, tools="delete_file")
    async with stage.runtime() as runtime:
        question = await _ask(stage, runtime)
        with pytest.raises(PerdureError, match="without --always"):
            operations.answer(
                runtime.ledger,
                runtime.identifiers,
                runtime.now(),
                7,
                escalation=question.escalation,
                answer="approve",
                always=True,
            )
        assert projections.escalation(runtime.ledger.reader, question.escalation).state == "open"


async def test_the_facts_that_a_decision_was_made_on_are_recorded_with_it(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        await _ask(stage, runtime)
        facts = events(runtime, "action.decided")[0].body["facts"]
        assert facts["task"] == "clean"
        assert facts["planner"] == "playbook"
        assert facts["session_steps"] == 1


async def test_a_shadow_rule_is_recorded_and_not_enforced(stage: Stage) -> None:
    stage.write(
        "policies/trial.yaml",
        "version: 1\nshadow: true\nrules:\n  - {name: on trial, tools: [delete_file], decide: deny}\n",
    )
    async with stage.runtime() as runtime:
        await _ask(stage, runtime)
        body = events(runtime, "action.decided")[0].body
        assert (body["decision"], body["shadow"]) == ("escalate", "deny")


async def test_a_script_may_write_where_the_policies_let_commands_write(stage: Stage) -> None:
    rule = "version: 1\nrules:\n  - {name: echoing, tools: [run_command], program: {in: [echo]}, path: {under: [reports]}, decide: auto}\n"
    stage.write("policies/echo.yaml", rule)
    stage.write("reports/kept.md", "")
    inside = "\n  - {do: run_command, args: {script: 'echo well > reports/today.md'}, on_escalate: continue, on_error: continue}\n"
    stage.playbook(
        "clean", inside + inside.replace("reports/today.md", "inbox/today.md").lstrip("\n"), tools="run_command"
    )
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        decisions = [event.body["decision"] for event in events(runtime, "action.decided")]
        assert decisions == ["auto", "escalate"]


async def test_a_session_is_tainted_once_it_has_read_what_nobody_vouches_for(stage: Stage) -> None:
    steps = (
        "\n  - {do: write_file, args: {path: reports/first.md, text: x}}"
        "\n  - {do: read_file, args: {path: inbox/one.log}}"
        "\n  - {do: write_file, args: {path: reports/second.md, text: x}, on_escalate: continue}\n"
    )
    stage.write(
        "policies/wary.yaml",
        "version: 1\nrules:\n  - {name: wary, tools: [write_file], when: tainted, decide: escalate}\n",
    )
    stage.playbook("wary", steps, tools="write_file, read_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "wary")
        decisions = [event.body["decision"] for event in events(runtime, "action.decided")]
        assert decisions == ["auto", "auto", "escalate"]


async def test_sessions_that_decide_in_one_tick_of_the_loop_share_an_hourly_limit(stage: Stage) -> None:
    rule = "version: 1\nrules:\n  - {name: few, tools: [write_file], require: {max_per_hour: 2}}\n"
    stage.write("policies/few.yaml", rule)
    for name in "abcd":
        stage.playbook(name, "\n  - {do: write_file, args: {path: reports/a.md, text: x}}\n", tools="write_file")
    async with stage.runtime() as runtime:
        opened = [open_steps(runtime, name, "write_file") for name in "abcd"]

        def write(steps: Steps) -> Coroutine[Any, Any, Taken]:
            args = {"path": f"reports/{steps.task.name}.md", "text": "x"}
            provenance = dict.fromkeys(args, ("instruction",))
            proposal = Proposal(
                tool="write_file", args=args, provenance=provenance, confidence=1.0, on_escalate="continue"
            )
            return steps.take(1, proposal)

        taken = await asyncio.gather(*(write(steps) for steps in opened))
        assert [one.decision for one in taken] == ["auto", "auto", "escalate", "escalate"]
        assert len(events(runtime, "action.intended")) == 2
        assert (await write(opened[0])).decision == "escalate"  # nor is one counted twice, or forgotten, afterwards
        assert runtime.recent.calls("write_file", runtime.now()) == (2, 2)
