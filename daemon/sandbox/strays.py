"""Finding and ending tool processes that outlived their daemon, by the mark in their environment."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ACTION_MARK = "PERDURE_ACTION"
WORKSPACE_MARK = "PERDURE_WORKSPACE"
_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Stray:
    """A process that carries our mark; `started` is its start time in clock ticks since boot, which tells it from a later
    process with the same pid."""

    pid: int
    started: int
    action: str


def marks(state_dir: Path, action: str) -> dict[str, str]:
    """The environment variables by which a tool process is known."""
    return {ACTION_MARK: action, WORKSPACE_MARK: str(state_dir)}


def find_strays(state_dir: Path, action: str | None = None) -> list[Stray]:
    """Every process with this workspace's mark (and this action's, if given), except ourselves and our ancestors."""
    ours = _ancestry()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) not in ours:
            stray = _stray(int(process.name), state_dir)
            if stray is not None and action in (None, stray.action):
                found.append(stray)
    return found


def end_strays(state_dir: Path, action: str | None = None) -> list[Stray]:
    """Kill what `find_strays` finds, and what it started meanwhile, and wait until all of it is gone. Returns what was ended.

    Blocks for at most ten seconds: call it before the loop starts, or in a thread."""
    ended: dict[tuple[int, int], Stray] = {}
    until = time.monotonic() + _SECONDS_MAX
    while time.monotonic() < until:
        strays = find_strays(state_dir, action)
        if not strays:
            break
        for stray in strays:
            if _end(stray, state_dir, until):
                ended[stray.pid, stray.started] = stray
    return list(ended.values())


def _end(stray: Stray, state_dir: Path, until: float) -> bool:
    try:
        handle = os.pidfd_open(stray.pid)
    except ProcessLookupError:
        return False
    try:
        if _stray(stray.pid, state_dir) != stray:  # the pid went to somebody else between finding and holding it
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll(max(0.0, until - time.monotonic()) * 1000)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def _stray(pid: int, state_dir: Path) -> Stray | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        environment = _environment(pid)
        if environment.get(WORKSPACE_MARK) == str(state_dir):
            state, started = _state_and_start(pid)
            if state not in "ZX":
                return Stray(pid, started, environment.get(ACTION_MARK, ""))
    return None


def _environment(pid: int) -> Mapping[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes()
    pairs = (os.fsdecode(entry).partition("=") for entry in raw.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def _state_and_start(pid: int) -> tuple[str, int]:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])


def _ancestry() -> set[int]:
    pids = {os.getpid()}
    pid = os.getppid()
    while pid > 0:
        pids.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            break
    return pids
