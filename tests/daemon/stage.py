"""A small real workspace for tests of the daemon: files on disk, a real ledger, real tools and memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from perdure.daemon import operations
from perdure.daemon.clock import SystemClock
from perdure.daemon.endings import Ending
from perdure.daemon.opening import open_runtime, own_ledger
from perdure.daemon.recovery import recover
from perdure.daemon.runtime import Runtime
from perdure.daemon.slot_runner import SlotRunner
from perdure.daemon.steps import Steps
from perdure.daemon.workspace import load_workspace
from perdure.state import projections
from perdure.state.events import Event, SessionOpened, SlotOpened

CONFIG = """
timezone = "UTC"
[memory]
embedding = "none"
"""

POLICY = """
version: 1
rules:
  - {name: reading here, tools: [list_files, read_file, search_files, recall], decide: auto}
  - {name: reports, tools: [write_file, append_file, remember], decide: auto}
  - {name: asking, tools: [delete_file, move_file, toll], decide: escalate, expires: 1h}
  - {name: never this one, tools: [write_file], path: {under: forbidden}, decide: deny}
"""


class ManualClock(SystemClock):
    """The system's clock, moved by hand."""

    def __init__(self) -> None:
        self.ahead = 0

    def now(self) -> int:
        return super().now() + self.ahead

    def forward(self, seconds: float) -> None:
        """Move `seconds` ahead."""
        self.ahead += int(seconds * 1_000_000)


class Stage:
    """A workspace in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        for name in ("policies", "tasks"):
            (directory / name).mkdir(parents=True)
        self.write("perdure.toml", CONFIG)
        self.write("policies/policy.yaml", POLICY)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the workspace."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def playbook(self, name: str, steps: str, *, tools: str, extra: str = "") -> None:
        """A playbook task; `steps` is the YAML under `steps:`, `extra` more front matter."""
        front = f"---\nname: {name}\nplanner: playbook\ntools: [{tools}]\n{extra}---\n"
        self.write(f"tasks/{name}.md", f"{front}steps:\n{steps}")

    @contextlib.asynccontextmanager
    async def runtime(self) -> AsyncIterator[Runtime]:
        """The workspace open for work, as the daemon opens it; recovered."""
        loaded = load_workspace(self.directory)
        with own_ledger(loaded.config, self.clock) as owned:
            async with open_runtime(owned, loaded) as runtime:
                await recover(runtime)
                yield runtime

    async def run(self, runtime: Runtime, task: str, *, dry_run: bool = False) -> Ending:
        """One session of `task`, now."""
        operations.ask_for_session(runtime.ledger, runtime.now(), 0, task=task, dry_run=dry_run)
        endings = await self.run_open_slots(runtime)
        assert len(endings) == 1, endings
        return endings[0]

    async def run_until_parked(self, runtime: Runtime, task: str) -> Ending:
        """One session of `task`, now, and nothing that follows from it."""
        slot = operations.ask_for_session(runtime.ledger, runtime.now(), 0, task=task)
        row = projections.slot(runtime.ledger.reader, slot)
        assert row is not None
        ending = await SlotRunner(runtime, stop=_unexpected).run_slot(row)
        assert ending is not None
        return ending

    async def run_open_slots(self, runtime: Runtime) -> list[Ending]:
        """Run every open slot to its end."""
        runner = SlotRunner(runtime, stop=_unexpected)
        endings = []
        while slots := [
            slot for slot in projections.slots(runtime.ledger.reader, open_only=True)
            if slot.kind != "follow-up" or slot.due <= runtime.now()
        ]:  # fmt: skip
            ending = await runner.run_slot(slots[0])
            if ending is not None:
                endings.append(ending)
        return endings


def open_steps(runtime: Runtime, task: str, *tools: str) -> Steps:
    """A session of `task` that has been opened and waits for its steps, which may use these tools."""
    session, slot = runtime.identifiers.new(), f"{task}/manual/{runtime.identifiers.new()}"
    runtime.ledger.commit(
        SlotOpened(slot=slot, task=task, kind="manual", due=1),
        SessionOpened(
            session=session, task=task, slot=slot, planner="playbook", bounds={"steps": 10}, task_digest="d",
            policies=runtime.policies.digest, fence=runtime.ledger.fence,
        ),
    )  # fmt: skip
    return Steps(
        runtime=runtime, task=runtime.tasks[task], session=session, offered=frozenset(tools), seconds_left=lambda: 600.0
    )


def _unexpected(reason: str) -> None:
    raise AssertionError(reason)


def types(runtime: Runtime, session: str) -> list[str]:
    """The types of a session's events, in order."""
    return [event.type for event in runtime.ledger.reader.events(session=session)]


def events(runtime: Runtime, *kinds: str) -> list[Event]:
    """All events of these types."""
    return list(runtime.ledger.reader.events(types=kinds))
