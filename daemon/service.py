"""The daemon's life: open, recover, schedule, run, reload, stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

import perdure
from perdure.daemon import corrections, event_log, operations
from perdure.daemon import log as log_lines
from perdure.daemon.clock import Identifiers
from perdure.daemon.config import load_config
from perdure.daemon.control import ControlServer
from perdure.daemon.mcp import acceptance
from perdure.daemon.notifications import Notifier
from perdure.daemon.opening import open_runtime, open_servers, own_ledger
from perdure.daemon.recovery import recover
from perdure.daemon.reloading import Reloader
from perdure.daemon.runtime import Runtime
from perdure.daemon.scheduler import slot_name
from perdure.daemon.secrets import redactor
from perdure.daemon.sight import assemble
from perdure.daemon.slot_runner import SlotRunner
from perdure.daemon.supervision import Supervision
from perdure.daemon.timer import Timer
from perdure.daemon.undoing import undo
from perdure.daemon.workspace import load_workspace
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.events import JSON, DaemonStarted, DaemonStopped, Event
from perdure.state.ledger import Ledger, LedgerUnwritable

HEARTBEAT = "heartbeat"
REASON_MAX = 2_000
ECHO_SECONDS = 0.3  # two signals this close together are one wish
OnEvent = Callable[[tuple[Event, ...]], None]
log = structlog.get_logger(__name__)


class Service:
    """A running daemon on an open runtime."""

    def __init__(self, runtime: Runtime, supervision: Supervision, *, sessions_max: int | None = None) -> None:
        self.runtime = runtime
        self.supervision = supervision
        self.runner = SlotRunner(runtime, stop=self.fail)
        self.timer = Timer(runtime, self.runner.wake, self.fail)
        self.reloader = Reloader(runtime, self.timer)
        self.stopped = asyncio.Event()
        self.reason = ""
        self.failed = False
        self._sessions_left = sessions_max
        self._started = runtime.now()

    async def run(self) -> int:
        """Serve until asked to stop; returns the exit code."""
        runtime = self.runtime
        control = ControlServer(runtime.config.state_dir, self.operate)
        unsubscribe = runtime.ledger.subscribe(self._saw)
        self._listen_to_signals()
        started = DaemonStarted(
            pid=os.getpid(), fence=runtime.ledger.fence, version=perdure.__version__, host=socket.gethostname()
        )
        await runtime.ledger.write(started)
        settled = await self._recover()
        async with AsyncExitStack() as stack:
            self.timer.start()
            stack.callback(self.timer.stop)
            await control.start()
            stack.push_async_callback(control.stop)
            background = [
                asyncio.create_task(self.reloader.run(), name="reloading"),
                asyncio.create_task(self.supervision.keep_beating(runtime.clock.sleep), name="heartbeat"),
            ]
            for task in background:
                task.add_done_callback(self._background_ended)
                stack.callback(task.cancel)
            running = asyncio.create_task(self.runner.run(), name="slots")
            gc.freeze()  # what is loaded now stays: collections that look at all of it each time are the slowest decisions
            self.supervision.ready(f"{len(runtime.tasks)} tasks; {settled} things settled after the last run")
            await self.stopped.wait()
            self.supervision.stopping(self.reason, seconds_max=60)
            self.runner.wake()
            await running
        unsubscribe()
        try:
            await runtime.ledger.write(DaemonStopped(fence=runtime.ledger.fence, reason=self.reason[:REASON_MAX]))
        except LedgerUnwritable as error:
            self.fail(str(error))
        if self.failed:  # the alarm itself needs no ledger: it may be the ledger that it is about
            await runtime.notifier.notify("daemon", "Perdure has stopped and nothing runs", self.reason, kind="alarm")
        return 1 if self.failed else 0

    async def _recover(self) -> int:
        """Settle what a crash left. That may run tools and ask probes: the service manager is not to end it half-way."""
        asking = asyncio.create_task(
            self.supervision.keep_starting("settling what the last run left open", self.runtime.clock.sleep)
        )
        try:
            return await recover(self.runtime)
        finally:
            asking.cancel()

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for these: one that ends by itself would be missed in silence."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(f"{task.get_name()} ended: {type(error).__name__}: {error}")

    def stop(self, reason: str) -> None:
        """Stop cleanly: running sessions end after the step they are in."""
        self.reason = self.reason or reason
        self.runtime.stopping = True  # at once: what is due now waits for the next start
        self.stopped.set()

    def fail(self, reason: str) -> None:
        """Stop because the daemon may not go on; loudly."""
        self.failed = True
        log.critical("stopping", reason=reason)
        self.stop(reason)

    def _listen_to_signals(self) -> None:
        loop, runtime = asyncio.get_running_loop(), self.runtime
        asked_at = [0.0]

        def asked(name: str) -> None:
            if self.stopped.is_set() and runtime.clock.monotonic() - asked_at[0] < ECHO_SECONDS:
                return  # the same wish, sent to us and to our process group
            if self.stopped.is_set():
                log.critical("stopping at once", signal=name)
                os._exit(130)  # the second signal: what is open now is settled at the next start
            asked_at[0] = runtime.clock.monotonic()
            self.stop(name)

        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError):  # not in the main thread: whoever runs us stops us
                loop.add_signal_handler(number, asked, signal.Signals(number).name)
        with suppress(NotImplementedError, RuntimeError):
            loop.add_signal_handler(signal.SIGHUP, self.reloader.now)

    def _saw(self, events: tuple[Event, ...]) -> None:
        for event in events:
            if event.type.startswith(("slot.", "escalation.", "resumed")):
                self.runner.wake()
            if event.type == "slot.closed" and event.body.get("session") and self._sessions_left is not None:
                self._sessions_left -= 1
                if self._sessions_left <= 0:
                    self.stop("ran as many sessions as asked for")

    # -- what a person asks over the control socket ------------------------------------------------------------------

    async def operate(self, operation: str, params: dict[str, Any], uid: int) -> JSON:
        """Carry out one request of the control socket."""
        try:
            return await self._operate(operation, params, uid)
        except LedgerUnwritable as error:
            self.fail(str(error))
            raise

    async def _operate(self, operation: str, params: dict[str, Any], uid: int) -> JSON:
        match operation:
            case "status":
                return self._facts()
            case "reload":
                return {"problems": await self.reloader.reload()}
            case "session.run":
                return await self._session(params, uid, operations.ask_for_session)
            case "session.retry":
                return await self._session(params, uid, operations.retry)
        answer = await operate(self.runtime, operation, params, uid)
        if operation == "tools.accept":
            await self.reloader.reload()
        return answer

    async def _session(self, params: dict[str, Any], uid: int, ask: Callable[..., str]) -> JSON:
        known_task(self.runtime.tasks, params)
        slot = ask(self.runtime.ledger, self.runtime.now(), uid, **params)
        return await ending_of(self.runtime, slot)

    def _facts(self) -> dict[str, JSON]:
        return {
            "pid": os.getpid(),
            "since": self._started,
            "running": list(self.runner.running),
            "next": dict(self.timer.next_firings()),
            "problems": dict(self.runtime.last_problems),
            "stopping": self.runtime.stopping,
        }


async def serve(workspace: Path, *, on_event: OnEvent | None = None, sessions_max: int | None = None) -> int:
    """Run the daemon in the foreground until SIGTERM; returns its exit code. Raises Problems before anything starts."""
    loaded = load_workspace(workspace)
    watched = on_event is not None and log_lines.shown_together(sys.stdout, sys.stderr)  # who sees all needs no lines
    log_lines.configure(redact=redactor(loaded.config), level="error" if watched else "info")
    supervision = Supervision(heartbeat=loaded.config.state_dir / HEARTBEAT)
    with own_ledger(loaded.config, upgrading=supervision.starting) as owned:
        owned.ledger.subscribe(event_log.tell)
        if on_event is not None:
            owned.ledger.subscribe(on_event)
        try:
            async with open_runtime(owned, loaded) as runtime:
                return await Service(runtime, supervision, sessions_max=sessions_max).run()
        except LedgerUnwritable as error:
            log.critical("the ledger cannot be written: nothing runs", reason=str(error))
            notifier = Notifier(loaded.config, owned.ledger, clock=owned.clock)
            await notifier.notify("ledger", "the ledger cannot be written: nothing runs", str(error), kind="alarm")
            raise


async def operate_alone(
    workspace: Path, operation: str, params: dict[str, Any], *, on_event: OnEvent | None = None
) -> JSON:
    """Do what a person asks where no daemon runs: under the workspace's lock, in this process."""
    config = load_config(workspace)
    if operation == "status":
        return {"pid": None}
    watched = on_event is not None and log_lines.shown_together(sys.stdout, sys.stderr)
    log_lines.configure(redact=redactor(config), level="error" if watched else "warning")
    if operation in LEDGER_OPERATIONS:
        with own_ledger(config) as owned:
            return _on_ledger(owned.ledger, owned.identifiers, owned.clock.now(), operation, params, os.getuid())
    if operation == "tools.discover":  # also where tasks already name tools that nobody has seen yet
        with own_ledger(config) as owned:
            async with open_servers(config, owned.ledger, owned.clock) as servers:
                return await acceptance.discover(config, servers, owned.ledger.reader, **params)
    loaded = load_workspace(workspace, config)
    known_task(loaded.tasks, params)  # a workspace that cannot do it is left as it is, without a state/ that it had not
    with own_ledger(config) as owned:
        if on_event is not None:
            owned.ledger.subscribe(on_event)
        async with open_runtime(owned, loaded) as runtime:
            await recover(runtime)
            runner = SlotRunner(runtime, stop=lambda reason: log.critical("stopping", reason=reason))
            if operation in ("session.run", "session.retry"):
                ask = operations.ask_for_session if operation == "session.run" else operations.retry
                slot = ask(owned.ledger, runtime.now(), os.getuid(), **params)
                row = projections.slot(owned.ledger.reader, slot)
                assert row is not None
                await runner.run_slot(row)
                return await ending_of(runtime, slot)
            return await operate(runtime, operation, params, os.getuid())


