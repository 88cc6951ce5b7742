"""What happens while something else is going on: undo beside sessions, a stop between tries, STOP in the middle, odd clocks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.daemon.stage import Stage, events

from perdure.daemon import operations
from perdure.daemon.control import TOKEN_NAME, token
from perdure.daemon.reloading import Reloader
from perdure.daemon.runtime import Runtime
from perdure.daemon.scheduler import opened
from perdure.daemon.slot_runner import SlotRunner
from perdure.daemon.timer import Timer
from perdure.daemon.undoing import undo
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.events import Event, SessionOpened

WRITE = "\n  - {do: write_file, args: {path: reports/a.md, text: new}}\n"
MORE = "  - {do: append_file, args: {path: reports/done.log, text: x}}\n"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "workspace")
    stage.write("inbox/one.log", "a line\n")
    stage.write("reports/a.md", "old")
    return stage


def written(runtime: Runtime) -> str:
    return next(
        str(event.body["action"]) for event in events(runtime, "action.intended") if event.body["tool"] == "write_file"
    )


async def open_session(runtime: Runtime, task: str, *, planner: str = "playbook") -> None:
    slot = opened(task, "manual", runtime.now())
    session = SessionOpened(
        session=runtime.identifiers.new(), task=task, slot=slot.slot, planner=planner, bounds={"steps": 1}, task_digest="d",
        policies=runtime.policies.digest, fence=runtime.ledger.fence,
    )  # fmt: skip
    await runtime.ledger.write(slot, session)


async def test_undo_while_the_task_runs_is_refused_in_words_and_leaves_nothing_open(stage: Stage) -> None:
    stage.playbook("report", WRITE, tools="write_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
        await open_session(runtime, "report")
        before = runtime.ledger.head
        with pytest.raises(PerdureError, match="runs now"):
            await undo(runtime, 0, action=written(runtime))
        assert runtime.ledger.head == before


async def test_no_session_opens_once_its_task_is_paused(stage: Stage) -> None:
    stage.playbook("report", WRITE, tools="write_file")
    async with stage.runtime() as runtime:
        slot = projections.slot(
            runtime.ledger.reader, operations.ask_for_session(runtime.ledger, runtime.now(), 0, task="report")
        )
        assert slot is not None
        runner = SlotRunner(runtime, stop=lambda _: None)
        running = asyncio.create_task(runner.run_slot(slot))
        await asyncio.sleep(0)  # it has passed the gate, in this very turn of the loop
        operations.pause(runtime.ledger, 0, task="report")
        await running
        assert [event.type for event in events(runtime, "paused", "session.opened")] == ["session.opened", "paused"]


async def test_a_slot_is_held_before_the_answer_that_it_waits_for(stage: Stage) -> None:
    stage.playbook("clean", "\n  - {do: delete_file, args: {path: inbox/one.log}}\n", tools="delete_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "clean")
        (question,) = projections.escalations(runtime.ledger.reader)
        slot = projections.slot(
            runtime.ledger.reader, operations.ask_for_session(runtime.ledger, runtime.now(), 0, task="clean")
        )
        assert slot is not None
        running = asyncio.create_task(SlotRunner(runtime, stop=lambda _: None).run_slot(slot))
        await asyncio.sleep(0)
        given = {"escalation": question.escalation, "answer": "deny"}
        operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 0, **given)
        await running
        kinds = [
            (event.type, event.body.get("outcome")) for event in events(runtime, "slot.closed", "escalation.answered")
        ]
        assert kinds[-2:] == [("slot.closed", "held"), ("escalation.answered", None)]


async def test_a_slot_that_comes_due_during_an_undo_waits_for_its_end(stage: Stage) -> None:
    stage.playbook("report", WRITE, tools="write_file")
    stopped: list[str] = []
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
        runner = SlotRunner(runtime, stop=stopped.append)
        ran = asyncio.Event()

        def saw(seen: tuple[Event, ...]) -> None:
            for event in seen:
                if event.type == "session.opened" and event.body["planner"] == "person":
                    operations.ask_for_session(runtime.ledger, runtime.now(), 0, task="report")
                if (
                    event.type == "session.closed"
                    and event.body["slot"].startswith("report/manual")
                    and undone.is_set()
                ):
                    ran.set()
                if event.type == "slot.closed":
                    undone.set()
            runner.wake()

        undone = asyncio.Event()
        runtime.ledger.subscribe(saw)
        running = asyncio.create_task(runner.run())
        await undo(runtime, 0, action=written(runtime))
        async with asyncio.timeout(60):
            await ran.wait()
        runtime.stopping = True
        runner.wake()
        await running
        assert not stopped
        assert not projections.slots(runtime.ledger.reader, open_only=True)
    assert (stage.directory / "reports/a.md").read_text() == "new"


async def test_an_undo_that_was_cut_off_does_not_start_the_task(stage: Stage) -> None:
    stage.playbook("report", WRITE + MORE, tools="write_file, append_file")
    async with stage.runtime() as runtime:
        await open_session(runtime, "report", planner="person")
    async with stage.runtime() as runtime:
        assert await stage.run_open_slots(runtime) == []
        assert not projections.open_sessions(runtime.ledger.reader)
    assert not (stage.directory / "reports/done.log").exists()


async def test_a_defect_inside_an_undo_closes_its_session(stage: Stage) -> None:
    stage.playbook("report", WRITE, tools="write_file")
    async with stage.runtime() as runtime:
        await stage.run(runtime, "report")
        runtime.tools = {**runtime.tools, "undo": object()}  # the defect
        with pytest.raises(PerdureError, match="AttributeError"):
            await undo(runtime, 0, action=written(runtime))
        assert not projections.open_sessions(runtime.ledger.reader)
        assert not projections.slots(runtime.ledger.reader, open_only=True)


async def test_a_stop_between_two_tries_does_not_wait_for_the_next(stage: Stage) -> None:
    stage.playbook(
        "report", WRITE, tools="write_file", extra="retries: 9\npostconditions:\n  - file_exists: reports/never.md\n"
    )
    async with stage.runtime() as runtime:

        def saw(seen: tuple[Event, ...]) -> None:
            failed = [event for event in events(runtime, "session.closed") if event.body["status"] == "failed"]
            runtime.stopping = runtime.stopping or len(failed) == 2

        runtime.ledger.subscribe(saw)
        async with asyncio.timeout(60):
            ending = await stage.run_until_parked(runtime, "report")
        assert ending.status == "interrupted"
        assert [slot.kind for slot in projections.slots(runtime.ledger.reader, open_only=True)] == ["resume"]


async def test_the_stop_file_ends_a_running_session_after_its_step_and_its_work_goes_on_later(stage: Stage) -> None:
    stage.playbook("report", WRITE + MORE, tools="write_file, append_file")
    async with stage.runtime() as runtime:

        def saw(seen: tuple[Event, ...]) -> None:
            if any(event.type == "action.intended" for event in seen):
                (stage.directory / "STOP").touch()

        ended = runtime.ledger.subscribe(saw)
        assert (await stage.run_until_parked(runtime, "report")).status == "interrupted"
        ended()
        assert not (stage.directory / "reports/done.log").exists()
        (stage.directory / "STOP").unlink()
        (ending,) = await stage.run_open_slots(runtime)
        assert ending.status == "unverified"
    assert (stage.directory / "reports/done.log").read_text() == "x"


async def test_work_that_is_interrupted_again_and_again_is_given_up_loudly(stage: Stage) -> None:
    stage.playbook("report", WRITE, tools="write_file")
    async with stage.runtime() as runtime:
        runtime.stopping = True
        operations.ask_for_session(runtime.ledger, runtime.now(), 0, task="report")
        assert {ending.status for ending in await stage.run_open_slots(runtime)} == {"interrupted"}
        assert [event.body["code"] for event in events(runtime, "alarm.raised")] == ["not-taken-up-again"]
        assert "not taken up again" in (stage.directory / "state/notifications.jsonl").read_text()


async def test_files_that_only_a_failed_or_dry_session_saw_still_count_as_changed(stage: Stage) -> None:
    stage.playbook(
        "triage", WRITE, tools="write_file",
        extra="schedule: {every: 1h}\nonly_if: {files_changed: 'inbox/*.log'}\npostconditions:\n  - file_exists: reports/b.md\n",
    )  # fmt: skip
    async with stage.runtime() as runtime:

        async def slot() -> str | None:
            draft = opened("triage", "scheduled", runtime.now())
            runtime.ledger.commit(draft)
            await stage.run_open_slots(runtime)
            row = projections.slot(runtime.ledger.reader, draft.slot)
            assert row is not None
            return row.outcome

        assert (await stage.run(runtime, "triage", dry_run=True)).status == "unverified"
        stage.clock.forward(10)
        assert await slot() == "ran"  # and failed
        stage.clock.forward(10)
        stage.write("reports/b.md", "there")
        assert await slot() == "ran"
        stage.clock.forward(10)
        assert await slot() == "skipped"


async def test_files_that_came_while_nobody_watched_open_a_slot_at_the_start(stage: Stage) -> None:
    stage.playbook("seen", WRITE, tools="write_file", extra="schedule: {watch: 'inbox/*.log'}\n")

    async def start() -> int:
        async with stage.runtime() as runtime:
            reloader = Reloader(runtime, Timer(runtime, lambda: None, pytest.fail))
            watching = asyncio.create_task(reloader.run())
            await asyncio.sleep(0)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            return len(await stage.run_open_slots(runtime))

    assert await start() == 0  # what lay there before the task did is not new
    later = stage.clock.now() // 1_000 * 1_000_000 + 3_600 * 10**9
    os.utime(stage.write("inbox/two.log", "new\n"), ns=(later, later))
    assert await start() == 1
    stage.clock.forward(7_200)
    assert await start() == 1  # the file is still younger than the slot of the start before: the clock was moved
    assert await start() == 0


@pytest.mark.parametrize("content", ["", "abc"])
def test_a_token_cut_short_by_a_crash_is_no_secret(tmp_path: Path, content: str) -> None:
    (tmp_path / TOKEN_NAME).write_text(content)
    made = token(tmp_path)
    assert len(made) == 64
    assert token(tmp_path) == made
    assert (tmp_path / TOKEN_NAME).stat().st_mode & 0o777 == 0o600


async def test_a_clock_that_ran_ahead_is_told_of(stage: Stage) -> None:
    stage.playbook("report", WRITE, tools="write_file", extra="schedule: {every: 1h}\n")
    async with stage.runtime() as runtime:
        timer = Timer(runtime, lambda: None, pytest.fail)
        stage.clock.forward(365 * 86_400)
        timer.look()
        stage.clock.forward(-365 * 86_400)
        for _ in range(2):
            await timer._look()
        (alarm,) = events(runtime, "alarm.raised")
        assert alarm.body["code"] == "clock-set-back"


async def test_policies_that_vanish_leave_the_last_good_ones_in_force(stage: Stage) -> None:
    stage.playbook("report", WRITE, tools="write_file")
    async with stage.runtime() as runtime:
        reloader = Reloader(runtime, Timer(runtime, lambda: None, pytest.fail))
        held = runtime.policies
        (stage.directory / "policies").rename(stage.directory / "elsewhere")
        assert await reloader.reload()
        assert runtime.policies is held
        (stage.directory / "elsewhere").rename(stage.directory / "policies")
        assert await reloader.reload() is None
        assert not runtime.last_problems


async def test_a_task_that_is_gone_when_its_question_is_approved_is_told_of(stage: Stage) -> None:
    stage.playbook("clean", "\n  - {do: delete_file, args: {path: inbox/one.log}}\n", tools="delete_file")
    async with stage.runtime() as runtime:
        assert (await stage.run(runtime, "clean")).status == "parked"
        (question,) = projections.escalations(runtime.ledger.reader)
    (stage.directory / "tasks/clean.md").rename(stage.directory / "tasks/gone.txt")
    async with stage.runtime() as runtime:
        said = {"escalation": question.escalation, "answer": "approve"}
        operations.answer(runtime.ledger, runtime.identifiers, runtime.now(), 0, **said)
        assert await stage.run_open_slots(runtime) == []
        assert "an answer without effect" in (stage.directory / "state/notifications.jsonl").read_text()
    assert (stage.directory / "inbox/one.log").exists()


async def test_a_planner_that_says_too_much_ends_its_session_and_not_the_daemon(stage: Stage) -> None:
    stage.playbook(
        "report",
        WRITE,
        tools="write_file",
        extra="postconditions:\n  - file_contains: {path: reports/a.md, text: 'x'}\n",
    )
    async with stage.runtime() as runtime:
        task = runtime.tasks["report"]
        condition = task.postconditions[0].model_copy(update={"text": "y" * 200_000})
        object.__setattr__(task, "postconditions", (condition,))
        ending = await stage.run(runtime, "report")
        assert ending.status == "failed"
        row = projections.session(runtime.ledger.reader, ending.session)
        assert row is not None
        assert len(row.reason or "") <= 2_000
