"""What does not stay: old texts of model calls go by themselves, and an erasure takes the stash and memory with it."""

from __future__ import annotations

from tests.daemon.stage import Stage, events

from perdure.daemon import corrections
from perdure.daemon.retention import expire_payloads
from perdure.state import projections
from perdure.state.events import ModelReplied, ModelRequested
from perdure.state.verification import verify


async def test_requests_and_replies_leave_after_their_time_and_everything_still_verifies(tmp_path):
    stage = Stage(tmp_path)
    stage.write("perdure.toml", 'timezone = "UTC"\n[memory]\nembedding = "none"\n[payloads]\nkeep = "30d"\n')
    async with stage.runtime() as runtime:
        for call in ("old", "new"):
            common = {"session": "S", "task": "t", "call": call}
            runtime.ledger.commit(
                ModelRequested(
                    **common, model="m", purpose="propose", prompt_tokens=1, completion_cap=1, reserved_tokens=2,
                    reserved_usd=0.0, payload={"prompt": "a private word"},
                ),
                ModelReplied(
                    **common, status="replied", charged_tokens=2, charged_usd=0.0, payload={"text": "another"}
                ),
            )  # fmt: skip
            assert await expire_payloads(runtime) == 0
            stage.clock.forward(20 * 86_400)
        assert await expire_payloads(runtime) == 2
        assert await expire_payloads(runtime) == 0
        requests = events(runtime, "model.requested")
        assert [runtime.ledger.reader.erased(event.seq) for event in requests] == [True, False]
        assert {event.body["reason"] for event in events(runtime, "payload.erased")} == {"payloads.keep"}
        state_dir = runtime.config.state_dir
    report = verify(state_dir)
    assert report.ok
    assert report.erased == 2


async def test_an_erased_action_leaves_nothing_to_undo_it_from(tmp_path):
    stage = Stage(tmp_path)
    stage.playbook("write", "\n  - {do: write_file, args: {path: reports/a.md, text: new}}\n", tools="write_file")
    stage.write("reports/a.md", "a private word")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "write")
        (row,) = projections.actions(runtime.ledger.reader)
        place = runtime.config.state_dir / "undo" / row.action
        assert place.is_dir()
        answer = corrections.erase_payloads(
            runtime.ledger, runtime.identifiers, runtime.now(), 0, seqs=[row.seq_ended], reason="privacy"
        )
        assert answer["not_undoable"] == [row.action]
        assert not place.exists()