LEDGER_OPERATIONS = (
    frozenset({"answer", "pause", "resume", "grants.revoke", "tools.accept"}) | corrections.OPERATIONS.keys()
)


async def operate(runtime: Runtime, operation: str, params: dict[str, Any], uid: int) -> JSON:
    """The operations that need no scheduler, on an open runtime."""
    if operation in LEDGER_OPERATIONS:
        return _on_ledger(runtime.ledger, runtime.identifiers, runtime.now(), operation, params, uid)
    if operation == "undo":
        return await undo(runtime, uid, **params)
    if operation == "tools.discover":
        return await acceptance.discover(runtime.config, runtime.servers, runtime.ledger.reader, **params)
    if operation == "context.preview":
        known_task(runtime.tasks, params)
        return await preview(runtime, **params)
    raise PerdureError("do", operation, "there is no such operation", "Use the perdure command of the same version")


async def preview(runtime: Runtime, *, task: str) -> JSON:
    """What the next session of `task` would see, as memory stands now; nothing is written."""
    wanted = runtime.tasks[task]
    name = slot_name(task, "manual", runtime.now())
    context = await assemble(runtime, wanted, name, "preview", runtime.plan(wanted))
    return {
        "task": task,
        "tokens": context.tokens,
        "budget": context.budget,
        "factor": context.factor,
        "text": context.text,
        "manifest": [asdict(item) for item in context.manifest],
        "left_out": [asdict(item) for item in context.left_out],
    }


