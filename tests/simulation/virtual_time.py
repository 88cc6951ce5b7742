"""Time that passes only while everybody waits: an event loop and a clock by which months take minutes, always the same ones."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any

MICROSECONDS = 1_000_000


class Crash(SystemExit):
    """The process dies here: nothing below may handle it, as nothing handles a SIGKILL."""


class Stillstand(RuntimeError):
    """Everybody waits for something that will never happen."""


class VirtualClock:
    """perdure.daemon.clock.Clock. `jump` moves the wall clock alone, as a person or NTP does."""

    def __init__(self, start: datetime) -> None:
        self.elapsed_us = 0
        self._start = int(start.astimezone(UTC).timestamp()) * MICROSECONDS
        self._jumped = 0

    def now(self) -> int:
        self.elapsed_us += 1  # no two readings are the same moment
        return self._start + self._jumped + self.elapsed_us

    def wall(self) -> int:
        """The time, without a reading's own microsecond: for those who watch."""
        return self._start + self._jumped + self.elapsed_us

    def monotonic(self) -> float:
        return self.elapsed_us / MICROSECONDS

    async def sleep(self, seconds: float) -> None:
        passed = asyncio.get_running_loop().create_future()
        handle = asyncio.get_running_loop().call_later(seconds, _resolve, passed)
        try:
            await passed
        finally:
            handle.cancel()

    def jump(self, seconds: float) -> None:
        self._jumped += int(seconds * MICROSECONDS)

    def pass_time(self, seconds: float) -> None:
        """Nobody runs for that long."""
        self.elapsed_us += max(0, math.ceil(seconds * MICROSECONDS))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise Stillstand("nothing is due any more, and nobody can run")
        self._clock.pass_time(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop of one order: timers fire in virtual time, and what is handed to a thread is done before anything else."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_JumpingSelector(clock))
        self._virtual = clock
        self._clock_resolution = 1 / MICROSECONDS

    def time(self) -> float:
        return self._virtual.monotonic()

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(func(*args) if executor is None else executor.submit(func, *args).result())
        except Exception as error:  # noqa: BLE001 — it is handed on to whoever waits
            future.set_exception(error)
        return future

    def abandon(self) -> None:
        """What a dead process leaves: no task of this loop ever goes on."""
        tasks = asyncio.all_tasks(self)
        asyncio._set_running_loop(self)  # what coroutines do while they are torn down may look for it
        try:
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                try:
                    task.get_coro().close()  # type: ignore[union-attr]
                except (RuntimeError, Crash):
                    continue
        finally:
            asyncio._set_running_loop(None)
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()
