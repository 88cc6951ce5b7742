"""What a task's last finished session saved, also where an older Perdure wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.stage import Stage

from perdure.daemon.resumption import last_saved
from perdure.state import events as e
from perdure.state.ledger import Ledger


@pytest.mark.parametrize("noted", [True, None])
def test_what_the_last_finished_session_saved_is_found_whether_it_was_noted_or_not(tmp_path: Path, noted: bool | None):
    with Ledger.create(tmp_path / "ledger.db", now=lambda: 1_790_000_000_000_000, workspace="w") as ledger:
        for number, (status, saved) in enumerate([("succeeded", 1), ("succeeded", 2), ("failed", 3), ("succeeded", 0)]):
            name = {"session": f"s{number}", "task": "t", "slot": f"t/manual/{number}"}
            opened = {"planner": "playbook", "bounds": {}, "task_digest": "d", "policies": "p", "fence": 1}
            ledger.commit(
                e.SlotOpened(slot=name["slot"], task="t", kind="manual", due=number + 1),
                e.SessionOpened(**name, **opened),
            )
            counted = {"steps": 1, "tokens": 0, "cost_usd": 0.0, "duration_us": 1}
            ended = e.SessionClosed(
                **name, status=status, reason="r", **counted,
                saved=noted if saved and status == "succeeded" else None,
                payload={"saved": {"offset": saved} if saved else {}},
            )  # fmt: skip
            ledger.commit(ended)
        assert last_saved(ledger.reader, "t") == {"offset": 2}
        assert last_saved(ledger.reader, "other") == {}


async def test_a_dry_run_leaves_what_the_next_session_goes_on_from_as_it_was(tmp_path: Path):
    stage = Stage(tmp_path / "workspace")
    stage.write("inbox/new.log", "a line")
    steps = "  - {do: read_file, args: {path: inbox/new.log}, save: offset}\n"
    stage.playbook("triage", steps, tools="read_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "triage", dry_run=True)).status == "unverified"
        assert last_saved(runtime.ledger.reader, "triage") == {}, (
            "the real session would leave out what the dry one read"
        )
        await stage.run(runtime, "triage")
        stage.write("inbox/new.log", "another line")
        await stage.run(runtime, "triage", dry_run=True)
        assert "a line" in str(last_saved(runtime.ledger.reader, "triage")["offset"])