def _on_ledger(
    ledger: Ledger, identifiers: Identifiers, now: int, operation: str, params: dict[str, Any], uid: int
) -> JSON:
    match operation:
        case "answer":
            return operations.answer(ledger, identifiers, now, uid, **params)
        case "pause":
            return operations.pause(ledger, uid, **params)
        case "resume":
            return operations.resume(ledger, uid, **params)
        case "tools.accept":
            return acceptance.accept(ledger, uid, **params)
        case _ if operation in corrections.OPERATIONS:
            return corrections.OPERATIONS[operation](ledger, identifiers, now, uid, **params)
        case _:
            return operations.revoke_grant(ledger, uid, **params)


def known_task(tasks: Collection[str], params: dict[str, Any]) -> None:
    """Raises PerdureError where `params` names a task that is none of `tasks`."""
    name = params.get("task")
    if name is not None and name not in tasks:
        known = ", ".join(sorted(tasks)) or "none"
        raise PerdureError("run", f"the task {name}", "there is no such task", f"Tasks here: {known}")


async def ending_of(runtime: Runtime, slot: str) -> JSON:
    """How the session of `slot` ended, once it has."""
    closed = asyncio.Event()

    def saw(events: tuple[Event, ...]) -> None:
        if any(event.type == "slot.closed" and event.body["slot"] == slot for event in events):
            closed.set()

    unsubscribe = runtime.ledger.subscribe(saw)
    try:
        row = projections.slot(runtime.ledger.reader, slot)
        if row is not None and row.outcome is None:
            await closed.wait()
    finally:
        unsubscribe()
    row = projections.slot(runtime.ledger.reader, slot)
    outcome, rule = (row.outcome, row.rule) if row is not None else (None, None)
    session = projections.session(runtime.ledger.reader, row.session) if row is not None and row.session else None
    if session is None:
        return {"slot": slot, "outcome": outcome, "rule": rule}
    return {
        "slot": slot,
        "outcome": outcome,
        "session": session.session,
        "status": session.status,
        "reason": session.reason,
    }
