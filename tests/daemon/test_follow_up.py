"""A follow-up is an action like any other: proposed, decided, and run as a slot of its own, within depth and fan-out."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.stage import POLICY, Stage, events

from perdure.daemon import operations
from perdure.daemon.slot_runner import SlotRunner
from perdure.state import projections

ALLOWED = POLICY + "  - {name: later, tools: [follow_up], args: {task: chain}, decide: auto}\n"
CHAIN = "\n  - {do: follow_up, args: {task: chain, after: 1h, why: there is more}, on_error: continue}\n"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "workspace")
    stage.write("policies/policy.yaml", ALLOWED)
    return stage


async def test_a_chain_of_follow_ups_waits_for_its_time_and_ends_at_its_bound(stage: Stage) -> None:
    stage.playbook("chain", CHAIN, tools="follow_up")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "chain")
        (slot,) = projections.slots(runtime.ledger.reader, open_only=True)
        action = projections.actions(runtime.ledger.reader)[0]
        assert (slot.kind, slot.cause) == ("follow-up", action.action)
        assert SlotRunner(runtime, stop=lambda _: None)._waits(slot)
        assert action.verified
    for _ in range(2):
        stage.clock.forward(3_700)
        async with stage.runtime() as runtime:
            assert len(await stage.run_open_slots(runtime)) == 1
    stage.clock.forward(3_700)
    async with stage.runtime() as runtime:
        assert await stage.run_open_slots(runtime) == []  # the second follow-up may open no third
        last = events(runtime, "action.ended")[-1]
        assert last.body["status"] == "failed"
        assert "2 is the most" in runtime.ledger.reader.payload(last.seq)["error"]
        kinds = [event.body["kind"] for event in events(runtime, "slot.opened")]
        assert kinds == ["manual", "follow-up", "follow-up"]


async def test_one_session_opens_no_more_than_its_share(stage: Stage) -> None:
    steps = "\n  - {do: follow_up, for_each: '${[1, 2, 3, 4, 5]}', args: {task: chain, after: '${item}h'}, on_error: continue}\n"
    stage.playbook("chain", CHAIN, tools="follow_up")
    stage.playbook("many", steps.replace("'${item}h'", '"${string(item)}h"'), tools="follow_up")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "many")
        assert len(projections.slots(runtime.ledger.reader, task="chain", open_only=True)) == 3
        statuses = [event.body["status"] for event in events(runtime, "action.ended")]
        assert statuses == ["succeeded"] * 3 + ["failed"] * 2


async def test_a_question_in_between_brings_no_further_share(stage: Stage) -> None:
    opening = "\n  - {do: follow_up, for_each: '${[1, 2, 3]}', args: {task: chain, after: '${string(item)}h'}, on_error: continue}"
    asking = "\n  - {do: delete_file, args: {path: a.txt}}"
    stage.write("a.txt", "a")
    stage.playbook("chain", CHAIN, tools="follow_up")
    again = opening.replace("string(item)", "string(item + 3)")
    stage.playbook("many", f"{opening}{asking}{again}\n", tools="follow_up, delete_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "many")).status == "parked"
        (question,) = projections.escalations(runtime.ledger.reader)
        operations.answer(
            runtime.ledger, runtime.identifiers, runtime.now(), 1000, escalation=question.escalation, answer="approve"
        )
        await stage.run_open_slots(runtime)
        assert not (stage.directory / "a.txt").exists()
        assert len(projections.slots(runtime.ledger.reader, task="chain", open_only=True)) == 3


@pytest.mark.parametrize(("task", "status"), [("other", "parked"), ("nobody", "failed")])
async def test_only_what_policies_allow_and_only_known_tasks(stage: Stage, task: str, status: str) -> None:
    stage.playbook("other", f"\n  - {{do: follow_up, args: {{task: {task}}}}}\n", tools="follow_up")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "other")).status == status
        assert [event.body["kind"] for event in events(runtime, "slot.opened")] == ["manual"]
