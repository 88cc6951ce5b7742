"""Questions that nobody answers in time."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.stage import POLICY, Stage, events

from perdure.daemon import operations
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
