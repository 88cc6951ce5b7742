from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.daemon.stage import Stage

from perdure.daemon.config import load_config
from perdure.daemon.opening import own_ledger
from perdure.daemon.supervision import SECONDS_BETWEEN_BEATS, START_SECONDS_MORE, Supervision, seconds_since_beat


@pytest.fixture
def manager(tmp_path: Path):
    """A service manager's end of the notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(120)
        yield listener


def heard(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_the_manager_hears_the_life_of_the_daemon(manager: socket.socket, tmp_path: Path) -> None:
    supervision = Supervision({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    supervision.starting("recovering")
    assert heard(manager) == {"STATUS": "recovering", "EXTEND_TIMEOUT_USEC": str(int(START_SECONDS_MORE * 1_000_000))}
    supervision.ready("3 tasks; next log-triage 12:15")
    assert heard(manager) == {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "3 tasks; next log-triage 12:15"}
    supervision.status("one\nline")
    assert heard(manager) == {"STATUS": "one line"}
    supervision.beat()
    assert heard(manager) == {"WATCHDOG": "1"}
    supervision.reloading()
    assert heard(manager)["RELOADING"] == "1"
    supervision.stopping("parking 1 session", seconds_max=90)
    assert heard(manager) == {"STOPPING": "1", "STATUS": "parking 1 session", "EXTEND_TIMEOUT_USEC": "90000000"}


def test_a_start_that_brings_an_older_ledger_up_to_date_is_given_time_for_it(
    manager: socket.socket, tmp_path: Path
) -> None:
    stage = Stage(tmp_path / "workspace")
    with own_ledger(load_config(stage.directory)) as owned:
        events = owned.ledger.head.seq
    with contextlib.closing(sqlite3.connect(stage.directory / "state" / "ledger.db")) as db:
        db.execute("PRAGMA user_version = 1")
    command = [sys.executable, "-m", "perdure.daemon.cli", "-w", str(stage.directory), "run", "--quiet"]
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = [heard(manager)]
            while "READY" not in said[-1]:
                said.append(heard(manager))
            process.terminate()
            _, log = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0, log
    words = f"bringing the ledger up to date: {events} of {events} events"
    assert said[0] == {"STATUS": words, "EXTEND_TIMEOUT_USEC": "60000000"}
    assert any("settling" in one["STATUS"] and "EXTEND_TIMEOUT_USEC" in one for one in said[1:-1])
    assert words in log


def test_an_abstract_socket_is_reached_too() -> None:
    name = f"perdure-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(10)
        Supervision({"NOTIFY_SOCKET": f"@{name}"}).beat()
        assert listener.recv(100) == b"WATCHDOG=1"


def test_tools_do_not_inherit_a_way_to_speak_for_the_daemon() -> None:
    environ = {
        "NOTIFY_SOCKET": "/run/nowhere",
        "WATCHDOG_USEC": "9000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    assert Supervision(environ).watchdog_seconds == 9
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("environ", "seconds", "between"),
    [
        ({}, None, SECONDS_BETWEEN_BEATS),
        ({"WATCHDOG_USEC": "3000000"}, 3, 1),
        ({"WATCHDOG_USEC": "600000000"}, 600, SECONDS_BETWEEN_BEATS),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None, SECONDS_BETWEEN_BEATS),
        ({"WATCHDOG_USEC": "soon"}, None, SECONDS_BETWEEN_BEATS),
    ],
)
def test_beats_come_thrice_as_often_as_the_watchdog_needs(
    environ: dict[str, str], seconds: float | None, between: float
) -> None:
    supervision = Supervision(environ)
    assert (supervision.watchdog_seconds, supervision.seconds_between_beats) == (seconds, between)


def test_nobody_listening_or_a_dead_listener_harms_nothing(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "gone")):
        supervision = Supervision({"NOTIFY_SOCKET": address})
        supervision.ready("up")
        supervision.stopping("down")
        assert supervision.listening == bool(address)
    assert list(tmp_path.iterdir()) == []


def test_a_full_socket_does_not_block_the_loop(manager: socket.socket, tmp_path: Path) -> None:
    supervision = Supervision({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for _ in range(5_000):  # far more than the socket's queue: nobody reads
        supervision.beat()
    assert heard(manager) == {"WATCHDOG": "1"}


async def test_the_heartbeat_tells_whose_and_how_old(manager: socket.socket, tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat"
    supervision = Supervision({"NOTIFY_SOCKET": str(tmp_path / "notify")}, heartbeat=heartbeat)
    assert seconds_since_beat(heartbeat, os.getpid()) is None
    beats = 0

    async def sleep(_seconds: float) -> None:
        nonlocal beats
        beats += 1
        if beats == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await supervision.keep_beating(sleep)
    assert [heard(manager) for _ in range(3)] == [{"WATCHDOG": "1"}] * 3
    age = seconds_since_beat(heartbeat, os.getpid())
    assert age is not None
    assert age >= 0
    assert seconds_since_beat(heartbeat, os.getpid() + 1) is None


async def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "missing"
    supervision = Supervision({}, heartbeat=directory / "heartbeat")
    slept = 0

    async def sleep(_seconds: float) -> None:
        nonlocal slept
        slept += 1
        if slept == 2:
            directory.mkdir()
        if slept == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await supervision.keep_beating(sleep)
    assert seconds_since_beat(directory / "heartbeat", os.getpid()) is not None  # once it can be written, it is
