"""Edits of policies and tasks, in force without a restart; a broken one leaves the last good version in force, loudly."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from watchfiles import awatch

from perdure.daemon.clock import MICROSECONDS
from perdure.daemon.config import load_config
from perdure.daemon.gate import files_changed_since
from perdure.daemon.layout import CONFIG_NAME, POLICIES, TASKS
from perdure.daemon.mcp.settings import SEPARATOR
from perdure.daemon.opening import anchored, configuration_events
from perdure.daemon.schedule import Watch
from perdure.daemon.scheduler import free, opened
from perdure.daemon.tools.registry import build_tools
from perdure.daemon.workspace import load_workspace
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.events import ConfigurationRejected

if TYPE_CHECKING:
    from pathlib import Path

    from perdure.daemon.runtime import Runtime
    from perdure.daemon.tasks import Task
    from perdure.daemon.timer import Timer

DEBOUNCE_MS = 100
STEP_MS = 10
LOOK_SECONDS = 2.0  # between looks for what the kernel does not tell of: what links lead to, and network file systems
log = structlog.get_logger(__name__)


class Reloader:
    """Watches the workspace's files, and the files that tasks wait for."""

    def __init__(self, runtime: Runtime, timer: Timer) -> None:
        self._runtime = runtime
        self._timer = timer
        self._asked = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._seen = self._as_they_stand()

    def now(self) -> None:
        """Reload as soon as possible (SIGHUP)."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        self._catch_up()
        await asyncio.gather(self._watch(), self._look(), self._answer(), self._follow_servers())

    async def _follow_servers(self) -> None:
        """What MCP servers list decides which tools there are; asking them all is the first thing a daemon does."""
        servers, told = self._runtime.servers, dict[str, str]()
        changed = servers.changed
        asking = asyncio.create_task(servers.discover(), name="discovery")
        try:
            while True:
                await changed.wait()
                changed.clear()
                await self.reload()
                waiting = servers.waiting()
                for name in sorted(name for name, hash in waiting.items() if told.get(name) != hash):
                    server = name.partition(SEPARATOR)[0]
                    text = (
                        f"{name} is no longer what a person accepted: every call of it asks. "
                        f"`perdure tools accept {server}` shows the change and accepts it"
                    )
                    await self._runtime.alarm("tool-changed", text, about=name)
                told = waiting
        finally:
            asking.cancel()

    async def _answer(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self.reload()

    async def _watch(self) -> None:
        config = self._runtime.config
        state = str(config.state_dir)
        inside = state + os.sep
        watched = awatch(
            config.workspace,
            watch_filter=lambda _, path: path != state and not path.startswith(inside),
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            recursive=True,
            yield_on_timeout=False,
        )
        async for changes in watched:
            paths = [config.workspace.__class__(path) for _, path in changes]
            if any(self._is_ours(path) for path in paths):
                await self.reload()
            self._fire_watches(paths)

    async def _look(self) -> None:
        while True:
            await self._runtime.clock.sleep(LOOK_SECONDS)
            if await asyncio.to_thread(self._as_they_stand) != self._seen:
                await self.reload()

    def _as_they_stand(self) -> frozenset[tuple[object, ...]]:
        """Configuration, policies and tasks: which files lie where, and what tells that one was changed, links followed."""
        workspace, found = self._runtime.config.workspace, set[tuple[object, ...]]()
        for path in (workspace / CONFIG_NAME, *(workspace / POLICIES).glob("*"), *(workspace / TASKS).glob("*")):
            with suppress(OSError):
                told = path.stat()
                found.add((path, told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns))
        return frozenset(found)

    def _is_ours(self, path: Path) -> bool:
        workspace = self._runtime.config.workspace
        return path.name == CONFIG_NAME or any(
            parent in path.parents for parent in (workspace / POLICIES, workspace / TASKS)
        )

    def _catch_up(self) -> None:
        """Fire for what changed while nobody watched."""
        reader = self._runtime.ledger.reader
        since = {row.task: row.schedule_since for row in projections.tasks(reader)}
        for task in self._runtime.tasks.values():
            if not isinstance(task.schedule, Watch) or task.if_missed.mode == "skip":
                continue
            last = projections.last_slot(reader, task.name, "watch")
            after = max(since[task.name], last.due if last is not None else 0)
            if files_changed_since(self._runtime.config.workspace, task.schedule.pattern, after + MICROSECONDS):
                self._fire(task)

    def _fire_watches(self, paths: list[Path]) -> None:
        for task in self._runtime.tasks.values():
            if task.schedule is None or task.schedule.timed or not any(task.schedule.matches(path) for path in paths):
                continue
            self._fire(task)

    def _fire(self, task: Task) -> None:
        reader = self._runtime.ledger.reader
        waiting = [slot for slot in projections.slots(reader, task=task.name, open_only=True) if slot.kind == "watch"]
        running = {row.slot for row in projections.open_sessions(reader)}
        if all(slot.slot in running for slot in waiting):
            due = free(reader, task.name, "watch", self._runtime.now())
            self._runtime.ledger.commit(opened(task.name, "watch", due))

    async def reload(self) -> str | None:
        """Load policies and tasks anew. Returns the problems in words where the edit is broken and changes nothing."""
        async with self._one_at_a_time:  # what was read later also comes into force later
            self._seen = self._as_they_stand()
            return await self._reload()

    async def _reload(self) -> str | None:
        runtime = self._runtime
        try:
            config = load_config(runtime.config.workspace)
            loaded = load_workspace(runtime.config.workspace, runtime.config)
        except (PerdureError, OSError) as error:  # OSError: a file vanished while it was read
            await self._reject(str(error), len(getattr(error, "problems", ())) or 1)
            return str(error)
        if config.digest != runtime.config.digest:
            text = f"{CONFIG_NAME} has changed: restart the daemon to bring it into force (policies and tasks need no restart)"
            if runtime.last_problems.get("config") != text:
                runtime.last_problems["config"] = text
                log.warning(text)
        else:
            runtime.last_problems.pop("config", None)
        self._timer.account()  # what was due under the old schedules, before the new ones come into force
        drafts = configuration_events(runtime.ledger, loaded, runtime.now())
        if drafts:  # at once: a firing between what was accounted for and the change would be nobody's
            runtime.ledger.commit(*drafts)
        runtime.policies, runtime.tasks = loaded.policies, anchored(runtime.ledger, loaded.tasks)
        runtime.tools = build_tools(
            runtime.config,
            memory=runtime.memory,
            notifier=runtime.notifier,
            servers=runtime.servers,
            ledger=runtime.ledger,
            now=runtime.clock.now,
        )
        runtime.last_problems.pop("edit", None)
        self._timer.reschedule()
        log.info("reloaded", policies=loaded.policies.digest, tasks=len(loaded.tasks))
        return None

    async def _reject(self, text: str, problems: int) -> None:
        if self._runtime.last_problems.get("edit") == text:
            return
        self._runtime.last_problems["edit"] = text
        log.error("a broken edit changes nothing: the last good version stays in force", problems=text)
        rejected = ConfigurationRejected(kind="edit", problems=problems, payload={"text": text})
        await self._runtime.alarm("broken-edit", f"the last good version stays in force.\n{text}", drafts=(rejected,))
