"""Questions that nobody answers in time."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.stage import POLICY, Stage, events

from perdure.daemon import operations
from perdure.errors import PerdureError
from perdure.state import projections

TWO_QUESTIONS = """
  - {do: delete_file, args: {path: inbox/one.log}, on_escalate: continue}
  - {do: delete_file, args: {path: inbox/two.log}, on_escalate: continue}
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "workspace")
    stage.write("policies/policy.yaml", POLICY.replace("expires: 1h", "expires: 1h, on_expiry: approve"))
    for name in ("one", "two"):
        stage.write(f"inbox/{name}.log", "a line\n")
    stage.playbook("clean", TWO_QUESTIONS, tools="delete_file")
    return stage


async def test_questions_of_one_task_may_expire_in_the_same_moment(stage: Stage) -> None:
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        stage.clock.forward(3_601)
        assert len(operations.expire(runtime.ledger, runtime.now())) == 2
        assert len(projections.slots(runtime.ledger.reader, open_only=True)) == 2
        await stage.run_open_slots(runtime)
        assert len(events(runtime, "escalation.expired")) == 2
    assert not list((stage.directory / "inbox").iterdir())


@pytest.fixture
def approved(stage: Stage) -> Stage:
    """One question that a person answers."""
    stage.write("policies/policy.yaml", POLICY)
    stage.playbook("clean", "\n  - {do: delete_file, args: {path: inbox/one.log}}\n", tools="delete_file")
    return stage


async def test_an_approval_that_nobody_used_in_time_ends_as_an_event_and_authorises_nothing(approved: Stage) -> None:
    async with approved.runtime() as runtime:
        await approved.run(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        said = {"escalation": question.escalation, "answer": "approve"}
        operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 1000, **said)
        operations.pause(runtime.ledger, 0, task=None)
        assert operations.expire(runtime.ledger, runtime.now()) == []
        approved.clock.forward(3_601)
        assert [row.escalation for row in operations.expire(runtime.ledger, runtime.now())] == [question.escalation]
        assert operations.expire(runtime.ledger, runtime.now()) == []
        (expired,) = events(runtime, "escalation.expired")
        assert expired.body == {"escalation": question.escalation, "task": "clean", "default": "deny"}
        with pytest.raises(PerdureError, match="already expired"):
            operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 1000, **said)
        operations.resume(runtime.ledger, 0, task=None)
        (ending,) = await approved.run_open_slots(runtime)  # of the slot that the answer opened; there is no second one
        assert ending.status == "failed"
        assert not events(runtime, "action.intended")
    assert (approved.directory / "inbox/one.log").exists()


async def test_an_approval_that_went_stale_before_the_clock_was_looked_at_is_refused_and_recorded(
    approved: Stage,
) -> None:
    async with approved.runtime() as runtime:
        await approved.run(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        said = {"escalation": question.escalation, "answer": "approve"}
        operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 1000, **said)
        approved.clock.forward(3_601)
        (ending,) = await approved.run_open_slots(runtime)
        assert ending.status == "failed"
        assert "Expiry is final" in ending.reason
        operations.expire(runtime.ledger, runtime.now())
        assert len(events(runtime, "escalation.expired")) == 1
    assert (approved.directory / "inbox/one.log").exists()
