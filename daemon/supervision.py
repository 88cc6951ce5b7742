"""What the daemon tells whoever keeps it alive: systemd over its notify socket, and supervisord's listener by a heartbeat
file. Both hear from the event loop itself, so a loop that hangs falls silent and is started anew."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path

SECONDS_BETWEEN_BEATS = 5.0  # without a watchdog that says how often
START_SECONDS_MORE = 60.0  # that the service manager is asked for at a time, while a start takes long


class Supervision:
    """The daemon's line to its supervisor. Every method is harmless where nobody listens.

    It takes the notify variables out of `environ`, so that no tool process inherits a way to speak for the daemon.
    `heartbeat` is a file that holds the pid and CLOCK_MONOTONIC in nanoseconds of the last beat (that clock, because a
    wall clock that is set back would hide a hang, and one set forward would look like one).
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ, *, heartbeat: Path | None = None) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        watchdog = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", "")
        self._heartbeat = heartbeat
        meant = watched in {"", str(os.getpid())}
        self.watchdog_seconds = int(watchdog) / 1_000_000 if watchdog.isdigit() and int(watchdog) and meant else None

    @property
    def listening(self) -> bool:
        """Whether a service manager gave us a notify socket."""
        return bool(self._address)

    @property
    def seconds_between_beats(self) -> float:
        """A third of what the watchdog allows: one lost beat does no harm."""
        return min(self.watchdog_seconds / 3, SECONDS_BETWEEN_BEATS) if self.watchdog_seconds else SECONDS_BETWEEN_BEATS

    def starting(self, status: str) -> None:
        """Start-up goes on, and is given time for it: to be called again before `START_SECONDS_MORE` have passed."""
        self._tell(_status(status), f"EXTEND_TIMEOUT_USEC={int(START_SECONDS_MORE * 1_000_000)}")

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is done; `status` is the line that `systemctl status` shows."""
        self._tell("READY=1", f"MAINPID={os.getpid()}", _status(status))

    def status(self, status: str) -> None:
        self._tell(_status(status))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. The time stamp is what systemd 253's Type=notify-reload asks for."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}", _status("reloading"))

    def stopping(self, status: str, *, seconds_max: float | None = None) -> None:
        """Stopping begins; `seconds_max` asks for that long where the unit's own TimeoutStopSec is shorter."""
        extension = [f"EXTEND_TIMEOUT_USEC={int(seconds_max * 1_000_000)}"] if seconds_max else []
        self._tell("STOPPING=1", _status(status), *extension)

    def beat(self) -> None:
        """Alive: to be called from the event loop, never from a thread that lives on when the loop does not."""
        self._tell("WATCHDOG=1")
        if self._heartbeat is not None:
            fresh = self._heartbeat.with_name(f"{self._heartbeat.name}.new")
            fresh.write_text(f"{os.getpid()} {time.monotonic_ns()}\n", encoding="ascii")
            fresh.replace(self._heartbeat)

    async def keep_beating(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Beat until cancelled. A heartbeat file that cannot be written (full disk) is no reason to die: the ledger's
        own alarm tells of it, and the notify socket goes on."""
        while True:
            with suppress(OSError):
                self.beat()
            await sleep(self.seconds_between_beats)

    async def keep_starting(self, status: str, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Ask for more time until cancelled: a loop that hangs falls silent here, too."""
        while True:
            self.starting(status)
            await sleep(SECONDS_BETWEEN_BEATS)

    def _tell(self, *lines: str) -> None:
        """sd_notify(3): one datagram of assignments. A supervisor that went away is not our failure."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.setblocking(False)
            with suppress(OSError):
                line.sendto("\n".join(lines).encode(), address)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:500]


def seconds_since_beat(heartbeat: Path, pid: int) -> float | None:
    """How long ago the daemon with this pid beat; None where it has not yet (no file, or another daemon's)."""
    try:
        owner, nanoseconds = heartbeat.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return (time.monotonic_ns() - int(nanoseconds)) / 1e9 if owner == str(pid) else None
