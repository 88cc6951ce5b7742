"""supervisord's watchdog: on each tick it reads the daemon's heartbeat, and ends a daemon whose event loop fell silent.

supervisord starts it as an event listener (see supervisord.conf) and starts anew what it ended. A hung loop does not act on
SIGTERM, so the first signal is SIGABRT, at which faulthandler writes the stacks of all threads; the next tick kills.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from perdure.daemon.supervision import seconds_since_beat


class Supervisor(Protocol):
    """The part of supervisord's XML-RPC interface that is used here."""

    def getProcessInfo(self, name: str) -> dict[str, Any]: ...  # noqa: N802 — supervisord's name

    def signalProcess(self, name: str, signal: str) -> bool: ...  # noqa: N802 — supervisord's name


class Watchdog:
    """Ends `program` when its heartbeat is older than `seconds`; before the first beat, when it has run for
    `seconds_to_start` (a daemon that settles what a crash left may take a while)."""

    def __init__(
        self, *, program: str, heartbeat: Path, seconds: float, seconds_to_start: float, say: Callable[[str], None]
    ) -> None:
        self._program = program
        self._heartbeat = heartbeat
        self._seconds = seconds
        self._seconds_to_start = seconds_to_start
        self._say = say
        self._aborted: int | None = None

    def look(self, supervisor: Supervisor) -> None:
        """One look, at a tick."""
        process = supervisor.getProcessInfo(self._program)
        if process["statename"] != "RUNNING":
            return
        pid = int(process["pid"])
        age = seconds_since_beat(self._heartbeat, pid)
        silent = age if age is not None else float(process["now"] - process["start"])
        most = self._seconds if age is not None else self._seconds_to_start
        if silent <= most:
            return
        signal = "KILL" if self._aborted == pid else "ABRT"
        self._aborted = pid
        self._say(f"{self._program} ({pid}) has been silent for {silent:.0f} s of at most {most:.0f}: SIG{signal}")
        supervisor.signalProcess(self._program, signal)


def main(arguments: Sequence[str] | None = None) -> None:
    """Speak supervisord's event listener protocol on standard input and output until it closes them."""
    from supervisor import childutils

    parser = argparse.ArgumentParser(prog="perdure.systemd.watchdog", description=__doc__)
    parser.add_argument("heartbeat", type=Path, help="the daemon's heartbeat file: STATE/heartbeat")
    parser.add_argument("--program", default="perdure", help="what supervisord calls the daemon")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long its event loop may be silent")
    parser.add_argument(
        "--seconds-to-start", type=float, default=300.0, help="how long it may take until its first beat"
    )
    given = parser.parse_args(arguments)

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    watchdog = Watchdog(
        program=given.program,
        heartbeat=given.heartbeat,
        seconds=given.seconds,
        seconds_to_start=given.seconds_to_start,
        say=say,
    )
    while True:
        childutils.listener.wait(sys.stdin, sys.stdout)
        try:
            with childutils.getRPCInterface(
                os.environ
            ) as server:  # anew each time: a connection cut once would stay cut
                watchdog.look(server.supervisor)
        except Exception as error:  # noqa: BLE001 — whatever this look met (supervisord stopping, say), the next tick looks again
            say(f"could not look: {type(error).__name__}: {error}")
        childutils.listener.ok(sys.stdout)


if __name__ == "__main__":
    main()
