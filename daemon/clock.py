"""Time and identifiers, handed in everywhere so that a simulation can own both."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from ulid import ULID

MICROSECONDS = 1_000_000


class Clock(Protocol):
    """The time now (microseconds UTC), a monotonic time (seconds) for bounds, and waiting."""

    def now(self) -> int: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> int:
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Identifiers:
    """ULIDs from the given time (microseconds UTC) and entropy."""

    def __init__(self, now: Callable[[], int], entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._now = now
        self._entropy = entropy

    def new(self) -> str:
        """A new identifier of 26 characters that sorts by time."""
        milliseconds = self._now() // 1_000
        return str(ULID(milliseconds.to_bytes(6, "big") + self._entropy(10)))


def iso(at: int) -> str:
    """Microseconds UTC as ISO 8601 with a Z, to the second where the time is a whole second."""
    text = datetime.fromtimestamp(at / MICROSECONDS, UTC).isoformat(
        timespec="seconds" if at % MICROSECONDS == 0 else "microseconds"
    )
    return text.replace("+00:00", "Z")
